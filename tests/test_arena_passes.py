"""infer.arena.passes: what was read is kept, a run that goes on gives the same bytes, and time is kept to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, compose, free_port, pair_rows, tiny_run, write_arena_csv

from infer import stopping
from infer.arena import order_readers
from infer.arena import passes as arena_passes
from infer.arena.order_readers import OrderReader
from infer.predictions import Predictions
from infer.run import run as predict
from train.run import run as train

ROWS = 60


@pytest.fixture(scope="module")
def trained(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_run(folder, tiny_encoder, "model.head=joint", "trainer.tta=true"))
    return folder / "run"


@pytest.fixture(autouse=True)
def no_budget() -> Iterator[None]:
    stopping.forget()
    yield
    stopping.forget()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_readers, "CHUNK_BATCHES", 2)


def settings_of(run: Path, out: Path, *overrides: str):
    out.mkdir(exist_ok=True)
    rows = pair_rows(ROWS, seed=5)
    test = write_arena_csv(out / "test.csv", [*rows[::2], *rows[1::2]], labelled=False)
    return compose(
        "+experiment=arena_quickstart", f"run_dir={run}", f"out_dir={out}", f"task.test_csv={test}",
        "trainer.predict_batch_rows=3", *overrides,
    )  # fmt: skip


def files(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("predictions.csv", "submission.csv", "submission.csv.json")]


def stop_after(reads: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[int]:
    """Makes the read after so many raise; the numbers of rows of each read until then."""
    seen: list[int] = []
    whole = OrderReader.read

    def read(self: OrderReader, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        if len(seen) == reads:
            raise error
        seen.append(len(at))
        return whole(self, at, swapped=swapped)

    monkeypatch.setattr(OrderReader, "read", read)
    return seen


@pytest.fixture(scope="module")
def unbroken(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The files of a run that nothing broke; chunks as in every test here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_readers, "CHUNK_BATCHES", 2)
        out = tmp_path_factory.mktemp("unbroken")
        predict(settings_of(trained, out))
        return files(out)


@pytest.mark.parametrize("reads", [1, 11, 39])
def test_a_run_that_broke_off_goes_on_to_the_same_bytes(
    trained: Path, unbroken: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(reads, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(settings_of(trained, tmp_path))
    parts = tmp_path / "submission.csv.parts"
    assert len(list(parts.glob("part-*"))) == reads and not (tmp_path / "submission.csv").exists()
    with monkeypatch.context() as patch:
        again = stop_after(1000, patch, KeyboardInterrupt())
        predict(settings_of(trained, tmp_path))
    assert reads + len(again) == 40  # 2 checkpoints x 2 orders x 10 chunks of 6 rows: none is read twice
    assert files(tmp_path) == unbroken and not parts.exists()


def test_chunks_change_no_number(trained: Path, unbroken: list[bytes], tmp_path: Path, monkeypatch) -> None:
    """An encoder's chunks end where its batches end."""
    monkeypatch.setattr(order_readers, "CHUNK_BATCHES", 10_000)
    predict(settings_of(trained, tmp_path))
    assert files(tmp_path)[:2] == unbroken[:2]


def test_the_passes_are_what_the_classifiers_say(trained: Path, tmp_path: Path) -> None:
    """The mean of each checkpoint's own predict_proba, which held-out tables come from, with the run's temperature."""
    from infer.calibration.temperature import apply_temperature
    from infer.checkpoints import find_checkpoints, run_temperature
    from infer.classifiers import load_classifier
    from infer.predictions import average
    from models.tasks.arena import LABELS

    rows = pair_rows(ROWS, seed=5)
    ids = np.array([row.id for row in rows], dtype=object)
    tables = [
        Predictions(ids, LABELS, load_classifier(one).predict_proba(rows), np.zeros(len(rows)))
        for one in find_checkpoints(trained)
    ]
    expected = apply_temperature(average(tables), run_temperature(trained, LABELS) or 1.0)
    found = predict(settings_of(trained, tmp_path))
    assert isinstance(found, Predictions)
    np.testing.assert_allclose(found.align(ids).probs, expected.probs, atol=1e-6)  # batches differ


def test_parts_of_other_checkpoints_are_refused(trained: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(settings_of(trained, tmp_path))
    with pytest.raises(ValueError, match=r"unfinished output of another run; they differ in checkpoints.*delete"):
        predict(settings_of(trained / "fold1" / "checkpoint", tmp_path))


def test_parts_are_of_one_number_format_whatever_it_was_called(
    trained: Path, unbroken: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto is fp32 on this machine, and another format on another."""
    with monkeypatch.context() as patch:
        stop_after(2, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(settings_of(trained, tmp_path, "trainer.precision=auto"))
    with monkeypatch.context() as patch:
        patch.setattr("models.precision.resolve_precision", lambda *_: "bf16")
        with pytest.raises(ValueError, match=r"differ in precision \(\[\"fp32\"\] there, \[\"bf16\"\] now\)"):
            predict(settings_of(trained, tmp_path, "trainer.precision=auto"))
    predict(settings_of(trained, tmp_path, "trainer.precision=fp32"))
    assert files(tmp_path) == unbroken


def test_an_older_submission_is_written_anew_and_a_persons_is_not(
    trained: Path, unbroken: list[bytes], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"submission\.csv is there already and was made otherwise: no record"):
        (tmp_path / "submission.csv").write_text("a person's")
        predict(settings_of(trained, tmp_path))
    assert (tmp_path / "submission.csv").read_text() == "a person's"
    (tmp_path / "submission.csv.json").write_text('{"identity": {"of": "another run"}}')
    predict(settings_of(trained, tmp_path))
    assert files(tmp_path) == unbroken


def budgeted(trained: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, reads: int):
    """A run whose time is over after so many chunks; its settings."""
    settings = settings_of(trained, out, "time_budget_minutes=60")
    stopping.set_time_budget(60)
    whole, seen = OrderReader.read, []

    def read(self: OrderReader, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        seen.append(swapped)
        if len(seen) == reads:
            stopping.set_time_budget(-1e6)
        return whole(self, at, swapped=swapped)

    monkeypatch.setattr(OrderReader, "read", read)
    return settings


def test_a_whole_answer_is_read_by_nobody_again(
    trained: Path, unbroken: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Nor does a run of less time put a poorer one in its place."""
    first = predict(settings_of(trained, tmp_path))
    assert isinstance(first, Predictions)
    with monkeypatch.context() as patch:
        stop_after(0, patch, AssertionError("it reads"))
        stopping.set_time_budget(-1e6)
        again = predict(settings_of(trained, tmp_path, "time_budget_minutes=0.001"))
        stopping.forget()
    assert isinstance(again, Predictions)
    assert files(tmp_path) == unbroken and "submission.csv is finished already" in capsys.readouterr().out
    assert np.array_equal(again.probs, first.probs) and again.ids.tolist() == first.ids.tolist()
    (tmp_path / "submission.csv").write_text("changed by hand")
    predict(settings_of(trained, tmp_path))
    assert files(tmp_path) == unbroken
    assert (tmp_path / "submission.csv.changed").read_text() == "changed by hand"
    (tmp_path / "predictions.csv").write_bytes(b"")
    predict(settings_of(trained, tmp_path))
    assert files(tmp_path) == unbroken


def record_of(out: Path) -> dict:
    return json.loads((out / "submission.csv.json").read_text())


def rows_of(out: Path) -> list[tuple[str, int]]:
    """(checkpoint's fold and order, rows read) of each pass."""
    return [(f"{Path(one['checkpoint']).parent.name} {one['order']}", one["rows"]) for one in record_of(out)["passes"]]


def check_valid(out: Path) -> pd.DataFrame:
    table = pd.read_csv(out / "submission.csv", dtype={"id": str})
    assert sorted(table["id"]) == sorted(row.id for row in pair_rows(ROWS, seed=5))
    np.testing.assert_allclose(table.iloc[:, 1:].sum(axis=1), 1, atol=1e-6)
    return table


def test_swap_averaging_is_left_out_first(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        predict(budgeted(trained, tmp_path, patch, reads=24))
    check_valid(tmp_path)
    read = dict(rows_of(tmp_path))
    assert read["fold0 as given"] == read["fold1 as given"] == ROWS
    assert sorted(read.values()) == [0, 24, ROWS, ROWS]
    said = capsys.readouterr().out
    assert "time_budget_minutes=60 is spent; it would take about" in said
    assert "left out, swap averaging: fold" in said and "left out, folds" not in said


def test_then_the_fold_with_the_worse_heldout_score_and_the_rest_gets_the_mean(
    trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    losses = [arena_passes.heldout_log_loss(trained / name / "checkpoint") for name in ("fold0", "fold1")]
    best = f"fold{int(np.argmin(losses))} as given"
    with monkeypatch.context() as patch:
        predict(budgeted(trained, tmp_path, patch, reads=4))
    table = check_valid(tmp_path)
    assert {name for name, rows in rows_of(tmp_path) if rows} == {best}
    assert record_of(tmp_path)["rows_not_read"] == ROWS - 24
    assert "36 rows were read by no checkpoint and get the mean" in capsys.readouterr().out
    ids = pd.read_csv(tmp_path / "test.csv", dtype=str)["id"]
    assert table["id"].tolist() == ids.tolist(), "without a sample the rows stand as in the test file"
    counts = table.iloc[:, 1:].round(6).value_counts()
    assert counts.iloc[0] == ROWS - 24, "the rows that were not read all have the same, the mean"
    named = pd.read_csv(tmp_path / "predictions.csv", dtype={"id": str})
    unread = set(named["id"][named["filled"] == "not read in time"])
    assert record_of(tmp_path)["filled"] == {"not read in time": [one for one in ids if one in unread]}
    mean = table[table["id"].isin(unread)].iloc[:, 1:].round(6).drop_duplicates()
    assert len(unread) == ROWS - 24 and len(mean) == 1


def test_without_any_time_the_answer_is_the_heldout_mean(trained: Path, tmp_path: Path, monkeypatch) -> None:
    settings = settings_of(trained, tmp_path, "time_budget_minutes=1")
    stopping.set_time_budget(-1)
    predict(settings)
    table = check_valid(tmp_path)
    expected = Predictions.read(trained / "heldout.csv").probs64().mean(axis=0)
    np.testing.assert_allclose(table.iloc[:, 1:], np.tile(expected, (ROWS, 1)), atol=1e-6)


def test_after_a_shortened_answer_the_same_command_reads_the_rest(
    trained: Path, unbroken: list[bytes], tmp_path: Path, monkeypatch, capsys
) -> None:
    """And the order in which a budget reads changes nothing where its time is enough."""
    with monkeypatch.context() as patch:
        settings = budgeted(trained, tmp_path, patch, reads=24)
        predict(settings)
    stopping.forget()
    stopping.set_time_budget(60)
    predict(settings)
    assert files(tmp_path) == unbroken and not (tmp_path / "submission.csv.parts").exists()
    assert "144 rows were there already" in capsys.readouterr().out


def test_long_rows_count_for_more_than_their_share(trained: Path, tmp_path: Path) -> None:
    """The first chunks hold the longest rows: cost, not rows, tells how much is done."""
    rows = pair_rows(8)
    long = [type(rows[0])(**{**vars(row), "response_a": ("good film " * 60,)}) for row in rows[:2]]
    settings = settings_of(trained, tmp_path)
    chunks = order_readers.chunk_rows(trained / "fold0" / "checkpoint", [*rows[2:], *long], settings, tmp_path)
    assert set(chunks.rows[0][:2]) == {6, 7}
    assert chunks.cost[6] > chunks.sizes[6] > 2 * chunks.sizes[0] > chunks.cost[0]
    assert sorted(np.concatenate(chunks.rows)) == list(range(8))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_give_the_bytes_of_one(trained: Path, tmp_path: Path, launcher: str, monkeypatch) -> None:
    """The chunks are dealt like cards, so that no number depends on how many processes there are."""
    monkeypatch.undo()  # chunks as the command makes them
    few = ("trainer.predict_batch_rows=1",)
    predict(settings_of(trained, tmp_path / "one", *few))
    two = settings_of(trained, tmp_path / "two", *few)
    counted = ["--nproc_per_node=2"] if "torch" in launcher else ["--multi_gpu", "--num_processes=2"]
    command = [
        sys.executable, "-m", launcher, *counted, "-m", "infer", "+experiment=arena_quickstart", f"run_dir={trained}",
        f"out_dir={two.out_dir}", f"task.test_csv={two.arena.test_csv}", *few,
    ]  # fmt: skip
    environment = os.environ | {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on this process, one of 2" in done.stdout
    assert files(tmp_path / "two") == files(tmp_path / "one")
