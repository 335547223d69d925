"""Blend finished runs: weights from their held-out tables, applied to their test predictions.

Knows run folders and tables; nothing of the methods behind them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from infer.arena.answer import deliver
from infer.blend import apply, fit_weights
from infer.calibration.temperature import (
    apply_temperature,
    crossfit_temperature,
    read_calibration,
    settle_temperature,
    write_calibration,
)
from infer.identity import refuse_foreign, write_record
from infer.logs import open_log
from infer.outputs import OF_BLEND
from infer.predictions import Predictions, average
from models.settings import Settings

RECORD = "blend.json"


def blend_runs(settings: Settings) -> Predictions:
    """The blend's test predictions; leaves heldout.csv, blend.json, predictions.csv, submission.csv in the run folder.

    Raises ValueError for fewer than two runs, runs that are not finished, and runs with other rows or folds.
    """
    runs = settings.blend.runs
    if len(runs) < 2:
        raise ValueError(
            f"blend.runs={runs}: name two or more finished runs: 'blend.runs=[runs/a/seed42,runs/b/seed42]'."
        )
    heldout = {name: calibrated_heldout(name) for name in runs}
    test = {name: _table(name, "predictions.csv", "python -m infer") for name in runs}
    folder = Path(settings.out_dir or settings.run_dir)
    refuse_foreign([folder / name for name in OF_BLEND if name != "infer.log"], [folder / RECORD])
    log = open_log(folder / "infer.log", main=True)
    blend = fit_weights(heldout)
    blended = average(list(heldout.values()), [blend.weights[name] for name in heldout])
    temperature, _crossfitted = settle_temperature(blended)  # of weights that saw these rows: no figure to report
    # The record first: what a kill leaves behind it is then known to be a blend's.
    write_record(folder / RECORD, {"runs": list(runs)}, asdict(blend) | {"temperature": temperature})
    write_calibration(folder / "calibration.json", temperature, blended)
    blended.write(folder / "heldout.csv")
    for name in runs:
        log.info(f"  {blend.weights[name]:6.3f}  {blend.alone[name]:.4f}  {name}")
    log.info(f"held-out log loss of the blend: {blend.cross_fitted:.4f} cross-fitted, {blend.in_sample:.4f} in-sample")
    predictions = apply_temperature(apply(blend.weights, test), temperature)
    deliver(predictions, settings.arena, folder)
    return predictions


def calibrated_heldout(run: str) -> Predictions:
    """A run's held-out table as its predictions.csv is made: with a temperature where the run uses one.

    Each fold's comes from the other folds, so that the table stays held out.
    """
    table = _table(run, "heldout.csv", "python -m train")
    temperature = read_calibration(Path(run) / "calibration.json", table.labels)
    return table if temperature == 1 else crossfit_temperature(table)


def _table(run: str, name: str, command: str) -> Predictions:
    path = Path(run) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run {command} for {run} first.")
    return Predictions.read(path)
