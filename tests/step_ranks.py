"""What each process of a launch does for test_step_ranks.py and test_sharding.py: trainings, their weights and stories.

torchrun --nproc_per_node 2 tests/step_ranks.py ENCODER FOLDER [TRAINING ...]
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from conftest import pair_rows
from test_loop import trainer
from transformers import TrainerCallback

import train.step
from infer.ranks import rank

ROWS = pair_rows(46)[:45]  # in steps of 16 the last has 13, in steps of 2 the last has 1
COMMON = ("trainer.max_grad_norm=1e9",)
TRAININGS = {
    "plain": ("trainer.batch_rows=8", "trainer.epochs=2", "trainer.budget_tokens=90"),
    "full": ("trainer.batch_rows=8", "trainer.epochs=2"),
    "odd": ("trainer.batch_rows=1",),
    "lost": ("trainer.batch_rows=8", "trainer.nan_steps=1"),
    "clipped": (
        "trainer.batch_rows=8", "trainer.epochs=2", "trainer.budget_tokens=90", "trainer.max_grad_norm=0.05",
        "trainer.layer_decay=0.5",
    ),
}  # fmt: skip
SMALL = ("trainer.bucket_weights=2000", "trainer.whole_below=0")  # so that even a tiny network is dealt out
SHARDED = {
    f"{sharding}-{name}": (*TRAININGS[name], *SMALL, f"trainer.sharding={sharding}")
    for sharding in ("zero2", "zero3", "fsdp")
    for name in ("plain", "odd", "clipped")
}


def one(name: str, encoder: str, folder: Path) -> dict:
    options = (*COMMON, *(TRAININGS | SHARDED)[name])
    loop = trainer(folder / name, encoder, *options, rows=ROWS)
    exchanged, average = [], train.step.average_gradients

    def counted(parameters) -> None:
        exchanged.append(1)
        average(parameters)

    train.step.average_gradients = counted
    tried: list[int] = []
    if name == "full" and rank() == 1:  # one process only has too little memory

        def refuse(module, given, inputs) -> None:
            tried.append(inputs["input_ids"].numel())
            if tried[-1] > 150:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        loop.model.register_forward_pre_hook(refuse, with_kwargs=True)
    if name == "lost":
        return lost(loop)
    dealt = DealtWeights()
    loop.add_callback(dealt)
    loop.train()
    train.step.average_gradients = average
    keep(loop, folder / f"{name}.pt")
    if name.endswith("-plain"):
        half = trainer(folder / f"{name}-again", encoder, *options, rows=ROWS)
        half.add_callback(StopAfter(3))
        half.train()
        again = trainer(folder / f"{name}-again", encoder, *options, rows=ROWS)
        again.train(resume_from_checkpoint=str(folder / f"{name}-again" / "checkpoint-3"))
        keep(again, folder / f"{name}-again.pt")
    return {
        "steps": loop.state.global_step,
        "exchanged": len(exchanged),
        "by": loop.accelerator.distributed_type.value,
        "mine": dealt.mine,
        "budget": loop.micro.budget_tokens,
        "tried": tried,
        "losses": [entry["loss"] for entry in loop.state.log_history if "loss" in entry],
        "norms": [float(entry["grad_norm"]) for entry in loop.state.log_history if "grad_norm" in entry],
    }


def lost(loop) -> dict:
    """In the second step the loss of the second process alone is no number; what each says, and what it had read."""
    inner = loop.compute_loss

    def poisoned(*given, **named):
        return inner(*given, **named) * (math.nan if rank() == 1 and loop.state.global_step == 1 else 1.0)

    loop.compute_loss = poisoned
    said = ""
    try:
        loop.train()
    except ValueError as error:
        said = str(error)
    return {"said": said, "read": loop.names([item for part, _ in loop.losses for item in part])}


def keep(loop, path: Path) -> None:
    """The whole trained weights, written by one process."""
    with loop.whole(exact=True):
        if rank() == 0:
            torch.save({name: weight.detach().cpu().clone() for name, weight in loop.model.named_parameters()}, path)


class DealtWeights(TrainerCallback):
    """How many weights this process holds between two steps."""

    mine = 0

    def on_step_end(self, args, state, control, model=None, **given) -> None:
        shares = [getattr(one, "ds_tensor", one) for one in model.parameters()]
        self.mine = sum((one.to_local() if hasattr(one, "to_local") else one).numel() for one in shares)


class StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **given) -> None:
        if state.global_step == self.steps:
            control.should_save = control.should_training_stop = True


def as_on_gpus() -> None:
    """accelerate deals out by FSDP on GPUs alone, and falls back to DDP on a CPU; torch itself does not mind."""
    plain = AcceleratorState.__init__

    def told(self, *given, **named) -> None:
        fresh = not AcceleratorState._shared_state
        if fresh:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plain(self, *given, **named)
        if fresh:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU

    AcceleratorState.__init__ = told


if __name__ == "__main__":
    encoder, folder = sys.argv[1], Path(sys.argv[2])
    names = sys.argv[3:] or ["plain", "full", "odd", "lost"]
    if names[0].startswith("fsdp") and not torch.cuda.is_available():
        as_on_gpus()
    stories = {name: one(name, encoder, folder) for name in names}
    (folder / f"rank{rank()}.json").write_text(json.dumps(stories))
