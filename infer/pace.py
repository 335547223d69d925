"""How long work will take, judged by how long it took so far. Knows costs and seconds; never what is done."""

from __future__ import annotations

from collections import deque

LATE = 1.5  # a piece is begun only where this many times its expected seconds are left
RECENT = 5  # pieces whose slowness counts by itself: a machine may be shared from now on


def said(seconds: float) -> str:
    """Seconds for people: 95 s, 12 min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class Pace:
    """Seconds for a cost, of any unit in which twice as much takes twice as long.

    The first piece warms up kernels and caches, and counts only while it is the only one.
    """

    def __init__(self) -> None:
        self._pieces = 0
        self._cost = self._seconds = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self.load_s = 0.0  # seconds of the last model's loading, which is no piece's; 0: none was loaded yet

    def add(self, cost: float, seconds: float) -> None:
        """A piece of this cost took so many seconds."""
        if self._pieces == 1:
            self._cost = self._seconds = 0.0
            self._recent.clear()
        self._pieces += 1
        self._cost += cost
        self._seconds += seconds
        self._recent.append((cost, seconds))

    def seconds(self, cost: float) -> float | None:
        """What this cost will take: at the pace of all, or of the last few where that is slower; None: not known."""
        recent = sum(cost for cost, _ in self._recent)
        if not self._pieces or not recent or not self._cost:
            return None
        return cost * max(self._seconds / self._cost, sum(seconds for _, seconds in self._recent) / recent)

    def fits(self, cost: float, left_s: float, *, load: bool) -> bool:
        """Whether a piece of this cost should be done within left_s, the loading of a model before it included.

        As long as no piece was done, none was loaded, that is whether any time is left.
        """
        return LATE * (self.seconds(cost) or 0.0) + (self.load_s if load else 0.0) < left_s
