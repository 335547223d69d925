"""Predict with a run's checkpoints.

One process: python -m infer +experiment=arena_quickstart
Several:     accelerate launch --num_processes 2 -m infer +experiment=arena_deberta

Knows Hydra (through infer.door) and nothing of torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from infer.door import open_door, settings_of
from infer.overrides import MULTIRUN_FLAGS
from models.settings import Settings

if TYPE_CHECKING:
    from infer.compare.ways import Way


def main() -> None:
    """The command `python -m infer`, also installed as `tiebreak-infer`."""
    open_door(_run)


def _run(settings: Settings) -> None:
    for key in ("doctor", "explore"):
        if getattr(settings, key):
            raise ValueError(
                f"{key}=true looks at labelled rows before training: python -m train +experiment={settings.name} "
                f"{key}=true. python -m infer would read every row all the same: leave it out here."
            )
    if settings.compare.way is not None:
        from infer.compare.way import run_way

        run_way(settings)
    elif settings.compare.ways is not None:
        from infer.compare.run import compare

        compare(settings, ways_of(settings, sys.argv[1:]))
    else:
        from infer.run import run

        run(settings)


def ways_of(settings: Settings, arguments: list[str]) -> list[Way]:
    """The ways of a comparison, each composed over its command line. Raises ValueError naming a way that cannot be."""
    from infer.compare.ways import Way, way_arguments

    if MULTIRUN_FLAGS & set(arguments):
        raise ValueError(
            "compare.ways under --multirun: compare more ways instead, or start the comparisons one by one."
        )
    folder = Path(settings.out_dir or settings.run_dir)
    ways = []
    for name, overrides in settings.compare.ways.items():
        try:
            own = way_arguments(arguments, name, overrides, folder)
            way = Way(name, tuple(own), settings_of(own))
            _check_labels(list(way.settings.question.labels), list(settings.question.labels))
        except ValueError as error:
            raise ValueError(f"compare.ways.{name}: {error}") from None
        ways.append(way)
    return ways


def _check_labels(own: list[str], common: list[str]) -> None:
    """Refuse a way that answers with other labels: its probabilities would be of another question."""
    if sorted(own) != sorted(common):
        raise ValueError(
            f"It answers with {', '.join(own)}, and the comparison with {', '.join(common)}. Give it the "
            "same labels, in question.labels or by another question=NAME."
        )
