"""The files beside a table of texts: labels.csv, each skill with its label, and what a reader noted of each row.

Knows rows, readings and files; never a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from infer.chunked import P
from infer.files import for_spreadsheet, guard_formula, read_frame, write_frame
from infer.logs import log
from infer.predictions import OTHER_COLUMN
from infer.readers.label import LabelReading
from models.run_checks import OUTPUT_ENDINGS
from models.tasks.files import write_atomically
from models.tasks.text import LABEL_COLUMN, RowSource, TextRow

LABELS_FILE = "labels.csv"
BAD_ROWS_FILE = "bad_rows.csv"
NOTES_FILE = "reasoning.jsonl"
ANSWERS_FILE = "answers.jsonl"  # in its place where answers are written or asked for
PLAIN_STEM = "predictions"  # what experiments call their table


def beside(output: Path, name: str) -> Path:
    """Where a file beside a table stands: predictions.parquet has labels.csv, out.parquet has out.labels.csv.

    So two tables of one folder never share one; out.csv and out.parquet would, and the second is refused.
    """
    stem = next(output.name.removesuffix(ending) for ending in (*OUTPUT_ENDINGS, "") if output.name.endswith(ending))
    return output.with_name(name if stem == PLAIN_STEM else f"{stem}.{name}")


def kept_notes(reading: LabelReading, rows: Sequence[TextRow]) -> dict[str, list[dict[str, Any]]]:
    """What is kept beside a part of what its reader noted: {"notes": [id, the row's texts, the note]}, or {}."""
    if reading.notes is None:
        return {}
    assert len(reading.notes) == len(rows), (len(reading.notes), len(rows))
    return {"notes": [{"id": row.id, **row.fields, **note} for row, note in zip(rows, reading.notes, strict=True)]}


def notes_file(notes: Sequence[Mapping[str, Any]]) -> str:
    """The name of the file that these notes go to."""
    return ANSWERS_FILE if notes and "outcome" in notes[0] else NOTES_FILE


def write_notes(path: Path, chunks: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    """One line of JSON for each row, in the rows' order."""
    rows = 0
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for notes in chunks:
            stream.writelines(json.dumps(note, ensure_ascii=False) + "\n" for note in notes)
            rows += len(notes)
    log.info(f"{path}: what was noted of {rows} rows")


def write_labels(
    path: Path, source: RowSource, frames: Iterable[pd.DataFrame], text_column: str, *, spreadsheet: bool
) -> None:
    """skill, label (the one chosen), p_<label>..., p_other; a row each, in the order of the table.

    frames: of the table, one for each chunk of source. spreadsheet: no cell becomes a formula in one.
    """
    field = next(name for name, column in source.field_columns.items() if column == text_column)
    columns = [P + label for label in source.labels] + [OTHER_COLUMN]
    pieces = []
    for (_, chunk), frame in zip(source.chunks(), frames, strict=True):
        ids = [guard_formula(row.id) if spreadsheet else row.id for row in chunk]
        assert frame["id"].tolist() in (ids, [row.id for row in chunk]), "the input changed while it was read"
        named = pd.DataFrame({"skill": [row.fields[field] for row in chunk], LABEL_COLUMN: frame["predicted"]})
        pieces.append(pd.concat([named, frame[columns]], axis=1))
    table = pd.concat(pieces, ignore_index=True)
    write_frame(for_spreadsheet(table) if spreadsheet else table, path)
    log.info(f"{path}: {sum(map(len, pieces))} skills, each with its label")


def table_chunks(output: Path, source: RowSource) -> Iterator[pd.DataFrame]:
    """A finished table in the chunks that it was read in."""
    table, begin = read_frame(output, text=("id", "predicted")), 0
    for _, chunk in source.chunks():
        yield table.iloc[begin : begin + len(chunk)].reset_index(drop=True)
        begin += len(chunk)
