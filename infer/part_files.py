"""Parts of an output: Parquet files that are whole or not there, with small JSON values kept in them, and their lock.

What `infer.parts` and `infer.cluster.part_folder` share. Knows files, frames and a schema; never which parts an output
has.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from infer.locks import hold
from models.tasks.disk import DiskError
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
    """What was kept in a part; raises one of read_errors()."""
    import pyarrow.parquet as pq

    return json.loads((pq.read_schema(path).metadata or {})[EXTRAS_KEY])


def kept_extras(path: Path) -> dict[str, Any] | None:
    """What was kept in a part; None where there is none, it is torn, or another program made it."""
    try:
        return read_extras(path)
    except read_errors():
        return None


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


def part_frames(paths: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Of these parts, one in memory at a time; columns: only these."""
    for path in paths:
        yield part_frame(read_part(path, columns))


def refuse_missing(folder: Path, paths: Sequence[Path]) -> None:
    """Raises ValueError where one of these parts of the folder is not there."""
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(paths)} parts, {missing[0]} first: a process stopped early, or "
            "does not share this disk. Start the same command again; what is done is kept."
        )


@contextmanager
def told_as_output(output: Path) -> Iterator[None]:
    """What the system refuses in the block is told of the setting `output`; what the disk does, as it is."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise ValueError(
            f"output={output} cannot be written: {error.strerror or error} ({error.filename or output}). "
            "Give a file in a folder that you can write to, or with runner=ray such a folder."
        ) from error


def hold_output(output: Path, lock: Path, *, written: Path) -> IO[str]:
    """The lock of an output, held until it is closed, once its folder is made and `written`, a folder, can be.

    Raises ValueError where another run holds it; OSError.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=written).close()  # the lock's folder may outlast a right
    return hold(lock, f"output={output} is being written by another run. Wait for it, stop it, or name another output.")


def part_frame(table: pa.Table) -> pd.DataFrame:
    """The part as a frame, its whole numbers whole: 3 beside an empty cell does not become 3.0."""
    return table.to_pandas(integer_object_nulls=True)


def read_errors() -> tuple[type[Exception], ...]:
    """What reading a part raises: OSError for a missing file or a bad checksum, pyarrow's own for a torn one, KeyError
    and ValueError for the extras of one that another program made.
    """
    import pyarrow as pa

    return (OSError, pa.ArrowException, KeyError, ValueError)
