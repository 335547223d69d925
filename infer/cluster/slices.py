"""What is left to read, cut into slices that one worker takes at once: chunks of a file that are read in one pass.

A Parquet file is cut at its row groups, so that each is decoded once. A text file is read from its beginning, whoever
wants its end: where files are fewer than workers, each of several reads it and keeps every n-th chunk. Knows numbers of
chunks, never rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from math import ceil
from pathlib import Path

from infer.cluster.inputs import InputFile

MISSING_NAMED = 5  # files


@dataclass(frozen=True)
class Slice:
    """Chunks first, first + 1, ... of a file, before `stop` (None: to its end), of them those of share `share`."""

    file: InputFile
    first: int
    stop: int | None
    share: int = 0
    shares: int = 1

    def wants(self, chunk: int) -> bool:
        return chunk % self.shares == self.share

    def to_json(self) -> str:
        values = asdict(self)
        return json.dumps({**values, "file": {**values["file"], "path": str(self.file.path)}})

    @staticmethod
    def from_json(text: str) -> Slice:
        values = json.loads(text)
        file = values.pop("file")
        groups = None if file["group_rows"] is None else tuple(file["group_rows"])
        return Slice(InputFile(Path(file["path"]), file["name"], file["identity"], groups), **values)


def slices_to_read(
    files: Sequence[InputFile], done: Mapping[str, set[int]], ends: Mapping[str, int | None], *, chunk_rows: int,
    workers: int,
) -> list[Slice]:  # fmt: skip
    """The slices of every chunk that is not done, in the files' order; [] where all is.

    ends: rows of each file, None for a text file that nobody has read to its end. workers: where there are fewer slices
    than that, each is dealt to several.
    """
    found = [one for file in files for one in _stretches(file, done[file.name], ends[file.name], chunk_rows)]
    shares = ceil(workers / len(found)) if found else 1
    return [replace(one, share=share, shares=n) for one in found for n in [_shares(one, shares)] for share in range(n)]


def chunk_count(file: InputFile, end: int | None, chunk_rows: int) -> int | None:
    """How many chunks a file of `end` rows has; None for a text file that nobody has read to its end."""
    rows = end if file.rows is None else file.rows
    return None if rows is None else ceil(rows / chunk_rows)


def said_missing(
    files: Sequence[InputFile], done: Mapping[str, set[int]], ends: Mapping[str, int | None], chunk_rows: int
) -> str:
    """`12 of 38 chunks of a.parquet, all of b.csv but 7 chunks and chunks of 3 more files`."""
    said: list[str] = []
    for file in files:
        count, there = chunk_count(file, ends[file.name], chunk_rows), len(done[file.name])
        if count is None:
            said.append(f"all of {file.name} but {there} chunks" if there else f"all of {file.name}")
        elif there < count:
            said.append(f"{count - there} of {count} chunks of {file.name}")
    more = f" and chunks of {len(said) - MISSING_NAMED} more files" if len(said) > MISSING_NAMED else ""
    return ", ".join(said[:MISSING_NAMED]) + more


def _shares(one: Slice, wanted: int) -> int:
    return wanted if one.stop is None else min(wanted, one.stop - one.first)


def _stretches(file: InputFile, done: set[int], end: int | None, chunk_rows: int) -> list[Slice]:
    count = chunk_count(file, end, chunk_rows)
    if count is None:
        first = next(at for at in range(len(done) + 1) if at not in done)
        return [Slice(file, max(first - 1, 0), None)]  # one chunk that is done: it may be the last, which tells the end
    # A group's chunks are those whose first row lies in it; a text file is one group.
    ends = [0, *accumulate(file.group_rows)] if file.group_rows is not None else [0, count * chunk_rows]
    groups = [range(ceil(begin / chunk_rows), ceil(end / chunk_rows)) for begin, end in pairwise(ends)]
    missing = [[at for at in group if at not in done] for group in groups]
    return [Slice(file, chunks[0], chunks[-1] + 1) for chunks in missing if chunks]
