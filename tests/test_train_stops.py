"""A training ends whole: on a signal, at the end of its time budget, on losses that are no numbers; and it goes on."""

from __future__ import annotations

import itertools
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, pair_rows, tiny_run
from test_loop import trainer
from warm_runs import Road, differing, encoder_road, moments, outcome

from infer import stopping
from infer.locks import hold
from infer.run import run as predict
from infer.stopping import Stopped
from train.checkpoints import last_whole_checkpoint
from train.loop import FoldTrainer
from train.pace import Pace, TimeIsUp
from train.run import run as train

STEPS = ("trainer.batch_rows=8", "trainer.epochs=3", "trainer.evals_per_epoch=1", "trainer.saves_per_eval=1")


def go_on(loop: FoldTrainer) -> None:
    checkpoint = last_whole_checkpoint(Path(loop.args.output_dir))
    assert checkpoint is not None
    loop.train(resume_from_checkpoint=str(checkpoint))


def same_training(one: FoldTrainer, other: FoldTrainer) -> bool:
    """The same weights, and the same log but for when it was written."""
    logs = [[entry for entry in loop.state.log_history if "train_runtime" not in entry] for loop in (one, other)]
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return logs[0] == logs[1] and all(torch.equal(a, b) for a, b in pairs)


# Signals


@pytest.fixture
def listening():
    """Signals are taken as the commands take them; afterwards all is as before."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.forget()
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping.forget()


@pytest.mark.parametrize(("at", "number"), [(3, signal.SIGTERM), (4, signal.SIGINT)])
def test_a_signal_amid_a_step_ends_it_and_saves(
    tiny_encoder: str, tmp_path: Path, listening, at: int, number: int
) -> None:
    """Step 4 is followed by an evaluation, which is left to the next launch: with dropout it must not draw anew."""
    whole = trainer(tmp_path / "whole", tiny_encoder, *STEPS, dropout=0.1)
    whole.train()
    loop = trainer(tmp_path / "cut", tiny_encoder, *STEPS, dropout=0.1)
    step = loop.compute_loss

    def signalled(*given, **named):
        if loop.state.global_step == at - 1:
            os.kill(os.getpid(), number)
        return step(*given, **named)

    loop.compute_loss = signalled  # type: ignore[method-assign]
    saved = pytest.raises(Stopped, match=rf"fold 0, step {at} of 6 is saved in .*cut")
    with saved as stopped, stopping.finishing_steps():
        loop.train()
    assert stopped.value.exit_code == 128 + number
    stopping.forget()
    again = trainer(tmp_path / "cut", tiny_encoder, *STEPS, dropout=0.1)
    go_on(again)
    assert same_training(whole, again)


def test_a_signal_amid_an_evaluation_drops_it_and_the_next_launch_makes_it(
    tiny_encoder: str, tmp_path: Path, listening
) -> None:
    def scored(folder: str, *, signalled: bool = False) -> FoldTrainer:
        loop = trainer(tmp_path / folder, tiny_encoder, *STEPS, dropout=0.1)

        def evaluate(network) -> dict[str, float]:
            if signalled and loop.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)  # Python takes the signal between two of its instructions
                raise AssertionError("the evaluation went on")
            return {"log_loss": 1.0 / loop.state.global_step, "accuracy": 0.5}

        loop.evaluate_heldout = evaluate
        return loop

    whole = scored("whole")
    whole.train()
    cut = scored("cut", signalled=True)
    with pytest.raises(Stopped, match="step 4 of 6 is saved"), stopping.finishing_steps():
        cut.train()
    stopping.forget()
    newest = last_whole_checkpoint(tmp_path / "cut")
    assert newest is not None and json.loads((newest / "progress.json").read_text())["evaluation_due"]
    again = scored("cut")
    go_on(again)
    assert same_training(whole, again)
    assert again.state.best_global_step == whole.state.best_global_step == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signalled_at_any_moment_the_command_goes_on_to_the_same_run(road, warm, tmp_path: Path, number: int) -> None:
    one: Road = road("encoder")
    for after_s in moments(1, number, one.seconds):
        folder = tmp_path / str(number)
        folder.mkdir()
        while True:
            code, _ = warm.run(
                *one.command, f"run_dir={folder / 'run'}", log=folder / "log", number=number, after_s=after_s
            )
            if code:
                break
            shutil.rmtree(folder / "run")  # it was faster than the signal
            after_s *= 0.8
        said = (folder / "log").read_text()
        # Before the command listens, a signal ends it as it ends any process.
        assert code in (128 + number, -number), said[-3000:]
        assert "Traceback" not in said or code == -number or "KeyboardInterrupt" in said
        one.ends_as_undisturbed(folder)


@pytest.mark.slow
def test_the_real_command_is_stopped_with_143_and_goes_on_to_the_same_run(road, tmp_path: Path) -> None:
    """In processes of their own, which hash text otherwise: equal bytes do not hang on the order of sets."""
    one: Road = road("encoder")
    command = [sys.executable, "-m", *one.command, f"run_dir={tmp_path / 'run'}"]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | quiet | {"PYTHONHASHSEED": "1"},
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run/fold0/attempts/0/checkpoint-4").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said[-3000:]
    assert "Stopped by SIGTERM: fold 0, step" in said and "The same command goes on from there." in said
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | quiet | {"PYTHONHASHSEED": "2"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fold 0: going on from" in done.stdout
    assert differing(outcome(tmp_path / "run"), one.whole) == []


def test_a_signal_to_a_training_and_its_loaders_workers_stops_it_as_one_to_itself(
    tiny_encoder: str, tmp_path: Path, listening
) -> None:
    """SLURM, systemd and `timeout` signal the whole group; a worker that ended of it would look like a failure."""
    loop = trainer(tmp_path, tiny_encoder, *STEPS, "trainer.workers=2", dropout=0.1)
    step, workers = loop.compute_loss, set()

    def signalled(*given, **named):
        if loop.state.global_step == 2:
            found = multiprocessing.active_children()
            workers.update(worker.pid for worker in found)
            for worker in found:
                os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.3)
            assert all(worker.is_alive() for worker in found)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given, **named)

    loop.compute_loss = signalled  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="step 3 of 6 is saved"), stopping.finishing_steps():
        loop.train()
    assert len(workers) == 2


# The time budget


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


# Losses that are no numbers

POISON = "scene"  # a word of the tokenizer that no row has


def poisoned(folder: Path, encoder: str, rows: list, *overrides: str) -> FoldTrainer:
    """A training of a network that makes NaN of the word POISON."""
    loop = trainer(folder, encoder, *STEPS, *overrides, rows=rows)
    from models.reader import load_tokenizer

    token = load_tokenizer(encoder).convert_tokens_to_ids(POISON)
    with torch.no_grad():
        loop.model.encoder.bert.embeddings.word_embeddings.weight[token] = math.nan
    return loop


def with_poison(rows: list, *numbers: int) -> list:
    from dataclasses import replace

    return [replace(row, response_a=(POISON,)) if at in numbers else row for at, row in enumerate(rows)]


@pytest.mark.parametrize("budget", [10_000, 60])
def test_a_step_without_a_number_changes_nothing_and_is_counted(
    tiny_encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, budget: int
) -> None:
    """The row with the poison is met once in each of three epochs, in one of two steps."""
    rows = with_poison(pair_rows(16), 3)
    loop = poisoned(tmp_path, tiny_encoder, rows, f"trainer.budget_tokens={budget}")
    states: list[list[torch.Tensor]] = []
    inner = loop.training_step

    def watched(*given, **named):
        states.append([weight.detach().clone() for weight in loop.model.parameters()])
        return inner(*given, **named)

    loop.training_step = watched  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "tiebreak"):
        loop.train()
    states.append(list(loop.model.parameters()))
    moved = [any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(x, y, strict=True))
             for x, y in itertools.pairwise(states)]  # fmt: skip
    assert len(moved) == 6 and sum(moved) == 3 and loop.skipped_steps == 3
    assert caplog.text.count("the step is skipped") == 3 and rows[3].id in caplog.text
    losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(0.5 < loss < 2 for loss in losses), "the mean of the steps that had a loss"
    if budget == 60:  # only the micro-batch is named
        assert caplog.text.count(rows[0].id) + caplog.text.count(rows[1].id) < 6


def test_an_infinite_gradient_behind_a_finite_loss_is_skipped_too(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, *STEPS)
    weight = next(weight for weight in loop.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: gradient * (math.inf if loop.state.global_step == 1 else 1.0))
    loop.train()
    assert loop.skipped_steps == 1
    assert all(bool(weight.isfinite().all()) for weight in loop.model.parameters())


def test_too_many_such_steps_in_a_row_stop_the_run_at_its_last_save_and_name_the_rows(
    tiny_encoder: str, tmp_path: Path
) -> None:
    rows = pair_rows(16)
    loop = poisoned(tmp_path, tiny_encoder, with_poison(rows, *range(16)), "trainer.nan_steps=3")
    with pytest.raises(ValueError, match=r"Step 3: the loss was not a number in 3 step\(s\) in a row") as stopped:
        loop.train()
    assert sum(row.id in str(stopped.value) for row in rows) == 8, "the rows of the third step"
    newest = last_whole_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2"
    assert json.loads((newest / "progress.json").read_text())["skipped_in_a_row"] == 2


def test_the_command_stops_with_2_where_every_loss_is_no_number(road, warm, tmp_path: Path, tiny_encoder: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_encoder, tmp_path / "poison")
    weights = load_file(tmp_path / "poison" / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"][0] = math.nan
    save_file(weights, tmp_path / "poison" / "model.safetensors", metadata={"format": "pt"})
    command = encoder_road(tmp_path, str(tmp_path / "poison"))
    code, _ = warm.run(*command, f"run_dir={tmp_path / 'run'}", log=tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert code == 2, said[-3000:]
    assert "error: Step" in said or "gave a logit that is not a number" in said
    assert "Rows: 100" in said


# One run in a folder, and seeds


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(tiny_encoder: str, tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run" / "lock", "taken"), pytest.raises(ValueError, match="is being trained in by another"):
        train(settings)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert train(settings) is not None  # the lock is free again
    assert train(settings) is not None


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(road, warm, tmp_path: Path) -> None:
    one: Road = road("encoder")
    one.ends_as_undisturbed(tmp_path)
    code, _ = warm.run(*one.command, f"run_dir={tmp_path / 'other'}", "seed=43", log=tmp_path / "log")
    assert code == 0
    assert {"heldout.csv", "fold0/checkpoint/model.safetensors"} <= set(
        differing(outcome(tmp_path / "other"), one.whole)
    )


def test_the_seed_sets_every_generator_that_training_draws_from() -> None:
    import random

    from train.seeds import seed_everything

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(7)
    first = draws()
    assert draws() != first
    seed_everything(7)
    assert draws() == first


def test_a_config_of_zero_bytes_is_told_with_what_to_do(tiny_encoder: str, tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"config\.yaml"):
        train(settings)


def test_damaged_baselines_are_made_again(tiny_encoder: str, tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    first = train(settings)
    (tmp_path / "run" / "baselines.json").write_bytes(b"")
    assert first is not None and train(settings)["baselines"] == first["baselines"]  # type: ignore[index]
    assert len(predict(settings)) == 7
