"""One table file opened as a stream of rows: CSV (plain, gzipped, in a zip), JSON lines, Parquet; knows no task."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from models.tasks.damaged_rows import DECODING, NOT_UTF8
from models.tasks.table_rows import Head, Row, read_csv, read_json, read_parquet

JSON_ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
PARQUET_ENDINGS = (".parquet", ".pq")
# .tsv is left out: such files often hold bare quotes as text, which a CSV reader would take for its own.
CSV_ENDINGS = (".csv", ".csv.gz", ".zip")
_DAMAGE = (OSError, EOFError, zlib.error, zipfile.BadZipFile)  # what unpacking a damaged file raises


@contextmanager
def open_table(
    path: Path, wanted: Sequence[str] | None = None, first: int = 0, *, mark_damage: bool = False
) -> Iterator[tuple[Head, Iterator[Row]]]:
    """The head of a table file and its rows, one at a time; their cells are those of `wanted`, or of every column.

    first: the row to begin at, from 0. The rows before it are parsed and passed over, but for whole row groups of
    Parquet, which are not read.

    A zip holds one CSV, or the path names one inside it (`data.zip/train.csv`). CSV and JSON lines are UTF-8, a byte
    order mark is tolerated, blank lines are passed over. A CSV header without a comma is split at its semicolons or
    tabs, and so are its rows. The columns of JSON lines are the keys of the first object: a key missing later is a
    cell of None, a key never seen there is refused, since it may be a misspelt one whose cell would be lost.
    Refuses another extension, broken or cut-off files, a row whose cells are not as many as the columns, a column name
    used twice. Whatever is refused while rows are read names the line.
    mark_damage: a damaged row of a CSV or of JSON lines is no refusal; `Damage` stands in place of its cells.
    """
    name, inside = path.name.lower(), _archive(path) is not None
    if not inside and not name.endswith((*CSV_ENDINGS, *JSON_ENDINGS, *PARQUET_ENDINGS)):
        raise ValueError(
            f"{path}: read are .csv, .csv.gz, .zip (a CSV inside), .jsonl, .jsonl.gz, .ndjson and .parquet. "
            "Save it as one of these."
        )
    if not inside and not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Check its name and the folder the command runs in.")
    if not inside and path.is_dir():
        raise ValueError(f"{path} is a folder, expected a table file. Name the file inside it.")
    if not inside and name.endswith(PARQUET_ENDINGS):
        with _parquet_refusals(path), _open_parquet(path) as file:
            yield read_parquet(path, file, wanted, first)
        return
    with _text_refusals(path), _open_binary(path) as binary:
        # surrogatepass: half an emoji written raw reaches the cell reader, which repairs and counts it
        errors = DECODING if mark_damage else "surrogatepass"
        stream = io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline="")
        read = read_json if not inside and name.endswith(JSON_ENDINGS) else read_csv
        lines = _whole_head(path, stream) if mark_damage else _without_nul(path, stream)
        head, rows = read(path, lines, wanted, mark_damage=mark_damage)
        _refuse_halves(path, head)
        yield head, islice(rows, first, None)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # buffer_size: a row group is read as it is decoded, not whole; some writers make one group of the whole file
    with pq.ParquetFile(path, buffer_size=2**20) as file:
        yield file


def _archive(path: Path) -> Path | None:
    """The zip file that a path leads into (`data.zip/train.csv`), None where it leads into none."""
    return next((folder for folder in path.parents if folder.suffix.lower() == ".zip" and folder.is_file()), None)


@contextmanager
def _open_binary(path: Path) -> Iterator[IO[bytes]]:
    archive = _archive(path)
    member = "" if archive is None else path.relative_to(archive).as_posix()
    if archive is not None or path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive or path) as folder, folder.open(_csv_in_zip(path, folder, member)) as binary:
            yield binary
    elif path.name.lower().endswith(".gz"):
        with gzip.open(path, "rb") as unpacked:
            yield unpacked  # type: ignore[misc]
    else:
        with open(path, "rb") as plain:
            yield plain


def _csv_in_zip(path: Path, archive: zipfile.ZipFile, member: str) -> str:
    names = [n for n in archive.namelist() if n.lower().endswith(".csv") and not n.startswith("__MACOSX/")]
    if member in names:
        return member
    held = ", ".join(names) or "none"
    if member:
        raise ValueError(f"{archive.filename} holds no '{member}'; the CSV files in it: {held}. Name one of these.")
    if len(names) != 1:
        raise ValueError(f"{path} must hold one CSV, it holds: {held}. Name it, as in '{path}/train.csv'.")
    return names[0]


def _refuse_halves(path: Path, head: Head) -> None:
    """A cell's half of a surrogate pair is mended and counted; a column is found by its name, which must be whole."""
    for name in head.columns:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise ValueError(f"{path}: the column name {name!r} holds half a character. Rename the column.")


def _without_nul(path: Path, stream: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if "\0" in line:
            raise ValueError(
                f"{path}, line {number} holds a NUL byte: it was cut off by a crash, or is UTF-16. "
                "Fetch it again, or save it as UTF-8."
            )
        yield line


def _whole_head(path: Path, stream: IO[str]) -> Iterator[str]:
    """The lines, once the first shows that this is text: a damaged header would misname every column."""
    first = next(stream, "")
    if NOT_UTF8 in first:
        form = "UTF-8" if path.name.lower().endswith(JSON_ENDINGS) else "CSV UTF-8"
        raise ValueError(f"{path}, {_bad_line(path)}. Save it as {form}.")
    yield from _without_nul(path, [first])
    yield from stream


@contextmanager
def _text_refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        form = "UTF-8" if path.name.lower().endswith(JSON_ENDINGS) else "CSV UTF-8"
        raise ValueError(f"{path}, {_bad_line(path)}. Save it as {form}.") from error
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise ValueError(f"{path} may not be read ({error.strerror}). Give yourself the right, or copy it.") from error
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be unpacked ({error}). Fetch it again: it is damaged or cut off.") from error


def _bad_line(path: Path) -> str:
    """A second look, by lines: the stream decodes ahead of the rows, so its own error knows no line."""
    number = 0
    with _open_binary(path) as binary:
        try:
            for line in binary:
                number += 1
                line.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            return f"line {number} is not UTF-8 (byte 0x{line[error.start]:02x}, {error.reason})"
        except _DAMAGE:
            return f"line {number + 1} is not UTF-8, and the file is damaged"
    raise AssertionError(f"{path}: every line is UTF-8, the whole was not")


@contextmanager
def _parquet_refusals(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a text is no UTF-8, which it must be
        raise ValueError(f"{path} is not a Parquet file, or is damaged ({error}). Write it again.") from error
