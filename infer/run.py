"""`python -m infer`: checkpoints or a language model -> predictions.csv and submission.csv for the arena's test rows.

Knows the order of the work; reads only the run folder and the test file. Tables of texts are infer.text_run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infer.blend_runs import blend_runs
from infer.calibration.temperature import apply_temperature
from infer.checkpoints import find_checkpoints, run_temperature
from infer.logs import log, open_log
from infer.predictions import Predictions, join
from infer.ranks import is_main, wait_for_all
from infer.readers.by_method import reader_kind
from infer.submission import check_sample, write_submission
from models.method_settings import ASKED_METHODS
from models.settings import ArenaTask, Settings, TextTask
from models.tasks.arena import LABELS, ArenaTable, read_rows
from models.tasks.bad_rows import write_bad_rows


def run(settings: Settings) -> Predictions | Path:
    """Predict the test rows, blend finished runs, or read a table of texts; the table, or where it was written."""
    if settings.method.name == "blend":
        return blend_runs(settings)
    if isinstance(settings.task, TextTask):
        if settings.runner == "ray":
            from infer.cluster.run import run_on_ray

            return run_on_ray(settings)
        from infer.text_run import run_texts

        return run_texts(settings)
    out = Path(settings.out_dir or settings.run_dir)
    if settings.method.name in ASKED_METHODS and reader_kind(settings) == "label":
        return _by_judge(settings, out)
    return _by_checkpoints(settings, out)


def _by_judge(settings: Settings, out: Path) -> Predictions:
    from infer.judge import judge

    main = is_main()
    open_log(out / "infer.log", main=main)
    table = read_test_rows(settings.arena)
    predictions = judge(table.rows, settings, out)
    if main:
        predictions = _answer_all(predictions, table, settings, out)
    wait_for_all()
    return predictions


def _by_checkpoints(settings: Settings, out: Path) -> Predictions:
    """The mean over the run's checkpoints, with the run's temperature; what was read survives a kill."""
    from infer.arena_passes import ArenaPasses

    folder, main = Path(settings.run_dir), is_main()
    checkpoints = find_checkpoints(folder)
    open_log(out / "infer.log", main=main)
    table = read_test_rows(settings.arena)
    log.info(f"{len(table.rows)} rows from {settings.arena.test_csv}; {len(checkpoints)} checkpoint(s) in {folder}")
    work = ArenaPasses(checkpoints, table.rows, settings, out)
    with work.open() as parts:
        found, whole = work.collect(parts)
        wait_for_all()  # the main process takes the parts away
        mean = work.mean(found)
        read = np.flatnonzero(np.isfinite(mean[:, 0]))
        ids = np.array([row.id for row in table.rows], dtype=object)[read]
        predictions = Predictions(ids, LABELS, mean[read, : len(LABELS)], mean[read, len(LABELS)])
        temperature = run_temperature(folder, LABELS, say=main)
        if temperature is not None and len(read):
            predictions = apply_temperature(predictions, temperature)
        if main:
            predictions = _answer_all(predictions, table, settings, out)
            record = {"temperature": temperature, **work.record(found)}
            if whole:
                parts.finish(record)
            else:
                work.say_left_out(found)
                parts.record(record)
        wait_for_all()
    return predictions


def _answer_all(predictions: Predictions, table: ArenaTable, settings: Settings, out: Path) -> Predictions:
    """Write the answer to every id of the test file: the mean where a row is damaged, or was not reached in time."""
    if table.bad_rows:
        write_bad_rows(out / "bad_test_rows.csv", table.bad_rows)
        log.info(f"{len(table.bad_rows)} bad rows get the mean prediction; listed in {out / 'bad_test_rows.csv'}")
    ids = _all_ids(table)
    predictions = with_mean_rows(predictions, ids, Path(settings.run_dir)).align(ids)
    deliver(predictions, settings.arena, out)
    return predictions


def read_test_rows(task: ArenaTask) -> ArenaTable:
    """The rows to predict, unlabelled; with task.on_bad_row=skip also the ids that could not be read.

    Refuses a sample submission of other ids or columns: the answer could not be written.
    """
    table = read_rows(task.test_csv, labelled=False, on_bad_row=task.on_bad_row)
    if table.repairs.counts:
        log.info(table.repairs.report())
    sample = _sample(task)
    if sample:
        check_sample(sample, _all_ids(table), LABELS)
    return table


def _all_ids(table: ArenaTable) -> list[str]:
    """The test file's ids, those of damaged rows last."""
    return list(dict.fromkeys([*(row.id for row in table.rows), *(bad.id for bad in table.bad_rows)]))


def _sample(task: ArenaTask) -> str | None:
    """The sample submission: named in the settings, or beside the test file."""
    beside = Path(task.test_csv).parent / "sample_submission.csv"
    return task.sample_csv or (str(beside) if beside.is_file() else None)


def with_mean_rows(predictions: Predictions, ids: Sequence[str], folder: Path) -> Predictions:
    """The table with a row for each of the ids that it lacks, given the mean of the others.

    A submission needs every id, and one damaged cell must not cost the other rows their answer. folder: of the run,
    whose held-out mean is taken where there is no row at all; without one, all labels are as likely.
    """
    known = set(predictions.ids)
    ids = list(dict.fromkeys(one for one in ids if one not in known))
    if not ids:
        return predictions
    others, heldout = predictions, folder / "heldout.csv"
    if not len(predictions) and heldout.is_file():
        others = Predictions.read(heldout)
    count = len(predictions.labels)
    share = others.probs64().mean(axis=0) if len(others) else np.full(count, 1 / count)
    zeros = np.zeros(len(ids), dtype=np.float32)
    filled = Predictions(np.array(ids, dtype=object), predictions.labels, np.tile(share, (len(ids), 1)), zeros)
    return join([predictions, filled])


def deliver(predictions: Predictions, task: ArenaTask, folder: Path) -> None:
    """Write predictions.csv and the checked submission.csv; say where they are."""
    predictions.write(folder / "predictions.csv")
    sample = _sample(task)
    write_submission(predictions, sample, folder / "submission.csv")
    against = f"checked against {sample}" if sample else "no sample_submission.csv beside the test file: its own ids"
    log.info(f"{folder / 'submission.csv'}: {len(predictions)} rows, valid ({against})")
