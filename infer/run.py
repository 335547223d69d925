"""`python -m infer`: checkpoints or a language model -> predictions.csv and submission.csv for the arena's test rows.

Knows the order of the work; reads only the run folder and the test file. Tables of texts are infer.text_run's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infer.arena.answer import PREDICTIONS, SUBMISSION, ArenaReading, answer_all, answered, read_test_rows
from infer.blend_runs import blend_runs
from infer.calibration.temperature import apply_temperature
from infer.checkpoints import find_checkpoints, refuse_other_method, run_temperature, say_missing_folds
from infer.logs import log, open_log
from infer.outputs import files_written, inputs_of, refuse_inputs_among, where_written
from infer.predictions import Predictions
from infer.ranks import any_of, is_main, wait_for_all
from infer.readers.by_method import reader_kind
from infer.roads import refuse_ignored
from models.kind_settings import TextTask
from models.method_settings import ASKED_METHODS
from models.settings import Settings
from models.tasks.arena import LABELS


def run(settings: Settings) -> Predictions | Path:
    """Predict the test rows, blend finished runs, or read a table of texts; the table, or where it was written."""
    refuse_ignored(settings)
    refuse_inputs_among(inputs_of(settings), files_written(settings), where_written(settings))
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
    from infer.arena.judge import judge

    open_log(out / "infer.log", main=is_main())
    table = read_test_rows(settings.arena)
    reading = judge(table.rows, settings, out)
    predictions = reading.predictions
    if is_main():
        predictions = answer_all(reading, table, settings, out)
    wait_for_all()
    return predictions


def _by_checkpoints(settings: Settings, out: Path) -> Predictions:
    """The mean over the run's checkpoints, with the run's temperature; what was read survives a kill."""
    from infer.arena.passes import ArenaPasses

    folder, main = Path(settings.run_dir), is_main()
    checkpoints = find_checkpoints(folder)
    refuse_other_method(checkpoints, settings.method.name)
    open_log(out / "infer.log", main=main)
    table = read_test_rows(settings.arena)
    log.info(f"{len(table.rows)} rows from {settings.arena.test_csv}; {len(checkpoints)} checkpoint(s) in {folder}")
    say_missing_folds(folder, settings.folds.only)
    work = ArenaPasses(checkpoints, table.rows, settings, out)
    temperature = run_temperature(folder, LABELS, say=main)
    if any_of(main and answered(work.identity, temperature, out)):
        log.info(f"{out / SUBMISSION} is finished already: every checkpoint has read every row")
        return Predictions.read(out / PREDICTIONS)
    with work.open() as parts:
        found, whole = work.collect(parts)
        wait_for_all()  # the main process takes the parts away
        mean = work.mean(found)
        read = np.flatnonzero(np.isfinite(mean[:, 0]))
        ids = np.array([row.id for row in table.rows], dtype=object)[read]
        predictions = Predictions(ids, LABELS, mean[read, : len(LABELS)], mean[read, len(LABELS)])
        if temperature is not None and len(read):
            predictions = apply_temperature(predictions, temperature)
        if main:
            reading = ArenaReading(predictions, parts.identity, work.passes_read(found), temperature)
            predictions = answer_all(reading, table, settings, out)
            if whole:
                parts.finish()
            else:
                work.say_left_out(found)
        wait_for_all()
    return predictions
