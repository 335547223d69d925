"""Disentangled attention as a bias for `scaled_dot_product_attention`, on any device and under any mask.

The two position terms and the mask of a chunk of queries become one tensor (heads, B, C, T); torch's fused kernel does
the rest (the memory-efficient one runs from sm_50 on). Nothing of size T x T is kept for the backward pass: a chunk's
bias is made again there, and the kernel's own backward gives the bias its gradient, dropout drawn from the same seed.

Knows tensors and masks, not networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.deberta_distances import Span
from models.deberta_positions import Cut, Positions
from models.deberta_rows import draw_seed

CHUNK_BYTES = 32 * 2**20  # of one chunk's bias; beside it stand its gradient and the two sheared tables
ALIGNED = 16  # elements: the kernels copy a bias whose rows start elsewhere


@dataclass(frozen=True)
class Masked:
    """How a batch attends. mask: (B, 1, T), keys that all queries may read, or (B, T, T); True may be read.

    scale: what the scores are divided by. dropout: the share of probabilities that training drops.
    low: the network's number of the position tables' first row.
    """

    mask: Tensor
    span: Span
    scale: float
    dropout: float = 0.0
    low: int = 0


def attend_bias(q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor | None, pos_q: Tensor | None, how: Masked) -> Tensor:
    """(B, T, heads, D) contexts.

    q, k, v: (B, T, heads, D). pos_k, pos_q: (rows, heads, D), as keys (content to position) and as queries (position
    to content); None leaves the term out. Differentiable in all of them, once. A query that may read no key reads
    all of them alike, as in transformers; to its scores no gradient goes where the mask is (B, T, T).
    """
    seed = draw_seed(how.dropout)
    with torch.autocast(q.device.type, enabled=False):  # all is in the projections' precision already
        out: Tensor = _Attention.apply(q, k, v, pos_k, pos_q, how, seed)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, pos_k, pos_q, how: Masked, seed: int):  # type: ignore[no-untyped-def]
        batch = _Batch(q, k, v, pos_k, pos_q, how)
        out = torch.empty_like(batch.q)
        for first, last in batch.chunks:
            out[:, :, first:last] = batch.attend(batch.q[:, :, first:last], batch.bias(first, last), seed + first)
        ctx.save_for_backward(q, k, v, pos_k, pos_q)
        ctx.how, ctx.seed = how, seed
        return batch.back(out, q.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, pos_k, pos_q = ctx.saved_tensors
        batch = _Batch(q, k, v, pos_k, pos_q, ctx.how)
        grad = batch.padded(grad)
        grad_q, grad_k, grad_v = torch.empty_like(batch.q), torch.zeros_like(batch.k), torch.zeros_like(batch.v)
        for first, last in batch.chunks:
            mine = batch.q[:, :, first:last]
            leaves = [one.detach().requires_grad_() for one in (mine, batch.k, batch.v, batch.bias(first, last))]
            with torch.enable_grad():
                out = batch.attend(leaves[0], leaves[3], ctx.seed + first, leaves[1], leaves[2])
            to_q, to_k, to_v, to_bias = torch.autograd.grad(out, leaves, grad[:, :, first:last])
            if batch.idle is not None:
                nothing = batch.idle[:, first:last, None]
                to_q, to_bias = to_q.masked_fill(nothing, 0.0), to_bias.masked_fill(nothing, 0.0)
            grad_q[:, :, first:last] = to_q
            grad_k += to_k
            grad_v += to_v
            batch.positions.add_backward(
                to_bias, mine, batch.k, grad_q[:, :, first:last], grad_k, slice(None), batch.cut, first
            )
        tokens = q.shape[1]
        grads = (batch.back(grad_q.div_(batch.scale), tokens), batch.back(grad_k, tokens), batch.back(grad_v, tokens))
        return *grads, *batch.positions.gradients(), None, None


class _Batch:
    """A batch as (heads, B, L, D), heads first: a product with a head's position table then serves all texts at once.

    L: the tokens, and padding to whole blocks. q is divided by the scale. idle: (B, L) queries that may read no key,
    zero in q; None where the mask is one for all queries.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor | None, pos_q: Tensor | None, how: Masked
    ) -> None:
        texts, tokens, heads, _ = q.shape
        row_bytes = texts * heads * tokens * q.element_size()
        self.cut = Cut.of(tokens, max(ALIGNED, CHUNK_BYTES // max(1, row_bytes)))
        self.chunks = self.cut.chunks(1)
        self.scale, self.dropout = how.scale, how.dropout
        self.q, self.k, self.v = (self.padded(one) for one in (q, k, v))
        self.q.div_(self.scale)
        self.tokens = tokens
        self.mask = F.pad(how.mask.bool(), (0, self.cut.length - tokens))
        self.idle: Tensor | None = None
        if self.mask.shape[1] != 1:
            self.idle = F.pad(~self.mask.any(-1), (0, self.cut.length - tokens), value=True)
            self.q.masked_fill_(self.idle[..., None], 0.0)  # so that no key has a gradient of theirs
        self.positions = Positions(
            pos_k, pos_q, span=how.span, low=how.low, scale=how.scale, longest=self.cut.length, chunk=self.cut.width,
            dtype=q.dtype, device=q.device,
        )  # fmt: skip

    def padded(self, whole: Tensor) -> Tensor:
        """(heads, B, L, D) copy of (B, T, heads, D), zeros behind the last token."""
        return F.pad(whole.permute(2, 0, 1, 3), (0, 0, 0, self.cut.length - whole.shape[1])).contiguous()

    def back(self, part: Tensor, tokens: int) -> Tensor:
        """(B, T, heads, D) of (heads, B, L, D)."""
        return part[:, :, :tokens].permute(1, 2, 0, 3).contiguous()

    def bias(self, first: int, last: int) -> Tensor:
        """(heads, B, C, L) position terms of a chunk of queries; the least number where a key may not be read."""
        heads, texts, length, _ = self.q.shape
        room = torch.zeros(
            heads, texts, last - first, -(-length // ALIGNED) * ALIGNED, dtype=self.q.dtype, device=self.q.device
        )
        bias = room[..., :length]
        self.positions.add(bias, self.q[:, :, first:last], self.k, slice(None), self.cut, first)
        mask = self.mask if self.mask.shape[1] == 1 else self.mask[:, first : min(last, self.mask.shape[1])]
        if mask.shape[1] not in (1, last - first):  # queries behind the last token
            mask = F.pad(mask, (0, 0, 0, last - first - mask.shape[1]))
        bias.masked_fill_(~mask, torch.finfo(bias.dtype).min)
        bias[..., self.tokens :] = float("-inf")  # no key: not even a query that may read none reads it
        return bias

    def attend(self, q: Tensor, bias: Tensor, seed: int, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """(heads, B, C, D) of the queries q. k, v: in place of the batch's own."""
        k, v = self.k if k is None else k, self.v if v is None else v
        with _fused(q), _seeded(self.dropout, seed, q.device):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.dropout, scale=1.0)


@contextmanager
def _fused(like: Tensor) -> Iterator[None]:
    """On a GPU: the kernel that gives a bias its gradient, or the plain one where the shape does not suit it."""
    if like.device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


@contextmanager
def _seeded(dropout: float, seed: int, device: torch.device) -> Iterator[None]:
    """The same dropout for the same seed; the generators outside stay as they were."""
    if dropout <= 0:
        yield
        return
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        generator = torch.cuda.default_generators[device.index] if on_gpu else torch.default_generator
        generator.manual_seed(seed)
        yield
