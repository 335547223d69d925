"""The one table every method returns: per row an id, a probability per label, the mass outside the labels, the truth.

Knows ids, label names and files; never text, models or tasks. Rows are joined by id, never by position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.files import read_frame, write_frame
from infer.prediction_checks import check_ids, check_labels, check_probs, check_shapes, check_truth, first_ids
from models.tasks.files import told_of

# Where a logarithm is taken, no probability counts as less: float32's resolution beside a 1 in the same row.
PROB_FLOOR = 1e-7
OTHER_COLUMN = "p_other"
_DTYPES = {"ids": object, "probs": np.float32, "other": np.float32, "truth": object, "filled": object}


@dataclass(frozen=True, eq=False)
class Predictions:
    """N rows of probabilities over L labels; checked when built, read-only afterwards.

    ids: (N,) text as written in the data file, each once. labels: L >= 2 names in column order.
    probs: (N, L) float32, rows sum to one over the label set. other: (N,) float32, the mass a language model gave
    to anything else, zeros for encoders. truth: (N,) label name, None where unknown. fold: (N,) int where held out.
    filled: (N,) why a row has the mean of the others and no answer of its own, None where it has one; None: all have.
    """

    ids: np.ndarray
    labels: tuple[str, ...]
    probs: np.ndarray
    other: np.ndarray
    truth: np.ndarray | None = None
    fold: np.ndarray | None = None
    filled: np.ndarray | None = None

    def __post_init__(self) -> None:
        store = object.__setattr__  # the class is frozen; this is where its arrays take their dtype
        store(self, "labels", tuple(self.labels))
        for name, dtype in _DTYPES.items():
            if getattr(self, name) is not None:
                store(self, name, _read_only(getattr(self, name), dtype))
        if self.fold is not None:
            store(self, "fold", _read_only(_whole_numbers(self.fold), np.int64))
        check_labels(self.labels)
        check_shapes(self)
        check_ids(self.ids)
        check_probs(self)
        check_truth(self)

    def __len__(self) -> int:
        return len(self.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """(N,) the likeliest label of each row: what scikit-learn's metrics expect of predict()."""
        return self.predicted.astype(dtype) if dtype is not None else self.predicted

    @property
    def predicted(self) -> np.ndarray:
        """(N,) the likeliest label of each row; the first of equals."""
        return np.asarray(self.labels)[self.probs.argmax(axis=1)]

    def label_index(self) -> np.ndarray:
        """(N,) int, the true label's column. Refuses a table with a row whose truth is unknown."""
        if self.truth is None:
            raise ValueError("This table has no true labels (column 'label'), expected one per row. Use labelled rows.")
        index = np.asarray(pd.Index(self.labels).get_indexer(pd.Index(self.truth)))
        if (index < 0).any():
            unknown = first_ids(self.ids[index < 0])
            raise ValueError(
                f"The true label of ids {unknown} is unknown, expected one per row. Leave them out: take()."
            )
        return index

    def probs64(self) -> np.ndarray:
        """(N, L) float64: probs with each row divided by its sum, for every later sum and logarithm."""
        probs = self.probs.astype(np.float64)
        return probs / probs.sum(axis=1, keepdims=True)

    def truth_probs(self) -> np.ndarray:
        """(N,) float64: the probability given to the true label, at least PROB_FLOOR."""
        return np.maximum(self.probs64()[np.arange(len(self)), self.label_index()], PROB_FLOOR)

    def log_loss(self) -> float:
        """Mean of minus log truth_probs, in nats: what the competition scores. Refuses an empty table."""
        if not len(self):
            raise ValueError("The table has 0 rows, expected at least one to score. Check which rows were predicted.")
        return float(-np.log(self.truth_probs()).mean())

    def take(self, rows: np.ndarray | Sequence[int]) -> "Predictions":
        """The rows at these positions, or where this (N,) mask is true, in that order."""
        return Predictions(
            ids=self.ids[rows],
            labels=self.labels,
            probs=self.probs[rows],
            other=self.other[rows],
            truth=None if self.truth is None else self.truth[rows],
            fold=None if self.fold is None else self.fold[rows],
            filled=None if self.filled is None else self.filled[rows],
        )

    def align(self, ids: Sequence[str] | np.ndarray) -> "Predictions":
        """The rows with these ids, in this order. Refuses an id the table lacks."""
        wanted = np.asarray(list(ids), dtype=object)
        position = np.asarray(pd.Index(self.ids, dtype=object).get_indexer(pd.Index(wanted, dtype=object)))
        if (position < 0).any():
            raise ValueError(
                f"{(position < 0).sum()} of {len(wanted)} ids have no prediction: {first_ids(wanted[position < 0])}. "
                "Predict these rows too, or check that both files are of the same rows."
            )
        return self.take(position)

    def to_frame(self) -> pd.DataFrame:
        """Columns id, fold, label (these two where known), p_<label>..., p_other, predicted, confidence; filled, where
        a row is.
        """
        columns: dict[str, Any] = {"id": self.ids}
        if self.fold is not None:
            columns["fold"] = self.fold
        if self.truth is not None:
            columns["label"] = self.truth
        columns |= {f"p_{label}": self.probs[:, column] for column, label in enumerate(self.labels)}
        columns[OTHER_COLUMN] = self.other
        columns["predicted"] = self.predicted.astype(object)
        columns["confidence"] = self.probs.max(axis=1)
        if self.filled is not None and any(self.filled):
            columns["filled"] = self.filled
        return pd.DataFrame(columns)

    def write(self, path: str | Path) -> None:
        """Writes .csv, .csv.gz or .parquet, by the name, atomically; every float32 comes back bit for bit."""
        write_frame(self.to_frame(), path)

    def to_csv(self, path: str | Path) -> None:
        write_frame(self.to_frame(), path, kind="csv")

    def to_parquet(self, path: str | Path) -> None:
        write_frame(self.to_frame(), path, kind="parquet")

    @classmethod
    def read(cls, path: str | Path) -> "Predictions":
        """The table that write() wrote. Refuses a file without an id column or p_<label> columns."""
        with told_of(path, "is no table"):
            frame = read_frame(path, text=("id", "label", "predicted", "filled"))
        labels = tuple(c[2:] for c in map(str, frame.columns) if c.startswith("p_") and c != OTHER_COLUMN)
        if "id" not in frame or not labels:
            raise ValueError(
                f"{path} has columns {list(frame.columns)}, expected id and one p_<label> per label. "
                "Give a table that Predictions.write wrote, such as heldout.csv."
            )
        with told_of(path, "is no table of predictions"):
            return cls.from_frame(frame, labels)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, labels: Sequence[str]) -> "Predictions":
        """The rows of a frame with the columns of to_frame; p_other, label, fold and filled where it has them."""
        return cls(
            ids=frame["id"].astype(str).to_numpy(dtype=object),
            labels=tuple(labels),
            probs=frame[[f"p_{label}" for label in labels]].to_numpy(dtype=np.float32),
            other=frame.get(OTHER_COLUMN, pd.Series(np.zeros(len(frame)))).to_numpy(dtype=np.float32),
            truth=_text_or_none(frame["label"]) if "label" in frame else None,
            fold=frame["fold"].to_numpy() if "fold" in frame else None,
            filled=_text_or_none(frame["filled"]) if "filled" in frame else None,
        )


def join(parts: Sequence[Predictions]) -> Predictions:
    """The rows of all parts (folds, shards), one below the other. Refuses an id in two parts and parts that differ."""
    if not parts:
        raise ValueError("There are no tables to join, expected at least one. Predict a fold first.")
    for number, part in enumerate(parts):
        _check_same_labels(parts[0], part, f"part {number}")
        for name in ("truth", "fold"):
            if (getattr(part, name) is None) != (getattr(parts[0], name) is None):
                raise ValueError(f"Only one of parts 0 and {number} has '{name}'. Give it to all parts or to none.")
    known = [name for name in ("truth", "fold") if getattr(parts[0], name) is not None]
    stacked = {n: np.concatenate([getattr(part, n) for part in parts]) for n in ("ids", "probs", "other", *known)}
    if any(part.filled is not None for part in parts):
        empty = (np.full(len(part), None) if part.filled is None else part.filled for part in parts)
        stacked["filled"] = np.concatenate(list(empty))
    return Predictions(labels=parts[0].labels, **stacked)


def average(tables: Sequence[Predictions], weights: Sequence[float] | np.ndarray | None = None) -> Predictions:
    """Mean of the tables' probabilities (float64 inside), in the first table's order of ids.

    weights: (K,) non-negative, sum to one; None means equal. Refuses tables of other ids, labels or truths. The fold
    stays where all tables share it: a mean over different splits is held out, but belongs to no one fold. A row is
    filled where it is in every table that weighs anything.
    """
    if not tables:
        raise ValueError("There are no tables to average, expected at least one. Predict with a model first.")
    first = tables[0]
    aligned = [align_like(table, first, f"table {number}") for number, table in enumerate(tables)]
    share = np.full(len(tables), 1 / len(tables)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(tables),) or (share < 0).any() or abs(share.sum() - 1) > 1e-6:
        raise ValueError(f"weights are {share.tolist()}, expected {len(tables)} non-negative numbers that sum to one.")
    shares_fold = first.fold is not None and all(
        table.fold is not None and np.array_equal(table.fold, first.fold) for table in aligned
    )
    return replace(
        first,
        probs=np.tensordot(share, np.stack([table.probs64() for table in aligned]), axes=1),  # (K),(K, N, L) -> (N, L)
        other=np.tensordot(share, np.stack([table.other.astype(np.float64) for table in aligned]), axes=1),
        truth=next((table.truth for table in aligned if table.truth is not None), None),
        fold=first.fold if shares_fold else None,
        filled=_filled_in_all([table for table, weight in zip(aligned, share, strict=True) if weight > 0]),
    )


def swap_average(probs: np.ndarray, swapped: np.ndarray, permutation: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """((N, L) mean of both presentation orders, (N,) disagreement: the L1 distance between the two, 0 to 2).

    swapped: (N, L) of the same rows with the answers exchanged, its columns still as predicted; column l of the rows
    as written is column permutation[l] there. Refuses a permutation that does not undo itself.
    """
    order = list(permutation)
    if sorted(order) != list(range(probs.shape[1])) or [order[column] for column in order] != sorted(order):
        raise ValueError(f"permutation is {order}, expected {probs.shape[1]} columns that undo themselves: (1, 0, 2).")
    back = swapped[:, order]
    return (probs + back) / 2, np.abs(probs - back).sum(axis=1)


def align_like(table: Predictions, pattern: Predictions, name: str) -> Predictions:
    """`table` in the pattern's order of ids. Refuses other labels, ids or truths; `name` stands in the error."""
    _check_same_labels(pattern, table, name)
    aligned = table.align(pattern.ids)
    if len(table) > len(pattern):
        extra = first_ids(np.setdiff1d(table.ids, pattern.ids))
        raise ValueError(f"{name} has {len(table)} rows, expected {len(pattern)}; only there: {extra}. Use equal rows.")
    if aligned.truth is not None and pattern.truth is not None and (aligned.truth != pattern.truth).any():
        row = int(np.flatnonzero(aligned.truth != pattern.truth)[0])
        raise ValueError(
            f"{name} has true label {aligned.truth[row]!r} for id {aligned.ids[row]!r}, but the first table says "
            f"{pattern.truth[row]!r}. Predict both from the same data file."
        )
    return aligned


def _read_only(column: Any, dtype: type) -> np.ndarray:
    """A view (the caller's own array stays writable) that refuses to be changed behind the checks."""
    view: np.ndarray = np.asarray(column, dtype=dtype).view()
    view.flags.writeable = False
    return view


def _filled_in_all(tables: Sequence[Predictions]) -> np.ndarray | None:
    columns = [table.filled for table in tables if table.filled is not None]
    if len(columns) < len(tables) or not columns:
        return None
    filled = columns[0].copy()
    filled[~np.all([column.astype(bool) for column in columns], axis=0)] = None
    return filled


def _whole_numbers(fold: Any) -> np.ndarray:
    fold = np.asarray(fold)
    if fold.size and not np.issubdtype(fold.dtype, np.integer):
        raise ValueError(f"fold holds {fold[:1].tolist()}, expected whole numbers. Number the folds 0, 1, 2, ...")
    return fold


def _check_same_labels(first: Predictions, table: Predictions, name: str) -> None:
    if table.labels != first.labels:
        raise ValueError(f"{name} has labels {table.labels}, expected {first.labels} in this order. Use one task.")


def _text_or_none(column: pd.Series) -> np.ndarray:
    known = column.notna() & (column != "")
    return np.array([str(v) if k else None for v, k in zip(column, known, strict=True)], dtype=object)
