"""Table files (CSV, CSV.gz, zip, Parquet) in, cells as written out, each with its place in the file; knows no task."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Table:
    """Cells of one file: text as written, "" or None where empty, a list where a Parquet cell is one.

    lines: (N,) the file's line where each row starts, from 1; None for Parquet, which has no lines.
    """

    path: Path
    frame: pd.DataFrame
    lines: np.ndarray | None

    def line(self, row: int) -> int | None:
        """Line of the file where a row (from 0) starts, or None where the file has no lines."""
        return None if self.lines is None else int(self.lines[row])

    def place(self, row: int) -> str:
        """Where a row (from 0) stands, for an error: `train.csv, row 3 (line 17)`."""
        line = "" if self.lines is None else f" (line {self.line(row)})"
        return f"{self.path}, row {row + 1}{line}"


def read_table(path: str | Path) -> Table:
    """Every cell of a .csv, .csv.gz, .zip or .parquet file, kept as written.

    A zip holds one CSV, or the path names one inside it (`data.zip/train.csv`). CSV is UTF-8, a byte order mark is
    tolerated, blank lines are passed over. Refuses another extension, broken or cut-off files, a row whose cells are
    not as many as the columns, a column name used twice.
    """
    path = Path(path)
    archive = next((folder for folder in path.parents if folder.suffix.lower() == ".zip" and folder.is_file()), None)
    name = path.name.lower()
    if archive is None and name.endswith((".parquet", ".pq")):
        return _read_parquet(path)
    if archive is None and not name.endswith((".csv", ".csv.gz", ".zip")):
        raise ValueError(f"{path}: read are .csv, .csv.gz, .zip (a CSV inside) and .parquet. Save it as one of these.")
    member = "" if archive is None else path.relative_to(archive).as_posix()
    try:
        with _open_csv(archive or path, member) as stream:
            return _parse_csv(path, stream)
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x}, {error.reason}"
        raise ValueError(f"{path} is not UTF-8 ({found}). Save it as CSV UTF-8.") from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be unpacked ({error}). Fetch it again: it is damaged or cut off.") from error


def require_columns(table: Table, names: Sequence[str], hint: str = "") -> None:
    """Refuses a table that lacks one of the columns, naming each with the closest one it does have."""
    present = [str(name) for name in table.frame.columns]
    missing = [name for name in names if name not in present]
    if not missing:
        return
    said = []
    for name in missing:
        close = get_close_matches(name, present, n=1)
        said.append(f"'{name}'" + (f" (closest: '{close[0]}')" if close else ""))
    raise ValueError(f"{table.path} has no column {', '.join(said)}. It has: {', '.join(present)}. {hint}".rstrip())


@contextmanager
def _open_csv(path: Path, member: str) -> Iterator[IO[str]]:
    # surrogatepass: half an emoji written raw reaches the cell reader, which repairs and counts it
    text: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogatepass", "newline": ""}
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive, archive.open(_csv_in_zip(path, archive, member)) as binary:
            yield io.TextIOWrapper(binary, **text)
    elif path.name.lower().endswith(".gz"):
        with gzip.open(path, "rt", **text) as stream:
            yield stream
    else:
        with open(path, **text) as stream:
            yield stream


def _csv_in_zip(path: Path, archive: zipfile.ZipFile, member: str) -> str:
    names = [n for n in archive.namelist() if n.lower().endswith(".csv") and not n.startswith("__MACOSX/")]
    if member in names:
        return member
    held = ", ".join(names) or "none"
    if member:
        raise ValueError(f"{path} holds no '{member}'; the CSV files in it: {held}. Name one of these.")
    if len(names) != 1:
        raise ValueError(f"{path} must hold one CSV, it holds: {held}. Name it, as in '{path}/train.csv'.")
    return names[0]


def _parse_csv(path: Path, stream: IO[str]) -> Table:
    """Python's csv module, not pandas: it knows line numbers, and reads no 'null' or 'NA' as missing."""
    limit = csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is less than a long conversation
    try:
        return _collect(path, csv.reader(stream, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a whole CSV file: {error}. Check the quotes, or fetch it again.") from error
    finally:
        csv.field_size_limit(limit)


def _collect(path: Path, reader: Any) -> Table:
    header = next(reader, None)
    if not header:
        raise ValueError(f"{path} is empty: it needs a first line with the column names.")
    _refuse_repeated(path, header)
    rows: list[list[str]] = []
    lines: list[int] = []
    line = reader.line_num + 1
    for cells in reader:
        if cells:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, row {len(rows) + 1} (line {line}) has {len(cells)} cells, the header has {len(header)}. "
                    "Check its commas and quotes."
                )
            rows.append(cells)
            lines.append(line)
        line = reader.line_num + 1
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    frame = pd.DataFrame(dict(zip(header, map(list, columns), strict=True)), dtype=object)
    return Table(path, frame, np.array(lines, dtype=np.int64))


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error}). Write it again.") from error
    _refuse_repeated(path, table.column_names)
    # to_pylist, not to_pandas: a missing value beside integers must not turn 64-bit ids into rounded floats
    columns = {name: [_as_written(v) for v in table.column(name).to_pylist()] for name in table.column_names}
    return Table(path, pd.DataFrame(columns, dtype=object), None)


def _as_written(value: Any) -> Any:
    return value if value is None or isinstance(value, str | list) else str(value)


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has column '{repeated[0]}' more than once. Keep one of them.")
