"""What is done with a chunk of rows: the fields read, the columns of the table filled, whoever hands the chunks out.

Knows rows, a reader and a frame's columns; never where a chunk comes from or where its part goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from infer.calibration.calibrator import Calibrator
from infer.chunked import kept_strays, part_schema, probability_columns, probability_frame
from infer.cutoffs import Cutoff
from infer.readers.by_method import Reader, load_reader, rotates
from infer.readers.label import LabelReading
from infer.text_files import kept_notes
from infer.thresholds import Decision
from models.settings import Settings
from models.tasks.text import LABEL_COLUMN, RowSource, TextRow


@dataclass(frozen=True)
class TextReading:
    """What is done with a chunk of rows, and with the model before the first."""

    settings: Settings
    source: RowSource
    calibrator: Calibrator | None
    decision: Decision | Cutoff | None
    watch: Callable[[Reader], Reader] | None = None

    def load(self) -> Reader:
        """The model, once it is what the calibrator was fitted with."""
        reader = load_reader(self.settings)
        reader = reader if self.watch is None else self.watch(reader)
        if self.calibrator is not None:
            self.calibrator.check(labels=self.source.labels, identity=reader.identity)
        return reader

    def read(self, reader: Reader, number: int, chunk: Sequence[TextRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The columns of chunk `number` and what is kept beside them; beside the first, also what calibrators need."""
        frame, extras = self.fill(reader, chunk)
        return frame, {**extras, **(_of_the_reader(reader) if number == 0 else {})}

    def fill(self, reader: Reader, chunk: Sequence[TextRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The schema's columns of these rows, and what is kept beside them: strays, and notes where there are any."""
        labels = self.source.labels
        reading = self._in_columns(reader.read([row.fields for row in chunk], names=[row.place for row in chunk]))
        probs = reading.probs()
        if self.calibrator is not None:
            answered = np.isfinite(probs).all(axis=1)
            probs[answered] = self.calibrator.apply(reading.log_probs[answered])
        frame = pd.concat([self._named(chunk), probability_frame(reading, labels, probs, self.decision)], axis=1)
        return frame, {"strays": kept_strays(reading), **kept_notes(reading, chunk)}

    def _in_columns(self, reading: LabelReading) -> LabelReading:
        """The reading with a spread where the table has its column, and none where it has not."""
        if not rotates(self.settings):
            return replace(reading, spread=None)
        return reading if reading.spread is not None else replace(reading, spread=np.full(len(reading.other), np.nan))

    @staticmethod
    def cost(chunk: Sequence[TextRow]) -> float:
        """Of reading a chunk, in a unit of its own that grows as its time does: the characters of its texts."""
        return float(sum(len(text) for row in chunk for text in row.fields.values()) + len(chunk))

    def schema(self) -> Any:
        """Of the table, a pyarrow schema."""
        strings = ["id", *([LABEL_COLUMN] if self.source.label_column else []), *self.source.keep_columns]
        return part_schema(strings, probability_columns(self.source.labels, spread=rotates(self.settings)))

    def _named(self, chunk: Sequence[TextRow]) -> pd.DataFrame:
        columns: dict[str, Any] = {"id": [row.id for row in chunk]}
        if self.source.label_column:
            columns[LABEL_COLUMN] = [row.label for row in chunk]
        columns |= {column: [row.kept[column] for row in chunk] for column in self.source.keep_columns}
        return pd.DataFrame(columns, dtype=object)


def _of_the_reader(reader: Reader) -> dict[str, Any]:
    """What calibrators need to know of the model and the prompt; None for answers that are not finite."""
    asked: dict[str, np.ndarray] = {}
    if hasattr(reader, "read_content_free"):
        asked["content_free"] = reader.read_content_free()
    if hasattr(reader, "read_premise"):
        asked["premise"] = reader.read_premise()
    answers = {name: found.tolist() if np.isfinite(found).all() else None for name, found in asked.items()}
    return {"reader": reader.identity, **answers}
