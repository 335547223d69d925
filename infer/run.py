"""`python -m infer`: a run's checkpoints -> predictions.csv and submission.csv for the test rows.

Knows the order of the work; reads only the run folder and the test file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infer.blend_runs import blend_runs
from infer.calibration import apply_temperature, read_calibration
from infer.classifiers import load_classifier
from infer.logs import open_log
from infer.predictions import Predictions, average, join
from infer.ranks import is_main, wait_for_all
from infer.submission import write_submission
from models.settings import Settings, TaskSettings
from models.tasks.arena import LABELS, ArenaRow, ArenaTable, BadRow, read_rows, write_bad_rows


def run(settings: Settings) -> Predictions:
    """Predict the test rows with every fold's checkpoint, or blend finished runs; the table that was written."""
    main = is_main()
    folder = Path(settings.run_dir)
    if settings.method.name == "blend":
        return blend_runs(settings)
    checkpoints = find_checkpoints(folder)
    out = Path(settings.out_dir or settings.run_dir)
    log = open_log(out / "infer.log", main=main)
    table = read_test_rows(settings.task)
    rows = table.rows
    log.info(f"{len(rows)} rows from {settings.task.test_csv}; {len(checkpoints)} checkpoint(s) in {folder}")
    tables = [predict(checkpoint, rows, settings, out) for checkpoint in checkpoints]
    predictions = average(tables)
    calibration = folder / "calibration.json"
    if calibration.is_file():
        temperature = read_calibration(calibration, LABELS)
        predictions = apply_temperature(predictions, temperature)
        if temperature != 1:
            log.info(f"temperature {temperature:.3f}, fitted on the held-out rows")
    else:
        log.info(f"no temperature: {folder} has no calibration.json")
    if main:
        if table.bad_rows:
            write_bad_rows(out / "bad_test_rows.csv", table.bad_rows)
            log.info(f"{len(table.bad_rows)} bad rows get the mean prediction; listed in {out / 'bad_test_rows.csv'}")
            predictions = with_bad_rows(predictions, table.bad_rows)
        deliver(predictions, settings.task, out)
    wait_for_all()
    return predictions


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's finished folds, or the folder itself where it is one checkpoint.

    Raises FileNotFoundError with the command that makes them.
    """
    if (folder / "tiebreak.json").is_file():
        return [folder]
    found = sorted(path.parent / "checkpoint" for path in folder.glob("fold*/done.json"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no finished fold. Train first (python -m train with the same arguments), or name the run "
            "or checkpoint folder: run_dir=..."
        )
    return found


def read_test_rows(task: TaskSettings) -> ArenaTable:
    """The rows to predict, unlabelled; with task.on_bad_row=skip also the ids that could not be read."""
    from infer.logs import log

    table = read_rows(task.test_csv, labelled=False, on_bad_row=task.on_bad_row)
    if table.repairs.counts:
        log.info(table.repairs.report())
    return table


def with_bad_rows(predictions: Predictions, bad_rows: Sequence[BadRow]) -> Predictions:
    """The table with the rows that could not be read, each given the mean of the others.

    A submission needs every id, and one damaged cell must not cost the other rows their answer.
    """
    known = set(predictions.ids)
    ids = list(dict.fromkeys(bad.id for bad in bad_rows if bad.id not in known))
    if not ids:
        return predictions
    mean = np.tile(predictions.probs64().mean(axis=0), (len(ids), 1))
    zeros = np.zeros(len(ids), dtype=np.float32)
    return join([predictions, Predictions(np.array(ids, dtype=object), predictions.labels, mean, zeros)])


def predict(checkpoint: Path, rows: list[ArenaRow], settings: Settings, cache: Path) -> Predictions:
    """One checkpoint's table of the rows. cache: the folder that keeps their tokens for the next checkpoint."""
    classifier = load_classifier(checkpoint)
    if hasattr(classifier, "probs_of"):
        trainer = settings.trainer
        probs = classifier.predict_proba(
            rows,
            batch_rows=trainer.predict_batch_rows,
            precision=trainer.precision,
            cache=cache,
        )
    else:
        probs = classifier.predict_proba(rows)
    return Predictions(
        ids=np.array([row.id for row in rows], dtype=object),
        labels=LABELS,
        probs=probs,
        other=np.zeros(len(rows), dtype=np.float32),
    )


def deliver(predictions: Predictions, task: TaskSettings, folder: Path) -> None:
    """Write predictions.csv and the checked submission.csv; say where they are."""
    from infer.logs import log

    predictions.write(folder / "predictions.csv")
    beside = Path(task.test_csv).parent / "sample_submission.csv"
    sample = task.sample_csv or (str(beside) if beside.is_file() else None)
    write_submission(predictions, sample, folder / "submission.csv")
    against = f"checked against {sample}" if sample else "no sample_submission.csv beside the test file: its own ids"
    log.info(f"{folder / 'submission.csv'}: {len(predictions)} rows, valid ({against})")
