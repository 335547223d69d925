"""Tiny trainings that are stopped and go on: how, and whether they end as the unbroken ones."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from infer import stopping
from train.checkpoints import last_whole_checkpoint
from train.loop import FoldTrainer

STEPS = ("trainer.batch_rows=8", "trainer.epochs=3", "trainer.evals_per_epoch=1", "trainer.saves_per_eval=1")


def go_on(loop: FoldTrainer) -> None:
    checkpoint = last_whole_checkpoint(Path(loop.args.output_dir))
    assert checkpoint is not None
    loop.train(resume_from_checkpoint=str(checkpoint))


def same_training(one: FoldTrainer, other: FoldTrainer) -> bool:
    """The same weights, and the same log but for when it was written."""
    logs = [[entry for entry in loop.state.log_history if "train_runtime" not in entry] for loop in (one, other)]
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return logs[0] == logs[1] and all(torch.equal(a, b) for a, b in pairs)


@contextmanager
def signals_heard() -> Iterator[None]:
    """Inside, signals are taken as the commands take them; afterwards all is as before."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.forget()
    stopping.listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stopping.forget()
