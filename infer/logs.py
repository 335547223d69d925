"""The run's voice: plain lines on the screen and in the run folder, from the main process only."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

log = logging.getLogger("tiebreak")


def open_log(path: Path | None, *, main: bool) -> logging.Logger:
    """The project's logger, on stdout and appended to `path`; silent in every process but the main one."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.ERROR)
    log.addHandler(logging.StreamHandler(sys.stdout if main else sys.stderr))
    if main and path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log
