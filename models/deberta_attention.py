"""DeBERTa's disentangled attention in tiers, as a drop-in for transformers' modules: same weights, same checkpoints.

    eager   transformers' own: several (B, heads, T, T) tensors per layer are kept for the backward pass
    sdpa    the position terms as one additive bias, made again in the backward pass. On a GPU (sm_60 and newer) torch's
            fused kernel does the rest (deberta_bias); on a CPU chunks of queries do (deberta_rows)
    flex    the bias is never a tensor at all (deberta_flex): sm_80 and newer, training without dropout of probabilities

`use_attention` turns a loaded network's encoder and attention modules into the subclasses below; their parameters and
names stay. On a CPU and with flex the texts of a batch stand one after another without padding, in every layer (but for
the few networks with a convolution). What a padded position holds afterwards is not defined: nothing that is read
depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention

from models.deberta_bias import Masked, attend_bias
from models.deberta_distances import Span
from models.deberta_flex import Packed, attend_flex, block_mask, owners
from models.deberta_rows import Texts, attend_rows, group_texts

FLEX_FROM = (8, 0)
PACKED_SHARE = 0.95  # of a batch's positions that are tokens: packing copies every layer's hidden states once
How = Texts | Masked | Packed
ATTENDS: dict[type, Callable[..., Tensor]] = {Texts: attend_rows, Masked: attend_bias, Packed: attend_flex}


def resolve_attention(asked: str, *, device: str, capability: tuple[int, int] | None, dropout: float) -> str:
    """eager, sdpa or flex. dropout: of attention probabilities in training.

    Raises ValueError for flex where it cannot run. auto: sdpa; no GPU has measured yet from where on flex is faster.
    """
    if asked != "flex":
        return "sdpa" if asked == "auto" else asked
    if device != "cuda" or capability is None or capability < FLEX_FROM:
        where = "a CPU" if capability is None else f"sm_{capability[0]}{capability[1]}"
        raise ValueError(
            f"model.attention=flex needs a GPU of sm_{FLEX_FROM[0]}{FLEX_FROM[1]} or newer, and this is {where}. Use "
            "model.attention=auto."
        )
    if dropout > 0:
        raise ValueError(
            f"model.attention=flex cannot drop attention probabilities, and this network drops {dropout:g} of them in "
            "training. Set model.dropout=0, or model.attention=sdpa."
        )
    return "flex"


def use_attention(network: nn.Module, asked: str, *, training: bool = True) -> str | None:
    """Give every DeBERTa encoder inside `network` the attention asked for; the log line, None where there is none.

    asked: auto, eager, sdpa or flex. training: false where nothing will ever be dropped.

    Raises ValueError, see `resolve_attention`.
    """
    encoders = [one for one in network.modules() if isinstance(one, DebertaV2Encoder)]
    if not encoders:
        return None
    on_gpu = torch.cuda.is_available()
    layers: Any = encoders[0].layer
    dropout = float(layers[0].attention.self.dropout.p)
    tier = resolve_attention(
        asked, device="cuda" if on_gpu else "cpu", dropout=dropout if training else 0.0,
        capability=torch.cuda.get_device_capability() if on_gpu else None,
    )  # fmt: skip
    for encoder in encoders:
        set_tier(encoder, tier)
    how = {"eager": "transformers' own", "sdpa": "bias of a fused kernel" if on_gpu else "chunks of queries",
           "flex": "score modification, texts packed"}[tier]  # fmt: skip
    return f"attention {tier} ({how}), dropout of probabilities {dropout:g}"


def set_tier(encoder: DebertaV2Encoder, tier: str) -> None:
    """Turn an encoder's modules into those of a tier, or back; parameters, their names and hooks stay."""
    for module in encoder.modules():
        if isinstance(module, DisentangledSelfAttention):
            module.__class__ = DisentangledSelfAttention if tier == "eager" else TieredSelfAttention
            if isinstance(module, TieredSelfAttention):
                module.scale = scale_of(module)
    encoder.__class__ = DebertaV2Encoder if tier == "eager" else TieredEncoder
    if isinstance(encoder, TieredEncoder):
        encoder.tier = tier


def scale_of(layer: DisentangledSelfAttention) -> float:
    """The root that transformers takes in float32; numpy's differs in the last bit for some head sizes."""
    terms = 1 + ("c2p" in layer.pos_att_type) + ("p2c" in layer.pos_att_type)
    return float(torch.tensor(float(layer.attention_head_size * terms), device="cpu").sqrt())


class TieredSelfAttention(DisentangledSelfAttention):
    """One layer's attention. Where the encoder above hands down a plan in place of a mask, it is followed.

    scale: what scores are divided by; a number from the start, since reading it off a tensor breaks a compiled graph.
    """

    scale: float

    def forward(  # type: ignore[no-untyped-def]
        self, hidden_states, attention_mask, output_attentions=False, query_states=None, relative_pos=None,
        rel_embeddings=None,
    ):  # fmt: skip
        """(context (B, T, H) or packed (1, N, H), None). rel_embeddings: the rows of the position table in use."""
        if not isinstance(attention_mask, How):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        how = replace(attention_mask, scale=self.scale)
        if isinstance(how, Packed):
            assert not (self.training and self.dropout.p > 0), f"flex drops nothing, and {self.dropout.p} is asked for"
        else:
            how = replace(how, dropout=self.dropout.p if self.training else 0.0)
        shape = hidden_states.shape
        split = (*(shape[:2] if isinstance(how, Masked) else (-1,)), self.num_attention_heads, self.attention_head_size)
        projections = (self.query_proj, self.key_proj, self.value_proj)
        q, k, v = (project(hidden_states).view(split) for project in projections)
        context = ATTENDS[type(how)](q, k, v, *self._positions(rel_embeddings), how)
        return context.reshape(*shape[:-1], self.all_head_size), None

    def _positions(self, rel_embeddings: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(pos_k, pos_q), (rows, heads, D) each: the position table by this layer's projections."""
        if not self.relative_attention or rel_embeddings is None:
            return None, None
        table = self.pos_dropout(rel_embeddings)
        found: list[Tensor | None] = []
        for kind, shared, own in (("c2p", self.key_proj, "pos_key_proj"), ("p2c", self.query_proj, "pos_query_proj")):
            if kind not in self.pos_att_type:
                found.append(None)
                continue
            project = shared if self.share_att_key else getattr(self, own)
            found.append(project(table).view(-1, self.num_attention_heads, self.attention_head_size))
        return found[0], found[1]


class HiddenStates(Sequence[Tensor]):
    """The layers' hidden states (B, T, H), without padding until one is asked for: DebertaV2Model asks the encoder for
    all of them and reads the last. `torch.stack` wants them as `tuple(...)`.

    held: (1, N, H) each where `places` names their tokens among the B x T, else (B, T, H).
    """

    def __init__(self, held: Sequence[Tensor], places: Tensor | None, shape: tuple[int, int]) -> None:
        self.held, self.places, self.shape = list(held), places, shape
        self.read: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(len(self))[at])
        number = range(len(self))[at]
        if self.places is None:
            return self.held[number]
        if number not in self.read:
            hidden = self.held[number]
            room = hidden.new_zeros(self.shape[0] * self.shape[1], hidden.shape[-1])
            self.read[number] = room.index_copy(0, self.places, hidden[0]).view(*self.shape, -1)
        return self.read[number]


class TieredEncoder(DebertaV2Encoder):
    """The layers, with one plan of attention for all of them and, where the tier allows, no padding between them."""

    tier: str

    def forward(  # type: ignore[no-untyped-def]
        self, hidden_states, attention_mask, output_hidden_states=True, output_attentions=False, query_states=None,
        relative_pos=None, return_dict=True,
    ):  # fmt: skip
        """As transformers' own. Attention maps, other queries and given positions are left to it."""
        if output_attentions or query_states is not None or relative_pos is not None:
            return super().forward(
                hidden_states, attention_mask, output_hidden_states, output_attentions, query_states, relative_pos,
                return_dict,
            )  # fmt: skip
        texts, tokens = hidden_states.shape[:2]
        how, places = self.plan(attention_mask, texts, tokens)
        table = self.get_rel_embedding()
        if table is not None:
            table = table[slice(*self.span.used(tokens))]
        if places is not None:
            hidden_states = hidden_states.flatten(0, 1)[places].unsqueeze(0)

        states = [hidden_states]
        for number, layer in enumerate(self.layer):
            last = hidden_states
            hidden_states = layer(last, how, rel_embeddings=table)[0]
            if number == 0 and self.conv is not None:
                read = attention_mask if attention_mask.dim() <= 2 else (attention_mask.sum(-2) > 0).to(torch.long)
                hidden_states = self.conv(last, hidden_states, read)
            states = [*states, hidden_states] if output_hidden_states else [hidden_states]
        every = HiddenStates(states, places, (texts, tokens))
        given: Any = every if output_hidden_states else None
        if not return_dict:
            return (every[-1],) if given is None else (every[-1], given)
        return BaseModelOutput(last_hidden_state=every[-1], hidden_states=given, attentions=None)

    @property
    def span(self) -> Span:
        if not self.relative_attention:
            return Span(-1, -1, 1)
        buckets, farthest = self.position_buckets, self.max_relative_positions
        return Span(buckets, farthest, buckets if buckets > 0 else farthest)

    def plan(self, mask: Tensor, texts: int, tokens: int) -> tuple[How, Tensor | None]:
        """(how a batch attends, the tokens that are read, counted through the rows, where padding is left out).

        mask: (B, T) or (B, T, T), 1 where something may be read.
        """
        span, low = self.span, self.span.used(tokens)[0]
        if mask.dim() > 2:
            return Masked(mask.reshape(texts, tokens, tokens).bool(), span, 1.0, low=low), None
        if self.tier == "sdpa" and mask.device.type != "cpu":
            return Masked(mask.bool()[:, None], span, 1.0, low=low), None
        pieces = padded_pieces(mask)
        if pieces is None or (self.tier == "flex" and self.conv is not None):
            return Masked(mask.bool()[:, None], span, 1.0, low=low), None
        lengths = [count for _, count in pieces]
        pack = self.conv is None and sum(lengths) < PACKED_SHARE * texts * tokens
        places = mask.flatten().nonzero().flatten() if pack or self.tier == "flex" else None
        if places is not None:
            ends = torch.tensor(lengths).cumsum(0).tolist()
            pieces = tuple((end - count, count) for end, count in zip(ends, lengths, strict=True))
        if self.tier == "sdpa":
            layers: Any = self.layer
            groups = group_texts(pieces, layers[0].attention.self.num_attention_heads)
            return Texts(groups, span, 1.0, low=low), places
        assert places is not None
        owner = owners(torch.tensor(lengths, device=mask.device), len(places))
        return Packed(owner, max(lengths), span, 1.0, block_mask(owner), low), places


def padded_pieces(mask: Tensor) -> tuple[tuple[int, int], ...] | None:
    """(first token, tokens) of each row of a (B, T) mask, counted through the rows; None where a row has a gap.

    A gap counts as distance: such a text cannot be read as if its tokens stood together.
    """
    read = mask.bool()
    counts, starts = read.sum(1), read.to(torch.uint8).argmax(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    inside = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
    if not torch.equal(inside, read):
        return None
    rows = torch.stack([starts, counts], 1).tolist()  # one transfer from a GPU
    return tuple((row * mask.shape[1] + start, count) for row, (start, count) in enumerate(rows))
