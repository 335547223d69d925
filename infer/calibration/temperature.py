"""Softens or sharpens a table's probabilities by one temperature, fitted on held-out rows.

Knows the table only; the model is not run again. p becomes p^(1/T), each row divided by its sum: T above 1 softens,
below 1 sharpens, and no row's order of labels changes. Source: Guo, Pleiss, Sun, Weinberger, 2017, On Calibration of
Modern Neural Networks, equation 9; log-probabilities serve as its logits, the two differ by a constant per row.
What else can be fitted, to the raw log_probs of a language model, stands in answers.py, and uses these parts.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from infer.files import write_json
from infer.predictions import PROB_FLOOR, Predictions
from models.tasks.files import read_record, told_of

# Twenty times sharper or softer than the model: a fit that ends here saw too few errors to say more.
TEMPERATURE_RANGE = (1 / 20, 20.0)
HASHED_PARTS = 5
FEWEST_ROWS = 10  # that anything is fitted on: fewer say too little of rows to come
SMALLEST_GAIN = 1e-9  # nats; a flat curve (uniform rows) must leave the table alone


def fit_temperature(predictions: Predictions) -> float:
    """The temperature with the least log loss on these rows, between 1/20 and 20; 1 where none is better than none.

    Refuses a table without rows, or with a row whose truth is unknown.
    """
    log_probs, truth = _log_probs(predictions), predictions.label_index()
    if not len(truth):
        raise ValueError("The table has 0 rows, expected at least one to fit on. Check which rows were predicted.")
    return best_temperature(log_probs, np.eye(len(predictions.labels))[truth])


def bounded_temperature(predictions: Predictions) -> float:
    """fit_temperature, but no surer than so many rows can show: 12 rows that are all right do not show p = 0.9999.

    Below 1 it is fitted as if each label had been seen once more on every N rows' worth of evidence: the true label
    counts (N + 1) / (N + L), each other 1 / (N + L). Source: Platt, 1999, Probabilistic Outputs for Support Vector
    Machines, section 2.2 (out-of-sample targets), for L labels. Above 1 nothing is changed.
    """
    fitted = fit_temperature(predictions)
    if fitted >= 1:
        return fitted
    rows, labels = len(predictions), len(predictions.labels)
    seen = rows * np.eye(labels)[predictions.label_index()]
    return max(fitted, min(1.0, best_temperature(_log_probs(predictions), (seen + 1) / (rows + labels))))


def best_temperature(log_probs: np.ndarray, targets: np.ndarray) -> float:
    """The temperature with the least cross entropy, in TEMPERATURE_RANGE; 1 where none is better than none.

    log_probs: (N, L) finite, of any sum per row. targets: (N, L) rows sum to one; all 0 but one 1 for certain truths.
    """
    from scipy.optimize import minimize_scalar

    unchanged = _tempered_log_loss(log_probs, targets, 1.0)
    # The loss is convex in 1/T, hence has one valley in log T too, where 2 and 1/2 are equally far from 1.
    found = minimize_scalar(
        lambda log_t: _tempered_log_loss(log_probs, targets, float(np.exp(log_t))),
        bounds=np.log(TEMPERATURE_RANGE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x)) if found.fun < unchanged - SMALLEST_GAIN else 1.0


def settle_temperature(predictions: Predictions) -> tuple[float, float]:
    """(temperature to use, cross-fitted log loss with one).

    The temperature is 1 where there are fewer than FEWEST_ROWS rows, and where fitting one on the other folds makes the
    held-out log loss worse: a few rows cannot say how sure a network should be.
    """
    crossfitted = crossfit_temperature(predictions).log_loss()
    helps = len(predictions) >= FEWEST_ROWS and crossfitted < predictions.log_loss()
    return (bounded_temperature(predictions) if helps else 1.0), crossfitted


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same rows with p^(1/T) renormalised; no probability below PROB_FLOOR. Refuses T <= 0 or not finite."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}, expected a finite number above 0. Fit it: fit_temperature().")
    return replace(predictions, probs=floored_softmax(_log_probs(predictions) / temperature))


def floored_softmax(scores: np.ndarray) -> np.ndarray:
    """(N, L) float64 probabilities of finite scores (log space), rows sum to one, none below PROB_FLOOR."""
    probs = np.exp(scores - scores.max(axis=1, keepdims=True))
    # Twice the floor, so that neither the division below nor float32 takes a value under it.
    probs = np.maximum(probs / probs.sum(axis=1, keepdims=True), 2 * PROB_FLOOR)
    return probs / probs.sum(axis=1, keepdims=True)


def crossfit_temperature(predictions: Predictions, folds: np.ndarray | None = None) -> Predictions:
    """The table with each fold's rows calibrated by the temperature of all other folds: an honest view of the gain.

    folds: (N,) in the table's order, by default predictions.fold. Refuses fewer than two rows.
    """
    parts = crossfit_parts(predictions, folds)
    probs = np.empty_like(predictions.probs)
    for part in np.unique(parts):
        held_out = parts == part
        temperature = bounded_temperature(predictions.take(~held_out))
        probs[held_out] = apply_temperature(predictions.take(held_out), temperature).probs
    return replace(predictions, probs=probs)


def crossfit_parts(predictions: Predictions, folds: np.ndarray | None = None) -> np.ndarray:
    """(N,) part of each row: the folds, or where they are unknown or one only, five parts by a hash of the id.

    The hash does not depend on the order of rows. It may part rows of one prompt, which is harmless for the few
    numbers fitted here. Refuses fewer than two rows.
    """
    if len(predictions) < 2:
        raise ValueError(
            f"The table has {len(predictions)} rows, expected two or more to fit on some and judge others."
        )
    folds = predictions.fold if folds is None else np.asarray(folds)
    if folds is not None and folds.shape != predictions.ids.shape:
        raise ValueError(f"folds has shape {folds.shape}, expected {predictions.ids.shape}: one fold per row.")
    if folds is not None and len(np.unique(folds)) > 1:
        return folds
    return hashed_parts(predictions.ids)


def hashed_parts(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """(N,) one of five even parts for each id, by its hash: the same part whatever the order of rows."""
    digests = [hashlib.blake2b(row_id.encode(), digest_size=8).digest() for row_id in ids]
    # Dealt in the hash's order, so that two rows already make two parts.
    dealt = np.empty(len(digests), dtype=np.int64)
    dealt[sorted(range(len(digests)), key=digests.__getitem__)] = np.arange(len(digests)) % HASHED_PARTS
    return dealt


def write_calibration(path: str | Path, temperature: float, fitted_on: Predictions) -> None:
    """Writes calibration.json: the temperature, and what it was fitted on."""
    record = {"method": "temperature", "temperature": temperature, "labels": fitted_on.labels, "rows": len(fitted_on)}
    write_json(path, record)


def read_calibration(path: str | Path, labels: tuple[str, ...]) -> float:
    """The temperature in calibration.json. Refuses one that was fitted on other labels."""
    record = read_record(path)
    if record.get("method") != "temperature" or record.get("labels") != list(labels):
        raise ValueError(
            f"{path} holds method {record.get('method')!r} for labels {record.get('labels')}, expected a temperature "
            f"for {list(labels)}. Fit it again on this task's held-out table."
        )
    with told_of(path, "holds no temperature"):
        temperature = float(record["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"{temperature}, expected a number above 0")
        return temperature


def _log_probs(predictions: Predictions) -> np.ndarray:
    return np.log(np.maximum(predictions.probs64(), PROB_FLOOR))


def _tempered_log_loss(log_probs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    scaled = log_probs / temperature
    peak = scaled.max(axis=1, keepdims=True)  # the largest exponent becomes 0: no overflow at low temperature
    log_total = np.log(np.exp(scaled - peak).sum(axis=1)) + peak[:, 0]
    return float((log_total - (targets * scaled).sum(axis=1)).mean())
