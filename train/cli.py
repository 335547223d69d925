"""Fine-tune on labelled rows, fold by fold.

One process: python -m train +experiment=arena_quickstart
Several:     accelerate launch --num_processes 2 -m train +experiment=arena_deberta

Knows Hydra (through infer.door) and nothing of torch.
"""

from __future__ import annotations

from infer.door import open_door
from models.method_settings import UNTRAINED_METHODS
from models.settings import Settings


def main() -> None:
    """The command `python -m train`, also installed as `tiebreak-train`."""
    open_door(_run)


def _run(settings: Settings) -> None:
    if not settings.explore:
        _refuse_untrained(settings)
    if settings.explore:
        from train.explore import explore

        explore(settings)
    elif settings.doctor:
        if settings.task.name != "arena":
            raise ValueError(
                f"doctor=true looks at arena rows only, and {settings.name} reads task.name={settings.task.name}."
            )
        from train.doctor import examine

        examine(settings)
    else:
        from train.run import run

        run(settings)


def _refuse_untrained(settings: Settings) -> None:
    """Send an experiment that has nothing to train to the other verb."""
    command = f"python -m infer +experiment={settings.name}"
    if settings.method.name == "blend":
        raise ValueError(f"A blend joins finished runs and trains nothing: {command} ...")
    if settings.method.name in UNTRAINED_METHODS:
        raise ValueError(f"{settings.name} is read from a model as it is, not trained: {command}")
