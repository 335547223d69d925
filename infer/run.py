"""`python -m infer`: checkpoints or a language model -> predictions.csv and submission.csv for the arena's test rows.

Knows the order of the work; reads only the run folder and the test file. Tables of texts are infer.text_run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infer.blend_runs import blend_runs
from infer.calibration import apply_temperature
from infer.checkpoints import find_checkpoints, run_temperature
from infer.classifiers import load_classifier
from infer.logs import log, open_log
from infer.predictions import Predictions, average, join
from infer.ranks import is_main, wait_for_all
from infer.readers import reader_kind
from infer.submission import write_submission
from models.method_settings import ASKED_METHODS
from models.settings import ArenaTask, Settings, TextTask
from models.tasks.arena import LABELS, ArenaRow, ArenaTable, BadRow, read_rows, write_bad_rows


def run(settings: Settings) -> Predictions | Path:
    """Predict the test rows, blend finished runs, or read a table of texts; the table, or where it was written."""
    if settings.method.name == "blend":
        return blend_runs(settings)
    if isinstance(settings.task, TextTask):
        from infer.text_run import run_texts

        return run_texts(settings)
    main = is_main()
    out = Path(settings.out_dir or settings.run_dir)
    if settings.method.name in ASKED_METHODS and reader_kind(settings) == "label":
        from infer.judge import judge

        open_log(out / "infer.log", main=main)
        table = read_test_rows(settings.arena)
        predictions = judge(table.rows, settings, out)
    else:
        table, predictions = _by_checkpoints(settings, out, main=main)
    if main:
        if table.bad_rows:
            write_bad_rows(out / "bad_test_rows.csv", table.bad_rows)
            log.info(f"{len(table.bad_rows)} bad rows get the mean prediction; listed in {out / 'bad_test_rows.csv'}")
            predictions = with_bad_rows(predictions, table.bad_rows)
        deliver(predictions, settings.arena, out)
    wait_for_all()
    return predictions


def _by_checkpoints(settings: Settings, out: Path, *, main: bool) -> tuple[ArenaTable, Predictions]:
    """(the test rows, the mean over the run's checkpoints with the run's temperature)."""
    folder = Path(settings.run_dir)
    checkpoints = find_checkpoints(folder)
    open_log(out / "infer.log", main=main)
    table = read_test_rows(settings.arena)
    log.info(f"{len(table.rows)} rows from {settings.arena.test_csv}; {len(checkpoints)} checkpoint(s) in {folder}")
    predictions = average([predict(checkpoint, table.rows, settings, out) for checkpoint in checkpoints])
    temperature = run_temperature(folder, LABELS, say=True)
    return table, predictions if temperature is None else apply_temperature(predictions, temperature)


def read_test_rows(task: ArenaTask) -> ArenaTable:
    """The rows to predict, unlabelled; with task.on_bad_row=skip also the ids that could not be read."""
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
    # An adapter's base may stand elsewhere than in training: the run's settings say where.
    base = settings.model.name if settings.method.name == "adapter" else None
    attention = settings.encoder.attention if settings.method.name == "encoder" else "auto"
    classifier = load_classifier(checkpoint, task="arena", labels=LABELS, base=base, attention=attention)
    other = np.zeros(len(rows), dtype=np.float32)
    if settings.method.name == "adapter":
        probs, other, _ = classifier.predict(rows)
    elif hasattr(classifier, "probs_of"):
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
        other=other,
    )


def deliver(predictions: Predictions, task: ArenaTask, folder: Path) -> None:
    """Write predictions.csv and the checked submission.csv; say where they are."""
    predictions.write(folder / "predictions.csv")
    beside = Path(task.test_csv).parent / "sample_submission.csv"
    sample = task.sample_csv or (str(beside) if beside.is_file() else None)
    write_submission(predictions, sample, folder / "submission.csv")
    against = f"checked against {sample}" if sample else "no sample_submission.csv beside the test file: its own ids"
    log.info(f"{folder / 'submission.csv'}: {len(predictions)} rows, valid ({against})")
