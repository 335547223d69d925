"""Predict with a run's checkpoints.

One process: python -m infer +experiment=arena_quickstart
Several:     accelerate launch --num_processes 2 -m infer +experiment=arena_deberta

Knows Hydra (through infer.door) and nothing of torch.
"""

from __future__ import annotations

from infer.door import open_door
from models.settings import Settings


def main() -> None:
    """The command `python -m infer`, also installed as `tiebreak-infer`."""
    open_door(_run)


def _run(settings: Settings) -> None:
    from infer.run import run

    run(settings)
