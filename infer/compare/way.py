"""One way of a comparison in its own process: learns from fit.csv where it learns by fit(rows), reads test.csv.

    python -m infer ARGUMENTS compare.way=NAME     started by infer.compare.ways

Writes the usual table, and beside it what reading cost. A way that learns in a training loop was trained before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.checkpoints import finished_checkpoints
from infer.classifiers import make_classifier, save_classifier
from infer.files import read_json, write_json
from infer.readers.by_method import Reader, asked_fields, reader_kind
from infer.text_run import run_texts
from models.method_settings import NETWORK_METHODS
from models.settings import Settings
from models.tasks.labelled import read_labelled

COST_FILE = "cost.json"


class Clock:
    """Rows that a reader has read, and the seconds it took."""

    def __init__(self) -> None:
        self.rows, self.seconds = 0, 0.0

    def watch(self, reader: Reader) -> Reader:
        """The reader, timed from now on; its loading is not."""
        plain = reader.read

        def read(rows: Sequence[Any], **how: Any) -> Any:
            started = time.monotonic()
            found = plain(rows, **how)
            self.rows, self.seconds = self.rows + len(rows), self.seconds + time.monotonic() - started
            return found

        reader.read = read  # type: ignore[method-assign]
        return reader


def run_way(settings: Settings) -> Path:
    """The table of one way, and cost.json beside it: rows and seconds of reading, of fitting, the peak of memory.

    After a kill the rate is that of the rows that were left.
    """
    path = Path(str(settings.output)).parent / COST_FILE
    cost = read_json(path) if path.is_file() else {}
    if learns_by_fit(settings) and not finished_checkpoints(Path(settings.run_dir)):
        cost["fit_seconds"] = fit(settings)
        write_json(path, cost)
    clock = Clock()
    written = run_texts(settings, watch=clock.watch)
    if clock.rows:
        cost |= {"rows": clock.rows, "seconds": clock.seconds}
    cost |= {"peak_mib": max(peak_mib(), cost.get("peak_mib", 0.0)), "gpu_peak_mib": gpu_peak_mib()}
    write_json(path, cost)
    return written


def learns_by_fit(settings: Settings) -> bool:
    """Does this way learn by fit(rows)? One that is told not to learn reads the checkpoints of its run_dir."""
    fitted = settings.method.name not in NETWORK_METHODS and reader_kind(settings) == "fitted"
    return fitted and settings.compare.learn == "auto"


def fit(settings: Settings) -> float:
    """Fit the classifier on the rows to learn from, into run_dir; the seconds it took."""
    started, labels = time.monotonic(), tuple(settings.question.labels)
    rows = read_labelled(settings.text, labels, fields=asked_fields(settings)).rows
    index = np.array([labels.index(str(row.label)) for row in rows], dtype=np.int64)
    classifier = make_classifier(settings.method, seed=settings.seed, labels=labels, embedding=settings.embedding)
    classifier.fit(rows, index)
    save_classifier(classifier, Path(settings.run_dir), task=settings.task.name, method=settings.method.name)
    return time.monotonic() - started


def peak_mib() -> float:
    """The most memory that this process has held, in MiB; what its parent held before it does not count."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        found = next((line for line in lines if line.startswith("VmHWM:")), None)
        if found is not None:
            return int(found.split()[1]) / 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 1024)


def gpu_peak_mib() -> float | None:
    """The most GPU memory that tensors of this process have held; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return float(torch.cuda.max_memory_allocated() / 2**20)
