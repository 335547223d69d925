"""The checkpoints of a training under way: put in place whole, verified before they are used, thinned out.

    attempts/0/unfinished/checkpoint-30    being written; whatever a kill left of it is deleted
    attempts/0/checkpoint-20               whole: its manifest.json was written last, before the folder got its name
    attempts/0/damaged-checkpoint-10       was found to be other than it was written; never deleted

Knows files only.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from models.manifest import damage, write_manifest
from models.tasks.files import flush_folder, read_record

log = logging.getLogger("tiebreak")

UNFINISHED, OLDER = "unfinished", "older-"
STATE = "trainer_state.json"
NETWORK = "trained.safetensors"  # the trained parameters; all that is needed of a best network's checkpoint
OPTIMIZERS = ("optimizer*", "global_step*")  # as Trainer, accelerate's FSDP and DeepSpeed call them
KEPT = 2  # the newest, and the one before in case that one is damaged


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written and has all to go on from; for one process of a launch.

    Newer ones are set aside with a message, unfinished ones deleted.
    """
    _put_back(folder)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    for checkpoint in _by_step(folder):
        wrong = _lack(checkpoint)
        if wrong is None:
            return checkpoint
        log.warning(f"{checkpoint}: {wrong}. Set aside as {set_aside(checkpoint).name}; going on without it")
    return None


def best_whole_step(folder: Path, scores: Mapping[int, float], *, told: int | None) -> int | None:
    """The step with the lowest score whose network is still as it was written; for one process of a launch.

    told: the best that a checkpoint names; where it is damaged that is said, and the next best one found.
    """
    for step in sorted(scores, key=lambda step: (step != told, scores[step], step)):
        checkpoint = folder / f"checkpoint-{step}"
        only = [NETWORK] if (checkpoint / NETWORK).is_file() else None
        wrong = damage(checkpoint, required=True, only=only) if checkpoint.is_dir() else "it is gone"
        if wrong is None:
            return step
        if step == told:
            aside = f" Set aside as {set_aside(checkpoint).name}." if checkpoint.is_dir() else ""
            log.warning(f"{checkpoint}, the best network so far: {wrong}.{aside} The next best one takes its place")
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to damaged-NAME, beside it, or damaged-NAME-2, ...; its new path."""
    number, aside = 1, path.with_name(f"damaged-{path.name}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.name}-{number}")
    os.replace(path, aside)
    return aside


def put_in_place(unfinished: Path) -> None:
    """Give a checkpoint that is written to its end its manifest, and then its name; thin out the older ones."""
    write_manifest(unfinished)
    place = unfinished.parent.parent / unfinished.name
    if place.exists():  # of the same step: saved before its evaluation
        os.replace(place, unfinished.parent / f"{OLDER}{place.name}")
    os.replace(unfinished, place)
    flush_folder(place.parent)  # the new name is on the disk before what it takes the place of goes
    shutil.rmtree(unfinished.parent)
    thin_out(place.parent)


def thin_out(folder: Path) -> None:
    """Delete what no resume needs: all but the newest two checkpoints, and of their best networks the optimizers."""
    checkpoints = _by_step(folder)
    best = {best_of(one) for one in checkpoints[:KEPT]}
    for older in checkpoints[KEPT:]:
        if older not in best:
            shutil.rmtree(older)
        elif (older / NETWORK).is_file():
            for state in _optimizers(older):
                shutil.rmtree(state) if state.is_dir() else state.unlink()


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint with the best network when this one was written; None before any evaluation, or unreadable."""
    try:
        step = read_record(checkpoint / STATE).get("best_global_step")
    except (OSError, ValueError):
        return None
    return checkpoint.with_name(f"checkpoint-{step}") if step else None


def clear_attempts(fold: Path) -> None:
    """Delete what a finished fold needs no more; damaged checkpoints stay where they were set aside."""
    for attempt in (fold / "attempts").glob("*"):
        for path in attempt.iterdir() if attempt.is_dir() else ():
            if not path.name.startswith("damaged-"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if attempt.is_dir() and not any(attempt.iterdir()):
            attempt.rmdir()
    if (fold / "attempts").is_dir() and not any((fold / "attempts").iterdir()):
        (fold / "attempts").rmdir()


def _put_back(folder: Path) -> None:
    """Give a whole checkpoint its name, where a kill between the renames of `put_in_place` left none of its step."""
    for found in sorted((folder / UNFINISHED).glob("*checkpoint-*")):  # checkpoint-N comes before older-checkpoint-N
        place = folder / found.name.removeprefix(OLDER)
        if not place.exists() and damage(found, required=True) is None:
            os.replace(found, place)


def _by_step(folder: Path) -> list[Path]:
    """checkpoint-N, the highest N first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def _optimizers(checkpoint: Path) -> list[Path]:
    return [path for pattern in OPTIMIZERS for path in checkpoint.glob(pattern)]


def _lack(checkpoint: Path) -> str | None:
    """Why training cannot go on from here as if it had never stopped; None where it can."""
    if (checkpoint / NETWORK).is_file() and not _optimizers(checkpoint):
        return "it holds a network and no optimizer's state to go on with"
    return damage(checkpoint, required=True)
