"""Which rows a training step reads, and, where they have two, in which order of the answers.

An item is a number: 2 * row for the order as written, 2 * row + 1 for the swapped one. Knows numbers, never text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

# Rows of similar length share a batch inside windows of this many batches: less padding, still shuffled.
WINDOW_BATCHES = 50


class RowSampler(torch.utils.data.Sampler[int]):
    """Items of one epoch, shuffled from (seed, epoch) alone, so that a resumed epoch goes on with the same batches.

    lengths: (N,) tokens of each row, to put rows of similar length into one batch.
    swap: both (every row in both orders, side by side in one batch), random (a coin per row and epoch), none.
    batch_items: items per batch of one process.
    """

    def __init__(self, lengths: Sequence[int], *, swap: str, batch_items: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.swap = swap
        self.batch_items = batch_items
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) * (2 if self.swap == "both" else 1)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        rows = self._windows(random)
        if self.swap == "both":
            items = np.stack([2 * rows, 2 * rows + 1], axis=1).ravel()
        elif self.swap == "random":
            coins = random.integers(0, 2, len(self.lengths))  # by row, so that the coin does not hang on the shuffle
            items = 2 * rows + coins[rows]
        else:
            items = 2 * rows
        yield from items.tolist()

    def _windows(self, random: np.random.Generator) -> np.ndarray:
        """Row numbers: shuffled, sorted by length inside windows, the batches of each window shuffled again."""
        rows_per_batch = max(1, self.batch_items // 2) if self.swap == "both" else self.batch_items
        order = random.permutation(len(self.lengths))
        window = rows_per_batch * WINDOW_BATCHES
        parts = []
        for start in range(0, len(order), window):
            inside = order[start : start + window]
            inside = inside[np.argsort(-self.lengths[inside], kind="stable")]
            batches = [inside[at : at + rows_per_batch] for at in range(0, len(inside), rows_per_batch)]
            # A short last batch stays last: in the middle it would shift every later batch's rows.
            full = [batch for batch in batches if len(batch) == rows_per_batch]
            short = [batch for batch in batches if len(batch) < rows_per_batch]
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
