"""The answer to every id of the arena's test file, whoever read its rows: the files, and which rows got the mean.

    predictions.csv       each id's probabilities; column `filled` says why a row has the mean, where any has
    submission.csv        the same in the competition's columns, checked
    submission.csv.json   how it was made: what was read of what, and under `filled` the ids of each reason
    bad_test_rows.csv     the rows that could not be read: row, line, id, reason

Knows tables and files; never a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.arena.submission import check_sample, write_submission
from infer.identity import mark_of, write_record
from infer.logs import log
from infer.parts import finished
from infer.predictions import Predictions, join
from models.settings import ArenaTask, Settings
from models.tasks.arena import LABELS, ArenaTable, read_rows
from models.tasks.bad_rows import write_bad_rows
from models.tasks.files import read_record

SUBMISSION, PREDICTIONS, BAD_ROWS = "submission.csv", "predictions.csv", "bad_test_rows.csv"
ORDERS = ("as given", "answers exchanged")
BAD_ROW, NOT_READ = "bad row", "not read in time"  # why a row has the mean of the others


@dataclass(frozen=True)
class ArenaReading:
    """What a reader of the test rows says of those it read, and how it read them.

    identity: JSON values that the numbers depend on. passes: of each time that it went over the rows, by what it was
    read ("checkpoint" or "model"), "order" (one of ORDERS), and "rows", how many it reached.
    """

    predictions: Predictions
    identity: Mapping[str, Any]
    passes: list[dict[str, Any]]
    temperature: float | None = None


def read_test_rows(task: ArenaTask) -> ArenaTable:
    """The rows to predict, unlabelled; with task.on_bad_row=skip also the ids that could not be read.

    Refuses a sample submission of other ids or columns: the answer could not be written.
    """
    table = read_rows(task.test_csv, labelled=False, on_bad_row=task.on_bad_row)
    if table.repairs.counts:
        log.info(table.repairs.report())
    sample = _sample(task)
    if sample:
        check_sample(sample, list(_reasons(table)), LABELS)
    return table


def answer_all(reading: ArenaReading, table: ArenaTable, settings: Settings, out: Path) -> Predictions:
    """Write the answer to every id of the test file: the mean where a row is damaged, or was not reached in time."""
    reasons = _reasons(table)
    predictions = with_mean_rows(reading.predictions, reasons, Path(settings.run_dir)).align(list(reasons))
    listed = out / BAD_ROWS
    if table.bad_rows:
        write_bad_rows(listed, table.bad_rows)
        log.info(f"{_said_of_bad(table)}; listed in {listed}")
    else:
        listed.unlink(missing_ok=True)  # of a file that was mended since
    if not len(reading.predictions):
        log.warning(
            "warning: no row was read, so the submission below is valid and answers nothing: every row has the same "
            f"numbers, {_without_rows(Path(settings.run_dir))[1]}"
        )
    deliver(predictions, settings.arena, out)
    filled = filled_ids(predictions)
    if filled:
        said = ", ".join(f"{len(ids)} {reason}" for reason, ids in filled.items())
        log.info(f"which rows got the mean ({said}): column filled of {out / PREDICTIONS}")
    write_record(
        out / f"{SUBMISSION}.json",
        reading.identity,
        {
            "temperature": reading.temperature,
            "rows": len(table.rows),
            "rows_not_read": len(filled.get(NOT_READ, ())),
            "passes": reading.passes,
            "filled": filled,
            "output": mark_of(out / SUBMISSION),
            "predictions": mark_of(out / PREDICTIONS),
        },
    )
    return predictions


def answered(identity: Callable[[], Mapping[str, Any]], temperature: float | None, out: Path) -> bool:
    """True where the answer stands in `out` as a run of this identity wrote it, each pass over every row in it.

    identity: asked only where the record tells of such an answer. A submission that somebody changed is put aside.
    """
    try:
        record = read_record(out / f"{SUBMISSION}.json")
        whole = record["temperature"] == temperature and all(one["rows"] == record["rows"] for one in record["passes"])
        listed = (out / BAD_ROWS).exists() == (BAD_ROW in record["filled"])  # else a list of another file's rows
        if not whole or not listed or record["predictions"] != mark_of(out / PREDICTIONS):
            return False
    except (OSError, ValueError, KeyError, TypeError):  # none, damaged, or of an older version
        return False
    return finished(out / SUBMISSION, identity())


def with_mean_rows(predictions: Predictions, reasons: Mapping[str, str], folder: Path) -> Predictions:
    """The table with a row for each id of `reasons` that it lacks, given the mean of the others and its reason.

    A submission needs every id, and one damaged cell must not cost the other rows their answer. folder: of the run,
    whose held-out mean is taken where there is no row at all; without one, all labels are as likely.
    """
    known = set(predictions.ids)
    lacking = {one: reason for one, reason in reasons.items() if one not in known}
    if not lacking:
        return predictions
    share = predictions.probs64().mean(axis=0) if len(predictions) else _without_rows(folder)[0]
    ids, why = (np.array(list(one), dtype=object) for one in (lacking, lacking.values()))
    probs, other = np.tile(share, (len(ids), 1)), np.zeros(len(ids), dtype=np.float32)
    return join([predictions, Predictions(ids, predictions.labels, probs, other, filled=why)])


def _without_rows(folder: Path) -> tuple[np.ndarray, str]:
    """((L,) what every row gets where none was read, and what that is): the run's held-out mean, or equal shares."""
    heldout = folder / "heldout.csv"
    if heldout.is_file() and len(table := Predictions.read(heldout)):
        return table.probs64().mean(axis=0), f"the mean of {heldout}"
    return np.full(len(LABELS), 1 / len(LABELS)), f"1/{len(LABELS)} for each label"


def _said_of_bad(table: ArenaTable) -> str:
    """What the bad rows' ids get: the mean, or the answer of an earlier row of the same id."""
    readable = {row.id for row in table.rows}
    again = sum(bad.id in readable for bad in table.bad_rows)
    lost = len(table.bad_rows) - again
    said = [f"{lost} bad rows get the mean prediction"] if lost else []
    return ", ".join(
        [*said, *([f"{again} bad rows repeat an id, which keeps its first row's answer"] if again else [])]
    )


def filled_ids(predictions: Predictions) -> dict[str, list[str]]:
    """{why rows have the mean of the others: their ids, in the table's order}; {} where every row has its own answer"""
    found: dict[str, list[str]] = {}
    if predictions.filled is not None:
        for one, reason in zip(predictions.ids, predictions.filled, strict=True):
            if reason:
                found.setdefault(reason, []).append(one)
    return found


def deliver(predictions: Predictions, task: ArenaTask, folder: Path) -> None:
    """Write predictions.csv and the checked submission.csv; say where they are."""
    predictions.write(folder / PREDICTIONS)
    sample = _sample(task)
    write_submission(predictions, sample, folder / SUBMISSION)
    against = f"checked against {sample}" if sample else "no sample_submission.csv beside the test file: its own ids"
    log.info(f"{folder / SUBMISSION}: {len(predictions)} rows, valid ({against})")


def _reasons(table: ArenaTable) -> dict[str, str]:
    """{id of the test file: why it has no answer, where it has none}, the ids of damaged rows last."""
    readable = dict.fromkeys((row.id for row in table.rows), NOT_READ)
    return readable | {bad.id: BAD_ROW for bad in table.bad_rows if bad.id not in readable}


def _sample(task: ArenaTask) -> str | None:
    """The sample submission: named in the settings, or beside the test file."""
    beside = Path(task.test_csv).parent / "sample_submission.csv"
    return task.sample_csv or (str(beside) if beside.is_file() else None)
