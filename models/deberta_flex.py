"""Disentangled attention inside torch's FlexAttention: no score, bias or probability of size T x T ever exists.

The kernel adds two numbers to each score as it is made, both read from tables over position rows:

    score[q, k] + c2p[q, row(k - q)] + p2c[k, row(k - q)]

and gives the tables their gradient. The texts of a batch stand one after another without padding; blocks of scores
between two texts are never computed. There is no dropout of probabilities: the kernel has none.

Knows tensors and lengths, not networks. Compiled on a GPU (Triton); on a CPU torch runs the same lines unfused, which
is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.deberta_distances import Span, distances_within

BLOCK = 128  # tokens: FlexAttention's own


@dataclass(frozen=True)
class Packed:
    """The texts that stand one after another. owner: the number of each token's text, ascending, see `owners`.

    longest: tokens of the longest text. low: the network's number of the position tables' first row. blocks: which
    blocks of scores are computed, see `block_mask`; one for all layers.
    """

    owner: Tensor
    longest: int
    span: Span
    scale: float
    blocks: Any
    low: int = 0


def attend_flex(q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor | None, pos_q: Tensor | None, texts: Packed) -> Tensor:
    """(N, heads, D) contexts; see deberta_rows.attend_rows for the arguments."""
    tokens = q.shape[0]
    size = len(texts.owner)

    def padded(one: Tensor) -> Tensor:  # (N, heads, D) -> (1, heads, N to whole blocks, D)
        return F.pad(one.transpose(0, 1), (0, 0, 0, size - tokens)).unsqueeze(0)

    q, k, v = padded(q / texts.scale), padded(k), padded(v)
    given = pos_k if pos_k is not None else pos_q
    tables = []
    for one, table in ((q, pos_k), (k, None if pos_q is None else pos_q / texts.scale)):
        tables.append(None if table is None else torch.matmul(one[0], table.permute(1, 2, 0)))  # (heads, N, rows)
    rows = 0 if given is None else len(given)
    modify = None if given is None else score_modification(tables[0], tables[1], texts, rows)
    kind = (q.shape[1], q.shape[3], q.dtype, *(table is not None for table in tables))
    out = _kernel(q.device.type, kind)(q, k, v, score_mod=modify, block_mask=texts.blocks, scale=1.0)
    return out[0, :, :tokens].transpose(0, 1)


def score_modification(c2p: Tensor | None, p2c: Tensor | None, texts: Packed, rows: int) -> Callable[..., Tensor]:
    """What FlexAttention calls for each score. c2p, p2c: (heads, N, rows)."""
    most = texts.longest
    index = (distances_within(texts.span, most, str(texts.owner.device)).index - texts.low).clamp(0, rows - 1).int()

    def modify(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Between two texts a distance may be any; the mask drops what was read for it.
        row = index[torch.clamp(key - query, -most, most) + most]
        if c2p is not None:
            score = score + c2p[head, query, row]
        if p2c is not None:
            score = score + p2c[head, key, row]
        return score

    return modify


def owners(lengths: Tensor, tokens: int) -> Tensor:
    """The number of the text of each of so many tokens, and of the padding behind them to whole blocks: a text more.

    lengths: (texts,) tokens of each.
    """
    size = -(-tokens // BLOCK) * BLOCK
    every = torch.cat([lengths, lengths.new_tensor([size - tokens])])
    return torch.repeat_interleave(torch.arange(len(every), device=lengths.device), every, output_size=size)


def block_mask(owner: Tensor) -> Any:
    """FlexAttention's block mask of texts that stand one after another, without a sync and without an N x N tensor.

    owner: (N,) ascending, N a multiple of BLOCK. A block of scores is computed where some text has tokens on both of
    its sides, and needs no mask where both sides belong to one text whole.
    """
    from torch.nn.attention.flex_attention import BlockMask

    sides = owner.view(-1, BLOCK)
    first, last = sides[:, 0], sides[:, -1]
    meets = (first[:, None] <= last[None]) & (last[:, None] >= first[None])  # queries down, keys across
    whole = (first == last)[:, None] & (first == last)[None] & (first[:, None] == first[None])

    def ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """(how many key blocks, their numbers with the chosen ones in front) of each block of queries."""
        numbers = torch.argsort(chosen.int(), dim=-1, descending=True, stable=True)
        return chosen.sum(-1).int()[None, None], numbers.int()[None, None]

    def same_text(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return owner[query] == owner[key]

    return BlockMask.from_kv_blocks(
        *ordered(meets & ~whole), *ordered(whole), BLOCK_SIZE=BLOCK, mask_mod=same_text,
        seq_lengths=(len(owner), len(owner)),
    )  # fmt: skip


@cache
def _kernel(device: str, kind: tuple[Any, ...]) -> Callable[..., Any]:
    """FlexAttention, on a GPU compiled for networks of one kind: (heads, their size, number format, terms).

    torch keeps eight graphs of a code object (torch._dynamo.config.recompile_limit) and runs what needs a ninth
    unfused: with all scores in memory, and a warning in its own log. What makes the kind is constant in a graph, and
    one kind takes four (training and not, two shapes of the block mask), so each has a code object of its own.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if device != "cuda":
        return flex_attention

    def attend(*given: Any, **named: Any) -> Any:
        return flex_attention(*given, **named)

    attend.__code__ = attend.__code__.replace(co_name=f"flex_attention_{kind[0]}x{kind[1]}")
    return torch.compile(attend, dynamic=True)
