"""The DeBERTa networks of the attention benchmark: v3 shapes, random weights; their batches, work and makers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from cards import cap_allocator
from torch import nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from models.deberta_attention import resolve_attention, set_tier

FLASH = "flashdeberta"
TIERS = ("eager", "sdpa", "flex", FLASH)


@dataclass(frozen=True)
class Shape:
    """A v3 network: 64 units a head, 256 buckets over 512 positions, position keys shared with the content's."""

    layers: int
    hidden: int

    @property
    def heads(self) -> int:
        return max(2, self.hidden // 64)


SHAPES = {
    "toy": Shape(2, 32), "xsmall": Shape(12, 384), "small": Shape(6, 768), "base": Shape(12, 768),
    "large": Shape(24, 1024),
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    name: str
    ids: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, name: str, lengths: list[int], vocabulary: int, device: str) -> Batch:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, vocabulary, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        return cls(name, (ids * mask).to(device), mask.long().to(device))

    @property
    def lengths(self) -> list[int]:
        return self.mask.sum(1).tolist()


def build(shape: Shape, *, tier: str, vocabulary: int, dropout: float, device: str) -> nn.Module:
    """A network with the same weights for every tier. Raises ValueError where the tier cannot run."""
    settings: dict[str, Any] = dict(
        vocab_size=vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=4 * shape.hidden, type_vocab_size=0,
        relative_attention=True, position_buckets=256, max_relative_positions=-1, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, pad_token_id=0, num_labels=3,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pooler_dropout=0.0,
    )  # fmt: skip
    config = DebertaV2Config(**settings)
    torch.manual_seed(0)
    network: Any = DebertaV2ForSequenceClassification(config)
    if tier == FLASH:
        return flash_of(network, config, dropout).to(device)
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    set_tier(network.deberta.encoder, resolve_attention(tier, device=device, capability=capability, dropout=dropout))
    return network.to(device)


def flash_of(network: nn.Module, config: Any, dropout: float) -> nn.Module:
    """The same weights in flashdeberta's classes. Raises ValueError where it cannot stand beside the others."""
    if dropout > 0:
        raise ValueError("its kernel drops no probabilities: --dropout 0")
    try:
        package = importlib.import_module(FLASH)
    except ImportError as error:
        raise ValueError(f"not installed ({error}): pip install flashdeberta") from error
    found: nn.Module = package.FlashDebertaV2ForSequenceClassification(config)
    found.load_state_dict(network.state_dict())
    return found


def forward_flops(shape: Shape, lengths: list[int]) -> float:
    """Of the matmuls that texts of these lengths need: no padding, no recomputation, the smaller position product."""
    tokens = sum(lengths)
    linear = 2 * tokens * shape.hidden * shape.hidden * (4 + 8)
    table = sum(2 * 2 * min(2 * one - 1, 512) * one * shape.hidden for one in lengths)
    attention = sum(2 * 2 * one * one * shape.hidden for one in lengths)
    project = 2 * 2 * min(2 * max(lengths) - 1, 512) * shape.hidden * shape.hidden
    return float(shape.layers * (linear + table + attention + project))


def cap_memory(device: str, gib: float | None) -> None:
    """No more than a card of so many GiB has room for (cards.py), or on a CPU so much data; None: all there is."""
    if device == "cuda":
        cap_allocator(gib)
    elif gib is not None:
        import resource

        limit = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
