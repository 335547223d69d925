"""Writes the competition's file from a table of predictions, and checks it on disk before it replaces an older one.

Knows ids, column names and the sample file; never which model predicted. The sample rules: its ids in its order, its
columns in its order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from infer.files import read_frame
from infer.predictions import Predictions
from models.tasks.files import write_atomically
from models.tasks.tables import read_table

SUM_TOLERANCE = 1e-6


def write_submission(
    predictions: Predictions,
    sample_csv: str | Path | None,
    path: str | Path,
    *,
    prefix: str = "winner_",
    floor: float = 1e-6,
) -> None:
    """Writes columns id and prefix + label, one row per row of the sample; without a sample, of the predictions.

    floor: the least probability written, before each row is divided by its sum; keeps 0 and 1, which log loss punishes
    without bound, out of the file. Refuses ids or columns that differ from the sample's. Whatever fails, an older file
    at `path` is untouched.
    """
    if Path(path).suffix != ".csv":
        raise ValueError(f"The submission's path is {path}, expected a name that ends in .csv, such as submission.csv.")
    columns = ["id", *(prefix + label for label in predictions.labels)]
    order = predictions.ids
    if sample_csv is not None:
        sample = read_table(sample_csv).frame
        _check_columns(list(sample.columns), columns, sample_csv)
        columns, order = list(sample.columns), sample["id"].to_numpy(dtype=object)
        _check_ids(predictions.ids, order, sample_csv)
    if not len(order):
        raise ValueError("The submission would have 0 rows, expected at least one. Check the test file.")

    probs = _floored(predictions.align(order).probs64(), floor)
    frame = pd.DataFrame(probs, columns=[prefix + label for label in predictions.labels])
    frame["id"] = order
    with write_atomically(path) as temporary:
        frame[columns].to_csv(temporary, index=False, lineterminator="\n")
        check_submission(temporary, order, columns)


def check_sample(sample_csv: str | Path, ids: Sequence[str], labels: Sequence[str], *, prefix: str = "winner_") -> None:
    """Refuses, before anything is read, a sample whose ids or columns are not those of the test file's answer."""
    sample = read_table(sample_csv).frame
    _check_columns(list(sample.columns), ["id", *(prefix + label for label in labels)], sample_csv)
    _check_ids(np.array(ids, dtype=object), sample["id"].to_numpy(dtype=object), sample_csv)


def check_submission(path: str | Path, ids: np.ndarray, columns: list[str]) -> None:
    """Reads the file back and refuses it unless it has exactly these ids and columns, in this order, and valid rows.

    A valid row: finite, strictly between 0 and 1, sum one within 1e-6.
    """
    frame = read_frame(path, text=["id"])
    if list(frame.columns) != columns:
        raise ValueError(f"The file read back has columns {list(frame.columns)}, expected {columns}. Write it again.")
    if not np.array_equal(frame["id"].to_numpy(dtype=object), ids):
        raise ValueError(
            f"The file read back has other ids or another order than the {len(ids)} expected. Write it again."
        )
    probs = frame.drop(columns="id").to_numpy(dtype=np.float64)
    valid = ((probs > 0) & (probs < 1)).all(axis=1) & (np.abs(probs.sum(axis=1) - 1) <= SUM_TOLERANCE)  # NaN fails
    if not valid.all():
        row = int((~valid).argmax())
        raise ValueError(
            f"The file read back gives id {ids[row]!r} {probs[row].tolist()}, expected numbers between 0 and 1 "
            "that sum to one. Write it again."
        )


def _floored(probs: np.ndarray, floor: float) -> np.ndarray:
    if not 0 < floor < 1 / probs.shape[1]:
        raise ValueError(f"floor is {floor}, expected a number between 0 and {1 / probs.shape[1]:.3g}, such as 1e-6.")
    probs = np.maximum(probs, floor)
    return probs / probs.sum(axis=1, keepdims=True)


def _check_columns(found: list[str], expected: list[str], sample_csv: str | Path) -> None:
    if sorted(found) != sorted(expected):
        raise ValueError(
            f"{sample_csv} has columns {found}, the predictions give {expected}. "
            "Give the sample of this task, or set the labels and the prefix to its names."
        )


def _check_ids(predicted: np.ndarray, wanted: np.ndarray, sample_csv: str | Path) -> None:
    """Refuses a repeated id in the sample, and ids on one side only, naming the first few of each."""
    seen, expected = pd.Index(predicted, dtype=object), pd.Index(wanted, dtype=object)
    differences = {
        "repeated in the sample": expected[expected.duplicated()],
        "missing from the predictions": expected[~expected.isin(seen)],
        "not in the sample": seen[~seen.isin(expected)],
    }
    found = [f"{len(ids)} {what} ({', '.join(map(repr, ids[:3]))})" for what, ids in differences.items() if len(ids)]
    if found:
        raise ValueError(
            f"The ids differ from those of {sample_csv}: {'; '.join(found)}. Predict the test file that belongs to it."
        )
