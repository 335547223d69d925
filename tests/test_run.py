"""Whole runs on a network of two layers: train, resume, predict, refuse, on one process and on two."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, compose, free_port, pair_rows, tiny_arguments, tiny_run, write_arena_csv

from infer.calibration.temperature import apply_temperature
from infer.predictions import Predictions
from infer.run import run as predict
from train import attempts as train_attempts
from train import fold as train_fold
from train.record import settle_processes
from train.run import run as train


@pytest.fixture(scope="module")
def finished(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory):
    """A run of two folds that was trained and predicted."""
    folder = tmp_path_factory.mktemp("finished")
    settings = tiny_run(folder, tiny_encoder, "trainer.epochs=2")
    metrics = train(settings)
    return settings, metrics, predict(settings)


def test_every_row_is_held_out_once_and_learnt_from_the_others(finished) -> None:
    settings, metrics, _ = finished
    table = Predictions.read(Path(settings.run_dir) / "heldout.csv")
    assert sorted(table.ids) == sorted(row.id for row in pair_rows(48))
    assert metrics["log_loss"] == pytest.approx(table.log_loss(), abs=1e-6)


def test_the_run_folder_holds_the_record(finished) -> None:
    folder = Path(finished[0].run_dir)
    expected = ["config.yaml", "environment.json", "folds.csv", "heldout.csv", "metrics.json", "calibration.json",
                "fold0/done.json", "fold1/checkpoint/README.md", "predictions.csv", "submission.csv"]  # fmt: skip
    assert not [name for name in expected if not (folder / name).is_file()]
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in ("log_loss", "log_loss_interval", "accuracy", "brier", "calibration_error", "per_class",
                "swap_disagreement", "temperature", "log_loss_calibrated", "baselines"):  # fmt: skip
        assert key in metrics
    assert set(metrics["baselines"]) == {"uniform", "class prior", "length only", "structural features"}


def test_the_last_line_names_the_score_beside_its_baselines(finished) -> None:
    settings, metrics, _ = finished
    last = (Path(settings.run_dir) / "train.log").read_text().splitlines()[-1]
    for word in (f"{metrics['log_loss']:.4f}", "uniform 1.0986", "class prior", "length only", "structural features"):
        assert word in last


def test_the_submission_has_the_test_ids_and_rows_that_sum_to_one(finished) -> None:
    settings, _, predictions = finished
    frame = pd.read_csv(Path(settings.run_dir) / "submission.csv", dtype={"id": str})
    assert list(frame.columns) == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert list(frame["id"]) == [row.id for row in pair_rows(7, seed=5)]
    np.testing.assert_allclose(frame.iloc[:, 1:].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(frame.iloc[:, 1:], predictions.probs, atol=1e-5)


def test_the_heldout_table_comes_from_the_saved_checkpoint(finished) -> None:
    from infer.classifiers import load_classifier

    folder = Path(finished[0].run_dir) / "fold0"
    table = Predictions.read(folder / "heldout.csv")
    rows = {row.id: row for row in pair_rows(48)}
    probs = load_classifier(folder / "checkpoint").predict_proba([rows[row_id] for row_id in table.ids])
    np.testing.assert_allclose(probs, table.probs, atol=1e-6)


def test_the_same_command_again_trains_nothing(finished) -> None:
    settings = finished[0]
    before = (Path(settings.run_dir) / "fold0" / "done.json").stat().st_mtime_ns
    train(settings)
    assert (Path(settings.run_dir) / "fold0" / "done.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused_by_name(finished, tiny_encoder: str) -> None:
    folder = Path(finished[0].run_dir).parent
    with pytest.raises(ValueError, match=r"trainer\.learning_rate \(0\.001 there, 0\.005 now\)"):
        train(tiny_run(folder, tiny_encoder, "trainer.epochs=2", "trainer.learning_rate=5e-3"))


def test_infer_before_train_says_which_command_is_missing(tmp_path: Path, tiny_encoder: str) -> None:
    with pytest.raises(FileNotFoundError, match="python -m train"):
        predict(tiny_run(tmp_path, tiny_encoder))


def test_one_checkpoint_folder_predicts_alone(finished, tmp_path: Path) -> None:
    import shutil

    settings = finished[0]
    moved = tmp_path / "elsewhere"
    shutil.copytree(Path(settings.run_dir) / "fold1" / "checkpoint", moved)
    alone = compose("+experiment=arena_quickstart", f"run_dir={moved}", f"task.test_csv={settings.task.test_csv}")
    assert len(predict(alone)) == 7


def test_training_may_name_a_single_fold(tmp_path: Path, tiny_encoder: str) -> None:
    part = train(tiny_run(tmp_path, tiny_encoder, "folds.only=[1]"))
    assert part["folds"] == [1] and part["rows"] == 24
    assert (tmp_path / "run" / "fold1" / "done.json").is_file()
    assert not (tmp_path / "run" / "fold0").exists()
    assert len(predict(tiny_run(tmp_path, tiny_encoder))) == 7  # with the one there is
    assert train(tiny_run(tmp_path, tiny_encoder))["rows"] == 48


def test_a_holdout_is_one_fold_of_its_share(tmp_path: Path, tiny_encoder: str) -> None:
    metrics = train(tiny_run(tmp_path, tiny_encoder, "folds.holdout=0.25"))
    assert 8 <= metrics["rows"] <= 16


def test_another_runs_folds_are_reused(finished, tmp_path: Path, tiny_encoder: str) -> None:
    given = Path(finished[0].run_dir) / "folds.csv"
    settings = tiny_run(tmp_path, tiny_encoder, f"folds.file={given}", "method.name=length")
    train(settings)
    assert (tmp_path / "run" / "folds.csv").read_text() == given.read_text()
    other = tmp_path / "other.csv"
    other.write_text(given.read_text().replace(",1,", ",2,").replace(",0,", ",1,").replace(",2,", ",0,"))
    with pytest.raises(ValueError, match="other folds"):
        train(tiny_run(tmp_path, tiny_encoder, f"folds.file={other}", "method.name=length"))


def test_a_fold_that_does_not_exist_is_refused(finished, tmp_path: Path, tiny_encoder: str) -> None:
    given = Path(finished[0].run_dir) / "folds.csv"
    with pytest.raises(ValueError, match=r"folds\.only names \[3\]"):
        train(tiny_run(tmp_path, tiny_encoder, f"folds.file={given}", "folds.count=5", "folds.only=[3]"))


def test_predictions_go_to_another_folder_where_the_run_cannot_be_written(finished, tmp_path: Path) -> None:
    import shutil

    settings = finished[0]
    run = tmp_path / "input"
    shutil.copytree(settings.run_dir, run)
    for name in ("predictions.csv", "submission.csv"):
        (run / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    away = compose(
        "+experiment=arena_quickstart", f"run_dir={run}", f"out_dir={tmp_path / 'working'}",
        f"task.test_csv={settings.task.test_csv}",
    )  # fmt: skip
    predict(away)
    assert (tmp_path / "working" / "submission.csv").is_file()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_blended_with_its_copy_is_the_run(finished, tmp_path: Path) -> None:
    """Held-out and test tables are tempered alike: a temperature applied twice would show here."""
    import shutil

    settings = finished[0]
    copy = tmp_path / "copy"
    shutil.copytree(settings.run_dir, copy)
    blend = compose(
        "+experiment=arena_blend", f"blend.runs=[{settings.run_dir},{copy}]", f"run_dir={tmp_path / 'blend'}",
        f"task.test_csv={settings.task.test_csv}",
    )  # fmt: skip
    blended = predict(blend)
    record = json.loads((tmp_path / "blend" / "blend.json").read_text())
    assert sum(record["weights"].values()) == pytest.approx(1)
    alone = Predictions.read(Path(settings.run_dir) / "predictions.csv")
    expected = apply_temperature(alone, record["temperature"])
    np.testing.assert_allclose(blended.align(alone.ids).probs, expected.probs, atol=1e-5)


@pytest.mark.parametrize("method", ["prior", "length", "tfidf", "features"])
def test_every_scikit_learn_method_goes_the_same_road(tmp_path: Path, tiny_encoder: str, method: str) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, f"method.name={method}")
    metrics = train(settings)
    assert metrics["rows"] == 48
    assert len(predict(settings)) == 7


def test_a_network_that_learns_nothing_is_restarted_and_said_so(
    tmp_path: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_run(
        tmp_path,
        tiny_encoder,
        "trainer.learning_rate=1e-12",
        "trainer.epochs=8",
        "folds.only=[0]",
        "trainer.restarts=1",
    )
    train(settings)
    done = json.loads((tmp_path / "run" / "fold0" / "done.json").read_text())
    assert done["attempts"] == 2 and done["collapsed"]
    assert "starting again with seed" in capsys.readouterr().out


def test_a_run_keeps_its_steps_with_another_number_of_processes(
    tmp_path: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun by three processes with 2 rows each, and gone on with by one: the very run of 6 rows a step."""
    found, same = {}, ("trainer.budget_tokens=256", "folds.only=[0]", "report=false")
    for name, rows in (("begun", 2), ("single", 6)):
        run = tmp_path / name / "run"
        run.mkdir(parents=True)
        settings = tiny_run(run.parent, tiny_encoder, f"trainer.batch_rows={rows}", *same)
        if name == "begun":
            (run / "processes.json").write_text('{"processes": 3}')
        train(settings)
        found[name] = [(run / "fold0" / file).read_bytes() for file in ("heldout.csv", "checkpoint/model.safetensors")]
        said = capsys.readouterr().out
        assert ("3 process(es) began this run with 6 rows a step, and 1 go(es) on" in said) is (name == "begun")
        assert json.loads((run / "processes.json").read_text()) == {"processes": 3 if name == "begun" else 1}
    assert found["begun"] == found["single"]


def test_a_damaged_record_of_the_processes_is_told_with_what_to_write(tmp_path: Path) -> None:
    for damaged in ("", "{}", '{"processes": 0}', "[1]"):
        (tmp_path / "processes.json").write_text(damaged)
        with pytest.raises(ValueError, match=r'processes\.json is damaged.*Write \{"processes": 2\} into it'):
            settle_processes(tmp_path, 2)


def test_a_folds_network_is_gone_before_its_rows_are_predicted_and_before_the_next_fold(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card a fold has room for one network with Adam's state, and no more."""
    alive = []

    def seen(module, name: str) -> None:
        real = getattr(module, name)

        def counted(*given, **named):
            kinds = [type(one).__name__ for one in gc.get_objects()]
            alive.append((name, kinds.count("PairClassifier") - first, kinds.count("FoldTrainer")))
            return real(*given, **named)

        monkeypatch.setattr(module, name, counted)

    gc.collect()
    first = [type(one).__name__ for one in gc.get_objects()].count("PairClassifier")
    seen(train_attempts, "make_learner")
    seen(train_fold, "predict_heldout")
    train(tiny_run(tmp_path, tiny_encoder, "folds.count=2", "report=false"))
    assert alive == [("make_learner", 0, 0), ("predict_heldout", 1, 0)] * 2


def test_soft_labels_from_votes_train_and_hard_ones_score(tmp_path: Path, tiny_encoder: str) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, f"task.votes_csv={tmp_path / 'votes.csv'}", "method.name=prior")
    rows = pair_rows(48)
    votes = pd.DataFrame({"id": [row.id for row in rows], "votes_a": 1, "votes_b": 1, "votes_tie": 8})
    votes.to_csv(tmp_path / "votes.csv", index=False)
    train(settings)
    table = Predictions.read(tmp_path / "run" / "heldout.csv")
    np.testing.assert_allclose(table.probs[:, 2], 0.8, atol=1e-6)  # trained on the votes
    assert len(set(table.truth)) == 3  # judged by the winners


def test_bad_test_rows_are_answered_with_the_mean_where_skipping_is_allowed(finished, tmp_path: Path) -> None:
    settings = finished[0]
    path = write_arena_csv(tmp_path / "test.csv", pair_rows(5, seed=9), labelled=False)
    path.write_text(path.read_text() + '77,"[""unclosed","[""x""]","[""y""]"\n')
    again = compose("+experiment=arena_quickstart", f"run_dir={settings.run_dir}", f"task.test_csv={path}")
    with pytest.raises(ValueError, match="77"):
        predict(again)
    again.task.on_bad_row = "skip"
    predictions = predict(again)
    mean = predictions.align(["77"]).probs[0]
    assert mean.sum() == pytest.approx(1, abs=1e-5)
    folder = Path(settings.run_dir)
    assert len(pd.read_csv(folder / "submission.csv")) == 6
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    assert table[table["filled"] == "bad row"]["id"].tolist() == ["77"] and table["filled"].notna().sum() == 1
    assert json.loads((folder / "submission.csv.json").read_text())["filled"] == {"bad row": ["77"]}
    assert Predictions.read(folder / "predictions.csv").align(["77"]).filled.tolist() == ["bad row"]
    assert pd.read_csv(folder / "bad_test_rows.csv", dtype=str)["id"].tolist() == ["77"]


def test_a_file_without_bad_rows_leaves_no_list_of_another_ones(finished, tmp_path: Path) -> None:
    settings = finished[0]
    (Path(settings.run_dir) / "bad_test_rows.csv").write_text("of the file before it was mended")
    again = compose(
        "+experiment=arena_quickstart", f"run_dir={settings.run_dir}", f"task.test_csv={settings.task.test_csv}"
    )
    predict(again)
    folder = Path(settings.run_dir)
    assert not (folder / "bad_test_rows.csv").exists()
    assert "filled" not in pd.read_csv(folder / "predictions.csv")
    assert json.loads((folder / "submission.csv.json").read_text())["filled"] == {}


def test_null_empty_and_giant_test_rows_get_an_answer(finished, tmp_path: Path) -> None:
    """Finetuning trap 39: the hidden test file holds what the three public rows do not."""
    settings = finished[0]
    path = tmp_path / "test.csv"
    giant = json.dumps(["good film " * 20_000])
    rows = [("1", '["q"]', "[null]", '["good"]'), ("2", '["q"]', '[""]', '[""]'), ("3", giant, giant, '["bad"]')]
    pd.DataFrame(rows, columns=["id", "prompt", "response_a", "response_b"]).to_csv(path, index=False)
    predictions = predict(
        compose("+experiment=arena_quickstart", f"run_dir={settings.run_dir}", f"task.test_csv={path}")
    )
    assert list(predictions.ids) == ["1", "2", "3"] and np.isfinite(predictions.probs).all()


def uneven(folder: Path) -> None:
    """47 rows for two ranks."""
    write_arena_csv(folder / "train.csv", pair_rows(48)[:47])
    write_arena_csv(folder / "test.csv", pair_rows(7, seed=5), labelled=False)


def assert_every_row_once(folder: Path, said: str) -> None:
    assert "2 process(es)" in said and said.count("fold 0: held-out log loss") == 1
    table = Predictions.read(folder / "run" / "heldout.csv")
    assert sorted(table.ids) == sorted(row.id for row in pair_rows(48)[:47])


def test_two_processes_make_one_folder_and_every_row_once(warm, tmp_path: Path, tiny_encoder: str) -> None:
    """The odd row is neither lost nor doubled, and the metrics are the single process's.

    Finetuning trap 30: one run folder for all ranks.
    """
    uneven(tmp_path)
    given = tiny_arguments(tmp_path, tiny_encoder)
    two = [*given, "report=false", "trainer.epochs=2", "trainer.batch_rows=4", "model.dropout=0.0"]
    assert_every_row_once(tmp_path, warm.ranks("train", *two, log=tmp_path / "log"))
    assert json.loads((tmp_path / "run" / "processes.json").read_text()) == {"processes": 2}
    whole = json.loads((tmp_path / "run" / "metrics.json").read_text())
    single = train(
        tiny_run(tmp_path, tiny_encoder, "trainer.epochs=2", "model.dropout=0.0", f"run_dir={tmp_path / 'single'}")
    )  # 8 rows a step, as 2 x 4
    # The ranks add their gradients in another order; the tiny network's few steps keep that small.
    assert whole["log_loss"] == pytest.approx(single["log_loss"], abs=0.01)
    assert whole["baselines"] == pytest.approx(single["baselines"], abs=1e-6)
    warm.ranks("infer", *two, log=tmp_path / "log")
    assert len(pd.read_csv(tmp_path / "run" / "submission.csv")) == 7


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc_per_node=2", "-m", "train"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m", "train"),
}


def launched(folder: Path, encoder: str, launcher: str, *overrides: str) -> str:
    """What a run says that a launcher starts on two processes, 47 rows between them."""
    uneven(folder)
    started = [sys.executable, "-m", *LAUNCHERS[launcher], *tiny_arguments(folder, encoder), *overrides]
    environment = os.environ | {"MASTER_PORT": str(free_port())}
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_accelerate_launches_two_processes_of_one_run(tmp_path: Path, tiny_encoder: str) -> None:
    """Finetuning trap 31: accelerate launch needs -m."""
    said = launched(tmp_path, tiny_encoder, "accelerate", "method.name=prior", "report=false")
    assert_every_row_once(tmp_path, said)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_train_a_network_on_two_processes(tmp_path: Path, tiny_encoder: str, launcher: str) -> None:
    assert_every_row_once(tmp_path, launched(tmp_path, tiny_encoder, launcher, "trainer.batch_rows=4"))
    assert (tmp_path / "run" / "report.html").is_file()
