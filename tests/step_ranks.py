"""What each of two processes does for test_step_ranks.py: three short trainings, their weights and stories to a folder.

torchrun --nproc_per_node 2 tests/step_ranks.py ENCODER FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from conftest import pair_rows
from test_loop import trainer

import train.step
from infer.ranks import rank

ROWS = pair_rows(46)[:45]  # in steps of 16 the last has 13, in steps of 2 the last has 1
COMMON = ("trainer.max_grad_norm=1e9",)
TRAININGS = {
    "plain": ("trainer.batch_rows=8", "trainer.epochs=2", "trainer.budget_tokens=90"),
    "full": ("trainer.batch_rows=8", "trainer.epochs=2"),
    "odd": ("trainer.batch_rows=1",),
}


def one(name: str, encoder: str, folder: Path) -> dict:
    loop = trainer(folder / name, encoder, *COMMON, *TRAININGS[name], rows=ROWS)
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
    loop.train()
    train.step.average_gradients = average
    if rank() == 0:
        torch.save(loop.model.state_dict(), folder / f"{name}.pt")
    return {
        "steps": loop.state.global_step,
        "exchanged": len(exchanged),
        "budget": loop.micro.budget_tokens,
        "tried": tried,
        "losses": [entry["loss"] for entry in loop.state.log_history if "loss" in entry],
    }


if __name__ == "__main__":
    encoder, folder = sys.argv[1], Path(sys.argv[2])
    stories = {name: one(name, encoder, folder) for name in TRAININGS}
    (folder / f"rank{rank()}.json").write_text(json.dumps(stories))
