"""Fine-tune on labelled rows, fold by fold.

One process: python -m train +experiment=arena_quickstart
Several:     accelerate launch --num_processes 2 -m train +experiment=arena_deberta

Knows Hydra (through infer.door) and nothing of torch.
"""

from __future__ import annotations

from infer.door import open_door
from models.settings import Settings


def main() -> None:
    """The command `python -m train`, also installed as `tiebreak-train`."""
    open_door(_run)


def _run(settings: Settings) -> None:
    if settings.doctor:
        from train.doctor import examine

        examine(settings)
    else:
        from train.run import run

        run(settings)
