"""`python -m infer runner=ray`: a table of texts read by workers on one machine or many, into a folder of parts.

    python -m infer +experiment=reviews_soft runner=ray input=folder/*.parquet output=out/
    RAY_ADDRESS=head:6379 python -m infer ... runner=ray      on a cluster with tiebreak on each machine

The same probabilities as the single machine gives each file. Knows the order of the work; Ray is infer.cluster.pool's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from infer.calibration.calibrator import load_calibrator
from infer.chunked import OutOfTime
from infer.cluster.inputs import InputFile, named_files, read_input, refuse_address, said_rows
from infer.cluster.part_folder import THREADS, OpenFolder, PartFolder
from infer.cluster.pool import END_S, read_slices, require_ray, worker_pool
from infer.cluster.receipts import Receipts
from infer.cluster.slices import chunk_count, said_missing, slices_to_read
from infer.cluster.worker import ReadingJob, for_file
from infer.logs import log, open_log
from infer.part_files import part_frames, read_extras, refuse_missing
from infer.ranks import world_size
from infer.readers.answer_notes import report_answers
from infer.readers.by_method import reader_kind
from infer.readers.reasoning_notes import report_reasoning
from infer.stopping import TimeSpent, time_left_s
from infer.table_summary import report, summarise, summary_columns
from infer.text_files import BAD_ROWS_FILE, notes_file, write_notes
from infer.text_reading import TextReading
from infer.text_run import (
    check_calibrator,
    list_bad_rows,
    open_source,
    read_rule,
    reading_identity,
    trained_on,
)
from models.settings import Settings
from models.tasks.bad_rows import damaged_rows
from models.tasks.damaged_rows import BadRow
from models.tasks.seen import SeenTexts
from models.tasks.tables import Table, stream_table
from models.tasks.text import RowSource, read_id

RESERVE_S, RESERVE_S_PER_PART = 2.0, 5e-3  # of the time budget: the record, which took 0.55 s for 80 parts


def run_on_ray(settings: Settings) -> Path:
    """Read every row of `input`, or of task.input_csv; the folder of parts.

    Refuses before Ray starts what names, heads and ids tell. Raises ValueError where rows were refused or the workers
    gave up: what is finished stays, and the same command goes on.
    """
    open_log(None, main=True)
    if world_size() > 1:
        raise ValueError("runner=ray under accelerate launch: Ray starts the workers itself. Call python -m infer.")
    require_ray()
    refuse_address("output", str(settings.output))
    output = Path(str(settings.output))
    files = _opened(settings.input or settings.text.input_csv, output)
    source = _one_shape(settings, files)
    log.info(said_rows(files))
    calibrator = load_calibrator(settings.calibration.use) if settings.calibration.use else None
    decision = read_rule(settings.decision, source.labels) if settings.decision else None
    identity = reading_identity(settings)
    check_calibrator(calibrator, settings, source.labels, identity)
    parts = PartFolder(output, TextReading(for_file(settings, files[0].path), source, calibrator, decision).schema())
    job = ReadingJob(settings, calibrator, decision, parts)
    with OpenFolder(parts, identity, files) as folder:
        done = folder.done()
        left = slices_to_read(files, done, folder.ends(), chunk_rows=settings.engine.chunk_rows, workers=1)
        if folder.record() is not None and not left:
            log.info(f"{output} is finished already")
        else:
            folder.forget_record()
            _refuse_repeated_ids(files, source)
            launch = _read_all(folder, job, done) if left else {"rows_read": 0}
            _finish(folder, job, source, launch)
        if any(trained_on(for_file(settings, file.path)) for file in files):
            log.info(
                f"warning: {settings.run_dir} was trained on a file of these, so the score below flatters it; the "
                f"score on rows held out is in {Path(settings.run_dir) / 'metrics.json'}"
            )
        report(output, source.labels, folder.record_path)
    return output


def _opened(given: Any, output: Path) -> list[InputFile]:
    """The files that have rows."""
    with ThreadPoolExecutor(THREADS) as pool:
        files = list(pool.map(lambda item: read_input(*item), named_files(given, output).items()))
    full = [file for file in files if file.rows != 0]
    if not full:
        raise ValueError(f"input={given} has no rows to read. Give files with at least one row.")
    if len(full) < len(files):
        log.info(f"{len(files) - len(full)} files without rows are passed over")
    return full


def _one_shape(settings: Settings, files: Sequence[InputFile]) -> RowSource:
    """The first file's source, once every file's head shows the columns that the run needs, and the same of them."""

    def shape(source: RowSource) -> dict[str, Any]:
        return {"task.id_column": source.id_column, "task.label_column": source.label_column}

    with ThreadPoolExecutor(THREADS) as pool:
        sources = list(pool.map(lambda file: open_source(for_file(settings, file.path)), files))
    for source in sources:
        for key, found in shape(source).items():
            if (first := shape(sources[0])[key]) != found:
                raise ValueError(
                    f"{key}=auto means {first} in {sources[0].path} and {found} in {source.path}: one table has the "
                    f"same columns throughout. Set {key}, to null where it is not needed."
                )
    return sources[0]


def _refuse_repeated_ids(files: Sequence[InputFile], source: RowSource) -> None:
    """Rows are joined by their id, so no two may share one; numbered rows carry their file's name instead.

    A worker compares the ids of a slice, which is a part of a file. Files of which too much is damaged are refused on
    the way.
    """
    if source.id_column is None:
        return
    seen = SeenTexts()
    for file in tqdm(files, desc="ids", unit="file", disable=None):
        rows, bad_rows = 0, list[BadRow]()
        for table, ids in _ids(file, source):
            rows, bad_rows = rows + len(table.frame), bad_rows + damaged_rows(table, source.id_column)
            places = list(ids)
            for at in seen.add(list(ids.values())):
                _refuse_repeated(files, source, ids[places[at]], table.place(places[at]))
        replace(source, path=file.path).refuse_too_many(rows, bad_rows)


def _ids(file: InputFile, source: RowSource) -> Iterator[tuple[Table, dict[int, str]]]:
    """(table, {row in it: id}) of a file's chunks, without the rows that have none: a worker tells of those."""
    column, mark = str(source.id_column), source.on_bad_row != "refuse"
    for table in stream_table(file.path, source.chunk_rows, [column], mark_damage=mark):
        found = {}
        for at, cell in enumerate(table.frame[column]):
            with suppress(ValueError):
                found[at] = read_id(cell, "", column)
        yield table, found


def _refuse_repeated(files: Sequence[InputFile], source: RowSource, given: str, place: str) -> None:
    """Refuses the id if an earlier row has it: a second look, since equal digests may be chance."""
    for file in files:
        for table, ids in _ids(file, source):
            for at, found in ids.items():
                if table.place(at) == place:
                    return
                if found == given:
                    raise ValueError(
                        f"{place}: {source.id_column} {given!r} stands already in {table.place(at)}. Give each row its "
                        "own, or let rows be numbered: task.id_column=null."
                    )


def _read_all(folder: OpenFolder, job: ReadingJob, done: Mapping[str, set[int]]) -> dict[str, Any]:
    """What is not done, read by workers; the figures of this launch.

    The workers begin no chunk that would not be in its place when the merge has to begin. Raises ValueError where rows
    were refused, and OutOfTime, which says what is missing, where the time budget leaves chunks out.
    """
    chunk_rows = job.settings.engine.chunk_rows
    found, ended = Receipts({name: set(chunks) for name, chunks in done.items()}), False
    kept = found.parts
    in_time = replace(job, deadline=time.time() + time_left_s() - _reserve_s(folder, chunk_rows))
    try:
        with worker_pool(in_time) as pool:
            slices = slices_to_read(folder.files, done, folder.ends(), chunk_rows=chunk_rows, workers=pool.actors)
            log.info(f"{len(slices)} slices for {pool.line}" + (f"; {kept} parts are there already" if kept else ""))
            total = sum(file.rows or 0 for file in folder.files)
            with tqdm(total=total or None, desc="reading", unit="row", disable=None) as bar:
                for receipt in read_slices(pool, in_time, slices):
                    bar.update(found.take(receipt))
            ended = True
    except TimeSpent:
        found.late |= not ended
    figures = found.figures()
    refused = f"{len(found.refused)} chunks of {chunk_rows} rows were refused" if found.refused else ""
    if found.late:
        raise OutOfTime(
            f"time_budget_minutes is spent: {found.parts} parts are read and kept in {folder.folder}. Missing are "
            f"{said_missing(folder.files, found.made, folder.ends(), chunk_rows)}. The same command goes on from "
            f"there, and has the whole budget again.{f' {refused}: {found.said_refused()}' if refused else ''}"
        )
    if refused:
        raise ValueError(f"{refused}, the rest is in {folder.folder}: {found.said_refused()}")
    return figures


def _reserve_s(folder: OpenFolder, chunk_rows: int) -> float:
    """Seconds of the time budget that are kept back to end Ray and to write the record of all parts."""
    counts = [chunk_count(file, folder.parts.end(file), chunk_rows) for file in folder.files]
    return END_S + RESERVE_S + RESERVE_S_PER_PART * sum(count or 0 for count in counts)


def _finish(folder: OpenFolder, job: ReadingJob, source: RowSource, launch: Mapping[str, Any]) -> None:
    """The notes of all parts, and last the record: it says that every row is there."""
    chunk_rows = job.settings.engine.chunk_rows
    paths: dict[Path, InputFile] = {}
    for file in folder.files:
        count = chunk_count(file, folder.parts.end(file), chunk_rows)
        if count is None:
            raise ValueError(f"{file.path} was read by nobody to its end. Give the command again.")
        paths |= {folder.parts.path(file, chunk): file for chunk in range(count)}
    refuse_missing(folder.folder, list(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        extras = dict(zip(paths, pool.map(_without_notes, paths), strict=True))
    parts = [(file, extras[path]) for path, file in paths.items()]
    _refuse_lost_rows(folder, parts)
    bad_rows = _left_out(folder, source, parts)
    first, reader = next((path, one["reader"]) for path, one in extras.items() if "reader" in one)
    said: dict[str, Any] = {}
    if "notes" in (of_the_first := read_extras(first)):
        kind = notes_file(of_the_first["notes"])
        write_notes(folder.folder / f"_{kind}", (read_extras(path).get("notes", []) for path in paths))
        notes = (note for path in paths for note in read_extras(path).get("notes", []))
        said = report_reasoning(notes) if reader_kind(job.settings) == "reasoning" else report_answers(notes)
    columns = summary_columns(source.labels, labelled=source.label_column is not None)
    strays = [one.get("strays", {}) for one in extras.values()]
    figures = summarise(part_frames(paths, columns), source.labels, strays)
    expected = sum(one["rows"] for one in extras.values())
    assert figures["rows"] == expected, (figures["rows"], expected)
    folder.write_record({
        "labels": list(source.labels), "reader": reader, "files": len(folder.files), "parts": len(paths),
        **launch, **said, **figures, **({"bad_rows": bad_rows} if bad_rows else {}),
    })  # fmt: skip


def _without_notes(path: Path) -> dict[str, Any]:
    """What is kept in a part but for its notes, which are too large to be held of all parts."""
    return {key: value for key, value in read_extras(path).items() if key != "notes"}


def _refuse_lost_rows(folder: OpenFolder, parts: Sequence[tuple[InputFile, Mapping[str, Any]]]) -> None:
    """Refuses parts that hold other than every row of their file, those left out too, and a file that has changed."""
    held: dict[str, int] = {}
    for file, extras in parts:
        held[file.name] = held.get(file.name, 0) + extras["rows"] + len(extras["bad_rows"])
    for file in folder.files:
        rows, found = folder.parts.end(file), held.get(file.name, 0)
        if found != rows:
            raise ValueError(
                f"{file.path} has {rows} rows, its parts hold {found}. Delete {folder.folder} and give the command "
                "again."
            )
        file.refuse_changed()


def _left_out(folder: OpenFolder, source: RowSource, parts: Sequence[tuple[InputFile, Mapping[str, Any]]]) -> int:
    """How many rows of all parts were left out; they are listed. Refuses a file of which that is too much."""
    counts: dict[Path, int] = {}
    bad_rows: dict[Path, list[BadRow]] = {}
    for file, extras in parts:
        counts[file.path] = counts.get(file.path, 0) + extras["rows"]
        bad_rows.setdefault(file.path, []).extend(BadRow(**row) for row in extras["bad_rows"])
    for path, rows in counts.items():
        replace(source, path=path).refuse_too_many(rows, bad_rows[path])
    found = [row for rows in bad_rows.values() for row in rows]
    if found:
        list_bad_rows(folder.folder / f"_{BAD_ROWS_FILE}", found)
    return len(found)
