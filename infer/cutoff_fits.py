"""The cutoff that a target or a price asks for, from rows whose labels are known; refused where they cannot say.

Knows the table only. What a cutoff is, and how one is judged, stands in cutoffs.
"""

from __future__ import annotations

import numpy as np

from infer.cutoffs import Cutoff, sides, thresholds_between
from infer.intervals import wilson_low
from infer.predictions import Predictions


def for_precision(predictions: Predictions, label: str, target: float, *, confidence: float = 0.95) -> Cutoff:
    """The lowest threshold, hence the most rows found, from which `label` is right in `target` of cases or more.

    confidence: that the true share is no lower, given these rows; 0.5 takes the share as it was seen. Raises
    ValueError where no threshold has it, with the rows that would be needed, and where no row is truly `label`.
    """
    thresholds, right, said = _at_or_above(predictions, label)
    at = _settle(right, said, target, confidence, len(predictions), "precision", label)
    return _single(predictions, label, thresholds[at.min()])


def for_recall(predictions: Predictions, label: str, target: float, *, confidence: float = 0.95) -> Cutoff:
    """The highest threshold, hence the fewest false alarms, that still finds `target` of the true rows or more."""
    thresholds, right, _ = _at_or_above(predictions, label)
    true = np.full(len(right), right[0])
    at = _settle(right, true, target, confidence, len(predictions), "recall", label)
    return _single(predictions, label, thresholds[at.max()])


def for_accuracy(predictions: Predictions, target: float, *, confidence: float = 0.95) -> Cutoff:
    """The lowest confidence, hence the most rows answered, from which the likeliest label is right often enough."""
    thresholds, right, answered = _at_or_above(predictions, None)
    at = _settle(right, answered, target, confidence, len(predictions), "an accuracy", None)
    return _single(predictions, None, thresholds[at.min()])


def cheapest(
    predictions: Predictions, label: str, *, false_alarm: float, miss: float, person: float | None = None
) -> Cutoff:
    """The cutoff with the least total cost on these rows.

    false_alarm: price of a row given `label` wrongly. miss: of a row of this label given another. person: of a row left
    to a person, who is taken to be right; None leaves none.
    """
    for name, price in (("false_alarm", false_alarm), ("miss", miss), ("person", person)):
        if price is not None and not (np.isfinite(price) and price >= 0):
            raise ValueError(f"{name} is {price}, expected a price of 0 or more.")
    thresholds, right, said = _at_or_above(predictions, label)
    thresholds, right, said = np.append(thresholds, 1.0), np.append(right, 0), np.append(said, 0)
    if thresholds[-2] == 1.0:  # rows at 1 itself can be refused by no threshold
        thresholds, right, said = thresholds[:-1], right[:-1], said[:-1]
    alarms, missed = false_alarm * (said - right), miss * (right[0] - right)
    if person is None:
        best = int((alarms + missed).argmin())
        return _single(predictions, label, thresholds[best])
    # Rows at or above `high` and below `low` are decided; the person's are said[low] - said[high].
    # For each high the best low up to it: a running minimum, so that all pairs are looked at in one pass.
    lows = missed + person * said
    best_low = _running_argmin(lows)
    high = int((alarms - person * said + lows[best_low]).argmin())
    return Cutoff(predictions.labels, label, float(thresholds[high]), float(thresholds[best_low[high]]))


def _at_or_above(predictions: Predictions, label: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((K,) rising thresholds, (K,) rows right from each on, (K,) rows given a label from each on).

    Refuses an unknown label and a table of 0 rows.
    """
    if label is not None and label not in predictions.labels:
        raise ValueError(f"label is {label!r}, expected one of {', '.join(predictions.labels)}.")
    if not len(predictions):
        raise ValueError("The table has 0 rows, expected at least one with its true label. Label some, or give others.")
    column = None if label is None else predictions.labels.index(label)
    scores, given, _ = sides(predictions.probs, column)
    order = np.sort(scores)
    thresholds = thresholds_between(scores)
    right = np.sort(scores[given == predictions.label_index()])
    return (
        thresholds,
        len(right) - np.searchsorted(right, thresholds),
        len(order) - np.searchsorted(order, thresholds),
    )


def _settle(
    right: np.ndarray, rows: np.ndarray, target: float, confidence: float, size: int, figure: str, label: str | None
) -> np.ndarray:
    """The positions where right / rows reaches the target with this confidence. Raises ValueError for none."""
    from scipy.stats import norm

    what = figure if label is None else f"a {figure} of {label}"
    if not 0 < target < 1 or not 0.5 <= confidence < 1:
        raise ValueError(f"target is {target} with confidence {confidence}, expected 0 < target < 1, 0.5 to below 1.")
    reached = np.flatnonzero(wilson_low(right, rows, confidence) >= target)
    if len(reached):
        return reached
    begin = f"No threshold gives {what} of {target} with {confidence:.0%} confidence on these {size} rows"
    if label is not None and not right.any():
        raise ValueError(f"{begin}: no row is truly {label}. Label some that are.")
    share = np.divide(right, rows, out=np.zeros(len(rows)), where=rows > 0)
    spare = np.where(share > target, share - target, np.nan)
    if np.isnan(spare).all():
        raise ValueError(f"{begin}: the highest seen is {share.max():.3f}. More rows will not help; ask for less.")
    # Where Wilson's bound meets the target: (share - target)^2 = z^2 target (1 - target) / rows.
    needed = norm.ppf(confidence) ** 2 * target * (1 - target) / spare**2
    table_rows = np.nanmin(needed * size / np.maximum(rows, 1))
    raise ValueError(
        f"{begin}. As many right as here, about {int(np.ceil(table_rows))} labelled rows would show it: label more, "
        "or ask for less."
    )


def _single(predictions: Predictions, label: str | None, threshold: float) -> Cutoff:
    return Cutoff(predictions.labels, label, float(threshold), float(threshold))


def _running_argmin(values: np.ndarray) -> np.ndarray:
    """(K,) position of the smallest value up to each position, the last of equals: the narrower band."""
    smallest = np.minimum.accumulate(values)
    return np.maximum.accumulate(np.where(values == smallest, np.arange(len(values)), 0))
