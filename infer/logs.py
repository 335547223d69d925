"""The run's voice: plain lines on the screen and in the run folder, from the main process only."""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from models.tasks.disk import told_by_disk

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
    screen = _Screen(sys.stdout if main else sys.stderr)
    screen.setFormatter(_Plain("%(message)s"))
    log.addHandler(screen)
    if main and path is not None:
        with told_by_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _File(path, encoding="utf-8")
        file.setFormatter(_Indented("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log


def plain(text: str) -> str:
    r"""The text with its control characters written out (\x1b), but for tabs and line ends."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def indented(text: str, width: int = 2) -> str:
    """plain(text) with every line but the first set in, so that none can be taken for a new message."""
    return plain(text).replace("\n", "\n" + " " * width)


def mute(stream: TextIO) -> None:
    """What is written to the stream from here on goes nowhere: nobody can read it, and no error comes of it."""
    with suppress(OSError, ValueError):  # no file of the system stands behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Screen(logging.StreamHandler[TextIO]):
    """Where nobody reads any more (| head), or a file takes no more, the run goes on without a screen."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        mute(self.stream)
        if not isinstance(error, BrokenPipeError):
            _complain(f"warning: the screen takes no more lines ({error.strerror or error}); the run goes on")


class _File(logging.FileHandler):
    """Lines that a full disk does not take are missing in the file; they are on the screen, and the run goes on."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        if not self.told:
            self.told = True
            reason = error.strerror or error
            _complain(f"warning: {self.baseFilename} lacks lines from here on ({reason}); the run goes on")

    def close(self) -> None:
        with suppress(OSError):  # of lines that it could not take
            super().close()


def _complain(text: str) -> None:
    """On stderr, if anybody reads there."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        mute(sys.stderr)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Indented(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record), len("2025-01-01 00:00:00  "))
