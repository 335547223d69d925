"""runner=ray and what cannot be read: a row, a chunk or a file costs itself, and the end says so. Without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray_jobs import job_of, receipts, table
from text_runs import reviews

from infer.cluster.part_folder import OpenFolder
from infer.cluster.run import _one_shape, _refuse_repeated_ids, run_on_ray
from infer.cluster.slices import Slice, slices_to_read
from infer.endpoint.client import EndpointRefused
from infer.text_reading import TextReading
from infer.text_run import reading_identity
from models.tasks.text import RowSource


def test_a_damaged_row_costs_its_chunk_and_no_other(tmp_path: Path, tiny_language_model: str) -> None:
    rows = reviews(40)
    rows.loc[19, "label"] = "splendid"
    (tmp_path / "in").mkdir()
    rows.to_csv(tmp_path / "in" / "a.csv", index=False)
    rows.to_parquet(tmp_path / "in" / "b.parquet")
    job, files = job_of(tmp_path, tiny_language_model)
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        slices = slices_to_read(files, folder.done(), folder.ends(), chunk_rows=8, workers=1)
        found = receipts(job, slices)
        assert [one["chunk"] for one in found] == [0, 1, 2, 3, 4] * 2
        refused = [one for one in found if "refused" in one]
        assert [one["chunk"] for one in refused] == [2, 2] and "row 20" in refused[0]["refused"]
        assert folder.done() == {"a.csv": {0, 1, 3, 4}, "b.parquet": {0, 1, 3, 4}}
        left = slices_to_read(files, folder.done(), folder.ends(), chunk_rows=8, workers=1)
        assert [(one.first, one.stop) for one in left] == [(2, 3), (2, 3)]


def test_a_file_that_breaks_off_ends_its_slice(tmp_path: Path, tiny_language_model: str) -> None:
    path = table(tmp_path / "in" / "a.csv.gz", 2000)
    path.write_bytes(path.read_bytes()[:-1000])
    job, files = job_of(tmp_path, tiny_language_model, "engine.chunk_rows=500")
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        found = receipts(job, [Slice(files[0], 2, None)])
        chunk = found[-1]["chunk"]
        assert found[-2]["refused"].startswith(f"a.csv.gz, chunk {chunk - 1}: {tmp_path}")
        assert found[-1]["refused"].startswith(f"a.csv.gz, chunk {chunk} and all after it: {tmp_path}")
        assert all("cannot be unpacked" in one["refused"] for one in found[-2:])
        assert folder.ends() == {"a.csv.gz": None}
        missing = Slice(
            files[0], 9, None, share=1, shares=2
        )  # it wants no chunk that is reached, and tells all the same
        assert "and all after it" in receipts(job, [missing])[-1]["refused"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_chunks_refused_in_the_same_words_end_no_slice(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    table(tmp_path / "in" / name, 48)
    job, files = job_of(tmp_path, tiny_language_model)
    fill = TextReading.fill

    def filled(reading: TextReading, reader: Any, rows: Any) -> Any:
        if rows[0].id in ("r8", "r16", "r32", "r40"):
            raise ValueError("A logit is not a number in fp16. Read with fp32.")
        return fill(reading, reader, rows)

    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        slices = slices_to_read(files, folder.done(), folder.ends(), chunk_rows=8, workers=2)
        with monkeypatch.context() as patch:
            patch.setattr(TextReading, "fill", filled)
            found = receipts(job, slices)
        told = {one["chunk"]: one["refused"] for one in found if "refused" in one}
        assert sorted(one["chunk"] for one in found) == list(range(6))
        assert told == {
            at: f"{name}, chunk {at}: A logit is not a number in fp16. Read with fp32." for at in (1, 2, 4, 5)
        }
        assert folder.done() == {name: {0, 3}} and folder.ends() == {name: 48}
        receipts(job, slices_to_read(files, folder.done(), folder.ends(), chunk_rows=8, workers=1))
        assert folder.done() == {name: set(range(6))}


def test_rows_too_long_to_be_parsed_end_a_slice_without_an_end(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are parsed again on the way to every later row."""
    table(tmp_path / "in" / "a.csv", 48)
    job, files = job_of(tmp_path, tiny_language_model)
    chunks_from = RowSource.chunks_from

    def parsed(source: RowSource, first: int, bad_rows: Any) -> Iterator[Any]:
        for number, rows in chunks_from(source, 0, bad_rows):
            if number == 2:
                raise MemoryError
            if number >= first:
                yield number, rows

    monkeypatch.setattr(RowSource, "chunks_from", parsed)
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        found = receipts(job, [Slice(files[0], 0, None)])
        assert [one.get("refused") for one in found] == [
            None, None, "a.csv, chunk 2: MemoryError", "a.csv, chunk 3 and all after it: MemoryError"
        ]  # fmt: skip
        assert folder.ends() == {"a.csv": None}


def test_an_endpoint_that_answers_nothing_any_more_ends_the_run(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "in" / "a.csv", 48)
    job, files = job_of(tmp_path, tiny_language_model)

    def filled(*_: Any) -> Any:
        raise EndpointRefused("The quota is spent.")

    monkeypatch.setattr(TextReading, "fill", filled)
    with OpenFolder(job.parts, reading_identity(job.settings), files):
        assert [one["failed"] for one in receipts(job, [Slice(files[0], 0, None)])] == ["The quota is spent."]


def test_rows_that_the_file_has_broken_cost_themselves(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker leaves them out, the end lists them; a chunk of nothing else is an empty part."""
    path = table(tmp_path / "in" / "a.csv", 400)
    lines = path.read_text().splitlines()
    lines[20] += ",one cell too many"
    lines.insert(400, 'r400,"never closed')
    path.write_text("\n".join(lines) + "\n")
    job, files = job_of(tmp_path, tiny_language_model)
    read = [Slice(files[0], 0, None, share, 2) for share in range(2)]
    monkeypatch.setattr("infer.cluster.run._read_all", lambda *_: {"read": len(receipts(job, read))})
    monkeypatch.setattr("infer.cluster.run.require_ray", lambda: None)
    out = run_on_ray(job.settings)
    rows = pd.read_parquet(out)
    assert sorted(rows["id"]) == sorted(f"r{at}" for at in range(400) if at != 19)
    record = json.loads((out / "_record.json").read_text())
    assert (record["rows"], record["bad_rows"], record["read"]) == (399, 2, 51)
    listed = pd.read_csv(out / "_bad_rows.csv")
    assert listed[["row", "line", "id"]].values.tolist() == [[20, 21, "r19"], [400, 401, "r400"]]


def test_a_chunk_whose_rows_are_all_left_out_is_an_empty_part(tmp_path: Path, tiny_language_model: str) -> None:
    path = table(tmp_path / "in" / "a.csv", 24)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([line + "," * (9 <= at <= 16) for at, line in enumerate(lines)]) + "\n")
    job, files = job_of(tmp_path, tiny_language_model)
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        assert [one["rows"] for one in receipts(job, [Slice(files[0], 0, None)])] == [8, 0, 8]
        assert folder.done() == {"a.csv": {0, 1, 2}}


def test_a_file_of_which_much_is_damaged_is_refused_as_a_whole(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "in" / "a.csv", 24)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([line + "," * (9 <= at <= 16) for at, line in enumerate(lines)]) + "\n")
    monkeypatch.setattr("infer.cluster.pool.worker_pool", None)
    monkeypatch.setattr("infer.cluster.run.require_ray", lambda: None)
    for ids in ("id", "null"):
        job, files = job_of(tmp_path, tiny_language_model, f"task.id_column={ids}")
        if ids == "null":  # nobody has read the file before the workers do
            with OpenFolder(job.parts, reading_identity(job.settings), files):
                receipts(job, [Slice(files[0], 0, None)])
        with pytest.raises(ValueError, match="8 of 24 rows are bad"):
            run_on_ray(job.settings)


def test_a_row_too_long_for_the_memory_costs_its_chunk_and_no_other(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "in" / "a.parquet", 40)
    job, files = job_of(tmp_path, tiny_language_model)
    fill = TextReading.fill

    def filled(reading: TextReading, reader: Any, rows: Any) -> Any:
        if any(row.id in ("r12", "r20") for row in rows):
            raise MemoryError  # as Python's own, which says nothing
        return fill(reading, reader, rows)

    monkeypatch.setattr(TextReading, "fill", filled)
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        found = receipts(job, [Slice(files[0], 0, 5)])
        assert [one.get("refused") for one in found] == [
            None, "a.parquet, chunk 1: MemoryError", "a.parquet, chunk 2: MemoryError", None, None
        ]  # fmt: skip
        assert folder.done() == {"a.parquet": {0, 3, 4}}


def test_rows_that_kill_their_workers_are_refused_and_a_model_that_does_ends_the_run(
    tmp_path: Path, tiny_language_model: str
) -> None:
    table(tmp_path / "in" / "a.parquet", 24)
    job, files = job_of(tmp_path, tiny_language_model, "ray.retries=1")
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:

        def died(chunk: int, stage: str) -> None:
            with job.parts.in_hand(files[0], chunk, stage):
                mark = folder.folder / "_reading" / job.parts.path(files[0], chunk).stem
                kept = mark.read_bytes()
            mark.write_bytes(kept)  # as SIGKILL leaves it

        died(1, "loading")
        died(1, "reading")
        found = receipts(job, [Slice(files[0], 0, 3)])
        assert [one.get("refused") for one in found] == [
            None, "a.parquet, chunk 1: 2 workers died of it, out of memory or killed", None
        ]  # fmt: skip
        for path in folder.folder.glob("part-*"):
            path.unlink()
        died(0, "loading")
        died(0, "loading")
        assert [sorted(one)[1] for one in receipts(job, [Slice(files[0], 0, 3)])] == ["failed"]


def test_rows_without_an_id_are_their_chunks_damage_not_a_repeated_id(tmp_path: Path, tiny_language_model: str) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        rows = reviews(8).assign(id=[f"{name}{at}" for at in range(8)])
        rows.loc[3, "id"] = None
        rows.to_parquet(tmp_path / "in" / f"{name}.parquet")
    job, files = job_of(tmp_path, tiny_language_model)
    _refuse_repeated_ids(files, _one_shape(job.settings, files))
    with OpenFolder(job.parts, reading_identity(job.settings), files):
        found = receipts(job, [Slice(file, 0, 1) for file in files])
    assert ["row 4: id is empty" in one["refused"] for one in found] == [True, True]
