"""The run's voice: plain lines on the screen and in the run folder, from the main process only."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

log = logging.getLogger("tiebreak")

# Control characters and those that change the direction of a line: what rows hold must not move the cursor, colour the
# screen or make a line look like one of ours.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def open_log(path: Path | None, *, main: bool) -> logging.Logger:
    """The project's logger, on stdout and appended to `path`; silent in every process but the main one."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    # It misses an optional kernel of the hub; nothing that whoever reads our lines can act on.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.ERROR)
    screen = logging.StreamHandler(sys.stdout if main else sys.stderr)
    screen.setFormatter(_Plain("%(message)s"))
    log.addHandler(screen)
    if main and path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(_Indented("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log


def plain(text: str) -> str:
    r"""The text with its control characters written out (\x1b), but for tabs and line ends."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def indented(text: str, width: int = 2) -> str:
    """plain(text) with every line but the first set in, so that none can be taken for a new message."""
    return plain(text).replace("\n", "\n" + " " * width)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Indented(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record), len("2025-01-01 00:00:00  "))
