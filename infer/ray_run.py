"""`python -m infer runner=ray`: a table of texts read by workers on one machine or many, into a folder of parts.

    python -m infer +experiment=reviews_soft runner=ray input=folder/*.parquet output=out/
    RAY_ADDRESS=head:6379 python -m infer ... runner=ray      on a cluster with tiebreak on each machine

The same probabilities as the single machine gives each file. Knows the order of the work; Ray is infer.ray_pool's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from infer.answer_notes import report_answers
from infer.calibrator import load_calibrator
from infer.logs import log, open_log
from infer.part_files import read_extras
from infer.part_folder import THREADS, OpenFolder, PartFolder
from infer.ranks import world_size
from infer.ray_inputs import InputFile, named_files, read_input, refuse_address, said_rows
from infer.ray_pool import read_slices, require_ray, worker_pool
from infer.ray_slices import chunk_count, slices_to_read
from infer.ray_worker import ReadingJob, for_file
from infer.readers import reader_kind
from infer.reasoning_notes import report_reasoning
from infer.table_summary import report, summarise, summary_columns
from infer.text_files import notes_file, write_notes
from infer.text_reading import TextReading
from infer.text_run import check_calibrator, open_source, read_rule, reading_identity, trained_on
from models.settings import Settings
from models.tasks.seen import SeenTexts
from models.tasks.tables import stream_table
from models.tasks.text import RowSource

REFUSALS_NAMED = 3


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
    """Rows are joined by their id, so no two files may share one; numbered rows carry their file's name instead."""
    column = source.id_column
    if column is None or len(files) == 1:  # within one file the worker sees it
        return
    seen = SeenTexts()
    for file in tqdm(files, desc="ids", unit="file", disable=None):
        for table in stream_table(file.path, source.chunk_rows, [column]):
            cells = [str(cell) for cell in table.frame[column]]
            for at in seen.add(cells):
                _refuse_repeated(files, column, cells[at], table.place(at))


def _refuse_repeated(files: Sequence[InputFile], column: str, given: str, place: str) -> None:
    """Refuses the id if an earlier row has it: a second look, since equal digests may be chance."""
    for file in files:
        for table in stream_table(file.path, 1024, [column]):
            for at, cell in enumerate(table.frame[column]):
                if table.place(at) == place:
                    return
                if str(cell) == given:
                    raise ValueError(
                        f"{place}: {column} {given!r} stands already in {table.place(at)}. Give each row its own, or "
                        "let rows be numbered: task.id_column=null."
                    )


def _read_all(folder: OpenFolder, job: ReadingJob, done: Mapping[str, set[int]]) -> dict[str, Any]:
    """What is not done, read by workers; the figures of this launch. Raises ValueError where rows were refused."""
    kept, chunk_rows = sum(map(len, done.values())), job.settings.engine.chunk_rows
    refused: list[str] = []
    rows, started, busy_s, first_s = 0, time.monotonic(), 0.0, 0.0
    with worker_pool(job) as pool:
        slices = slices_to_read(folder.files, done, folder.ends(), chunk_rows=chunk_rows, workers=pool.actors)
        log.info(f"{len(slices)} slices for {pool.line}" + (f"; {kept} parts are there already" if kept else ""))
        total = sum(file.rows or 0 for file in folder.files)
        with tqdm(total=total or None, desc="reading", unit="row", disable=None) as bar:
            for receipt in read_slices(pool, job, slices):
                if "refused" in receipt:
                    refused.append(receipt["refused"])
                    continue
                if receipt["chunk"] in done[receipt["file"]]:  # of an earlier launch, passed over on the way
                    continue
                first_s = first_s or time.monotonic() - started
                rows, busy_s = rows + receipt["rows"], busy_s + receipt["seconds"]
                bar.update(receipt["rows"])
    seconds = time.monotonic() - started
    log.info(
        f"{rows} rows read in {seconds:.1f} s, {rows / seconds:.1f} rows/s; the first part was there after "
        f"{first_s:.1f} s: Ray's start, the model's and its own"
    )
    if refused:
        more = f"; and {len(refused) - REFUSALS_NAMED} more" if len(refused) > REFUSALS_NAMED else ""
        raise ValueError(
            f"{len(refused)} chunks of {chunk_rows} rows were refused, the rest is in "
            f"{folder.folder}: {'; '.join(refused[:REFUSALS_NAMED])}{more}"
        )
    figures = {"seconds": seconds, "seconds_to_first_part": first_s, "worker_seconds": busy_s}
    return {"rows_read": rows, **{key: round(value, 3) for key, value in figures.items()}}


def _finish(folder: OpenFolder, job: ReadingJob, source: RowSource, launch: Mapping[str, Any]) -> None:
    """The notes of all parts, and last the record: it says that every row is there."""
    chunk_rows, paths = job.settings.engine.chunk_rows, []
    for file in folder.files:
        count = chunk_count(file, folder.parts.end(file), chunk_rows)
        assert count is not None, file
        paths += [folder.parts.path(file, chunk) for chunk in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder.folder} lacks {len(missing)} parts, {missing[0]} first. Give the command again.")
    first = read_extras(paths[0])
    said: dict[str, Any] = {}
    if "notes" in first:
        write_notes(
            folder.folder / f"_{notes_file(first['notes'])}", (read_extras(path)["notes"] for path in paths)
        )  # fmt: skip
        notes = [note for path in paths for note in read_extras(path)["notes"]]
        said = report_reasoning(notes) if reader_kind(job.settings) == "reasoning" else report_answers(notes)
    columns = summary_columns(source.labels, labelled=source.label_column is not None)
    figures = summarise(folder.frames(paths, columns), source.labels, [read_extras(path)["strays"] for path in paths])
    expected = [file.rows for file in folder.files]
    assert None in expected or sum(map(int, filter(None, expected))) == figures["rows"], (expected, figures["rows"])
    folder.write_record({
        "labels": list(source.labels), "reader": first["reader"], "files": len(folder.files), "parts": len(paths),
        **launch, **said, **figures,
    })  # fmt: skip
