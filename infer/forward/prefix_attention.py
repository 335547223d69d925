"""Attention over a prefix that all rows of a batch share, without a copy of its keys and values for every row.

    queries of all rows, as one row    x  prefix keys (1, P)       no mask
    queries of each row                x  its own keys (B, T)      causal, or the answers' tree
                                       both joined by their log-sum-exp, in float32

softmax over both sets of keys is the mean of the two results, weighted by the two sums of exponentials (Juravsky et
al. 2024, "Hydragen", section 3.1). Larger products, no concatenation per layer, no mask over the prefix. It enters
through transformers' own interface for attention functions. Knows tensors, no tokens; CPU only: torch's fused attention
gives its log-sum-exp there for any mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

NAME = "tiebreak_shared_prefix"  # no mask function of this name exists, so a model makes no mask of its own
REFUSED = ("softcap", "position_bias", "s_aux")  # what else some models want done to scores

_layers: ContextVar[Sequence[tuple[torch.Tensor, torch.Tensor]]] = ContextVar("layers of the shared prefix")


def can_attend_apart(model: Any) -> bool:
    """Whether it is worth trying: torch's fused attention on a CPU, by the interface that can be replaced."""
    weight = model.get_input_embeddings().weight
    return weight.device.type == "cpu" and model.config.get_text_config()._attn_implementation == "sdpa"


@contextmanager
def attending_apart(model: Any, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Inside, the model's attention adds these keys and values to each row's own; (1, key heads, P, size) a layer.

    A layer that brings P + T keys itself is given its mask in full and attends as ever.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _layers.set(layers)
    config._attn_implementation = {"": NAME}  # of this config alone, not of those inside it
    try:
        yield
    finally:
        config._attn_implementation = {"": before}
        _layers.reset(token)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' attention function: (B, T, heads, head size) of (B, heads, T, head size) and (B, key heads, ...).

    attention_mask: additive (B, 1, T, T) among a row's own tokens; None: causal.
    """
    if wanted := [name for name in REFUSED if others.get(name) is not None]:
        raise NotImplementedError(f"{type(module).__name__} wants {wanted[0]}, which this attention does not do")
    prefix_keys, prefix_values = _layers.get()[module.layer_idx]
    if key.shape[-2] > query.shape[-2]:
        mask = _whole_mask(attention_mask, query, key)
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    else:
        far, far_sum = _to_prefix(query, prefix_keys, prefix_values, scaling)
        near, near_sum = _fused(query, key, value, attention_mask, scaling, is_causal=attention_mask is None)
        share = torch.sigmoid(far_sum - near_sum)[..., None]
        found = torch.lerp(near.float(), far.float(), share).to(query.dtype)
    return found.transpose(1, 2).contiguous(), None


def _to_prefix(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows' queries, those of heads that share keys too, in one row: (B, heads, T, size) and (B, heads, T)."""
    rows, heads, tokens, size = query.shape
    groups = keys.shape[1]
    shape = (groups, rows, heads // groups, tokens)
    joined = query.unflatten(1, (groups, -1)).transpose(0, 1).reshape(1, groups, -1, size)
    found, sums = _fused(joined, keys, values, None, scaling, is_causal=False)
    return found.view(*shape, size).transpose(0, 1).flatten(1, 2), sums.reshape(shape).transpose(0, 1).flatten(1, 2)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None,
    *, is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """torch's fused attention with its log-sum-exp of the scores, (B, heads, T) float32; fewer key heads are shared."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found, sums = attend(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scaling)
    return found, sums


def _whole_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The mask over prefix and own keys: all of the prefix is seen."""
    tokens, before = query.shape[-2], key.shape[-2] - query.shape[-2]
    if mask is None:
        return torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before)[None, None]
    return pad(mask, (before, 0))
