"""Small inputs of runner=ray, and what its workers are given and answer, without Ray."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text_runs import reviews, settings_of

from infer.cluster.inputs import InputFile, named_files, read_input
from infer.cluster.part_folder import PartFolder
from infer.cluster.slices import Slice
from infer.cluster.worker import ReadingJob, SliceReader

if TYPE_CHECKING:
    from infer.text_reading import TextReading


def table(path: Path, rows: int = 3, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = reviews(rows)
    frame.to_parquet(path, **options) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def job_of(folder: Path, model: str, *overrides: str) -> tuple[ReadingJob, list[InputFile]]:
    """What workers of a run over folder/in are given, and its files; 8 rows a chunk."""
    from infer.cluster.worker import for_file
    from infer.text_reading import TextReading
    from infer.text_run import open_source

    settings = settings_of(folder, model, "runner=ray", f"input={folder / 'in'}", *overrides, output="out")
    files = [read_input(name, path) for name, path in named_files(str(folder / "in"), folder / "out").items()]
    first = for_file(settings, files[0].path)
    parts = PartFolder(folder / "out", TextReading(first, open_source(first), None, None).schema())
    return ReadingJob(settings, None, None, parts), files


class DiesOnce(SliceReader):
    """A worker that kills itself amid a part that it has just been given: the sixth of the run, and once."""

    def _part(self, reading: TextReading, file: InputFile, number: int, *rows: Any) -> dict[str, Any]:
        parts = self._job.parts
        if len(list(parts.folder.glob("part-*.parquet"))) >= 5:
            with suppress(FileExistsError), parts.in_hand(file, number, "reading"):
                (parts.folder.parent / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._part(reading, file, number, *rows)


def receipts(job: ReadingJob, slices: list[Slice]) -> list[dict[str, Any]]:
    batch = {"slice": [one.to_json() for one in slices]}
    return [json.loads(text) for answer in SliceReader(job)(batch) for text in answer["receipt"]]
