"""Puts finished files in their place in one step, so that a crash leaves the older file or none.

Knows JSON, CSV and Parquet; never what a column means.
"""

import gzip
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from models.tasks.disk import told_by_disk
from models.tasks.files import write_atomically

FORMULA_SIGNS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four: their full-width forms
UTF8_MARK = "\ufeff".encode()  # without it spreadsheets take accents for something else


def write_json(path: str | Path, content: Any) -> None:
    """Writes indented JSON atomically. Refuses NaN and infinity, which other readers of JSON do not accept."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises ValueError naming the file where it is damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Delete it, or make it again.") from error


def write_frame(frame: pd.DataFrame, path: str | Path, kind: str | None = None) -> None:
    """Writes `frame` atomically as CSV (gzipped where the name ends in .gz) or Parquet, by `kind` or else by the name.

    Float columns are taken as float32. The same frame always gives the same CSV bytes.
    """
    path = Path(path)
    if (kind or table_kind(path)) == "parquet":
        with write_atomically(path) as temporary:
            frame.to_parquet(temporary, index=False)
        return
    content = csv_bytes(frame)
    with write_atomically(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def for_spreadsheet(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before each text cell that a spreadsheet would take for a formula."""
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    guarded = {name: frame[name].map(guard_formula).astype(object) for name in texts}
    return frame.assign(**guarded).rename(columns=guard_formula)


def guard_formula(cell: Any) -> Any:
    """The cell, behind an apostrophe where it is text that begins like a formula; OWASP, CSV injection."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_SIGNS) else cell


def csv_bytes(frame: pd.DataFrame, *, header: bool = True) -> bytes:
    """The frame as CSV, its float columns taken as float32; every cell is read back as one, whatever it holds."""
    # Nine significant digits name every float32 once, and lie too far from its neighbours to be misread.
    text = frame.to_csv(index=False, header=header, float_format="%.9g", lineterminator="\n")
    if "\r" in text:
        # pandas puts a cell in quotes for the line end in use only, but every reader takes a bare \r for a line end.
        text = frame.to_csv(index=False, header=header, float_format="%.9g", lineterminator="\r\n")
        text = re.sub(r'("(?:[^"]|"")*")|\r\n', lambda found: found[1] or "\n", text)
    return text.encode()


def put_aside(path: Path) -> Path:
    """Moves a file that may be somebody's work to a name beside it that is free; that name."""
    names = (path.with_name(f"{path.name}.changed{number or ''}") for number in itertools.count())
    aside = next(name for name in names if not name.exists())
    with told_by_disk(path):
        os.replace(path, aside)
    return aside


def read_frame(path: str | Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """The table at `path`; in a CSV, the columns `text` stay as written (an id 007, a label NA), blanks are ""."""
    path = Path(path)
    if table_kind(path) == "parquet":
        return pd.read_parquet(path)
    as_written = dict.fromkeys(text, str)
    return pd.read_csv(path, dtype=as_written, keep_default_na=False, encoding="utf-8-sig")


def table_kind(path: Path) -> str:
    """`parquet` or `csv`, by the name's ending. Raises ValueError for another ending."""
    if path.name.endswith(".parquet"):
        return "parquet"
    if path.name.endswith((".csv", ".csv.gz")):
        return "csv"
    raise ValueError(f"{path} ends in none of .csv, .csv.gz, .parquet. Give the table one of these endings.")
