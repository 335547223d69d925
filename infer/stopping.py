"""When a run ends before its work is done: a signal from outside, or the end of its time budget.

SIGTERM (a spot machine, a notebook's time-out) and SIGINT (Ctrl-C) raise Stopped where the process stands: what is in
its place is whole, and what was being written goes. Inside `finishing_steps` they wait: the loop asks `asked_to_stop`
between its steps, saves, and raises Stopped itself. A second signal, AGAIN_S after the first, waits for nothing.

The end of the budget is looked for between the pieces of the work; `no_longer_than` bounds a piece whose length nobody
knows yet. Knows signals and clocks; never what a step is.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNHEARD_S = 0.05  # until a signal that Python dropped comes again: a finaliser is over by then
AGAIN_S = 3.0  # launchers repeat a signal at once to their processes: sooner than this it is the same wish
SIGNAL_CODE = 128  # exit code of a run that a signal stopped: 128 + its number, as shells have it

_started = time.monotonic()  # of this process, as far as its clock is ours
_state: dict[str, Any] = {"signal": None, "at": 0.0, "steps": 0, "deadline": None, "unraisable": None}


class Stopped(BaseException):
    """The run was told to stop and has saved what it had. Not an Exception: nobody may take it for a failed row.

    signal_number: 15 or 2. done: a sentence on what is saved and how to go on.
    """

    def __init__(self, signal_number: int, done: str = "") -> None:
        self.signal_number = signal_number
        self.exit_code = SIGNAL_CODE + signal_number
        said = f"Stopped by {signal.Signals(signal_number).name}"
        super().__init__(f"{said}: {done}" if done else f"{said}. The same command goes on.")


class TimeSpent(BaseException):
    """A block has taken all the time it was given. Not an Exception: nobody may take it for a failed row."""


def listen() -> None:
    """Take SIGTERM and SIGINT from here on; in the main thread only, where Python delivers them."""
    if threading.current_thread() is threading.main_thread():
        for one in SIGNALS:
            signal.signal(one, _received)
        if sys.unraisablehook is not _unheard:
            _state["unraisable"] = sys.unraisablehook
            sys.unraisablehook = _unheard


def asked_to_stop() -> int | None:
    """The number of the signal that was received, None without one. For loops inside `finishing_steps`."""
    found = _state["signal"]
    return None if found is None else int(found)


@contextmanager
def finishing_steps() -> Iterator[None]:
    """Signals wait in this block; one that nobody has answered by its end is raised there."""
    _state["steps"] = int(_state["steps"] or 0) + 1
    try:
        yield
    finally:
        _state["steps"] = int(_state["steps"] or 0) - 1
    number = asked_to_stop()
    if number is not None and not _state["steps"]:
        raise Stopped(number)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside `finishing_steps`, for what may be dropped half-way: here Stopped is raised where the process stands."""
    steps, _state["steps"] = _state["steps"], 0
    try:
        number = asked_to_stop()
        if number is not None and steps:
            raise Stopped(number)
        yield
    finally:
        _state["steps"] = steps


def set_time_budget(minutes: float | None) -> None:
    """The run is to be over so many minutes after its process started; None: whenever it is."""
    _state["deadline"] = None if minutes is None else _started + 60 * minutes


def time_left_s() -> float:
    """Seconds until the time budget is spent, negative after; infinity without a budget."""
    deadline = _state["deadline"]
    return math.inf if deadline is None else deadline - time.monotonic()


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raises TimeSpent where the process stands in the block, or as it ends, once so many seconds are over.

    Raised again and again, AGAIN_S apart: the first may meet a finaliser, or code that passes over errors. A call into
    C (an operation of a network, a tensor read from the disk) ends first: by its length the block may take longer.
    Infinity, a thread other than the main one and Windows have no such bound.
    """
    main = threading.current_thread() is threading.main_thread()
    if math.isinf(seconds) or sys.platform == "win32" or not main:
        yield
        return

    end = time.monotonic() + seconds

    def spent(*_: object) -> None:
        left = end - time.monotonic()  # this clock decides, as it does for time_left_s; the alarm only asks it
        if left <= 0:
            raise TimeSpent
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3), AGAIN_S)

    if seconds <= 0:
        spent()
    before = signal.signal(signal.SIGALRM, spent)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # again, where the one above was interrupted
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def forget() -> None:
    """As in a new process: no signal received, no budget. For one process that makes several runs."""
    global _started
    _started = time.monotonic()
    _state.update(signal=None, at=0.0, steps=0, deadline=None)


def _unheard(found: Any) -> None:
    """Python drops what is raised in a finaliser: the signal comes again a moment later, where it is heard."""
    if not isinstance(found.exc_value, Stopped):
        (_state["unraisable"] or sys.__unraisablehook__)(found)
        return
    _state["signal"] = None
    again = threading.Timer(UNHEARD_S, os.kill, (os.getpid(), found.exc_value.signal_number))
    again.daemon = True
    with suppress(RuntimeError):  # the interpreter ends already
        again.start()


def _received(number: int, frame: FrameType | None) -> None:
    first = _state["signal"] is None
    again = not first and time.monotonic() - float(_state["at"] or 0.0) > AGAIN_S
    if first:
        _state.update(signal=number, at=time.monotonic())
    if again or (first and not _state["steps"]):
        raise Stopped(number)
