"""Which texts stood before, in 8 bytes each: a set for files with more rows than memory has room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class SeenTexts:
    """64-bit digests of the texts so far. 8 bytes a text; for a moment 16, while two runs are merged."""

    def __init__(self) -> None:
        # Sorted arrays, each at least twice as long as the next: a lookup searches few, a text is rarely merged.
        self._runs: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that probably stood before, here or in an earlier call; none that did is missed.

        Two different texts share a digest with odds of 1 in 2**64: some pair of a million with 1 in 37 million.
        """
        digests = np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))
        order = np.argsort(digests, kind="stable")
        run = digests[order]
        repeated = np.zeros(len(texts), dtype=bool)
        repeated[order[1:]] = run[1:] == run[:-1]
        for earlier in self._runs:
            at = np.minimum(np.searchsorted(earlier, digests), len(earlier) - 1)
            repeated |= earlier[at] == digests
        if len(run):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]
        return np.flatnonzero(repeated).tolist()
