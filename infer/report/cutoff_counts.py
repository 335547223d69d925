"""The rows between every two neighbouring thresholds, counted: all that a threshold dragged in a page needs.

Knows the table; what is made of the counts stands in cutoff.js.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from infer.cutoffs import sides, thresholds_between
from infer.predictions import Predictions

THRESHOLDS = 2001  # half of them evenly spread, so that dragging is smooth, half where the rows are
EVEN_STEPS = (1000, 500, 200, 100)  # each of them has the twentieths, where the page's bars begin
CELLS = 400_000  # numbers in the page at most, over all labels
LABELS_OFFERED = 12  # those with most rows


def cutoff_counts(predictions: Predictions) -> list[dict[str, Any]]:
    """One entry for the likeliest label (label None), then one for each label, those with most rows first if many.

    thresholds: rising, from 0. counts: flat triples (interval, cell, rows): interval g holds scores from threshold g to
    below threshold g + 1; cell is true column x L + the column a row gets otherwise (label None: the likeliest).
    Rows all have a true label, or none has: the true column is 0 then.
    """
    size = len(predictions.labels)
    truth = np.zeros(len(predictions), dtype=np.int64) if predictions.truth is None else predictions.label_index()
    offered = np.argsort(-np.bincount(predictions.probs.argmax(axis=1), minlength=size), kind="stable")
    named = [predictions.labels[column] for column in sorted(offered[:LABELS_OFFERED])]
    most = int(np.clip(CELLS // (size**2 * (len(named) + 1)), 201, THRESHOLDS))
    result = []
    for label in [None, *named]:
        column = None if label is None else predictions.labels.index(label)
        scores, given, otherwise = sides(predictions.probs, column)
        thresholds = spread_thresholds(scores, most)
        interval = np.searchsorted(thresholds, scores, side="right") - 1
        cell = truth * size + (given if label is None else otherwise)
        place, rows = np.unique(interval * size**2 + cell, return_counts=True)
        triples = np.stack([place // size**2, place % size**2, rows], axis=1)
        result.append({"label": label, "thresholds": thresholds.tolist(), "counts": triples.ravel().tolist()})
    return result


def spread_thresholds(scores: np.ndarray, most: int) -> np.ndarray:
    """Rising thresholds from 0 to 1, at most `most`: even steps, and the places between rows, or every k-th of them."""
    between = thresholds_between(scores)
    even = np.round(np.linspace(0, 1, max(steps for steps in EVEN_STEPS if 2 * steps < most) + 1), 6)
    places = most - len(even)
    if len(between) > places:
        between = between[np.linspace(0, len(between) - 1, places).astype(int)]
    return np.unique(np.concatenate([even, between]))
