"""Low-rank adapters inside an encoder: they and the head train, and are merged into the weights when it is saved.

A checkpoint is therefore an ordinary one, and whoever reads it knows nothing of this module. Hu et al. 2021. Knows
weights, never a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.adapters import quiet_peft
from models.added_row import whole_tables
from models.encoder import HEAD_DEPTH, depth
from models.method_settings import AdapterSettings

BASE, DOWN, UP = ".base_layer.", ".lora_A.", ".lora_B."  # peft's names of a layer, and of its two matrices


def add_adapters(encoder: nn.Module, settings: AdapterSettings) -> nn.Module:
    """The encoder with adapters beside its linear layers; they and the head train, all else is frozen.

    The matrices are drawn from torch's generator as it stands. Raises ValueError where no layer has a name of
    adapter.targets.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = _targets(encoder, settings.targets)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,  # type: ignore[arg-type]
        target_modules=targets, bias="none",
    )  # fmt: skip
    with quiet_peft():
        inject_adapter_in_model(config, encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(DOWN in name or UP in name or depth(name) == HEAD_DEPTH)
    return encoder


def adapted(encoder: nn.Module) -> bool:
    """Are there adapters in it?"""
    return any(DOWN in name for name, _ in encoder.named_parameters())


def merged_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's weights by their ordinary names, each adapter added to its layer's; nothing of it is changed."""
    from peft.tuners.lora import LoraLayer

    state = encoder.state_dict()
    merged = {name.replace(BASE, "."): tensor for name, tensor in state.items() if DOWN not in name and UP not in name}
    for name, module in encoder.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            with torch.no_grad():
                merged[f"{name}.weight"] = merged[f"{name}.weight"] + layer.get_delta_weight("default")
    return {name: tensor.contiguous() for name, tensor in merged.items()}


def save_encoder(encoder: Any, folder: Path) -> None:
    """Write an ordinary checkpoint of the encoder; adapters, and a row that trained alone, are merged into it."""
    state = merged_state(encoder) if adapted(encoder) else encoder.state_dict()
    encoder.save_pretrained(folder, state_dict=whole_tables(encoder, state))


def _targets(encoder: nn.Module, wanted: str) -> list[str]:
    """The full names of the linear layers below the head that get an adapter."""
    linear = [
        name for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and depth(name) != HEAD_DEPTH
    ]  # fmt: skip
    ends = [one.strip() for one in wanted.split(",")]
    found = linear if wanted.strip() == "all-linear" else [one for one in linear if one.split(".")[-1] in ends]
    if not found:
        known = ", ".join(dict.fromkeys(name.split(".")[-1] for name in linear))
        raise ValueError(
            f"adapter.targets={wanted} names no layer of {type(encoder).__name__}. Use all-linear, or some of {known}."
        )
    return found
