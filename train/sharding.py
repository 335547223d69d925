"""A fold's training spread over processes: ZeRO-2 and ZeRO-3 by DeepSpeed, FSDP by torch.

    zero2   every process has all weights; gradients and the optimizer's state are dealt out
    zero3   the weights as well, a frozen base's too: each is gathered where its layer is read
    fsdp    the same by torch, without DeepSpeed; no adapters

    torchrun --nproc_per_node 2 -m train +experiment=arena_deberta_large trainer=zero2

Knows what transformers, DeepSpeed and torch must be told; train.whole_weights gathers what they dealt out.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from typing import Any

from models.settings import Settings, TrainerSettings

DEEPSPEED_STAGES = {"zero2": 2, "zero3": 3}
LAUNCHER_SWITCHES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
PASCAL = 6
# Without it DeepSpeed refuses fp16 on sm_60 and sm_61, which compute it well enough (finetuning trap 7).
PASCAL_SWITCH = "DS_ALLOW_DEPRECATED_FP16"


def check_sharding(settings: Settings) -> None:
    """Refuse, before anything is loaded, what cannot be sharded on this machine or in this run. Raises ValueError."""
    trainer = settings.trainer
    launched = [name for name in LAUNCHER_SWITCHES if os.environ.get(name, "false").lower() == "true"]
    if launched:
        raise ValueError(
            f"accelerate's file deals the network out itself ({launched[0]}=true). Let it start plain processes "
            "(distributed_type: MULTI_GPU, as docs/two_nodes.yaml does) and say trainer=zero2, zero3 or fsdp."
        )
    if trainer.sharding == "none":
        return
    import torch

    asked = f"trainer.sharding={trainer.sharding}"
    if "RANK" not in os.environ:
        raise ValueError(
            f"{asked} deals a network out to the processes of a launch, and this is a single one. Start it with "
            "torchrun --nproc_per_node 2 -m train ... (accelerate launch --num_processes 2 on GPUs), or set "
            "trainer.sharding=none."
        )
    if trainer.sharding in DEEPSPEED_STAGES and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(f"{asked} needs DeepSpeed, which is not installed: pip install 'tiebreak[deepspeed]'.")
    if trainer.sharding == "fsdp" and not torch.cuda.is_available():
        raise ValueError(f"{asked} deals out on GPUs only, and this machine has none. On CPUs: trainer=zero2.")
    if trainer.compile:
        raise ValueError(
            f"{asked} reads weights where they are gathered, and trainer.compile=true does not know of it."
        )
    if trainer.sharding == "fsdp" and settings.method.name == "adapter":
        # Not tried: FSDP asks for 4-bit weights in the trained ones' type (quant_storage, finetuning 27), and the base
        # would have to be freed of its DTensors for the next fold, as train.whole_weights.take_back does for ZeRO-3.
        raise ValueError(
            f"{asked} would deal out the base of method=adapter, which the folds share. trainer=zero3 does, and takes "
            "it back after each fold; with trainer=zero2 each process has the base whole, an 8B one in 4 bits in 5.5 "
            "GiB."
        )
    if "8bit" in trainer.optimizer and (trainer.sharding == "fsdp" or _trains_embeddings(settings)):
        raise ValueError(
            f"trainer.optimizer={trainer.optimizer} keeps its state of the embeddings in 32 bits by their weights, "
            f"which {asked} has dealt out. Sharding makes the state small as it is: trainer.optimizer=adamw."
        )


def _trains_embeddings(settings: Settings) -> bool:
    model = settings.model
    return settings.method.name == "encoder" and not getattr(model, "adapters", False)


def sharding_arguments(trainer: TrainerSettings, precision: str) -> dict[str, Any]:
    """The TrainingArguments that shard a fold. precision: as resolved for this device."""
    if trainer.sharding == "none":
        return {}
    if trainer.sharding == "fsdp":
        # Ours are the weights of a checkpoint (train.loop): the state is the optimizer's alone.
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    return {"deepspeed": deepspeed_config(trainer, precision)}


def deepspeed_config(trainer: TrainerSettings, precision: str) -> dict[str, Any]:
    """DeepSpeed's own configuration. Whatever TrainingArguments know is "auto": said once, and the same.

    A step is one batch to it, as to Trainer (train.step): gradient_accumulation_steps 1, and the micro-batches inside
    are told apart by where each ends.
    """
    zero: dict[str, Any] = {
        "stage": DEEPSPEED_STAGES[trainer.sharding],
        "reduce_bucket_size": trainer.bucket_weights,
        "contiguous_gradients": True,
        "overlap_comm": True,
    }
    if trainer.sharding == "zero2":
        zero["allgather_bucket_size"] = trainer.bucket_weights
    else:
        zero["stage3_prefetch_bucket_size"] = trainer.bucket_weights
        zero["stage3_param_persistence_threshold"] = trainer.whole_below
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours: its groups have a rate per depth
        "zero_force_ds_cpu_optimizer": False,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {"enabled": precision == "fp16"},  # weights in 16 bits, their float32 masters dealt out
        # As without sharding: float32 weights, products in bfloat16. DeepSpeed's autocast cannot scale fp16's losses.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**62,  # never: EvaluationLine speaks
    }


def trainer_precision(trainer: TrainerSettings, precision: str) -> dict[str, Any]:
    """The fp16 and bf16 of TrainingArguments: bf16 under DeepSpeed is its own autocast's affair."""
    autocast = trainer.sharding not in DEEPSPEED_STAGES
    return {"fp16": precision == "fp16", "bf16": precision == "bf16" and autocast}


def allow_pascal(trainer: TrainerSettings, precision: str, capability: tuple[int, int] | None) -> str | None:
    """Set DeepSpeed's switch for fp16 on Pascal where it is needed; the log line about it, None where it is not."""
    needed = capability is not None and capability[0] == PASCAL and precision == "fp16"
    if not needed or trainer.sharding not in DEEPSPEED_STAGES:
        return None
    assert capability is not None
    os.environ[PASCAL_SWITCH] = "1"
    return f"sm_{capability[0]}{capability[1]}: {PASCAL_SWITCH}=1, so that DeepSpeed trains in fp16 on Pascal"


def make_shardable(network: Any, arguments: Any) -> None:
    """Settle what FSDP and DeepSpeed ask of a network's form, before they take it; nothing without them.

    FSDP gathers one layer at a time, those of the class that the network repeats most. DeepSpeed sends weights as
    bytes, which a number of no dimension has none of: it becomes a vector of one, and checkpoints read it as either.
    """
    import torch

    if arguments.fsdp:
        repeated = Counter(
            type(layer).__name__
            for stack in network.modules() if isinstance(stack, torch.nn.ModuleList)
            for layer in stack
        )  # fmt: skip
        network._no_split_modules = [name for name, _ in repeated.most_common(1)]
    if arguments.deepspeed:
        for parameter in network.parameters():
            if not parameter.ndim:
                parameter.data = parameter.data.reshape(1)


def forget_sharding() -> None:
    """As before a fold: transformers would go on to load checkpoints in the parts of the last ZeRO-3 configuration."""
    import sys

    if "transformers.integrations.deepspeed" in sys.modules:
        sys.modules["transformers.integrations.deepspeed"].unset_hf_deepspeed_config()
