"""Which rows are held out together: stratified folds that never split a prompt, and the file that keeps them.

Knows ids, labels and groups (rows of one prompt or text); never an answer order: swapping comes after, so both orders
of a row share its fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from models.tasks.files import write_atomically
from models.tasks.splits import split_parts, split_share
from models.tasks.tables import read_table, require_columns
from train.rows import LabelledRows

NEVER = -1  # the fold of a row that no fold holds out


def make_folds(rows: LabelledRows, *, count: int, seed: int, holdout: float | None = None) -> np.ndarray:
    """(N,) int64 fold of each row, with alike label shares in every fold and each prompt in one fold only.

    count: 2 or more folds, numbered from 0. holdout: instead, one part of about this share of the rows is fold 0 and
    the others are -1, never held out; count is then not used.
    Refuses unlabelled rows, and fewer prompts, or rows of one label, than parts.
    """
    if holdout is None:
        return split_parts(rows.label_index, rows.groups, count, seed=seed, setting=f"folds.count={count}")
    setting = f"folds.holdout={holdout}"
    return np.where(split_share(rows.label_index, rows.groups, holdout, seed=seed, setting=setting), 0, NEVER)


def write_folds(path: str | Path, rows: LabelledRows, folds: np.ndarray) -> None:
    """A CSV of id, fold and prompt group, written atomically; `read_folds` takes it back."""
    with write_atomically(path) as unfinished:
        pd.DataFrame({"id": rows.ids, "fold": folds, "group": rows.groups}).to_csv(unfinished, index=False)


def read_folds(path: str | Path, rows: LabelledRows) -> np.ndarray:
    """(N,) int64 fold of each row as a file of id and fold says, joined by id; the file may be written by others.

    Refuses ids that are missing, unknown or repeated, a fold that is no whole number from -1 up, and a prompt whose
    rows are in two folds.
    """
    table = read_table(path)
    require_columns(table, ("id", "fold"))
    by_id: dict[str, int] = {}
    for number, (row_id, fold) in enumerate(zip(table.frame["id"], table.frame["fold"], strict=True)):
        if row_id in by_id:
            raise ValueError(f"{table.place(number)}: id {row_id} is given twice. Keep one line per id.")
        by_id[row_id] = _fold_number(fold, f"{table.place(number)}, id {row_id}")
    _refuse_other_ids(path, list(rows.ids), by_id)
    folds = np.array([by_id[row_id] for row_id in rows.ids], dtype=np.int64)
    _refuse_split_prompts(path, rows, folds)
    return folds


def _fold_number(written: str | None, place: str) -> int:
    try:
        fold = int(written or "")
    except ValueError:
        fold = NEVER - 1
    if fold < NEVER:
        raise ValueError(
            f"{place}: fold is '{written}', expected a whole number from 0, or {NEVER} for never held out."
        )
    return fold


def _refuse_other_ids(path: str | Path, ids: Sequence[str], by_id: dict[str, int]) -> None:
    missing = [row_id for row_id in ids if row_id not in by_id]
    unknown = sorted(by_id.keys() - set(ids))
    if not missing and not unknown:
        return
    said = [f"lacks {len(missing)} of the rows (id {', '.join(missing[:3])})"] if missing else []
    said += [f"names {len(unknown)} ids that are no rows (id {', '.join(unknown[:3])})"] if unknown else []
    raise ValueError(f"{path} {' and '.join(said)}. Give the folds of exactly these rows, or leave folds.file out.")


def _refuse_split_prompts(path: str | Path, rows: LabelledRows, folds: np.ndarray) -> None:
    first: dict[int, int] = {}
    for number, group in enumerate(rows.groups.tolist()):
        other = first.setdefault(group, number)
        if folds[other] != folds[number]:
            raise ValueError(
                f"{path} puts one prompt in two folds: id {rows.ids[other]} in {folds[other]}, "
                f"id {rows.ids[number]} in {folds[number]}. A model would be scored on a prompt it learned from: "
                "give both the same fold."
            )
