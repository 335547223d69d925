"""Table files (CSV, JSON lines, Parquet), whole or in chunks, each row with its place in the file; knows no task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from models.tasks.damaged_rows import Damage
from models.tasks.table_files import open_table
from models.tasks.table_rows import Head, Row


@dataclass(frozen=True)
class Table:
    """Cells of one file, or of a chunk of it: text as written, "" or None where empty, a list where the file has one.

    lines: (N,) the file's line where each row starts, from 1; None for Parquet, which has no lines.
    numbers: (N,) the number of each row in the file, from 0. damaged: the rows left out of the frame, where such are
    marked: (number, line, what is wrong); header: the file's columns, in whose order their cells are.
    """

    path: Path
    frame: pd.DataFrame
    lines: np.ndarray | None
    numbers: np.ndarray
    header: tuple[str, ...] = ()
    damaged: tuple[tuple[int, int | None, Damage], ...] = ()

    def line(self, row: int) -> int | None:
        """Line of the file where a row of this table (from 0) starts, or None where the file has no lines."""
        return None if self.lines is None else int(self.lines[row])

    def place(self, row: int) -> str:
        """Where a row of this table (from 0) stands in the file, for an error: `train.csv, row 3 (line 17)`."""
        line = "" if self.lines is None else f" (line {self.line(row)})"
        return f"{self.path}, row {int(self.numbers[row]) + 1}{line}"


def read_table(path: str | Path, *, mark_damage: bool = False) -> Table:
    """Every row of a table file. What is read and what is refused: `open_table`."""
    path = Path(path)
    with open_table(path, mark_damage=mark_damage) as (head, rows):
        return _table(path, head.columns, list(rows), 0, head)


def stream_table(
    path: str | Path,
    chunk_rows: int,
    columns: Sequence[str] | None = None,
    first: int = 0,
    *,
    mark_damage: bool = False,
) -> Iterator[Table]:  # fmt: skip
    """The rows of a table file, chunk_rows at a time (the last chunk fewer); none where only the head is there.

    Holds one chunk, whatever the size of the file. columns: the only ones read, in this order; they must exist.
    first: the row to begin at, from 0.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}, expected 1 or more rows.")
    path = Path(path)
    with open_table(path, columns, first, mark_damage=mark_damage) as (head, rows):
        names = columns or head.columns
        while chunk := list(islice(rows, chunk_rows)):
            yield _table(path, names, chunk, first, head)
            first += len(chunk)


def read_head(path: str | Path) -> Head:
    """The column names of a table file and what else it says before its rows; no row is read."""
    with open_table(Path(path), mark_damage=True) as (head, _):  # a decoder looks ahead, and may find damage there
        return head


def table_columns(path: str | Path) -> tuple[str, ...]:
    """The column names of a table file; no row is read."""
    return read_head(path).columns


def require_columns(table: Table, names: Sequence[str], hint: str = "") -> None:
    """Refuses a table that lacks one of the columns, naming each with the closest one it does have."""
    require_names(table.path, [str(name) for name in table.frame.columns], names, hint)


def require_names(path: str | Path, present: Sequence[str], names: Sequence[str], hint: str = "") -> None:
    """Refuses a file whose columns are `present` and lack one of `names`, naming each with the closest one."""
    missing = [name for name in names if name not in present]
    if not missing:
        return
    said = ", ".join(f"'{name}'{offer_closest(name, present)}" for name in missing)
    raise ValueError(f"{path} has no column {said}. It has: {', '.join(present)}. {hint}".rstrip())


def offer_closest(name: str, known: Sequence[str]) -> str:
    """` (closest: 'text')`, to stand behind a name that is not known; "" where none is near. Letter case is no way."""
    by_lower = {other.strip().casefold(): other for other in reversed(known)}
    close = get_close_matches(name.strip().casefold(), by_lower, n=1)
    return f" (closest: '{by_lower[close[0]]}')" if close else ""


def _table(path: Path, columns: Sequence[str], rows: list[Row], first: int, head: Head) -> Table:
    numbered = [(number, line, cells) for number, (line, cells) in enumerate(rows, first)]
    whole = [row for row in numbered if not isinstance(row[2], Damage)]
    damaged = tuple((number, line, cells) for number, line, cells in numbered if isinstance(cells, Damage))
    cells = zip(*(cells for _, _, cells in whole), strict=True) if whole else ([] for _ in columns)
    frame = pd.DataFrame(dict(zip(columns, map(list, cells), strict=True)), dtype=object)
    lines = np.array([line for _, line, _ in whole], dtype=np.int64) if head.has_lines else None
    numbers = np.array([number for number, _, _ in whole], dtype=np.int64)
    return Table(path, frame, lines, numbers, head.columns, damaged)
