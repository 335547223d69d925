"""How long the parts of a training take, as measured, and so when to end it within a time budget.

Knows seconds only. A part that was not seen yet is guessed from what was: rather too long than too short.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

RECENT_STEPS = 50  # the longest of these counts: rows of similar length come together
FORWARD_SHARE = 0.5  # of a training step that reading its rows alone takes; a backward pass takes two forward ones
DISK_BYTES_S = 100e6  # of a slow disk
FINISH_SHARE = 0.05  # of the budget, for joining the folds, calibration, baselines and the report


class TimeIsUp(Exception):
    """The time budget ends here; the training is saved, and the next launch goes on with it."""


class Pace:
    """heldout_steps: what an evaluation reads, in steps. saved_bytes: of a checkpoint. budget_s: infinite without."""

    def __init__(self, *, heldout_steps: float, saved_bytes: int, budget_s: float) -> None:
        self.heldout_steps, self.saved_bytes = heldout_steps, saved_bytes
        self.finish_s = 0.0 if budget_s == float("inf") else FINISH_SHARE * budget_s
        self.steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self.longest: dict[str, float] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Measures a part: step, evaluation, save."""
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        if part == "step":
            self.steps.append(took)
        self.longest[part] = max(took, self.longest.get(part, 0.0))

    @property
    def step_s(self) -> float:
        return max(self.steps, default=0.0)

    @property
    def evaluation_s(self) -> float:
        return self.longest.get("evaluation", FORWARD_SHARE * self.heldout_steps * self.step_s)

    @property
    def save_s(self) -> float:
        return self.longest.get("save", self.saved_bytes / DISK_BYTES_S)

    def needed_s(self, *, deliver: bool, evaluates: bool) -> float:
        """Seconds that must be left after a step for another one to fit in.

        deliver: the fold is to end with a network and a held-out table: an evaluation to choose the network, and one
        pass over the held-out rows by what was saved of it. evaluates: an evaluation and a save come before that step.
        """
        wait = self.evaluation_s + self.save_s if evaluates else 0.0
        ending = 2 * self.evaluation_s + self.save_s if deliver else 0.0
        return wait + self.step_s + self.save_s + ending + self.finish_s
