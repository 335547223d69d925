"""The arena's parts when the disk, another version or a number goes wrong: nothing is mixed, nothing is passed over."""

# ruff: noqa: F811  the fixtures come from another module

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_arena_passes import (  # noqa: F401  fixtures
    budgeted,
    check_valid,
    files,
    no_budget,
    predict,
    record_of,
    settings_of,
    small_chunks,
    stop_after,
    trained,
    unbroken,
)

from infer import stopping
from infer.arena import order_readers
from infer.arena import passes as arena_passes
from infer.arena.order_readers import OrderReader
from infer.pace import LATE
from infer.parts import Parts


def before_read(number: int, act, patch: pytest.MonkeyPatch) -> list[int]:
    """Calls `act` before the read of this number; what was read, one entry for each read."""
    seen: list[int] = []
    whole = OrderReader.read

    def read(self: OrderReader, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        seen.append(len(at))
        if len(seen) == number:
            act()
        return whole(self, at, swapped=swapped)

    patch.setattr(OrderReader, "read", read)
    return seen


def test_a_part_that_is_damaged_after_it_was_written_is_read_again(
    trained: Path,
    unbroken: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    def damage() -> None:
        for number in (3, 13):
            (tmp_path / "submission.csv.parts" / f"part-{number:06d}.parquet").write_bytes(b"x" * 100)

    seen = before_read(35, damage, monkeypatch)
    predict(settings_of(trained, tmp_path))
    assert files(tmp_path) == unbroken and len(seen) == 42
    assert "damaged after they were written (12 rows of all passes); they are read again" in capsys.readouterr().out


def test_parts_that_are_damaged_every_time_make_no_answer(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Parts.write

    def torn(self: Parts, number: int, *given: object) -> None:
        write(self, number, *given)
        if not number:
            (self.folder / "part-000000.parquet").write_bytes(b"")

    monkeypatch.setattr(Parts, "write", torn)
    with pytest.raises(ValueError, match=r"submission\.csv\.parts: parts are damaged again and again"):
        predict(settings_of(trained, tmp_path))
    assert not (tmp_path / "submission.csv").exists()


def test_parts_of_other_chunks_are_refused_and_none_is_taken_for_another(
    trained: Path,
    unbroken: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks change with a version that makes them larger, or whose tokenizer counts otherwise."""
    with monkeypatch.context() as patch:
        stop_after(12, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(settings_of(trained, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(order_readers, "CHUNK_BATCHES", 4)
        with pytest.raises(
            ValueError, match=r"unfinished output of another run; they differ in chunks\.count \(10 there"
        ):
            predict(settings_of(trained, tmp_path))
    predict(settings_of(trained, tmp_path))
    assert files(tmp_path) == unbroken


def test_the_same_number_of_chunks_with_other_rows_is_another_layout() -> None:
    cost = np.ones(4)
    one = order_readers.RowChunks([np.array([0, 1]), np.array([2, 3])], cost, cost)
    other = order_readers.RowChunks([np.array([0, 2]), np.array([1, 3])], cost, cost)
    longer = order_readers.RowChunks([np.array([0, 1, 2]), np.array([3])], cost, cost)
    assert len({chunks.digest() for chunks in (one, other, longer)}) == 3
    assert one.digest() == order_readers.RowChunks([np.array([0, 1]), np.array([2, 3])], 2 * cost, cost).digest()


def test_rows_without_numbers_are_refused_before_they_are_kept(
    trained: Path,
    unbroken: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, seen = OrderReader.read, []

    def read(self: OrderReader, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        seen.append(at)
        values = whole(self, at, swapped=swapped)
        values[0] = np.nan if len(seen) == 3 else values[0]
        return values

    with monkeypatch.context() as patch:
        patch.setattr(OrderReader, "read", read)
        with pytest.raises(ValueError, match=r"1 rows have no finite numbers.*Delete .*submission\.csv\.parts then"):
            predict(settings_of(trained, tmp_path))
    assert len(seen) == 3 and len(list((tmp_path / "submission.csv.parts").glob("part-*"))) == 2
    predict(settings_of(trained, tmp_path))  # the fault is gone: what is kept is right
    assert files(tmp_path) == unbroken


def test_after_a_shortened_answer_other_checkpoints_may_answer(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    with monkeypatch.context() as patch:
        predict(budgeted(trained, tmp_path, patch, reads=24))
    stopping.forget()
    predict(settings_of(trained / "fold1" / "checkpoint", tmp_path))
    check_valid(tmp_path)
    assert [one["rows"] for one in record_of(tmp_path)["passes"]] == [60, 60]
    assert not (tmp_path / "submission.csv.parts").exists()
    assert "24 parts of the older submission.csv go" in capsys.readouterr().out


def test_a_new_temperature_reads_nothing_again(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is applied to the mean of what was read."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with monkeypatch.context() as patch:
        stop_after(12, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(settings_of(run, tmp_path / "out"))
    fitted = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps({**fitted, "temperature": 2.5}))
    seen = before_read(0, lambda: None, monkeypatch)
    predict(settings_of(run, tmp_path / "out"))
    assert len(seen) == 28 and record_of(tmp_path / "out")["temperature"] == 2.5


LOAD_S, CHUNK_S = 1.5, 0.1


@pytest.mark.parametrize(("usable_s", "passes"), [(LOAD_S + 10 * 1.5 * CHUNK_S + 0.6, 1), (6.0, 1)])
def test_a_run_ends_within_its_budget_and_reads_what_fits(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    clock,
    usable_s: float,
    passes: int,
) -> None:
    """With loads that take longer than many chunks: they count for nothing but themselves, and are reckoned with."""
    load, whole = OrderReader.__init__, OrderReader.read

    def slow_load(self: OrderReader, *given: object) -> None:
        time.sleep(LOAD_S)
        load(self, *given)

    def slow_read(self: OrderReader, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        time.sleep(CHUNK_S)
        return whole(self, at, swapped=swapped)

    settings = settings_of(trained, tmp_path, "time_budget_minutes=60")
    monkeypatch.setattr(OrderReader, "__init__", slow_load)
    monkeypatch.setattr(OrderReader, "read", slow_read)
    monkeypatch.setattr(arena_passes, "RESERVE_S", 0.4)
    reserve_s = 0.4 + 40 * arena_passes.RESERVE_S_PER_PART + 60 * arena_passes.RESERVE_S_PER_ROW
    stopping.forget()
    stopping.set_time_budget((usable_s + reserve_s) / 60)
    predict(settings)
    left = stopping.time_left_s()
    check_valid(tmp_path)
    assert left >= 0, "it ended after its budget"
    assert left < reserve_s + LOAD_S + 3 * LATE * CHUNK_S, "time was left for one more pass's first chunk"
    read = [one["rows"] for one in record_of(tmp_path)["passes"]]
    assert sorted(read)[-passes:] == [60] * passes and 0 in read, read
    assert "expected to be left out, in whole or in part: fold" in capsys.readouterr().out


def test_a_sample_of_other_rows_is_refused_before_any_is_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(trained, tmp_path)
    lines = ["id,winner_model_a,winner_model_b,winner_tie", "of another file,0.3,0.3,0.4"]
    (tmp_path / "sample_submission.csv").write_text("\n".join(lines))
    seen = before_read(0, lambda: None, monkeypatch)
    with pytest.raises(
        ValueError, match=r"The ids differ from those of .*sample_submission\.csv: .*60 not in the sample"
    ):
        predict(settings)
    assert not seen and not (tmp_path / "submission.csv.parts").exists()


def test_a_run_that_is_refused_has_tokenised_nothing(trained: Path, tmp_path: Path) -> None:
    settings = settings_of(trained, tmp_path)
    with (
        Parts(tmp_path / "submission.csv", {}, pa.schema([]), replace=True),
        pytest.raises(ValueError, match=r"submission\.csv is being written by another run"),
    ):
        predict(settings)
    assert not list(tmp_path.glob("tokens-*"))
