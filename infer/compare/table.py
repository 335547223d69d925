"""What one way says of the test rows, as arrays: its probabilities, the labels it chose, and the rows it left open.

Knows a table that `python -m infer` wrote and its record; never how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.chunked import LOG_P, P
from infer.compare.rows import CompareRows
from infer.files import read_frame, read_json
from infer.predictions import OTHER_COLUMN, PROB_FLOOR, Predictions


@dataclass(frozen=True, eq=False)
class WayTable:
    """N test rows in their file's order.

    chosen: (N,) column of the label chosen, -1 where the row has no answer. probs: (N, L) float64, NaN there.
    log_probs: (N, L) raw, as read. record: what the run noted beside the table. labels, ids, truth: of the rows.
    hard: a label is all that its method says; it has no probabilities, though its columns hold 0 and 1.
    """

    labels: tuple[str, ...]
    ids: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    chosen: np.ndarray
    probs: np.ndarray
    log_probs: np.ndarray
    other: np.ndarray
    record: dict[str, Any]
    hard: bool = False

    @property
    def answered(self) -> np.ndarray:
        """(N,) bool."""
        return self.chosen >= 0

    @property
    def index(self) -> np.ndarray:
        """(N,) column of the true label."""
        return np.asarray(pd.Index(self.labels).get_indexer(pd.Index(self.truth)))

    @property
    def right(self) -> np.ndarray:
        """(N,) bool; a row without an answer is not."""
        return self.chosen == self.index

    @property
    def scored(self) -> bool:
        """Has it probabilities to score?"""
        return not self.hard and bool(self.answered.any())

    def losses(self) -> np.ndarray:
        """(N,) nats: minus log of the true label's probability, inf where it is 0, NaN where the row has no answer."""
        with np.errstate(divide="ignore"):
            return -np.log(self.probs[np.arange(len(self.ids)), self.index])

    def predictions(self) -> Predictions:
        """The answered rows as the table that is scored and drawn."""
        kept = self.answered
        return Predictions(self.ids[kept], self.labels, self.probs[kept], self.other[kept], self.truth[kept])


def read_way_table(path: Path, rows: CompareRows, *, hard: bool = False) -> WayTable:
    """The table of a way, joined to the test rows by id. Raises ValueError where it is not of these rows."""
    frame = read_frame(path, text=("id", "label", "predicted")).set_index("id", drop=False)
    if sorted(map(str, frame.index)) != sorted(rows.ids):
        raise ValueError(f"{path} has {len(frame)} rows, and not those of {rows.test}. Delete its folder, start again.")
    frame = frame.loc[list(rows.ids)]
    labels = rows.labels
    probs = frame[[P + label for label in labels]].to_numpy(dtype=np.float64)
    probs = probs / probs.sum(axis=1, keepdims=True)  # float32 in the file
    chosen = np.asarray(pd.Index(labels).get_indexer(pd.Index(frame["predicted"], dtype=object)))
    return WayTable(
        labels, rows.ids, rows.truth, rows.groups, np.where(np.isfinite(probs).all(axis=1), chosen, -1), probs,
        frame[[LOG_P + label for label in labels]].to_numpy(dtype=np.float64),
        frame[OTHER_COLUMN].to_numpy(dtype=np.float64), read_json(Path(f"{path}.json")), hard,
    )  # fmt: skip


def floored(losses: np.ndarray) -> np.ndarray:
    """Losses of which none is infinite: what a probability of PROB_FLOOR costs is the most."""
    return np.minimum(losses, -np.log(PROB_FLOOR))
