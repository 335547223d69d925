"""Which folds of a run are finished, by what stands in their folders; one whose files are damaged is trained again.

Knows files; nothing of rows or networks.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from models.checkpoint import IDENTITY
from models.manifest import damage, sha256
from models.tasks.files import read_record
from train.checkpoints import clear_attempts, set_aside
from train.fold import DISAGREEMENT, DONE, HELDOUT
from train.record import RUN_FILES

log = logging.getLogger("tiebreak")


def settle_finished(folder: Path, folds: Iterable[int]) -> dict[int, bool]:
    """{fold: was it cut short by a time budget} of the finished ones; for one process of a launch.

    A damaged one is set aside with a message, but for the state of its training. What a kill left behind is removed.
    """
    finished = {}
    clear_unfinished(folder, RUN_FILES)
    for fold in folds:
        place = folder / f"fold{fold}"
        clear_unfinished(place)
        clear_unfinished(place / "checkpoint")
        if not (place / DONE).exists():
            continue
        wrong = lack(place)
        if wrong is None:
            finished[fold] = bool(read_record(place / DONE).get("cut_short"))
            if not finished[fold]:
                clear_attempts(place)
            continue
        aside = set_aside(place)
        if (aside / "attempts").is_dir():
            place.mkdir()
            os.replace(aside / "attempts", place / "attempts")
        log.warning(f"fold {fold}: {wrong}. Set aside as {aside}; the fold is trained again")
    return finished


def clear_unfinished(folder: Path, names: Collection[str] | None = None) -> None:
    """Delete what a kill left of files and folders that were being written; names: of these alone."""
    for left in folder.glob(".tmp-*"):
        if names is None or left.name.partition("-")[2].partition("-")[2] in names:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def lack(place: Path) -> str | None:
    """What is wrong with a finished fold's folder, in words; None where it is as it was written."""
    try:
        done: dict[str, Any] = read_record(place / DONE)
    except (OSError, ValueError):
        return f"{DONE} is damaged"
    marks = done.get("sha256", {})  # older runs have none
    for name in (HELDOUT, DISAGREEMENT):
        file = place / name
        if not file.is_file():
            return f"{name} is missing"
        if not file.stat().st_size:
            return f"{name} has zero bytes"
        if name in marks and sha256(file) != marks[name]:
            return f"{name} holds other bytes than were written"
    if not (place / "checkpoint" / IDENTITY).is_file():
        return f"checkpoint/{IDENTITY} is missing"
    wrong = damage(place / "checkpoint", required=bool(marks))
    return None if wrong is None else f"checkpoint: {wrong}"
