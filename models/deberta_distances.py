"""Which row of DeBERTa's position tables serves a pair of tokens: a function of their distance alone.

A table of T x T indices is never made. Scores that depend on the distance k - q are computed for a window of distances
as rows of a matrix E, and read back along its diagonals by strides, without a gather:

    E[i, m] = q_i . table[distance m - (C - 1)]        C queries, C + keys - 1 distances
    score[i, k] = E[i, k - i + C - 1]                  `by_query`: one step to the right per key, one back per query

and a gradient goes the same way back, into a matrix whose corners stay zero. Knows tensors, not networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

FAR = 2**31  # a reach beyond any text: no distance shares its row with all that are farther


@dataclass(frozen=True)
class Span:
    """How a network numbers distances. buckets: of logarithmic width where positive; farthest: their last distance;
    size: half the rows of its position table.
    """

    buckets: int
    farthest: int
    size: int

    def rows(self, offsets: Tensor) -> Tensor:
        """The table's row of each distance key - query. The same row serves content to position and back."""
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        distance = -offsets
        if self.buckets > 0 and self.farthest > 0:
            distance = make_log_bucket_position(distance, self.buckets, self.farthest).long()
        return torch.clamp(distance + self.size, 0, 2 * self.size - 1)

    def used(self, tokens: int) -> tuple[int, int]:
        """(first, the one behind the last) of the table's rows that a text of so many tokens reads."""
        rows = self.rows(torch.tensor([tokens - 1, 1 - tokens])).tolist()
        return rows[0], rows[1] + 1

    @property
    def reach(self) -> int:
        """From this distance on all share one row: the last where the key stands before the query, else the first."""
        return _reach(self)


@dataclass(frozen=True)
class Distances:
    """index: (2 M + 1,) table rows of the distances key - query from -M to M; M: `most`."""

    span: Span
    index: Tensor
    most: int


@lru_cache(maxsize=64)
def distances_within(span: Span, most: int, device: str = "cpu") -> Distances:
    """The distances up to `most`; a request repeats for every batch of one length."""
    # Inference tensors could not be saved for a later training step, and the cache outlives both.
    with torch.inference_mode(False):
        index = span.rows(torch.arange(-most, most + 1)).to(device)
    return Distances(span, index, most)


@lru_cache(maxsize=16)
def _reach(span: Span) -> int:
    looked = 2 * max(span.farthest, span.size) + 2
    rows = span.rows(torch.arange(-looked, looked + 1))
    near = torch.nonzero((rows != rows[0]) & (rows != rows[-1])).flatten()
    reach = int((near - looked).abs().max()) + 1 if len(near) else 1
    return reach if reach < looked else FAR


def by_query(table: Tensor, keys: int) -> Tensor:
    """(N, C, keys) view of a contiguous (N, C, C + keys - 1): [n, i, k] is table[n, i, k - i + C - 1]."""
    count, rows, width = table.shape
    return table.as_strided((count, rows, keys), (rows * width, width - 1, 1), table.storage_offset() + rows - 1)


def by_key(table: Tensor, queries: int) -> Tensor:
    """(N, queries, C) view of a contiguous (N, C, C + queries - 1): [n, i, k] is table[n, k, i - k + C - 1]."""
    return by_query(table, queries).transpose(1, 2)
