"""Labelled rows of a table of texts, whole in memory, to learn from: hard labels, or each label's share.

Knows columns and labels; no tokenizer, no network, no fold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from models.tasks.skills import TextColumns, open_task_rows
from models.tasks.tables import offer_closest, require_names, table_columns
from models.tasks.text import TEXT_FIELD, RowSource, TextRow

CHUNK_ROWS = 4096


class LabelledColumns(TextColumns, Protocol):
    """A task of texts that can be learnt from."""

    target_columns: dict[str, str] | None

    @property
    def labelled_csv(self) -> str: ...


@dataclass(frozen=True)
class LabelledTexts:
    """N rows with a label each. targets: (N, L) float32, rows sum to one. left_out: rows of the file, by reason."""

    rows: list[TextRow]
    targets: np.ndarray
    left_out: dict[str, int]


def read_labelled(
    task: LabelledColumns, labels: Sequence[str], *, fields: Sequence[str] = (TEXT_FIELD,)
) -> LabelledTexts:
    """The rows of task.labelled_csv whose label, or whose shares in task.target_columns, are known.

    fields: of the prompt template that the rows will fill. Shares are divided by their sum; a row with shares and
    without label has the label of the largest, and one with a label alone is one-hot.
    Refuses a task without label column and shares, and a table of which no row, or one label alone, is left.
    """
    shares = dict(task.target_columns or {})
    _check_target_labels(shares, labels)
    source = open_task_rows(task, task.labelled_csv, fields=fields, labels=labels, chunk_rows=CHUNK_ROWS)
    if source.label_column is None and not shares:
        raise ValueError(
            f"{source.path} has no column of labels to learn from: it has {', '.join(table_columns(source.path))}. "
            "Name it in task.label_column, or the columns of each label's share in task.target_columns."
        )
    require_names(source.path, table_columns(source.path), list(shares.values()), "Mend task.target_columns.")
    reading = replace(source, keep_columns=tuple(dict.fromkeys((*source.keep_columns, *shares.values()))))
    rows, targets, unlabelled = _labelled_rows(reading, source.keep_columns, shares, labels)
    left_out = dict(reading.survey().left_out)
    if unlabelled:
        left_out["no label"] = unlabelled
    if len({tuple(target) for target in targets}) < 2:
        said = f"{len(rows)} labelled rows" + (f", all {rows[0].label}" if rows else "")
        raise ValueError(
            f"{source.path} has {said} (left out: {left_out or 'none'}): expected two labels or more to learn from."
        )
    return LabelledTexts(rows, np.array(targets, dtype=np.float32), left_out)


def _labelled_rows(
    source: RowSource, kept: Sequence[str], shares: Mapping[str, str], labels: Sequence[str]
) -> tuple[list[TextRow], list[list[float]], int]:
    rows, targets, unlabelled = [], [], 0
    for _, chunk in source.chunks():
        for row in chunk:
            target = _target(row, shares, labels)
            if target is None:
                unlabelled += 1
                continue
            label = row.label if row.label is not None else labels[target.index(max(target))]
            rows.append(replace(row, label=label, kept={name: row.kept[name] for name in kept}))
            targets.append(target)
    return rows, targets, unlabelled


def _target(row: TextRow, shares: Mapping[str, str], labels: Sequence[str]) -> list[float] | None:
    """Shares of the labels, from the row's shares or else its label; None where it has neither."""
    cells = [row.kept[shares[label]] for label in labels if shares]
    if any(cells):
        return _divided(cells, row, shares)
    if row.label is None:
        return None
    return [float(label == row.label) for label in labels]


def _divided(cells: Sequence[str | None], row: TextRow, shares: Mapping[str, str]) -> list[float]:
    try:
        values = [float(cell or "") for cell in cells]
    except ValueError as error:
        said = ", ".join(f"{column}={row.kept[column] or ''}" for column in shares.values())
        raise ValueError(f"{row.place}: {said} are not all numbers. Give every share, or none of them.") from error
    total = sum(values)
    if not (all(math.isfinite(value) and value >= 0 for value in values) and total > 0):
        said = ", ".join(f"{column}={row.kept[column]}" for column in shares.values())
        raise ValueError(f"{row.place}: {said} must be 0 or more and not all 0. Mend them, or empty all of them.")
    return [value / total for value in values]


def _check_target_labels(shares: Mapping[str, str], labels: Sequence[str]) -> None:
    """Shares for a label that is none, or for some labels only, would make a target that means something else."""
    for label in shares:
        if label not in labels:
            raise ValueError(
                f"task.target_columns names the label {label!r}, expected {', '.join(labels)}"
                f"{offer_closest(label, labels)}."
            )
    missing = [label for label in labels if shares and label not in shares]
    if missing:
        raise ValueError(f"task.target_columns has no column for the label {missing[0]!r}. Give one for each label.")
