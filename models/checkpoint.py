"""What makes a folder of weights a Tiebreak checkpoint: tiebreak.json names its task, labels and way of reading.

A checkpoint needs nothing beside its own folder. Knows no network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.tasks.arena import LABELS

FORMAT = 1
IDENTITY = "tiebreak.json"


def write_identity(folder: Path, *, task: str, method: str, **details: Any) -> None:
    """Write tiebreak.json: format, task, method, label order, and what the method needs to read rows again."""
    identity = {"format": FORMAT, "task": task, "method": method, "labels": list(LABELS), **details}
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def read_identity(folder: Path, *, task: str = "arena") -> dict[str, Any]:
    """The identity of a checkpoint.

    Raises FileNotFoundError where the folder holds none, ValueError for another task, label order or newer format.
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {IDENTITY}: it is no Tiebreak checkpoint, or was not copied whole.")
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Copy the checkpoint again, or train the fold again.") from None
    if identity.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has format {identity['format']}; this version reads up to {FORMAT}. Update tiebreak.")
    if identity.get("task") != task:
        raise ValueError(f"{folder} was trained for the task {identity.get('task')!r}, not {task!r}.")
    if tuple(identity.get("labels", ())) != LABELS:
        raise ValueError(
            f"{folder} has the labels {identity.get('labels')} in this order, not {list(LABELS)}: its columns would be "
            "read as the wrong answers. Use a checkpoint of this task, or train again."
        )
    return dict(identity)
