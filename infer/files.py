"""Puts finished files in their place in one step, so that a crash leaves the older file or none.

Knows JSON, CSV and Parquet; never what a column means.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from models.tasks.files import write_atomically


def write_json(path: str | Path, content: Any) -> None:
    """Writes indented JSON atomically. Refuses NaN and infinity, which other readers of JSON do not accept."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_frame(frame: pd.DataFrame, path: str | Path, kind: str | None = None) -> None:
    """Writes `frame` atomically as CSV (gzipped where the name ends in .gz) or Parquet, by `kind` or else by the name.

    Float columns are taken as float32. The same frame always gives the same CSV bytes.
    """
    path = Path(path)
    if (kind or _kind(path)) == "parquet":
        with write_atomically(path) as temporary:
            frame.to_parquet(temporary, index=False)
        return
    # Nine significant digits name every float32 once, and lie too far from its neighbours to be misread.
    content = frame.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
    with write_atomically(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_frame(path: str | Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """The table at `path`; in a CSV, the columns `text` stay as written (an id 007, a label NA), blanks are ""."""
    path = Path(path)
    if _kind(path) == "parquet":
        return pd.read_parquet(path)
    as_written = dict.fromkeys(text, str)
    return pd.read_csv(path, dtype=as_written, keep_default_na=False, encoding="utf-8-sig")


def _kind(path: Path) -> str:
    if path.name.endswith(".parquet"):
        return "parquet"
    if path.name.endswith((".csv", ".csv.gz")):
        return "csv"
    raise ValueError(f"{path} ends in none of .csv, .csv.gz, .parquet. Give the table one of these endings.")
