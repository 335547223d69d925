"""The switches that make a run fit a card or hurry: what each asks of the machine, and what it tells the Trainer.

    model.frozen_layers  model.adapters  model.dropout  trainer.optimizer  trainer.activation_checkpointing
    trainer.checkpoint_every  trainer.compile

What each gave is in conf/trainer and conf/model; scripts/bench/levers.py measures them. Knows settings and the machine.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from models.settings import Settings, TrainerSettings

# trainer.optimizer -> transformers' name
OPTIMIZERS = {
    "adamw": "adamw_torch_fused", "adamw_plain": "adamw_torch", "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}  # fmt: skip
COMPILE_BACKEND = "inductor"
COMPILE_FROM = (7, 0)  # Triton's oldest GPU
COMPILED_TOKENS = 64  # lengths are rounded up to so many: a new length is a new kernel


def check_levers(settings: Settings) -> None:
    """Refuse, before anything is loaded, a switch that this machine or this run cannot take. Raises ValueError."""
    trainer = settings.trainer
    if "8bit" in trainer.optimizer and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"trainer.optimizer={trainer.optimizer} needs bitsandbytes, which is not installed: pip install "
            "bitsandbytes, or trainer.optimizer=adamw."
        )
    if trainer.compile:
        if settings.method.name != "encoder":
            raise ValueError(
                f"trainer.compile=true compiles encoders, not method={settings.method.name}, whose packed prompts have "
                "another form at every step. Set trainer.compile=false."
            )
        lack = compile_lack()
        if lack is not None:
            raise ValueError(f"trainer.compile=true needs Triton on a GPU of sm_70 or newer, and {lack}. Set it false.")


def compile_lack() -> str | None:
    """What this machine lacks to compile kernels; None where it can."""
    import torch
    from torch.utils._triton import has_triton

    if not torch.cuda.is_available():
        return "this machine has no GPU"
    capability = torch.cuda.get_device_capability()
    if capability < COMPILE_FROM:
        return f"this GPU is sm_{capability[0]}{capability[1]}"
    return None if has_triton() else "Triton is not installed"


def trainer_switches(trainer: TrainerSettings) -> dict[str, Any]:
    """The TrainingArguments of the optimiser and of compiling."""
    compiled = {"torch_compile": True, "torch_compile_backend": COMPILE_BACKEND} if trainer.compile else {}
    return {"optim": OPTIMIZERS[trainer.optimizer], **compiled}


def embeddings_in_32_bits(network: Any) -> list[Any]:
    """Keep 8-bit AdamW's state of the trained embeddings in 32 bits; their weights. To be called before its first step.

    Tokens are frequent and rare, so that gradients differ most in size there. Source: Dettmers et al. 2022, section
    2.3, and transformers.Trainer.create_optimizer, which ours stands in for.
    """
    import bitsandbytes
    from torch import nn

    tables = [one for one in network.modules() if isinstance(one, nn.Embedding) and one.weight.requires_grad]
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.initialize()  # one for the whole process: it would keep the networks of earlier folds alive
    for one in tables:
        manager.register_module_override(one, "weight", {"optim_bits": 32})
    return [one.weight for one in tables]


def length_multiple(trainer: TrainerSettings) -> int:
    """Batches are padded to a multiple of so many tokens."""
    return COMPILED_TOKENS if trainer.compile else 1


def rounded(tokens: int, multiple: int) -> int:
    """tokens, up to the next multiple."""
    return -(-tokens // multiple) * multiple
