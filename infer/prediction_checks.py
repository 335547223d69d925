"""What a table of predictions must be, refused by name where it is not: labels, shapes, ids, probabilities, truth.

Knows the columns of infer.predictions.Predictions; every check raises ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from infer.predictions import Predictions

SUM_TOLERANCE = 1e-4  # float16 logits still give rows this close to one; a forgotten softmax does not
NAMED_IN_ERRORS = 3  # ids


def check_labels(labels: tuple[str, ...]) -> None:
    """Two names or more, all different, none of them the one that stands for the mass outside."""
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(isinstance(x, str) and x for x in labels):
        raise ValueError(f"labels are {labels}, expected at least two different, non-empty names. Check the label set.")
    if "other" in labels:
        raise ValueError("A label is named 'other', but column p_other is the mass outside the labels. Use 'Other'.")


def check_shapes(table: Predictions) -> None:
    """One entry for each id, in every column that is there."""
    rows = len(table.ids)
    expected = {"ids": (rows,), "probs": (rows, len(table.labels))}
    expected |= dict.fromkeys(("other", "truth", "fold", "filled"), (rows,))
    for name, shape in expected.items():
        column = getattr(table, name)
        if column is not None and column.shape != shape:
            raise ValueError(f"{name} has shape {column.shape}, expected {shape}: one entry for each of {rows} ids.")


def check_ids(ids: np.ndarray) -> None:
    """Texts, each once."""
    for row_id in ids:
        if not isinstance(row_id, str):  # a 64-bit id that went through a float column is another id
            raise ValueError(f"id {row_id!r} is {type(row_id).__name__}, expected text. Read ids with dtype=str.")
    repeated = pd.Index(ids).duplicated()
    if repeated.any():
        raise ValueError(f"{repeated.sum()} ids stand twice: {first_ids(ids[repeated])}. Each row needs its own id.")


def check_probs(table: Predictions) -> None:
    """Rows of finite numbers from 0 that sum to one, and a mass outside from 0 to 1."""
    bad = ~(np.isfinite(table.probs) & (table.probs >= 0)).all(axis=1)
    bad |= np.abs(table.probs.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{bad.sum()} rows are not probabilities; id {table.ids[row]!r} has {table.probs[row].tolist()}, expected "
            f"finite, non-negative numbers that sum to one within {SUM_TOLERANCE}. Apply a softmax over the labels."
        )
    outside = ~((table.other >= 0) & (table.other <= 1 + SUM_TOLERANCE))  # NaN fails both
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"other is {table.other[row]} for id {table.ids[row]!r}, expected a probability from 0 to 1.")


def check_truth(table: Predictions) -> None:
    """One of the labels, or None where it is unknown."""
    if table.truth is None:
        return
    for row_id, label in zip(table.ids, table.truth, strict=True):
        if label is not None and label not in table.labels:
            raise ValueError(f"The true label of id {row_id!r} is {label!r}, expected one of {table.labels} or None.")


def first_ids(ids: np.ndarray) -> str:
    """The first few of them, as an error names them."""
    return ", ".join(repr(str(i)) for i in ids[:NAMED_IN_ERRORS]) + (", ..." if len(ids) > NAMED_IN_ERRORS else "")
