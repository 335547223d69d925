"""One part of an output: a Parquet file that is whole or not there, with small JSON values kept in it.

Knows a file, a frame and a schema; never which parts an output has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from models.tasks.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

EXTRAS_KEY = b"tiebreak"


def write_part(path: Path, frame: pd.DataFrame, schema: pa.Schema, extras: Mapping[str, Any]) -> None:
    """Puts a finished part in its place in one step. frame: the schema's columns in any order; NaN, None: empty cells.

    extras: JSON values, kept in the file. pyarrow refuses a cell that the schema cannot hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert sorted(frame.columns) == sorted(schema.names), (list(frame.columns), schema.names)
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    table = table.replace_schema_metadata({EXTRAS_KEY: json.dumps(dict(extras), allow_nan=False)})
    with write_atomically(path, make_folder=False) as temporary:  # in another folder it would be nobody's part
        pq.write_table(table, temporary, write_page_checksum=True)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The part, or only these columns of it, every page checked against its sum; raises one of read_errors()."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns)).replace_schema_metadata(None)


def read_extras(path: Path) -> dict[str, Any]:
    """What was kept in a part; raises one of read_errors(), and KeyError where another program made the file."""
    import pyarrow.parquet as pq

    return json.loads((pq.read_schema(path).metadata or {})[EXTRAS_KEY])


def whole_part(path: Path, schema: pa.Schema) -> pa.Table | None:
    """The part where it is there, undamaged and of this schema; else None."""
    try:
        part = read_part(path)
    except read_errors():
        return None
    return part if part.schema.equals(schema) else None


def is_whole(path: Path, schema: pa.Schema) -> bool:
    """True where the part is there, undamaged and of this schema."""
    return whole_part(path, schema) is not None


def part_frame(table: pa.Table) -> pd.DataFrame:
    """The part as a frame, its whole numbers whole: 3 beside an empty cell does not become 3.0."""
    return table.to_pandas(integer_object_nulls=True)


def read_errors() -> tuple[type[Exception], ...]:
    """What reading a part raises: OSError for a missing file or a bad checksum, pyarrow's own for a torn one."""
    import pyarrow as pa

    return (OSError, pa.ArrowException)
