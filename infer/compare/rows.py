"""The rows of a comparison: drawn with a seed, parted into those to learn from and those to be judged by, as two files.

Knows a table of texts; never a way of answering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from infer.files import write_frame
from infer.identity import input_identity
from infer.logs import log
from models.settings import Settings
from models.tasks.groups import equal_groups, normalise_prompt
from models.tasks.skills import open_task_rows
from models.tasks.splits import split_share
from models.tasks.tables import table_columns
from models.tasks.text import TEXT_FIELD, RowSource, TextRow

FIT_FILE, TEST_FILE = "fit.csv", "test.csv"
ID_COLUMNS = ("id", "row", "row_number")  # the first that is free, where rows are numbered


@dataclass(frozen=True, eq=False)
class CompareRows:
    """Where the two files are, and what the test rows hold.

    ids, truth: (N,) of the test rows, in the file's order. groups: (N,) the same number for rows of equal text.
    texts: id -> text. identity: of both files' bytes.
    """

    fit: Path
    test: Path
    id_column: str
    label_column: str
    fit_rows: int
    labels: tuple[str, ...]
    ids: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    texts: dict[str, str]
    identity: dict[str, str]

    def overrides(self) -> list[str]:
        """What makes a command line read these rows."""
        return [
            f"task.input_csv={self.test}", f"task.train_csv={self.fit}", f"task.id_column={self.id_column}",
            f"task.label_column={self.label_column}",
        ]  # fmt: skip


def draw_rows(settings: Settings, folder: Path) -> CompareRows:
    """Writes fit.csv and test.csv, every column of the input, in its order. The same settings give the same bytes.

    Rows of equal text (case, width and white space aside) are all in one file. Raises ValueError for a table without
    labels, or with too few rows of one.
    """
    if settings.text.train_csv is not None:
        raise ValueError(
            f"task.train_csv={settings.text.train_csv}: a comparison draws what is learnt from out of task.input_csv, "
            "so that no text is in both parts. Join the tables into one, and set compare.test_share."
        )
    source = _whole_source(settings)
    assert source.label_column is not None
    rows, unlabelled = _labelled(source)
    labels, seed = list(source.labels), settings.seed
    index = np.array([labels.index(str(row.label)) for row in rows], dtype=np.int64)
    groups = equal_groups([normalise_prompt(tuple(row.fields.values())) for row in rows])
    drawn = _draw(index, settings.compare.per_class, len(labels), seed)
    share = settings.compare.test_share
    setting = f"compare.test_share={share}"
    tested = split_share(index[drawn], groups[drawn], share, seed=seed, setting=setting)
    id_column = source.id_column or next(name for name in ID_COLUMNS if name not in source.keep_columns)
    paths = {name: folder / name for name in (FIT_FILE, TEST_FILE)}
    for name, places in ((FIT_FILE, drawn[~tested]), (TEST_FILE, drawn[tested])):
        write_frame(_frame([rows[place] for place in places], source, id_column), paths[name])
    test = drawn[tested]
    counts = ", ".join(f"{label} {(index[drawn] == at).sum()}" for at, label in enumerate(labels))
    left = f"; {unlabelled} without a label are left out" if unlabelled else ""
    log.info(f"{len(drawn)} of {len(rows)} rows of {source.path} ({counts}){left}")
    log.info(f"{len(drawn) - len(test)} to learn from ({paths[FIT_FILE]}), {len(test)} to be judged by")
    return CompareRows(
        paths[FIT_FILE], paths[TEST_FILE], id_column, source.label_column, len(drawn) - len(test), tuple(labels),
        np.array([rows[place].id for place in test], dtype=object), np.array(labels, dtype=object)[index[test]],
        equal_groups([str(group) for group in groups[test]]),
        {rows[place].id: "\n\n".join(rows[place].fields.values()) for place in test},
        {name: input_identity(path)["input_sha256"] for name, path in paths.items()},
    )  # fmt: skip


def _whole_source(settings: Settings) -> RowSource:
    """The rows with every column of their file kept. Refuses a file without a column of labels."""
    task, path = settings.text, settings.text.input_csv
    source = open_task_rows(
        replace(task, keep_columns=[]), path, fields=[TEXT_FIELD], labels=list(settings.question.labels),
        chunk_rows=settings.engine.chunk_rows,
    )  # fmt: skip
    if source.label_column is None:
        raise ValueError(
            f"{path} has no column of labels to judge by: it has {', '.join(table_columns(path))}. Name it: "
            "task.label_column=..."
        )
    own = {source.field_columns[TEXT_FIELD], source.id_column, source.label_column}
    return replace(source, keep_columns=tuple(name for name in table_columns(path) if name not in own))


def _labelled(source: RowSource) -> tuple[list[TextRow], int]:
    every = [row for _, chunk in source.chunks() for row in chunk]
    rows = [row for row in every if row.label is not None]
    if not rows:
        raise ValueError(
            f"{source.path} has no labelled row, column '{source.label_column}': there is nothing to judge."
        )
    return rows, len(every) - len(rows)


def _draw(index: np.ndarray, per_class: int | None, labels: int, seed: int) -> np.ndarray:
    """Places of the rows to take, rising: of each label per_class, or all it has."""
    if per_class is None:
        return np.arange(len(index))
    random = np.random.default_rng(seed)
    chosen = []
    for label in range(labels):
        places = np.flatnonzero(index == label)
        chosen.append(random.permutation(places)[:per_class])
    return np.sort(np.concatenate(chosen))


def _frame(rows: Sequence[TextRow], source: RowSource, id_column: str) -> pd.DataFrame:
    columns: dict[str, list[str | None]] = {id_column: [row.id for row in rows]}
    columns[source.field_columns[TEXT_FIELD]] = [row.fields[TEXT_FIELD] for row in rows]
    columns[str(source.label_column)] = [row.label for row in rows]
    columns |= {name: [row.kept[name] for row in rows] for name in source.keep_columns}
    return pd.DataFrame(columns, dtype=object)
