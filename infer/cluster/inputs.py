"""The tables that runner=ray reads: which files a setting means, what tells each from another, where it may be cut.

Reads names, heads and footers, and every byte once, for a file's digest. Knows no model and no Ray.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from infer.identity import input_identity
from models.tasks.table_files import CSV_ENDINGS, JSON_ENDINGS, PARQUET_ENDINGS

ENDINGS = (*PARQUET_ENDINGS, *CSV_ENDINGS, *JSON_ENDINGS)


@dataclass(frozen=True)
class InputFile:
    """One table. name: what tells it from the others, its path below what the setting names, with /.

    identity: JSON values that change when its content does. group_rows: rows of each row group of a Parquet file; None
    for other files, whose rows nobody knows before they are read.
    """

    path: Path
    name: str
    identity: dict[str, Any]
    group_rows: tuple[int, ...] | None

    @property
    def rows(self) -> int | None:
        return None if self.group_rows is None else sum(self.group_rows)

    def refuse_changed(self) -> None:
        """Raises ValueError where the file grew or shrank after its identity was taken; no byte is read."""
        if (size := self.path.stat().st_size) != self.identity["input_bytes"]:
            raise ValueError(
                f"{self.path} changed while it was read: {self.identity['input_bytes']} bytes before, {size} now. "
                "Name another folder for what it holds now."
            )


def named_files(given: Any, output: Path) -> dict[str, Path]:
    """{name: path} of the tables that `input` means: a file, a folder, a glob, or a list of these; sorted by name.

    Of a folder every table below it, but for names that begin with . or _; never what lies in `output`.
    Refuses an address such as s3://, a pattern or folder without tables, two files of one name, an input in `output`.
    """
    found: dict[str, Path] = {}
    for one in given if isinstance(given, list | tuple) else [given]:
        refuse_address("input", str(one))
        for name, path in _named(str(one), output.resolve()).items():
            if found.setdefault(name, path).resolve() != path.resolve():
                raise ValueError(
                    f"input names two files {name}: {found[name]} and {path}. Give the folder above both, so that "
                    "their paths tell them apart."
                )
    return dict(sorted(found.items()))


def _named(given: str, output: Path) -> dict[str, Path]:
    """The tables of one entry of `input`, by their path below it. output: resolved."""
    path = Path(given)
    if path.is_dir():
        root, paths = path, [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    elif not path.exists() and has_magic(given):
        beginning = given[: min(given.index(sign) for sign in "*?[" if sign in given)]
        root, paths = Path(os.path.dirname(beginning)), [Path(one) for one in glob(given, recursive=True)]
    elif not path.exists():
        raise FileNotFoundError(f"input={given} does not exist. Check its name and the folder the command runs in.")
    else:
        root, paths = path.parent, [path]
    if root.resolve() == output:
        raise ValueError(f"output={output} is the folder of input={given}. Name another one: output={output / 'out'}.")
    tables = {
        one.relative_to(root).as_posix(): one
        for one in paths
        if one.name.lower().endswith(ENDINGS) and output not in one.resolve().parents and one.is_file()
    }
    shown = {name: one for name, one in tables.items() if not any(part[0] in "._" for part in name.split("/"))}
    if not shown:
        raise ValueError(f"input={given} names no table. Read are {', '.join(ENDINGS)}.")
    return shown


def refuse_address(setting: str, given: str) -> None:
    """Refuses what is no path: every machine of a cluster opens the files by their path."""
    if "://" in given:
        raise ValueError(
            f"{setting}={given} is an address, expected a path that every machine of the cluster sees (NFS, Lustre, a "
            "mounted bucket). Mount it, or copy the files."
        )


def read_input(name: str, path: Path) -> InputFile:
    """What a file is without its rows. Raises ValueError naming a damaged one.

    Its identity is that of all its bytes: a Parquet file's footer alone may stay what it was when texts change.
    """
    if not path.name.lower().endswith(PARQUET_ENDINGS):
        return InputFile(path, name, input_identity(path), None)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            counts = tuple(file.metadata.row_group(at).num_rows for at in range(file.num_row_groups))
        return InputFile(path, name, input_identity(path), counts)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file, or is damaged ({error}). Write it again.") from error


def said_rows(files: Sequence[InputFile]) -> str:
    """`1,200 rows in 3 files`, as far as that is known."""
    known = sum(file.rows or 0 for file in files)
    unknown = sum(file.rows is None for file in files)
    tables = f"{len(files)} file{'s' if len(files) != 1 else ''}"
    if not unknown:
        return f"{known} rows in {tables}"
    return f"{tables}, {unknown} of them text, whose rows are counted as they are read"
