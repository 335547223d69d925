"""What DeBERTa's positions add to a chunk of attention scores, and the way back of its gradient.

    score[q, k] += Q[q] . PK[row(k - q)] + K[k] . PQ[row(k - q)] / scale

Tensors are (heads, B, tokens, D): a table serves a head, so the texts of a batch become rows of one product with it,
and the table is not repeated. What lies beyond the table's reach adds a number per query or key in place of a product.
Knows tensors and distances, not networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.deberta_distances import Distances, Span, by_key, by_query, distances_within


@dataclass(frozen=True)
class Cut:
    """A text as blocks of keys; a chunk of queries is some of them. length: tokens with the padding of the last one."""

    blocks: int
    width: int

    @classmethod
    def of(cls, tokens: int, most: int) -> Cut:
        """Blocks of at most so many keys, as equal as they can be, so that hardly a key is padding."""
        blocks = max(1, -(-tokens // most))
        return cls(blocks, -(-tokens // blocks))

    @property
    def length(self) -> int:
        return self.blocks * self.width

    def chunks(self, blocks: int) -> list[tuple[int, int]]:
        """(first query, the one behind the last) of each chunk of so many blocks."""
        step = blocks * self.width
        return [(first, min(first + step, self.length)) for first in range(0, self.length, step)]

    def block(self, number: int) -> slice:
        return slice(number * self.width, (number + 1) * self.width)


class Scratch:
    """Memory that a pass works in, used again for every chunk: what was just written is still in the cache, and fresh
    pages cost a CPU more than the arithmetic on them.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.held: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtype, self.device = dtype, device

    def take(self, name: str, *shape: int) -> Tensor:
        """Uninitialised, contiguous; what was taken under this name before is overwritten."""
        count = math.prod(shape)
        held = self.held.get(name)
        if held is None or len(held) < count:
            held = self.held[name] = torch.empty(count, dtype=self.dtype, device=self.device)
        return held[:count].view(shape)

    def zeros(self, name: str, *shape: int) -> Tensor:
        """Zero when taken in another shape than the last time; else as it was left.

        The shape must say all of what is written: what the last one left elsewhere stays.
        """
        name = f"zeros {name}"
        taken = self.take(name, *shape)
        if self.shapes.get(name) != shape:
            self.shapes[name] = shape
            taken.zero_()
        return taken


class Positions:
    """The position table spread over distances, (heads, 2 M + 1, D), and its gradient.

    pos_k, pos_q: (rows, heads, D), as keys (content to position) and as queries (position to content); None leaves the
    term out. low: the network's number of their first row. longest: tokens of the longest text, padding included;
    chunk: of the largest chunk of queries and block.
    """

    def __init__(
        self, pos_k: Tensor | None, pos_q: Tensor | None, *, span: Span, low: int, scale: float, longest: int,
        chunk: int, dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        near = span.reach + 2 * chunk
        self.distances: Distances = distances_within(span, min(longest, near), str(device))
        self.scale = scale
        self.given = (pos_k, pos_q)
        table = next((one for one in self.given if one is not None), None)
        # Only distances to padding lie outside the rows given.
        rows = self.distances.index if table is None else (self.distances.index - low).clamp(0, len(table) - 1)
        self.rows = (rows, rows.flip(0))
        # keys by key - query, queries by query - key: both ascend along the rows of what they are multiplied with.
        self.keys, self.queries = (
            None if one is None else one[rows].transpose(0, 1).to(dtype, memory_format=torch.contiguous_format)
            for one, rows in zip(self.given, self.rows, strict=True)
        )
        if self.queries is not None:
            self.queries.div_(scale)
        self.grads: list[Tensor | None] = [None, None]
        self.scratch = Scratch(dtype, device)

    def add(self, scores: Tensor, q: Tensor, k: Tensor, heads: slice, cut: Cut, first: int) -> None:
        """Add both terms to the scores (heads, B, C, L) of the queries q (heads, B, C, D), divided by the scale
        already, the first of which is number `first`, with the keys k (heads, B, L, D).
        """
        count, texts, last = scores.shape[0], scores.shape[1], first + scores.shape[2]
        left, right = self._near(cut, first, last)
        near = slice(left * cut.width, right * cut.width)
        if self.keys is not None:
            table, rows = self.keys[heads], q.reshape(count, -1, q.shape[3])
            window = table[:, self._key_window(near, first, last)]
            spread = self.scratch.take("spread", count, rows.shape[1], window.shape[1])
            torch.bmm(rows, window.transpose(1, 2), out=spread)
            scores[..., near] += _split(by_query(_merge(spread, texts), near.stop - near.start), texts)
            for side, end, _ in _far(near, cut.length):
                scores[..., side] += torch.bmm(rows, table[:, end].transpose(1, 2)).view(count, texts, -1, 1)
        if self.queries is not None:
            table = self.queries[heads]
            for number in range(left, right):
                own = cut.block(number)
                window = table[:, self._query_window(own, first, last)]
                spread = self.scratch.take("block", count, texts * cut.width, window.shape[1])
                torch.bmm(k[:, :, own].reshape(count, -1, k.shape[3]), window.transpose(1, 2), out=spread)
                scores[..., own] += _split(by_key(_merge(spread, texts), last - first), texts)
            for side, _, end in _far(near, cut.length):
                keys = k[:, :, side].reshape(count, -1, k.shape[3])
                scores[..., side] += torch.bmm(keys, table[:, end].transpose(1, 2)).view(count, texts, 1, -1)

    def add_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, grad_q: Tensor, grad_k: Tensor, heads: slice, cut: Cut, first: int
    ) -> None:
        """Add what the gradient of `add`'s scores means to grad_q, grad_k (of the shapes of q, k) and to the tables."""
        if self.grads == [None, None]:
            self.grads = [None if one is None else torch.zeros_like(one) for one in (self.keys, self.queries)]
        count, texts, last = grad.shape[0], grad.shape[1], first + grad.shape[2]
        left, right = self._near(cut, first, last)
        near = slice(left * cut.width, right * cut.width)
        to_keys, to_queries = self.grads
        if self.keys is not None and to_keys is not None:
            table, to, rows = self.keys[heads], to_keys[heads], q.reshape(count, -1, q.shape[3])
            window = self._key_window(near, first, last)
            # As deep as a text's band: two batches of as many rows may have bands of other widths.
            spread = self.scratch.zeros("spread", count, texts, last - first, window.stop - window.start).flatten(1, 2)
            _split(by_query(_merge(spread, texts), near.stop - near.start), texts).copy_(grad[..., near])
            grad_q += torch.bmm(spread, table[:, window]).view(q.shape)
            to[:, window].baddbmm_(spread.transpose(1, 2), rows)
            for side, end, _ in _far(near, cut.length):
                total = grad[..., side].sum(-1).view(count, -1, 1)
                grad_q += (total * table[:, end]).view(q.shape)
                to[:, end].baddbmm_(total.transpose(1, 2), rows)
        if self.queries is not None and to_queries is not None:
            table, to = self.queries[heads], to_queries[heads]
            for number in range(left, right):
                own = cut.block(number)
                window = self._query_window(own, first, last)
                spread = self.scratch.zeros("block", count, texts, cut.width, window.stop - window.start).flatten(1, 2)
                # The corners outside the band stay zero from block to block.
                _split(by_key(_merge(spread, texts), last - first), texts).copy_(grad[..., own])
                grad_k[:, :, own] += torch.bmm(spread, table[:, window]).view(count, texts, cut.width, -1)
                to[:, window].baddbmm_(spread.transpose(1, 2), k[:, :, own].reshape(count, -1, k.shape[3]))
            for side, _, end in _far(near, cut.length):
                total = grad[..., side].sum(2).reshape(count, -1, 1)
                grad_k[:, :, side] += (total * table[:, end]).view(count, texts, -1, k.shape[3])
                to[:, end].baddbmm_(total.transpose(1, 2), k[:, :, side].reshape(count, -1, k.shape[3]))

    def gradients(self) -> list[Tensor | None]:
        """Of pos_k and pos_q, after the last `add_backward`."""
        found: list[Tensor | None] = []
        for given, spread, rows, scale in zip(self.given, self.grads, self.rows, (1.0, self.scale), strict=True):
            if given is None:
                found.append(None)
                continue
            # Far distances share a row: hundreds of numbers would be rounded one by one in half precision.
            total = torch.zeros(given.shape, dtype=torch.promote_types(given.dtype, torch.float32), device=given.device)
            if spread is not None:
                total.index_add_(0, rows, spread.transpose(0, 1).to(total.dtype)).div_(scale)
            found.append(total.to(given.dtype))
        return found

    def _near(self, cut: Cut, first: int, last: int) -> tuple[int, int]:
        """Blocks of keys outside of which every key of a side is beyond reach of all of these queries."""
        reach = self.distances.span.reach
        left = max(0, (first - reach + 1) // cut.width)
        return left, min(cut.blocks, -(-(last - 1 + reach) // cut.width))

    def _key_window(self, near: slice, first: int, last: int) -> slice:
        """Distances from these queries to the near keys, as rows of the spread table."""
        middle = self.distances.most
        return slice(near.start - last + 1 + middle, near.stop - first + middle)

    def _query_window(self, own: slice, first: int, last: int) -> slice:
        """The same to one block of keys, in the table that counts the other way."""
        middle = self.distances.most
        return slice(first - own.stop + 1 + middle, last - own.start + middle)


def _merge(table: Tensor, texts: int) -> Tensor:
    """(heads, B C, W) as (heads B, C, W)."""
    return table.view(table.shape[0] * texts, -1, table.shape[2])


def _split(table: Tensor, texts: int) -> Tensor:
    """(heads B, C, keys) as (heads, B, C, keys)."""
    return table.unflatten(0, (-1, texts))


def _far(near: slice, length: int) -> list[tuple[slice, slice, slice]]:
    """(keys of a far side, their row in the spread keys, their row in the spread queries)."""
    start, end = slice(0, 1), slice(-1, None)
    sides = [(slice(0, near.start), start, end), (slice(near.stop, length), end, start)]
    return [side for side in sides if side[0].stop > side[0].start]
