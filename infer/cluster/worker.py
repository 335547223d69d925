"""What a worker of runner=ray does: takes a slice, reads its rows with a model loaded once, writes a part a chunk.

Stateless but for the model: a slice that is given again writes the same parts, and passes over those that are there.
Knows slices and parts; never Ray, which makes an actor of it.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.cluster.part_folder import PartFolder
from infer.cluster.slices import Slice
from infer.endpoint.client import EndpointRefused
from infer.logs import open_log
from infer.pace import Pace
from infer.part_files import part_frame

if TYPE_CHECKING:
    from infer.calibration.calibrator import Calibrator
    from infer.cluster.inputs import InputFile
    from infer.cutoffs import Cutoff
    from infer.readers.by_method import Reader
    from infer.text_reading import TextReading
    from infer.thresholds import Decision
    from models.settings import Settings
    from models.tasks.damaged_rows import BadRow
    from models.tasks.text import TextRow


@dataclass(frozen=True)
class ReadingJob:
    """What every worker of a run needs. settings: their task.input_csv is another in every slice.

    deadline: by the machines' clocks (time.time()), when the last part is to be in its place; infinity: whenever.
    """

    settings: Settings
    calibrator: Calibrator | None
    decision: Decision | Cutoff | None
    parts: PartFolder
    deadline: float = math.inf

    def left_s(self) -> float:
        return self.deadline - time.time()

    def reading(self, path: Path) -> TextReading:
        """What is done with the rows of one file, once its head is checked."""
        from infer.text_reading import TextReading
        from infer.text_run import open_source

        settings = for_file(self.settings, path)
        return TextReading(settings, open_source(settings), self.calibrator, self.decision)


def for_file(settings: Settings, path: Path) -> Settings:
    """The settings of a run over this one file."""
    return replace(settings, task=replace(settings.text, input_csv=str(path)))


class SliceReader:
    """Called with a batch of slices, {"slice": [JSON, ...]}, yields {"receipt": [JSON]} for each part and refusal.

    A slice that is given again yields as many as it did: after a kill Ray passes over those that it has had.

    A receipt: file, chunk, rows, seconds, pid, host; `refused` with a sentence where the rows of a chunk could
    not be read, one that is too long for the memory among them, and `failed` with one where no other chunk can be
    either (the model, the disk, the endpoint). A file that cannot be parsed any further is told by a last `refused`,
    of a chunk and all after it. `late`: at the pace of this worker the chunk would not be done by the deadline, and
    the rest of its slice is left. Rows that task.on_bad_row leaves out are kept beside their chunk's part.
    """

    def __init__(self, job: ReadingJob) -> None:
        open_log(None, main=False)
        self._job = job
        self._reader: Reader | None = None
        self._pace = Pace()

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        own = {"pid": os.getpid(), "host": socket.gethostname()}
        for text in batch["slice"]:
            for receipt in self._read(Slice.from_json(str(text))):
                yield {"receipt": [json.dumps({**own, **receipt})]}

    def _read(self, one: Slice) -> Iterator[dict[str, Any]]:
        at, said, end = one.first, "", 0
        if self._job.left_s() <= 0:  # its file need not even be opened
            yield {"file": one.file.name, "chunk": at, "late": True}
            return
        while one.stop is None or at < one.stop:  # once, but for what rows that cannot be parsed leave behind them
            try:
                one.file.refuse_changed()
                reading = self._job.reading(one.file.path)
                bad_rows: list[BadRow] = []
                for number, rows in reading.source.chunks_from(at, bad_rows):
                    said, end = "", number * reading.source.chunk_rows + len(rows) + len(bad_rows)
                    if one.wants(number):
                        receipt = self._tried(reading, one.file, number, rows, bad_rows)
                        yield receipt
                        if "late" in receipt:
                            return
                    bad_rows.clear()
                    at = number + 1
                    if at == one.stop:
                        return
                if end > (at - 1) * reading.source.chunk_rows:  # the last chunk was seen, its rows are counted
                    self._job.parts.write_end(one.file, end)
                return
            except (ValueError, MemoryError) as error:
                before, said = said, _words(error)
                if said == before:  # and no chunk in between: told whoever wants it, since no other chunk is
                    yield _refusal(one.file, at, f" and all after it: {said}")
                    return
                if one.wants(at):
                    yield _refusal(one.file, at, f": {said}")
                at += 1
            except (OSError, _NoReader) as error:
                yield {"file": one.file.name, "chunk": at, "failed": _words(error)}
                return

    def _tried(
        self, reading: TextReading, file: InputFile, number: int, rows: Sequence[TextRow], bad_rows: Sequence[BadRow]
    ) -> dict[str, Any]:  # fmt: skip
        """The receipt of these rows, whether they could be read or not: those after them may be, all the same."""
        try:
            return self._part(reading, file, number, rows, bad_rows)
        except EndpointRefused as error:
            raise _NoReader(str(error)) from error
        except (ValueError, MemoryError) as error:
            return _refusal(file, number, f": {_words(error)}")

    def _part(
        self, reading: TextReading, file: InputFile, number: int, rows: Sequence[TextRow], bad_rows: Sequence[BadRow]
    ) -> dict[str, Any]:  # fmt: skip
        """Write the part of these rows, unless it is there or would not be in time; its receipt."""
        late = {"file": file.name, "chunk": number, "late": True}
        begun = {"file": file.name, "chunk": number, "rows": len(rows)}
        if self._job.parts.holds(file, number):
            return {**begun, "seconds": 0.0}
        counts = {"rows": len(rows), "bad_rows": [asdict(row) for row in bad_rows]}
        if not rows:  # all are left out
            self._job.parts.write(file, number, part_frame(self._job.parts.schema.empty_table()), counts)
            return {**begun, "seconds": 0.0}
        cost = reading.cost(rows)
        if not self._pace.fits(cost, self._job.left_s(), load=self._reader is None):
            return late
        stage = "loading" if self._reader is None else "reading"
        with self._job.parts.in_hand(file, number, stage) as died:
            if len(died) > self._job.settings.ray.retries:
                said = f"{len(died)} workers died of it, out of memory or killed"
                raise _NoReader(said) if set(died) == {"loading"} else ValueError(said)
            if self._reader is None:
                started = time.monotonic()
                self._reader = _load(reading)
                self._pace.load_s = time.monotonic() - started
                if not self._pace.fits(cost, self._job.left_s(), load=False):
                    return late
            started = time.monotonic()
            named = rows if reading.source.id_column else [replace(row, id=f"{file.name}:{row.id}") for row in rows]
            frame, extras = reading.fill(self._reader, named)
            self._job.parts.write(file, number, frame, {**extras, **counts, "reader": self._reader.identity})
        seconds = time.monotonic() - started
        self._pace.add(cost, seconds)
        return {**begun, "seconds": seconds}


def _refusal(file: InputFile, chunk: int, said: str) -> dict[str, Any]:
    return {"file": file.name, "chunk": chunk, "refused": f"{file.name}, chunk {chunk}{said}"}


def _words(error: BaseException) -> str:
    """A MemoryError of Python's own says nothing."""
    return str(error) or type(error).__name__


class _NoReader(Exception):
    """The model cannot be loaded, or is not the calibrator's, or answers nothing any more."""


def _load(reading: TextReading) -> Reader:
    try:
        return reading.load()
    except (ValueError, ImportError, MemoryError) as error:
        raise _NoReader(_words(error)) from error
