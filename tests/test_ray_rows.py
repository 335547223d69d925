"""runner=ray counts: whatever was deleted, changed or refused between launches, done means every row of every file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray_jobs import job_of, receipts
from text_runs import reviews

from infer.cluster.pool import Pool
from infer.cluster.run import run_on_ray
from infer.cluster.slices import Slice
from infer.cluster.worker import ReadingJob
from infer.identity import input_identity
from infer.part_files import part_frame, read_extras, read_part
from infer.text_reading import TextReading

Launch = Callable[..., dict[str, Any]]
SMALLER, LARGER = "engine.chunk_rows=8", "engine.chunk_rows=16"


@pytest.fixture
def launch(tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """The command over tmp_path/in with two workers of this process; its record, once its rows are those of the files.

    What a launch says is what `python -m infer runner=ray` says; only Ray is not there.
    """

    @contextmanager
    def pool(_: ReadingJob) -> Iterator[Pool]:
        yield Pool(2, 1.0, 0.0, cluster=False)

    def read(_: Pool, job: ReadingJob, slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
        yield from receipts(job, list(slices))

    monkeypatch.setattr("infer.cluster.run.worker_pool", pool)
    monkeypatch.setattr("infer.cluster.run.read_slices", read)
    monkeypatch.setattr("infer.cluster.run.require_ray", lambda: None)

    def launched(*overrides: str) -> dict[str, Any]:
        job, files = job_of(tmp_path, tiny_language_model, *overrides)
        out = run_on_ray(job.settings)
        given = [pd.read_parquet(f.path) if f.rows else pd.read_csv(f.path, on_bad_lines="skip") for f in files]
        assert sorted(pd.read_parquet(out)["id"]) == sorted(pd.concat(given)["id"])
        record: dict[str, Any] = json.loads((out / "_record.json").read_text())
        return record

    return launched


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many rows fit the memory at once, and from which row on; MemoryError beyond."""
    limit = {"rows": 10**9, "from": 0}
    fill = TextReading.fill

    def filled(reading: TextReading, reader: Any, rows: Any) -> Any:
        if len(rows) > limit["rows"] and int(rows[-1].id[1:]) >= limit["from"]:
            raise MemoryError
        return fill(reading, reader, rows)

    monkeypatch.setattr(TextReading, "fill", filled)
    return limit


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "out").glob("part-*.parquet"))


def write(path: Path, rows: int) -> Path:
    """A table whose ids begin with its name's first letter."""
    path.parent.mkdir(exist_ok=True)
    frame = reviews(rows).assign(id=[f"{path.name[0]}{at}" for at in range(rows)])
    frame.to_parquet(path, row_group_size=20) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def test_smaller_chunks_after_a_lack_of_memory_hold_every_row(tmp_path: Path, launch: Launch, memory: Any) -> None:
    """The end that the first launch came to is that of the file, whatever its chunks were."""
    write(tmp_path / "in" / "a.csv", 42)
    memory["rows"] = 8
    with pytest.raises(ValueError, match="3 chunks of 16 rows were refused"):
        launch(LARGER)
    assert not parts(tmp_path)
    assert launch(SMALLER)["rows"] == 42
    assert len(parts(tmp_path)) == 6


def test_what_the_memory_refused_is_read_by_the_next_launch(tmp_path: Path, launch: Launch, memory: Any) -> None:
    for name in ("a.csv", "b.parquet"):
        write(tmp_path / "in" / name, 42)
    memory |= {"rows": 1, "from": 30}
    with pytest.raises(ValueError, match="6 chunks of 8 rows were refused"):
        launch(SMALLER)
    kept = parts(tmp_path)
    assert len(kept) == 6
    memory["rows"] = 8
    assert launch(SMALLER)["parts"] == 12


def test_once_its_parts_are_deleted_a_folder_takes_another_chunk_rows(tmp_path: Path, launch: Launch) -> None:
    for name in ("a.csv", "b.parquet"):
        write(tmp_path / "in" / name, 42)
    for chunk_rows, count in ((LARGER, 6), (SMALLER, 12), ("engine.chunk_rows=100", 2)):
        assert launch(chunk_rows)["parts"] == count
        with pytest.raises(ValueError, match=r"made otherwise: they differ in engine\.chunk_rows"):
            launch("engine.chunk_rows=7")
        for path in parts(tmp_path):
            path.unlink()


@pytest.mark.parametrize(
    ("deleted", "ends"),
    [([2], "kept"), ([0, 5], "kept"), ([], "deleted"), ([4, 5], "deleted"), ([5], "of another version")],
)
def test_parts_that_were_deleted_are_read_again(tmp_path: Path, launch: Launch, deleted: list[int], ends: str) -> None:
    file = write(tmp_path / "in" / "a.csv", 42)
    launch(SMALLER)
    for at, path in enumerate(parts(tmp_path)):
        if at in deleted:
            path.unlink()
    if ends == "deleted":
        shutil.rmtree(tmp_path / "out" / "_ends")
    if ends == "of another version":  # which counted chunks
        (end,) = (tmp_path / "out" / "_ends").iterdir()
        end.write_text(json.dumps({"identity": input_identity(file), "chunks": 4}))
    record = launch(SMALLER)
    assert (record["rows"], record["parts"], len(parts(tmp_path))) == (42, 6, 6)


@pytest.mark.parametrize("rows", [26, 60])
def test_a_file_that_grew_or_shrank_is_refused_or_counted_anew(tmp_path: Path, launch: Launch, rows: int) -> None:
    write(tmp_path / "in" / "a.csv", 42)
    launch(SMALLER)
    write(tmp_path / "in" / "a.csv", rows)
    with pytest.raises(ValueError, match=r"a\.csv changed since its parts were made"):
        launch(SMALLER)
    for path in parts(tmp_path):
        path.unlink()
    assert launch(SMALLER)["rows"] == rows


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_file_that_grows_while_it_is_read_is_never_done(
    tmp_path: Path, launch: Launch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / name, 42)
    fill = TextReading.fill

    def filled(reading: TextReading, reader: Any, rows: Any) -> Any:
        if rows[0].id == "a16":
            write(tmp_path / "in" / name, 44)
        return fill(reading, reader, rows)

    monkeypatch.setattr(TextReading, "fill", filled)
    with pytest.raises(ValueError, match=rf"{name} changed while it was read"):
        launch(SMALLER)
    assert not (tmp_path / "out" / "_record.json").exists()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_part_that_lacks_a_row_is_never_done(
    tmp_path: Path, launch: Launch, tiny_language_model: str, name: str
) -> None:
    write(tmp_path / "in" / name, 42)
    launch(SMALLER)
    job, files = job_of(tmp_path, tiny_language_model, SMALLER)
    path = parts(tmp_path)[3]
    frame, extras = part_frame(read_part(path)), read_extras(path)
    extras.pop("input")
    job.parts.write(files[0], 3, frame[:-1], {**extras, "rows": 7})
    (tmp_path / "out" / "_record.json").unlink()
    with pytest.raises(ValueError, match=rf"{name} has 42 rows, its parts hold 41"):
        launch(SMALLER)
    assert not (tmp_path / "out" / "_record.json").exists()


def test_rows_left_out_are_counted_too(tmp_path: Path, launch: Launch) -> None:
    """The file ends in one, and one is a chunk's only damage."""
    path = write(tmp_path / "in" / "a.csv", 42)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:20], lines[20] + ",one more", *lines[21:42], lines[42] + ",one more"]) + "\n")
    record = launch(SMALLER, "task.on_bad_row=skip")
    assert (record["rows"], record["bad_rows"]) == (40, 2)
