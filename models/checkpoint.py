"""What makes a folder of weights a Tiebreak checkpoint: tiebreak.json names its task, labels and way of reading.

A checkpoint needs nothing beside its own folder. Knows no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.manifest import MANIFEST, damage, write_manifest
from models.tasks.files import read_record, told_of, write_atomically, write_folder_atomically

FORMAT = 1
IDENTITY = "tiebreak.json"

_verified: set[tuple[str, tuple[tuple[str, int, int], ...]]] = set()  # folders as they stood when they were whole


def write_identity(folder: Path, *, task: str, method: str, labels: Sequence[str], **details: Any) -> None:
    """Write tiebreak.json: format, task, method, label order, and what the method needs to read rows again."""
    identity = {"format": FORMAT, "task": task, "method": method, "labels": list(labels), **details}
    with write_atomically(folder / IDENTITY) as temporary:
        temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def save_whole(folder: Path, save: Callable[[Path], None]) -> None:
    """Write a checkpoint by save(folder): all of it in one step, with a manifest, or nothing."""
    with write_folder_atomically(folder) as unfinished:
        save(unfinished)
        write_manifest(unfinished)


def verify(folder: Path) -> None:
    """Refuse a checkpoint whose files are not as they were written, by its manifest; one without a manifest passes.

    A folder that has not changed since is read once by a process. Raises ValueError naming folder, file and next step.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stands = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    if (str(folder), stands) in _verified:
        return
    wrong = damage(folder)
    if wrong is not None:
        raise ValueError(
            f"{folder} is damaged: {wrong}. Copy the checkpoint again; in a run folder python -m train with the same "
            "arguments sets it aside and trains its fold again. If you changed the file yourself, delete "
            f"{MANIFEST} there: the folder is then taken as it is."
        )
    _verified.add((str(folder), stands))


def read_identity(folder: Path, *, task: str | None = None, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The identity of a checkpoint. task, labels: what it must have been trained for; None takes any.

    Raises FileNotFoundError where the folder holds none, ValueError for another task, label order or newer format, and
    for a folder whose files are damaged (verify).
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {IDENTITY}: it is no Tiebreak checkpoint, or was not copied whole.")
    verify(folder)
    identity = read_record(path)
    with told_of(path, "is no checkpoint's identity"):
        number, names = int(identity.get("format", 0)), [str(label) for label in identity.get("labels", ())]
    if number > FORMAT:
        raise ValueError(f"{path} has format {number}; this version reads up to {FORMAT}. Update tiebreak.")
    if task is not None and identity.get("task") != task:
        raise ValueError(f"{folder} was trained for the task {identity.get('task')!r}, not {task!r}.")
    if labels is not None and names != list(labels):
        raise ValueError(
            f"{folder} has the labels {names} in this order, not {list(labels)}: its columns would be "
            "read as the wrong answers. Use a checkpoint of this task, or train again."
        )
    return identity
