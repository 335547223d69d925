"""A probability that is high enough: which label a row gets, and which rows are left to a person.

Fitted on one table with known labels, kept in a file of a few lines, applied to another table. A cutoff is what the
report's threshold saves, and `python -m infer.cutoffs`. Knows the table only: never how the probabilities were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.intervals import wilson_low
from infer.predictions import Predictions
from models.tasks.files import told_of, write_atomically

RULE = "cutoff"  # what the file says of itself
DIGITS = range(2, 10)  # of a written threshold: float32 tells nine apart


@dataclass(frozen=True)
class Cutoff:
    """How a row's label is decided.

    label given: a row gets it where its probability is at_least or more, the likeliest other label where it is less
    than `below`, and is left to a person between the two. label None: a row gets its likeliest label where that one's
    probability is at_least or more, and is left to a person otherwise; `below` is at_least then.
    """

    labels: tuple[str, ...]
    label: str | None
    at_least: float
    below: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.label is not None and self.label not in self.labels:
            raise ValueError(f"The cutoff's label is {self.label!r}, expected one of {', '.join(self.labels)}.")
        if not 0 <= self.below <= self.at_least <= 1 or (self.label is None and self.below != self.at_least):
            raise ValueError(
                f"The cutoff has below {self.below} and at_least {self.at_least}, expected 0 <= below <= at_least <= 1"
                f"{', both the same without a label' if self.label is None else ''}."
            )

    def choose(self, probs: np.ndarray) -> np.ndarray:
        """(N,) column of the label chosen for each row of probs (N, L), -1 where the row is left to a person."""
        column = None if self.label is None else self.labels.index(self.label)
        scores, given, otherwise = sides(probs, column)
        return np.where(scores >= self.at_least, given, np.where(scores < self.below, otherwise, -1))

    def decide(self, predictions: Predictions) -> np.ndarray:
        """(N,) the label of each row, None where it is left to a person. Refuses a table of other labels."""
        _check_labels(self.labels, predictions.labels, "The cutoff")
        return np.array([*self.labels, None], dtype=object)[self.choose(predictions.probs)]


def sides(probs: np.ndarray, column: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((N,) float64 scores a threshold is set on, (N,) column given from it on, (N,) column given below it).

    Without a column the score is the likeliest label's probability, and below it no label is given: -1, a person.
    """
    rows, top = np.arange(len(probs)), probs.argmax(axis=1)
    if column is None:
        return probs[rows, top].astype(np.float64), top, np.full(len(top), -1)
    others = probs.copy()
    others[:, column] = -1
    return probs[:, column].astype(np.float64), np.full(len(top), column), others.argmax(axis=1)


def thresholds_between(scores: np.ndarray) -> np.ndarray:
    """(K,) rising thresholds, one for each different score: at or below it, above the next lower one, of few digits.

    `scores >= threshold` then cuts exactly there, and a score that comes out a hair lower elsewhere is still above.
    """
    scores = np.unique(scores)
    before = np.concatenate([[-1.0], scores[:-1]])
    found = np.where(scores == 0, 0.0, np.nan)
    for digits in DIGITS:
        shorter = np.round(np.floor(scores * 10**digits) / 10**digits, digits)
        fits = np.isnan(found) & (shorter > before) & (shorter <= scores)
        found[fits] = shorter[fits]
    return np.where(np.isnan(found), scores, found)


def judge(cutoff: Cutoff, predictions: Predictions) -> dict[str, Any]:
    """How a cutoff does on labelled rows; all but `answered` are of the answered rows, None where undefined.

    precision, recall and f1 are those of the cutoff's label, without one the mean over the labels that occur or are
    given. confusion: (L, L) true label by label given. low: what precision (label None: accuracy) is at least, 95 %.
    """
    _check_labels(cutoff.labels, predictions.labels, "The cutoff")
    chosen = cutoff.choose(predictions.probs)
    answered = chosen >= 0
    truth, given = predictions.label_index()[answered], chosen[answered]
    size = len(cutoff.labels)
    confusion = np.bincount(truth * size + given, minlength=size**2).reshape(size, size)
    hits, said, true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    columns = np.flatnonzero(said + true) if cutoff.label is None else np.array([cutoff.labels.index(cutoff.label)])
    right, rows = (int(hits.sum()), len(truth)) if cutoff.label is None else (int(hits[columns[0]]), said[columns[0]])
    mean = {"precision": _mean_ratio(hits, said, columns), "recall": _mean_ratio(hits, true, columns)}
    return {
        "rows": len(predictions),
        "answered": float(answered.mean()),
        "accuracy": float(hits.sum() / len(truth)) if len(truth) else None,
        **mean,
        "f1": _mean_ratio(2 * hits, said + true, columns),
        "low": float(wilson_low(np.array([right]), np.array([rows]))[0]) if rows else None,
        "confusion": confusion.tolist(),
    }


def _mean_ratio(above: np.ndarray, under: np.ndarray, columns: np.ndarray) -> float | None:
    """Mean over these columns of above / under; 0 / 0 counts 0 among several, as scikit-learn has it, None alone."""
    if not len(columns) or (len(columns) == 1 and not under[columns[0]]):
        return None
    return float(np.divide(above, under, out=np.zeros(len(above)), where=under > 0)[columns].mean())


def write_cutoff(path: str | Path, cutoff: Cutoff, rows: int) -> None:
    """Writes the cutoff as YAML, as the report's button does. rows: how many it was chosen on."""
    import yaml

    record = {"rule": RULE, **asdict(cutoff), "labels": list(cutoff.labels), "rows": rows}
    with write_atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")


def holds_cutoff(path: str | Path) -> bool:
    """Does the file say of itself that it holds a cutoff? (Decision weights, the other rule, do not.)"""
    path = Path(path)
    return path.is_file() and any(
        line.replace(" ", "") == f"rule:{RULE}"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )


def read_cutoff(path: str | Path, labels: Sequence[str]) -> Cutoff:
    """The cutoff that write_cutoff or the report's button wrote. Refuses what is none, and one of other labels."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"decision={path} does not exist, expected a file that the report's button saved.")
    with told_of(f"decision={path}", "holds no cutoff"):
        try:
            record = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"no YAML: {error}") from error
        if record["rule"] != RULE:
            raise ValueError(f"rule {record['rule']!r}, expected {RULE}")
        label = None if record["label"] is None else str(record["label"])
        found = Cutoff(tuple(map(str, record["labels"])), label, float(record["at_least"]), float(record["below"]))
    _check_labels(found.labels, tuple(labels), f"decision={path}")
    return found


def _check_labels(found: tuple[str, ...], expected: tuple[str, ...], name: str) -> None:
    if found != expected:
        raise ValueError(
            f"{name} is for the labels {', '.join(found)}, not {', '.join(expected)} in this order. Give one that was "
            "made on a table of these labels."
        )


if __name__ == "__main__":
    import sys

    from infer.cutoff_door import main

    sys.exit(main())
