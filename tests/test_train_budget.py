"""A training ends within its time budget, with an answer where it is the only one, and goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from stopped_trainings import STEPS, go_on, same_training, signals_heard
from test_loop import trainer
from warm_runs import Road, differing, outcome

from infer import stopping
from train.pace import Pace, TimeIsUp


@pytest.fixture
def listening():
    with signals_heard():
        yield


def test_out_of_time_the_only_fold_is_cut_short_and_answers_then_trained_on_to_the_same_run(
    road, warm, tiny_encoder: str, tmp_path: Path
) -> None:
    one: Road = road("encoder")
    place, log = [*one.command, f"run_dir={tmp_path / 'run'}"], tmp_path / "log"
    code, _ = warm.run(*place, "time_budget_minutes=0.001", log=log)
    said = log.read_text()
    assert code == 0, said[-3000:]
    assert "fold 0: the time budget ends at step 1 of 15, and no fold is finished" in said
    assert "the time budget is up: fold 1 is not begun" in said and "fold 1: the time budget" not in said
    assert not (tmp_path / "run" / "fold1").exists(), "the rest of the time is for finishing"
    assert "folds [1] are not trained yet" in said and "baselines and report are left out" in said
    done = json.loads((tmp_path / "run" / "fold0" / "done.json").read_text())
    assert done["cut_short"] and done["steps"] == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["folds"] == metrics["cut_short_folds"] == [0] and math.isfinite(metrics["log_loss"])

    code, _ = warm.run("infer", *place[1:], log=log)
    assert code == 0, log.read_text()[-3000:]
    assert len((tmp_path / "run" / "submission.csv").read_text().splitlines()) == 8
    again, _ = warm.run(*place, log=log)
    assert again == 0, log.read_text()[-3000:]
    assert "fold 0: cut short before, trained on" in log.read_text()
    assert not set(differing(outcome(tmp_path / "run"), one.whole)) & one.whole.keys()


@pytest.mark.slow
def test_out_of_time_a_second_fold_is_left_to_the_next_launch(road, warm, tmp_path: Path) -> None:
    one: Road = road("encoder")
    place, log = [*one.command, f"run_dir={tmp_path / 'run'}"], tmp_path / "log"
    assert warm.run(*place, "folds.only=[0]", log=log)[0] == 0
    code, _ = warm.run(*place, "time_budget_minutes=0.001", log=log)
    assert code == 0, log.read_text()[-3000:]
    assert "the time budget is up: fold 1 is not begun. The same command goes on with it" in log.read_text()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["folds"] == [0]
    one.ends_as_undisturbed(tmp_path)


def test_after_a_fold_another_is_begun_where_loading_a_step_and_a_save_fit_in(
    tmp_path: Path, tiny_encoder: str, listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import run as of_run

    begun = []

    def fold_of_a_minute(settings, data, fold, folder, *, deliver):
        begun.append(fold)
        return False, 60.0

    monkeypatch.setattr(of_run, "train_fold", fold_of_a_minute)
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    for minutes, expected in ((0.5, [0]), (1.5, [0, 1])):
        begun.clear()
        stopping.set_time_budget(minutes)
        assert of_run.train_folds(settings, None, [0, 1], set(), tmp_path) == begun == expected


@pytest.mark.parametrize("deliver", [True, False])
def test_out_of_time_a_training_is_saved_after_its_step_and_goes_on_to_the_same(
    tiny_encoder: str, tmp_path: Path, listening, deliver: bool
) -> None:
    whole = trainer(tmp_path / "whole", tiny_encoder, *STEPS)
    whole.train()
    loop = trainer(tmp_path / "cut", tiny_encoder, *STEPS)
    loop.deliver = deliver
    stopping.set_time_budget(1e-6)
    with pytest.raises(TimeIsUp), stopping.finishing_steps():
        loop.train()
    assert loop.state.global_step == 1
    stopping.forget()
    again = trainer(tmp_path / "cut", tiny_encoder, *STEPS)
    go_on(again)
    assert same_training(whole, again)


@pytest.mark.slow
def test_a_budget_that_is_long_enough_changes_nothing(road, warm, tmp_path: Path) -> None:
    one: Road = road("encoder")
    code, _ = warm.run(*one.command, f"run_dir={tmp_path / 'run'}", "time_budget_minutes=600", log=tmp_path / "log")
    assert code == 0 and differing(outcome(tmp_path / "run"), one.whole) == []


def test_of_a_network_cut_short_the_better_of_now_and_its_best_evaluation_stays(
    tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.attempts import _settle_network

    for score, keeps_best in ((0.9, True), (0.1, False)):
        loop = trainer(tmp_path / str(score), tiny_encoder, *STEPS)
        loop.evaluate_heldout = lambda network: {"log_loss": 0.5, "accuracy": 0.5}
        loop.train()
        first = [weight.clone() for weight in loop.model.parameters()]
        with torch.no_grad():
            for weight in loop.model.parameters():
                weight.add_(1.0)
        loop.evaluate_heldout = lambda network, score=score: {"log_loss": score, "accuracy": 0.5}
        _settle_network(loop, "last")
        assert not torch.equal(first[0], next(loop.model.parameters()))
        _settle_network(loop, "best")
        assert torch.equal(first[0], next(loop.model.parameters())) is keeps_best


def test_a_training_needs_the_time_of_what_must_follow_it() -> None:
    pace = Pace(heldout_steps=10, saved_bytes=200_000_000, budget_s=1000.0)
    pace.steps.extend([1.0, 2.0])
    assert pace.evaluation_s == 10.0 and pace.save_s == 2.0  # ten steps of 2 s, a forward pass half of one
    assert pace.needed_s(deliver=False, evaluates=False) == 2 + 2 + 50
    assert pace.needed_s(deliver=True, evaluates=False) == 2 + 2 + 50 + 2 * 10 + 2
    assert pace.needed_s(deliver=False, evaluates=True) == 2 + 2 + 50 + 10 + 2
    pace.longest |= {"evaluation": 3.0, "save": 1.0}
    assert pace.needed_s(deliver=True, evaluates=True) == 2 + 1 + 50 + 2 * 3 + 1 + 3 + 1
