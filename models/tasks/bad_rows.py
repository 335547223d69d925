"""The rows that were left out of a table, listed for a person: file, row, line, id, reason. Knows no task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from models.tasks.damaged_rows import BadRow
from models.tasks.files import write_atomically
from models.tasks.tables import Table


def damaged_rows(table: Table, id_column: str | None) -> list[BadRow]:
    """The rows of a table that its file has broken; their ids where the cells that can be read tell them."""
    at = table.header.index(id_column) if id_column in table.header else None
    return [
        BadRow(
            str(table.path), number + 1, line,
            damage.cells[at] if at is not None and len(damage.cells) > at else "", damage.reason,
        )
        for number, line, damage in table.damaged
    ]  # fmt: skip


def write_bad_rows(path: str | Path, bad_rows: Sequence[BadRow]) -> None:
    """A CSV of the rows left out: file, row, line, id, reason."""
    names = list(BadRow.__dataclass_fields__)
    with write_atomically(path) as unfinished:
        pd.DataFrame([asdict(row) for row in bad_rows], columns=names).to_csv(unfinished, index=False)
