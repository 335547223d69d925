"""A step's rows as micro-batches that fit into memory: dealt to the processes, cut by tokens, weighted right.

The step itself, and so the effective batch, never changes: a smaller budget means more and smaller micro-batches.
Knows lengths and numbers of rows (train.batches), never what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from multiprocessing.sharedctypes import RawValue
from typing import Any

import numpy as np

from infer.batching import batches
from models.settings import TrainerSettings

Items = Sequence[int]
Cuts = Sequence[Sequence[Items]]  # for every process, its micro-batches


def token_budget(trainer: TrainerSettings, lengths: np.ndarray) -> int:
    """trainer.budget_tokens; where it is null, what batch_rows of the longest row take: never more than they would."""
    return trainer.budget_tokens or trainer.batch_rows * int(lengths.max(initial=1))


class MicroBatches:
    """What one process reads of a step at once: at most budget_tokens, padding counted, and one row at least.

    collate: items -> the tensors of a batch. lengths: (N,) tokens that each row takes alone, as the sampler has them.
    even: every process makes as many passes, because each pass is an exchange (train.sharding).
    """

    def __init__(
        self, collate: Callable[[list[int]], dict[str, Any]], lengths: np.ndarray, *, budget_tokens: int,
        process: int = 0, processes: int = 1, even: bool = False,
    ) -> None:  # fmt: skip
        self.collate = collate
        self.even = even
        self.tokens = np.asarray(lengths).repeat(2)  # by item: both orders of a row are as long
        self._budget_tokens = RawValue("q", budget_tokens)  # the loader's workers see it shrink
        self.process, self.processes = process, processes
        self._passed: list[set[tuple[int, int]]] = [set() for _ in range(processes)]

    @property
    def budget_tokens(self) -> int:
        """Of a micro-batch; the same in a process and in the workers of its loader."""
        return int(self._budget_tokens.value)

    @budget_tokens.setter
    def budget_tokens(self, tokens: int) -> None:
        self._budget_tokens.value = tokens

    def __call__(self, items: list[int]) -> dict[str, Any]:
        """A step as the loader brings it: its items, and this process's batches as cut for the budget of now."""
        cut_for = self.budget_tokens  # before the cut: where it shrinks in between, the batches count as stale
        mine = self.cuts(items)[self.process]
        return {"items": items, "cut_for": cut_for, "batches": [self.collate(part) for part in mine]}

    def cuts(self, items: Items) -> list[list[list[int]]]:
        """For every process the micro-batches of its share of a step, longest first, so that what is too large shows.

        Shares are dealt like cards, so that all have equally much to do. Where a step has fewer items than there are
        processes, those without one read the first again; its `weight` is 0.
        """
        order = np.asarray(items)
        order = order[np.argsort(-self.tokens[order], kind="stable")]
        shares = [order[process :: self.processes] for process in range(self.processes)]
        cuts = [
            [part.tolist() for part in batches(share if len(share) else order[:1], self.tokens, self.budget_tokens)]
            for share in shares
        ]
        return evened(cuts) if self.even else cuts

    def weight(self, part: Items, items: Items, before: Sequence[Items] = ()) -> float:
        """What a micro-batch's mean loss counts, so that the processes' sums of them average to the step's mean.

        before: those that this process has read of the step; the same one again is a pass that counts nothing.
        """
        if part in before:
            return 0.0
        return 0.0 if self.process >= len(items) else len(part) * self.processes / len(items)

    def padding(self, steps: Iterable[Items]) -> float:
        """Share of the tokens read in these steps, by all processes, that stand for nothing."""
        parts = [np.asarray(part) for items in steps for mine in self.cuts(items) for part in mine]
        read = sum(self.size(part)[0] for part in parts)
        return 1 - sum(int(self.tokens[part].sum()) for part in parts) / max(1, read)

    def size(self, part: Items | np.ndarray) -> tuple[int, int]:
        """(tokens, tokens times the longest row): what memory grows with, outside attention and inside."""
        longest = int(self.tokens[np.asarray(part)].max())
        return len(part) * longest, len(part) * longest**2

    def smaller(self, part: Items) -> int:
        """The budget after memory ran out on this micro-batch; 0 where it is a single row."""
        return 0 if len(part) == 1 else min(self.budget_tokens, self.size(part)[0]) // 2

    def prove(self, cuts: Cuts) -> None:
        """Remember that every process has been through these micro-batches."""
        for passed, mine in zip(self._passed, cuts, strict=True):
            sizes = passed | {self.size(part) for part in mine}
            passed.clear()
            passed.update(one for one in sizes if not any(one != other and _within(one, other) for other in sizes))

    def proven(self, cuts: Cuts) -> bool:
        """True where each process has been through something as large as each of its micro-batches."""
        return all(
            any(_within(self.size(part), other) for other in passed)
            for passed, mine in zip(self._passed, cuts, strict=True)
            for part in mine
        )


def evened(cuts: list[list[list[int]]]) -> list[list[list[int]]]:
    """The same rows in as many micro-batches for each process: the largest are halved, then the last is read again."""
    most = max(map(len, cuts))
    return [_stretched(mine, most) for mine in cuts]


def _stretched(parts: list[list[int]], count: int) -> list[list[int]]:
    parts = list(parts)
    while len(parts) < count and len(largest := max(parts, key=len)) > 1:
        at, half = parts.index(largest), len(largest) // 2
        parts[at : at + 1] = [largest[:half], largest[half:]]
    return parts + [parts[-1]] * (count - len(parts))


def _within(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1]
