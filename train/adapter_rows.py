"""Which rows a fold's adapter has learnt, as far as the run folder that its checkpoint stands in tells.

Knows the run's files; no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from models.checkpoint import read_identity
from models.kind_settings import TASK_KINDS, TextTask
from models.tasks.groups import normalise_prompt
from models.tasks.skills import open_task_rows
from models.tasks.tables import read_table
from models.tasks.text import TextRow

CHUNK_ROWS = 4096


def run_task(folder: Path) -> Any:
    """The task settings of the run that a checkpoint stands in; None where they are not there or cannot be read."""
    try:
        told = yaml.safe_load((run_folder(folder) / "config.yaml").read_text(encoding="utf-8"))["task"]
        return TASK_KINDS[told["name"]](**{"on_bad_row": "refuse", **told})  # runs from before the setting refused
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def run_folder(checkpoint: Path) -> Path:
    """The run that a fold's checkpoint stands in."""
    return checkpoint.resolve().parent.parent


def rows_trained_on(rows: Sequence[TextRow], folder: Path) -> set[int] | None:
    """Which of the rows this fold's adapter was trained on, by their texts or else their ids; None: not to be told."""
    fold = folder.resolve().parent.name.removeprefix("fold")
    path = run_folder(folder) / "folds.csv"
    if not fold.isdigit() or not path.is_file():
        return None
    frame = read_table(path).frame
    trained = {row_id for row_id, held_out in zip(frame["id"], frame["fold"], strict=True) if held_out != fold}
    texts = _training_texts(folder, list(rows[0].fields))
    if texts is not None and trained <= texts.keys():
        learnt = {text for row_id, text in texts.items() if row_id in trained}
        return {at for at, row in enumerate(rows) if normalise_prompt(tuple(row.fields.values())) in learnt}
    numbered = set(frame["id"]) == {str(number) for number in range(len(frame))}
    if numbered or [row.id for row in rows] == [str(number) for number in range(len(rows))]:
        return None  # ids that are places in a file say nothing of another file
    return {at for at, row in enumerate(rows) if row.id in trained}


def _training_texts(folder: Path, asked: Sequence[str]) -> dict[str, str] | None:
    """{id: plain text} of the table that the run was trained on; None where it is not there any more."""
    task = run_task(folder)
    if not isinstance(task, TextTask):
        return None
    try:
        source = open_task_rows(
            task, task.labelled_csv, fields=asked, labels=read_identity(folder)["labels"], chunk_rows=CHUNK_ROWS
        )
        return {row.id: normalise_prompt(tuple(row.fields.values())) for _, chunk in source.chunks() for row in chunk}
    except (OSError, ValueError):
        return None
