"""Which rows a training step reads, and, where they have two, in which order of the answers.

An item is a number: 2 * row for the order as written, 2 * row + 1 for the swapped one. A step's items are the same
whatever the memory and the number of processes. Knows numbers, never text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

# Rows of similar length share a step inside windows of this many steps: less padding, still shuffled.
WINDOW_STEPS = 50


class StepSampler(torch.utils.data.Sampler[list[int]]):
    """The items of each step of an epoch, shuffled from (seed, epoch) alone: a resumed epoch goes on with the same.

    lengths: (N,) tokens that each row takes in a batch, to put rows of similar length into one step.
    swap: both (every row in both orders, side by side in one step), random (a coin per row and epoch), none.
    step_items: items per step, of all processes together; the last step of an epoch may have fewer.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, *, swap: str, step_items: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.swap = swap
        self.step_items = step_items
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) * (2 if self.swap == "both" else 1) // self.step_items)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        rows = self._windows(random)
        if self.swap == "both":
            items = np.stack([2 * rows, 2 * rows + 1], axis=1).ravel()
        elif self.swap == "random":
            coins = random.integers(0, 2, len(self.lengths))  # by row, so that the coin does not hang on the shuffle
            items = 2 * rows + coins[rows]
        else:
            items = 2 * rows
        for start in range(0, len(items), self.step_items):
            yield items[start : start + self.step_items].tolist()

    def _windows(self, random: np.random.Generator) -> np.ndarray:
        """Row numbers: shuffled, sorted by length inside windows, the steps of each window shuffled again."""
        step_rows = max(1, self.step_items // 2) if self.swap == "both" else self.step_items
        order = random.permutation(len(self.lengths))
        window = step_rows * WINDOW_STEPS
        parts = []
        for start in range(0, len(order), window):
            inside = order[start : start + window]
            inside = inside[np.argsort(-self.lengths[inside], kind="stable")]
            steps = [inside[at : at + step_rows] for at in range(0, len(inside), step_rows)]
            # A short last step stays last: in the middle it would shift every later step's rows.
            full = [step for step in steps if len(step) == step_rows]
            short = [step for step in steps if len(step) < step_rows]
            parts += [full[at] for at in random.permutation(len(full))] + short
        return np.concatenate(parts) if parts else order


class RowItems(torch.utils.data.Dataset[int]):
    """The items themselves; the reader makes tensors of a whole batch at a time."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 2 * self.rows

    def __getitem__(self, item: int) -> int:
        return item
