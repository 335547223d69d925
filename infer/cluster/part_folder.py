"""A folder of parts as an output: each part names the rows it holds, and is made again where it is damaged or gone.

    out/part-<file>-<digest>-000000.parquet   one for each chunk of an input file, in its place in one step
    out/_identity.json                        what every part depends on; a run that differs is refused
    out/_ends/                                how many rows a text file has, once one has read it to its end
    out/_record.json                          at the end: rows, figures and the identity; no record: unfinished
    out/_lock, out/_reading/                  while a run is at work: the parts in hand, and who has them

Not infer.parts, whose parts are joined to one table and go: these are the output, and of as many files as are given
now. What both do alike is infer.part_files'.

Names that begin with _ are passed over by what reads a folder of Parquet. Knows files and chunks; never who reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from infer.cluster.inputs import InputFile
from infer.files import read_json, write_json
from infer.identity import as_json, differences, identity_in, write_record
from infer.part_files import hold_output, is_whole, kept_extras, told_as_output, write_part
from models.tasks.files import remove_half_written

if TYPE_CHECKING:
    import pyarrow as pa

STEM_CHARACTERS = 60  # of an input's name in its parts' names
THREADS = 8  # that look at parts at once: on shared disks the time is waiting
DIGEST_DIGITS = 16  # hex, of an input's name: 32 bits are the same for two of 100,000 names in 70 of 100 folders
_PART = re.compile(rf"(part-.*-[0-9a-f]{{{DIGEST_DIGITS}}})-(\d{{6,}})\.parquet")


@dataclass(frozen=True)
class PartFolder:
    """Where the parts of one run are, for every process of it. schema: of each part."""

    folder: Path
    schema: pa.Schema

    def path(self, file: InputFile, chunk: int) -> Path:
        """Of the part of chunk `chunk` of a file; the same for the same name, whatever other inputs there are."""
        return self.folder / f"{_prefix(file.name)}-{chunk:06d}.parquet"

    def write(self, file: InputFile, chunk: int, frame: pd.DataFrame, extras: Mapping[str, Any]) -> None:
        """Puts a part in its place, with the mark of the file that its rows are of."""
        write_part(self.path(file, chunk), frame, self.schema, {"input": file.identity, **extras})

    def holds(self, file: InputFile, chunk: int) -> bool:
        """True where the part is there, whole, and made of this very file."""
        path = self.path(file, chunk)
        kept = kept_extras(path) or {}
        return kept.get("input") == as_json(file.identity) and is_whole(path, self.schema)

    def write_end(self, file: InputFile, rows: int) -> None:
        """The file has so many rows, damaged ones too: says it where the file itself does not, before it is read."""
        if file.rows is None:
            write_json(self._end(file), {"identity": file.identity, "rows": rows})

    def end(self, file: InputFile) -> int | None:
        """The file's number of rows as far as the file, or write_end, has said it."""
        if file.rows is not None:
            return file.rows
        if identity_in(self._end(file)) != as_json(file.identity):
            return None
        rows = read_json(self._end(file)).get("rows")
        return rows if isinstance(rows, int) else None

    def _end(self, file: InputFile) -> Path:
        return self.folder / "_ends" / f"{_prefix(file.name)}.json"

    @contextmanager
    def in_hand(self, file: InputFile, chunk: int, stage: str) -> Iterator[list[str]]:
        """While the block runs, `_reading` says which process of which machine has this part, and at what stage.

        Yields the stages at which earlier processes ended that had it and could not take their mark away: a kill.
        """
        mark = self.folder / "_reading" / self.path(file, chunk).stem
        before = _mark(mark)
        died = [*before["died"], before["stage"]] if before else []
        own = {"pid": os.getpid(), "host": socket.gethostname(), "file": file.name, "stage": stage, "died": died}
        mark.write_text(json.dumps(own))  # not flushed: it is to survive its process, not the machine
        try:
            yield died
        finally:
            mark.unlink(missing_ok=True)

    def handed(self) -> list[dict[str, Any]]:
        """What `_reading` says: {"part", "file", "pid", "host", "stage", "died"} of each part begun, not finished."""
        marks = sorted((self.folder / "_reading").glob("part-*"))
        return [{"part": mark.name, **found} for mark in marks if (found := _mark(mark))]


class OpenFolder:
    """The folder in the process that leads a run: it checks, locks, finds what is done and writes the record.

    Refuses, before any work: a folder that cannot be written, that another run is writing, that holds parts of another
    identity, of files that are not given now, or of files that changed.
    """

    def __init__(self, parts: PartFolder, identity: Mapping[str, Any], files: Sequence[InputFile]) -> None:
        self.parts, self.folder, self.files = parts, parts.folder, list(files)
        self.identity = as_json(identity)
        self._lock: IO[str] | None = None
        _refuse_one_prefix(self.files)
        with told_as_output(self.folder):
            self._lock = hold_output(self.folder, self.folder / "_lock", written=self.folder)
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the lock, once what killed workers left behind is gone; the parts stay."""
        if self._lock is None:
            return
        try:
            with suppress(OSError):  # read-only by now, or gone: the next run sweeps, and the first error is to be told
                self._sweep()
                (self.folder / "_lock").unlink(missing_ok=True)
        finally:
            self._lock.close()
            self._lock = None

    def done(self) -> dict[str, set[int]]:
        """{name of a file: chunks whose part is there and whole}; reads every part."""
        at = [(file, chunk) for file, chunks in self._owned() for chunk in chunks]
        found: dict[str, set[int]] = {file.name: set() for file in self.files}
        with ThreadPoolExecutor(THREADS) as pool:
            for (file, chunk), whole in zip(at, pool.map(lambda one: self.parts.holds(*one), at), strict=True):
                if whole:
                    found[file.name].add(chunk)
        return found

    @property
    def record_path(self) -> Path:
        return self.folder / "_record.json"

    def record(self) -> dict[str, Any] | None:
        """The record, where this identity made it of these inputs."""
        if identity_in(self.record_path) != self.identity:
            return None
        content: dict[str, Any] = read_json(self.record_path)
        return content if content.get("inputs_sha256") == self.inputs_mark() else None

    def ends(self) -> dict[str, int | None]:
        """{name of a file: its number of rows}, None for a text file that nobody has read to its end."""
        return {file.name: self.parts.end(file) for file in self.files}

    def inputs_mark(self) -> str:
        """Of all inputs: their names and what they hold."""
        return hashlib.sha256(json.dumps([[file.name, file.identity] for file in self.files]).encode()).hexdigest()

    def forget_record(self) -> None:
        """From here on the folder is unfinished."""
        self.record_path.unlink(missing_ok=True)

    def write_record(self, values: Mapping[str, Any]) -> None:
        """The record says that every part is there."""
        write_record(self.record_path, self.identity, {"inputs_sha256": self.inputs_mark(), **values})

    def _take(self) -> None:
        path = self.folder / "_identity.json"
        made = identity_in(path)
        parts = sorted(self.folder.glob("part-*.parquet"))
        if made != self.identity:
            if parts:
                how = "nothing says how" if made is None else f"they differ in {differences(made, self.identity)}"
                raise ValueError(
                    f"output={self.folder} holds {len(parts)} parts that were made otherwise: {how}. Delete the "
                    "folder, or name another one."
                )
            shutil.rmtree(self.folder / "_ends", ignore_errors=True)  # other settings may find other rows in a file
            write_record(path, self.identity, {})
        strangers = {part.name for part in parts} - {
            self.parts.path(file, chunk).name for file, chunks in self._owned() for chunk in chunks
        }
        if strangers:
            raise ValueError(
                f"output={self.folder} holds {len(strangers)} parts of files that input does not name, "
                f"{min(strangers)} first. Give those files too, delete their parts, or name another folder."
            )
        self._refuse_changed()
        self._sweep()
        (self.folder / "_reading").mkdir(exist_ok=True)

    def _refuse_changed(self) -> None:
        """Refuses a file whose first whole part was made of other content."""
        for file, chunks in self._owned():
            for chunk in chunks:
                kept = kept_extras(self.parts.path(file, chunk))
                if kept is None:
                    continue
                made = kept.get("input")
                if made != as_json(file.identity):
                    raise ValueError(
                        f"{file.path} changed since its parts were made: {differences(made or {}, file.identity)}. "
                        f"Delete them ({self.folder / _prefix(file.name)}-*), or name another folder."
                    )
                break

    def _owned(self) -> list[tuple[InputFile, list[int]]]:
        """(file, chunks of which a part is there) of every input."""
        by_prefix: dict[str, list[int]] = {}
        for entry in os.scandir(self.folder):
            if found := _PART.fullmatch(entry.name):
                by_prefix.setdefault(found[1], []).append(int(found[2]))
        return [(file, sorted(by_prefix.get(_prefix(file.name), []))) for file in self.files]

    def _sweep(self) -> None:
        """What killed workers left behind: half a part under its temporary name, a mark of what they had in hand."""
        shutil.rmtree(self.folder / "_reading", ignore_errors=True)
        remove_half_written(self.folder, "*")


def _prefix(name: str) -> str:
    """Of the parts of an input: readable, and its own whatever folder it is in."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "_", Path(name).name.partition(".")[0])[:STEM_CHARACTERS]
    return f"part-{stem}-{hashlib.sha256(name.encode()).hexdigest()[:DIGEST_DIGITS]}"


def _refuse_one_prefix(files: Sequence[InputFile]) -> None:
    """Refuses two inputs whose parts would have the same names: the rows of one would pass for those of the other."""
    named: dict[str, str] = {}
    for file in files:
        if (other := named.setdefault(_prefix(file.name), file.name)) != file.name:
            raise ValueError(
                f"input names {other} and {file.name}, whose parts would both be called {_prefix(other)}-*. Rename one."
            )


def _mark(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (FileNotFoundError, ValueError):  # finished meanwhile, or just begun
        return None
