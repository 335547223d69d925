"""What a causal model's layers look back on, and whether two ways to compute its logits say the same.

Asked by everything that stands more than a prompt behind a mask or a cache of its own: the engine and the network that
is trained. Knows configs and logits, no tokens.
"""

from __future__ import annotations

from typing import Any

import torch

PROBE_LENGTHS = (12, 9)  # of the prompts a check tries: different, so that padding is part of it
# Mean difference of log-probabilities, in nats, that rounding explains: 1e-6 and 0.01 were measured, a wrong mask is
# off by 0.1 and more.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-6}
HALF_ROUNDING = 0.05
# What configs call the number of tokens a layer looks back; the first is the one our masks imitate.
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window", "local_attention_window")
# Layers that a tree mask reaches. Others chunk, pool or carry states by a token's place in the row, which a check on
# two lengths may not show.
MASKED_LAYERS = {"full_attention", "sliding_attention"}


def rounding_of(dtype: torch.dtype) -> float:
    """Mean nats by which two ways may differ in this precision."""
    return ROUNDING.get(dtype, HALF_ROUNDING)


def gap(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """(..., V) nats between two logits' log-probabilities."""
    return (found.float().log_softmax(-1) - expected.float().log_softmax(-1)).abs()


def agree(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two (..., V) logits say the same to within the rounding of `dtype`."""
    nats = gap(found, expected)
    return bool(torch.isfinite(nats).all()) and float(nats.detach().mean()) <= rounding_of(dtype)


def layer_kinds(config: Any) -> list[str]:
    """The kinds of layers a config names, each once; none where all are alike."""
    return sorted(set(getattr(config.get_text_config(), "layer_types", None) or ()))


def takes_masks(config: Any) -> bool:
    """Whether all its layers are of kinds that a tree mask reaches."""
    return set(layer_kinds(config)) <= MASKED_LAYERS


def looks_back(config: Any) -> tuple[float, list[tuple[int | None, Any]]]:
    """(tokens within which every layer sees everything, the windowed masks worth trying beyond)."""
    config, kinds = config.get_text_config(), layer_kinds(config)
    if kinds == ["full_attention"]:
        return float("inf"), [(None, None)]
    sizes = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]
    if not sizes:
        return float("inf"), [(None, None)]
    by_layer = tuple((kind, kind != "full_attention") for kind in kinds)
    return min(sizes), [(sizes[0], by_layer), (sizes[0], None)] if by_layer else [(sizes[0], None)]
