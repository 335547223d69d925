"""Disentangled attention by chunks of queries, without a (T, T) tensor: forward and backward in plain matrix products.

The scores of a chunk of queries live while it is worked on and are computed again in the backward pass, dropout from
the same seed. Texts of a batch are read in groups of similar length, so padding costs little and rows can be packed.
Made for a CPU, where torch has no fused attention with the gradient of a bias, and where what fits the cache is worth
more than a large product.

Knows tensors and lengths, not networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.deberta_distances import Span
from models.deberta_positions import Cut, Positions

BLOCK_KEYS = 64
CHUNK_BLOCKS = 4  # 256 queries: a block's window of distances is then a quarter longer than the chunk
GROUP_SCORES = 800_000  # of the heads worked on together: they and their gradient stay in a shared cache
KEPT_TOKENS = 1024  # of a text whose probabilities are kept for the backward pass: one tensor where eager keeps many
ALIKE = 0.875  # of the longest text of a group: what shorter ones are padded to costs less than a round of their own
LEVELS = 2**16  # of the dropout's random numbers


@dataclass(frozen=True)
class Group:
    """Texts of about one length, worked on together. cut: of all of them, at the length of the longest.

    places: (B, L) where their tokens stand among the N; any place where a text has ended. padding: (B, L) true there,
    None where every text fills the cut.
    """

    places: Tensor
    cut: Cut
    padding: Tensor | None
    longest: int


@dataclass(frozen=True)
class Texts:
    """The texts of a batch among N tokens, and how their attention is computed.

    groups: tokens of no text are padding and get zeros. scale: what the scores are divided by.
    dropout: the share of probabilities that training drops. low: the network's number of the tables' first row.
    """

    groups: tuple[Group, ...]
    span: Span
    scale: float
    dropout: float = 0.0
    low: int = 0


def group_texts(pieces: Sequence[tuple[int, int]], heads: int) -> tuple[Group, ...]:
    """The texts at (first token, tokens), in groups of similar length while their scores are few."""
    groups: list[list[tuple[int, int]]] = []
    for piece in sorted((one for one in pieces if one[1]), key=lambda one: -one[1]):
        longest = groups[-1][0][1] if groups else 0
        scores = heads * longest * min(longest, CHUNK_BLOCKS * BLOCK_KEYS)
        room = bool(groups) and (len(groups[-1]) + 1) * scores <= GROUP_SCORES
        if room and piece[1] >= ALIKE * longest:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(_group(one) for one in groups)


def _group(pieces: list[tuple[int, int]]) -> Group:
    starts, tokens = torch.tensor(pieces).unsqueeze(-1).unbind(1)  # (B, 1) each
    cut = Cut.of(pieces[0][1], BLOCK_KEYS)
    steps = torch.arange(cut.length)
    padding = steps >= tokens
    return Group(starts + torch.minimum(steps, tokens - 1), cut, padding if padding.any() else None, pieces[0][1])


def attend_rows(q: Tensor, k: Tensor, v: Tensor, pos_k: Tensor | None, pos_q: Tensor | None, texts: Texts) -> Tensor:
    """(N, heads, D) contexts.

    q, k, v: (N, heads, D). pos_k, pos_q: (rows, heads, D), the position table as keys (content to position) and as
    queries (position to content); None leaves the term out. Differentiable in all of them, once.
    """
    seed = draw_seed(texts.dropout)
    given = (q, k, v, pos_k, pos_q)
    keep = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given)
    with torch.autocast(q.device.type, enabled=False):  # it would round every product to half precision again
        out: Tensor = _Attention.apply(*given, texts, seed, keep)  # type: ignore[no-untyped-call]
    return out


def draw_seed(dropout: float) -> int:
    """Of a layer's dropout, from torch's own generator: a checkpointed layer draws the same number again."""
    return int(torch.randint(2**62, ()).item()) if dropout > 0 else 0


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, pos_k, pos_q, texts: Texts, seed: int, keep: bool):  # type: ignore[no-untyped-def]
        out = torch.zeros_like(q)
        positions, dropout = _positions(pos_k, pos_q, texts, q), _Dropout(texts.dropout, seed)
        kept: list[Tensor | None] = []
        for part in _parts(q, k, v, texts, positions, dropout):
            context = torch.empty_like(part.q)
            for first, last in part.cut.chunks(CHUNK_BLOCKS):
                probs = part.probs(first, last)
                gone = dropout.draw(probs.shape)
                if keep and part.keeps:
                    kept += [probs.clone(), gone]
                if gone is not None:
                    probs.masked_fill_(gone, 0.0)
                torch.bmm(_flat(probs), _flat(part.v), out=_flat(context[:, :, first:last]))
            part.put(out, context)
        ctx.save_for_backward(q, k, v, pos_k, pos_q, out, *kept)
        ctx.texts, ctx.seed = texts, seed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, pos_k, pos_q, out, *saved = ctx.saved_tensors
        positions, dropout = _positions(pos_k, pos_q, ctx.texts, q), _Dropout(ctx.texts.dropout, ctx.seed)
        grads = [torch.zeros_like(one) for one in (q, k, v)]
        kept = iter(saved)
        for part in _parts(q, k, v, ctx.texts, positions, dropout):
            found = part.backward(part.take(grad), part.take(out), kept)
            for whole, one in zip(grads, found, strict=True):
                part.put(whole, one)
        return *grads, *positions.gradients(), None, None, None


def _positions(pos_k: Tensor | None, pos_q: Tensor | None, texts: Texts, like: Tensor) -> Positions:
    # Half precision is computed in float32 here: no CPU gains by rounding between the steps.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    longest = max((group.cut.length for group in texts.groups), default=1)
    return Positions(
        pos_k, pos_q, span=texts.span, low=texts.low, scale=texts.scale, longest=longest,
        chunk=CHUNK_BLOCKS * BLOCK_KEYS, dtype=dtype, device=like.device,
    )  # fmt: skip


def _parts(q: Tensor, k: Tensor, v: Tensor, texts: Texts, positions: Positions, dropout: _Dropout) -> Iterator[_Part]:
    """Some heads of one group after another, in the order that both passes take."""
    for group in texts.groups:
        length = group.cut.length
        scores = len(group.places) * length * min(length, CHUNK_BLOCKS * group.cut.width)
        step = max(1, GROUP_SCORES // scores)
        for head in range(0, q.shape[1], step):
            yield _Part(group, slice(head, min(head + step, q.shape[1])), (q, k, v), texts, positions, dropout)


class _Dropout:
    """Which probabilities are dropped, the same ones for the same seed in the same order."""

    def __init__(self, share: float, seed: int) -> None:
        self.share = share
        if share > 0:
            self.generator = torch.Generator().manual_seed(seed)
            self.below = round(share * LEVELS) - LEVELS // 2

    def draw(self, shape: torch.Size) -> Tensor | None:
        """True where a probability is dropped. Four numbers of 16 bits come from each of 64: the generator is slow."""
        if self.share <= 0:
            return None
        count = shape.numel()
        bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
        return (bits.view(torch.int16)[:count] < self.below).view(shape)


class _Part:
    """Some heads of a group: q (divided by the scale), k and v (scaled up for the dropout), (heads, B, L, D) each."""

    def __init__(
        self, group: Group, heads: slice, qkv: tuple[Tensor, Tensor, Tensor], texts: Texts, positions: Positions,
        dropout: _Dropout,
    ) -> None:  # fmt: skip
        self.group, self.cut, self.heads = group, group.cut, heads
        self.positions, self.dropout = positions, dropout
        self.keeps = group.longest <= KEPT_TOKENS
        self.scale, self.kept_share = texts.scale, 1.0 - texts.dropout
        self.q, self.k, self.v = (self.take(one) for one in qkv)
        self.q.div_(self.scale)
        self.v.div_(self.kept_share)

    def take(self, whole: Tensor) -> Tensor:
        """(heads, B, L, D) copy of this part of (N, heads, D), zeros behind a text's end."""
        part = whole[:, self.heads][self.group.places].to(self.positions.scratch.dtype)  # (B, L, heads, D)
        if self.group.padding is not None:
            part.masked_fill_(self.group.padding[:, :, None, None], 0.0)
        return part.permute(2, 0, 1, 3).contiguous()

    def put(self, whole: Tensor, part: Tensor) -> None:
        """Write (heads, B, L, D) to its places in (N, heads, D)."""
        places, part = self.group.places, part.permute(1, 2, 0, 3).to(whole.dtype)
        if self.group.padding is not None:
            places, part = places[~self.group.padding], part[~self.group.padding]
        whole[:, self.heads][places] = part

    def probs(self, first: int, last: int) -> Tensor:
        """(heads, B, C, L) attention of the queries from `first` to before `last`; the next call overwrites it."""
        q = self.q[:, :, first:last]
        scores = self.positions.scratch.take("scores", *q.shape[:3], self.cut.length)
        torch.bmm(_flat(q), _flat(self.k).transpose(1, 2), out=_flat(scores))
        self.positions.add(scores, q, self.k, self.heads, self.cut, first)
        if self.group.padding is not None:
            scores.masked_fill_(self.group.padding[:, None], float("-inf"))
        return torch.softmax(scores, -1, out=scores)

    def backward(self, grad: Tensor, out: Tensor, kept: Iterator[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of this part's q, k and v; those of the tables are added to theirs.

        kept: where this group's probabilities were, each followed by what the dropout took.
        """
        grad_q, grad_k, grad_v = torch.empty_like(self.q), torch.zeros_like(self.k), torch.zeros_like(self.v)
        for first, last in self.cut.chunks(CHUNK_BLOCKS):
            q, mine, to_q = (one[:, :, first:last] for one in (self.q, grad, grad_q))
            if self.keeps:
                probs, gone = next(kept), next(kept)
                assert probs is not None, (first, last, self.cut)
            else:
                probs = self.probs(first, last)
                gone = self.dropout.draw(probs.shape)
            scores = self.positions.scratch.take("gradients", *probs.shape)
            torch.bmm(_flat(mine), _flat(self.v).transpose(1, 2), out=_flat(scores))
            if gone is not None:
                scores.masked_fill_(gone, 0.0)
            # Softmax: dS = P * (dP - sum(P dP)), and that sum is what the output and its gradient have in common.
            scores.sub_((mine * out[:, :, first:last]).sum(-1, keepdim=True)).mul_(probs)
            if gone is not None:
                probs = probs.masked_fill(gone, 0.0) if self.keeps else probs.masked_fill_(gone, 0.0)
            _flat(grad_v).baddbmm_(_flat(probs).transpose(1, 2), _flat(mine))
            _flat(grad_k).baddbmm_(_flat(scores).transpose(1, 2), _flat(q))
            torch.bmm(_flat(scores), _flat(self.k), out=_flat(to_q))
            self.positions.add_backward(scores, q, self.k, to_q, grad_k, self.heads, self.cut, first)
        return grad_q.div_(self.scale), grad_k, grad_v.div_(self.kept_share)


def _flat(part: Tensor) -> Tensor:
    """(heads, B, C, D) as (heads B, C, D), of the same memory also where C is a part of the tokens."""
    return part.view(-1, *part.shape[2:])
