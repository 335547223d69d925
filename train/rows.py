"""The labelled rows that a run trains on, whatever their task: ids, soft targets, and what is held out together.

Knows rows and settings; never folds, tokens or networks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.readers.by_method import asked_fields
from models.settings import Settings
from models.tasks.arena import LABELS, SWAP, ArenaRow, read_rows
from models.tasks.bad_rows import write_bad_rows
from models.tasks.damaged_rows import BadRow
from models.tasks.groups import equal_groups, normalise_prompt, prompt_groups

log = logging.getLogger("tiebreak")


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """N labelled rows.

    rows: as their task reads them, ArenaRow or TextRow. ids: (N,) text. labels: L names in column order.
    label_index: (N,) int64, the column of each row's label. targets: (N, L) float32, what is learnt: the label, or the
    shares of several (votes); rows sum to one. groups: (N,) int64, the same for rows that must share a fold.
    swap: where a row may also be read with its answers exchanged, the column that each label's target then moves to;
    None where rows have one order. said: what is to be told of how they were read. bad_rows: those that were dropped.
    """

    rows: Sequence[Any]
    ids: np.ndarray
    labels: tuple[str, ...]
    label_index: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    swap: tuple[int, ...] | None = None
    said: tuple[str, ...] = ()
    bad_rows: Sequence[BadRow] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def truth(self) -> np.ndarray:
        """(N,) name of each row's label."""
        return np.array(self.labels, dtype=object)[self.label_index]


def arena_rows(rows: Sequence[ArenaRow]) -> LabelledRows:
    """Arena rows, held out by prompt. Raises ValueError for rows without a label."""
    unlabelled = [row.id for row in rows if row.label_index is None]
    if unlabelled:
        raise ValueError(
            f"{len(unlabelled)} rows have no label (id {', '.join(unlabelled[:3])}), but folds are stratified by it. "
            f"Label them as one of {', '.join(LABELS)}."
        )
    ids = np.array([row.id for row in rows], dtype=object)
    index = np.array([row.label_index for row in rows], dtype=np.int64)
    targets = np.eye(len(LABELS), dtype=np.float32)[index]
    for number, row in enumerate(rows):
        if row.target is not None:  # shares of votes
            targets[number] = row.target
    return LabelledRows(rows, ids, LABELS, index, targets, prompt_groups(rows), SWAP)


def read_training_rows(settings: Settings) -> LabelledRows:
    """The labelled rows of a run; nothing is written or told yet. Raises ValueError."""
    return _arena(settings) if settings.task.name == "arena" else _texts(settings)


def tell_rows(rows: LabelledRows, folder: Path, main: bool) -> None:
    """What was repaired, left out or dropped, in the log; arena rows that were dropped in folder/bad_rows.csv."""
    for line in rows.said:
        log.info(line)
    if rows.bad_rows and main:
        write_bad_rows(folder / "bad_rows.csv", rows.bad_rows)
        log.info(f"{len(rows.bad_rows)} bad rows dropped, listed in {folder / 'bad_rows.csv'}")


def _arena(settings: Settings) -> LabelledRows:
    task = settings.arena
    table = read_rows(task.train_csv, labelled=True, on_bad_row=task.on_bad_row, votes_path=task.votes_csv)
    repaired = [table.repairs.report()] if table.repairs.counts else []
    said = (f"{len(table.rows)} rows from {task.train_csv}", *repaired)
    return replace(arena_rows(table.rows), said=said, bad_rows=table.bad_rows)


def _texts(settings: Settings) -> LabelledRows:
    from models.tasks.labelled import read_labelled

    task, labels = settings.text, tuple(settings.question.labels)
    found = read_labelled(task, labels, fields=asked_fields(settings))  # the very texts that python -m infer reads
    # A row may have shares and no label of its own: its likeliest stands for it.
    index = np.array(
        [labels.index(row.label) if row.label else int(target.argmax())
         for row, target in zip(found.rows, found.targets, strict=True)],
        dtype=np.int64,
    )  # fmt: skip
    counts = np.bincount(index, minlength=len(labels))
    shown = ", ".join(f"{label} {count}" for label, count in zip(labels, counts, strict=True))
    left_out = [f"{count} rows left out: {reason}" for reason, count in found.left_out.items()]
    said = (f"{len(found.rows)} rows from {task.labelled_csv}: {shown}", *left_out)
    ids = np.array([row.id for row in found.rows], dtype=object)
    texts = [normalise_prompt(tuple(row.fields.values())) for row in found.rows]
    return LabelledRows(found.rows, ids, labels, index, found.targets, equal_groups(texts), said=said)
