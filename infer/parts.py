"""Output that survives a kill: chunks of rows become part files as they are finished, and one table at the end.

    out.csv.parts/            while the run is unfinished
        identity.json         what the parts depend on; a run that differs is refused
        lock                  held by the main process; the kernel lets go of it at a kill
        part-000000.parquet   one for each chunk, in its place in one step; a torn one is made again
    out.csv, out.csv.json     at the end: the table, and the record of how it was made

Not the folder of parts that runner=ray leaves (infer.cluster.part_folder): there the parts are the output, those of a
file named after it, since files may be added; here they are one table's, numbered through, and go once it is whole.
What both do alike is infer.part_files'.

A run that was killed and resumed gives the bytes of an unbroken one, as long as a chunk's frame does. Knows frames, a
schema and files; never what a column means.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from infer.files import UTF8_MARK, csv_bytes, for_spreadsheet, put_aside, read_json, table_kind
from infer.identity import as_json, differences, identity_in, mark_of, refuse_foreign, write_record
from infer.logs import log
from infer.part_files import (
    hold_output,
    is_whole,
    part_frame,
    part_frames,
    read_extras,
    read_part,
    refuse_missing,
    told_as_output,
    whole_part,
    write_part,
)
from infer.ranks import rank, world_size
from models.tasks.files import remove_half_written, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa


class Parts:
    """The unfinished output of one run: made by every process, checked and merged by the main one.

    output: .csv, .csv.gz or .parquet. identity: JSON values that every part depends on (settings, model, input, rows a
    chunk), or what finds them where that is work: with replace, asked once the output is this run's to write.
    `spreadsheet` in it makes a CSV safe to open in one. schema: of the table; each part has it, whatever its cells are.
    replace: what a run has made there may go, whichever it was, and with it the parts that it was made of.
    others: names, with * in them, of files that the run writes beside the output; a kill leaves some half-written.
    main: checks, locks and makes the folder; other processes are made after it, say after `wait_for_all`.
    Refuses, before any work: another ending, a folder that cannot be written, an output that stands there and was not
    made by this identity, a file beside it that no run made, parts of another identity, a second run on the output.
    """

    def __init__(
        self, output: str | Path, identity: Mapping[str, Any] | Callable[[], Mapping[str, Any]], schema: pa.Schema, *,
        main: bool = True, replace: bool = False, others: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.output = Path(output)
        self.kind = table_kind(self.output)
        self._identity = identity
        self.schema = schema
        self.folder = _beside(self.output, ".parts")
        self.replace = replace
        self.others = others
        self._lock: IO[str] | None = None
        if main:
            self._open()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every part depends on."""
        return as_json(self._identity() if callable(self._identity) else self._identity)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the lock; the parts stay for the next run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def todo(self, number: int) -> bool:
        """True where chunk `number` is this process's share and is not done."""
        return self.mine(number) and not self.done(number)

    def mine(self, number: int) -> bool:
        """True where chunk `number` is this process's share. Chunks are dealt like cards."""
        return number % world_size() == rank()

    def done(self, number: int) -> bool:
        """True where the part is there, whole and of this schema."""
        return is_whole(self._path(number), self.schema)

    def write(self, number: int, frame: pd.DataFrame, extras: Mapping[str, Any] | None = None) -> None:
        """Puts a finished chunk in its place. frame: the schema's columns in any order; NaN and None are empty cells.

        extras: small JSON values kept beside it. pyarrow refuses a cell that the schema cannot hold.
        """
        write_part(self._path(number), frame, self.schema, extras or {})

    def extras(self, count: int) -> list[dict[str, Any]]:
        """What was kept beside each of the first `count` chunks, in their order."""
        self.refuse_missing(count)
        return [read_extras(self._path(number)) for number in range(count)]

    def extras_of(self, number: int) -> dict[str, Any]:
        """What was kept beside one chunk, which must be there."""
        return read_extras(self._path(number))

    def frames(self, count: int, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """The first `count` chunks in their order, one in memory at a time; columns: only these."""
        self.refuse_missing(count)
        yield from part_frames(map(self._path, range(count)), columns)

    def frame(self, number: int) -> pd.DataFrame:
        """One chunk, which must be there."""
        return part_frame(read_part(self._path(number)))

    def whole_frame(self, number: int) -> pd.DataFrame | None:
        """One chunk; None where it is not there, or damaged."""
        part = whole_part(self._path(number), self.schema)
        return None if part is None else part_frame(part)

    def refuse_missing(self, count: int) -> None:
        """Raises ValueError where one of the first `count` chunks has no part."""
        refuse_missing(self.folder, [self._path(number) for number in range(count)])

    def merge(self, count: int, record: Mapping[str, Any]) -> None:
        """Writes the table of all `count` chunks, then the record with the identity, and removes the parts.

        A kill in between leaves parts from which the next run does it again. Main process only.
        """
        assert self._lock is not None, "only the process that holds the lock may merge"
        self.refuse_missing(count)
        tables = (read_part(self._path(number)) for number in range(count))
        with write_atomically(self.output) as temporary:
            if self.kind == "parquet":
                _write_parquet(temporary, tables, self.schema)
            else:
                _write_csv(temporary, tables, self.schema, spreadsheet=bool(self.identity.get("spreadsheet")))
        write_record(_beside(self.output, ".json"), self.identity, {**record, "output": mark_of(self.output)})
        self.finish()

    def finish(self) -> None:
        """Removes the parts of an output that is in its place, its record too. Main process only."""
        _remove(self.folder)  # with the lock held: the next run that holds one finds no part that goes under its hands
        self.close()

    def _open(self) -> None:
        try:
            with told_as_output(self.output):
                if self.output.is_dir():
                    raise ValueError(f"output={self.output} is a folder. Give the name of a file inside it.")
                self._refuse_foreign_output()
                self._lock = hold_output(self.output, self.folder / "lock", written=self.output.parent)
            self.identity  # noqa: B018  what it reads is not the output: its errors are told as its own
            with told_as_output(self.output):
                self._take_folder()
        except BaseException:
            self.close()
            raise

    def _refuse_foreign_output(self) -> None:
        """What stands there is overwritten only where its record, or parts still there, say that a run made it.

        The output itself only where this very identity did, unless it may be replaced.
        """
        record = _beside(self.output, ".json")
        made, begun = identity_in(record), identity_in(self.folder / "identity.json")
        if made is None and record.exists():
            raise ValueError(
                f"{record} is in the way: the output's record goes there. Move it, or name another output."
            )
        others = [self.output.with_name(name) for name in self.others if "*" not in name]  # with one they are caches
        records = [record, self.folder / "identity.json", *(path for path in others if path.suffix == ".json")]
        refuse_foreign([self.output, *others], records)
        if self.replace or not self.output.exists() or self.identity in (made, begun):
            return
        how = "no record beside it says how" if made is None else f"they differ in {differences(made, self.identity)}"
        raise ValueError(
            f"output={self.output} is there already and was made otherwise: {how}. Delete it, or name another output."
        )

    def _take_folder(self) -> None:
        path = self.folder / "identity.json"
        found = identity_in(path)
        if found != self.identity:
            there = list(self.folder.glob("part-*"))
            delivered = self.replace and found is not None and found == identity_in(_beside(self.output, ".json"))
            if there and delivered:
                log.warning(
                    f"warning: {len(there)} parts of the older {self.output.name} go, which was made for lack of time "
                    f"without the rest; this run differs in {differences(found or {}, self.identity)}"
                )
                for part in there:
                    part.unlink()
            elif there:
                raise ValueError(
                    f"{self.folder} holds the unfinished output of another run; they differ in "
                    f"{differences(found or {}, self.identity)}. Run that one again to finish it, delete the folder, "
                    "or name another output."
                )
            write_record(path, self.identity, {})  # without parts it is a run that was refused: nothing is lost
        own = (escape(self.output.name), escape(_beside(self.output, ".json").name))
        for name in (*own, *self.others):  # what a kill while writing left behind
            remove_half_written(self.output.parent, name)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"


def finished(output: str | Path, identity: Mapping[str, Any]) -> bool:
    """True where the output and its record are there, made by this identity, with the bytes that the record tells.

    Then also removes parts that a kill in a run's last moment left behind. An output of other bytes is put aside.
    """
    output = Path(output)
    if not output.is_file() or identity_in(_beside(output, ".json")) != as_json(identity):
        return False
    if not as_written(output):
        kept = f"It is kept as {put_aside(output)}" if output.stat().st_size else "It is empty"
        log.warning(f"warning: {output} is not as the run left it. {kept}, and its rows are read again")
        return False
    folder = _beside(output, ".parts")
    if folder.is_dir() and identity_in(folder / "identity.json") in (None, as_json(identity)):
        _remove(folder)
    return True


def as_written(output: Path) -> bool:
    """True where a finished output has the bytes that its record tells; older records tell none."""
    written = read_json(_beside(output, ".json")).get("output")
    return written is None or written == mark_of(output)


def _write_parquet(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """One row group for each table."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(path: Path, tables: Iterator[pa.Table], schema: pa.Schema, *, spreadsheet: bool) -> None:
    """Gzipped where the name ends in .gz, without name and time in its head: the same tables give the same bytes."""
    shaped = for_spreadsheet if spreadsheet else pd.DataFrame
    with path.open("wb") as file:
        packing = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else nullcontext(file)
        with packing as out:
            out.write(UTF8_MARK if spreadsheet else b"")
            out.write(csv_bytes(shaped(part_frame(schema.empty_table()))))
            for table in tables:
                out.write(csv_bytes(shaped(part_frame(table)), header=False))


def _remove(folder: Path) -> None:
    """The parts before the identity: what a kill leaves behind is never parts that nothing is known of."""
    for part in folder.glob("*part-*"):
        part.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # an empty folder that stays does no harm


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)
