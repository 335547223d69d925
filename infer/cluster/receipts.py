"""What the workers of one launch say, added up: the parts that are there, what was refused, whether the time was short.

Knows receipts (infer.cluster.worker); never a part or a worker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infer.logs import log

REFUSALS_NAMED = 3


@dataclass
class Receipts:
    """made: {name of a file: chunks whose part is there}, of this launch and of those before."""

    made: dict[str, set[int]]
    refused: list[str] = field(default_factory=list)
    late: bool = False  # a chunk was left out for lack of time
    rows: int = 0  # read in this launch
    _busy_s: float = 0.0
    _first_s: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def take(self, receipt: Mapping[str, Any]) -> int:
        """Adds one; the rows that it says were read now."""
        if "refused" in receipt:
            self.refused.append(receipt["refused"])
        elif "late" in receipt:
            self.late = True
        elif receipt["chunk"] not in self.made[receipt["file"]]:  # else of an earlier launch, passed over on the way
            self.made[receipt["file"]].add(receipt["chunk"])
            self._first_s = self._first_s or time.monotonic() - self._started
            self.rows, self._busy_s = self.rows + receipt["rows"], self._busy_s + receipt["seconds"]
            return int(receipt["rows"])
        return 0

    @property
    def parts(self) -> int:
        """How many are there."""
        return sum(map(len, self.made.values()))

    def said_refused(self) -> str:
        """The first of the refusals, and how many more there are."""
        more = len(self.refused) - REFUSALS_NAMED
        return "; ".join(self.refused[:REFUSALS_NAMED]) + (f"; and {more} more" if more > 0 else "")

    def figures(self) -> dict[str, Any]:
        """Of the launch, for the record; they are also said."""
        seconds = time.monotonic() - self._started
        log.info(
            f"{self.rows} rows read in {seconds:.1f} s, {self.rows / seconds:.1f} rows/s; the first part was there "
            f"after {self._first_s:.1f} s: Ray's start, the model's and its own"
        )
        figures = {"seconds": seconds, "seconds_to_first_part": self._first_s, "worker_seconds": self._busy_s}
        return {"rows_read": self.rows, **{key: round(value, 3) for key, value in figures.items()}}
