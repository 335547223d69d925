"""The skills task: names of skills, each once, streamed from a table; and the rows of any task of texts.

Knows columns and labels; no tokenizer, no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from models.tasks.damaged_rows import BadRow
from models.tasks.tables import read_head
from models.tasks.text import RowSource, Survey, TextRow, open_rows

MOST_NAMED = 3  # conflicting repeats that are named; the others are counted


class TextColumns(Protocol):
    """Which columns of a table are what: the settings of a task of texts."""

    id_column: str | None
    text_column: str
    label_column: str | None
    keep_columns: list[str]

    def with_columns(self, columns: list[str]) -> Self: ...


@runtime_checkable
class SkillColumns(TextColumns, Protocol):
    """A task of skills: it also says which rows are such."""

    only_column: str | None
    only_value: str | None


@dataclass
class LeftOut:
    """Rows that are passed over, counted by their reason.

    conflicts: repeats whose label is not that of the skill that stands, by name and place.
    """

    counts: dict[str, int] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def reasons(self) -> dict[str, int]:
        """Reason -> rows, the conflicting repeats last, the first few of them by name."""
        if not self.conflicts:
            return dict(self.counts)
        named = "; ".join(self.conflicts[:MOST_NAMED])
        more = f"; and {len(self.conflicts) - MOST_NAMED} more" if len(self.conflicts) > MOST_NAMED else ""
        return {**self.counts, f"repeats an earlier skill with another label ({named}{more})": len(self.conflicts)}


@dataclass(frozen=True)
class SkillSource(RowSource):
    """A table of skills: the rows of `RowSource` without blank ones, repeats, and rows of another kind.

    text_field: the field that holds the skill. A skill that differs from an earlier one by letter case and blanks alone
    is a repeat; the first stands, with its spelling and its label.
    only_column, only_value: rows with another value in that column are left out; None: all are kept.
    Rows keep the numbers they have in the file; chunks have chunk_rows of the rows that are left.
    """

    text_field: str = ""
    only_column: str | None = None
    only_value: str | None = None

    def chunks(self, bad_rows: list[BadRow] | None = None) -> Iterator[tuple[int, list[TextRow]]]:
        """(number of the chunk from 0, its rows), in the file's order; holds a chunk and every skill's name."""
        number, chunk = 0, []
        for row in self._kept(LeftOut(), bad_rows):
            chunk.append(row)
            if len(chunk) == self.chunk_rows:
                yield number, chunk
                number, chunk = number + 1, []
        if chunk:
            yield number, chunk

    def survey(self) -> Survey:
        """As `RowSource.survey`, with what was left out. Refuses a table of which nothing is left."""
        left_out, rows, unlabelled, mended = LeftOut(), 0, 0, 0
        bad_rows: list[BadRow] = []
        for row in self._kept(left_out, bad_rows):
            rows += 1
            unlabelled += row.label is None
            mended += row.mended
        if not rows:
            said = ", ".join(f"{count} {reason}" for reason, count in left_out.reasons().items())
            raise ValueError(f"{self.path} has no skill left to read: {said}. Mend task.only_value, or the table.")
        self.refuse_too_many(rows + sum(left_out.reasons().values()), bad_rows)
        return Survey(rows, 0, unlabelled, mended, left_out.reasons(), sorted(bad_rows, key=lambda bad: bad.row))

    def _kept(self, left_out: LeftOut, bad_rows: list[BadRow] | None = None) -> Iterator[TextRow]:
        """The rows that stay, one by one; what does not is added to left_out."""
        filters = () if self.only_column is None or self.only_column in self.keep_columns else (self.only_column,)
        inherited = {one.name: getattr(self, one.name) for one in fields(RowSource)}
        every_row = RowSource(**{**inherited, "keep_columns": (*self.keep_columns, *filters)})
        standing: dict[str, str | None] = {}
        for _, chunk in every_row.chunks(bad_rows):
            for row in chunk:
                if self._stays(row, standing, left_out):
                    yield replace(row, kept={name: row.kept[name] for name in self.keep_columns}) if filters else row

    def _stays(self, row: TextRow, standing: dict[str, str | None], left_out: LeftOut) -> bool:
        name = " ".join(row.fields[self.text_field].split())
        if self.only_column is not None and row.kept[self.only_column] != self.only_value:
            left_out.add(f"{self.only_column} is not {self.only_value}")
            return False
        if not name:
            left_out.add("no text")
            return False
        key = name.casefold()
        if key not in standing:
            standing[key] = row.label
            return True
        if row.label in (None, standing[key]):
            left_out.add("repeats an earlier skill")
        else:
            left_out.conflicts.append(f"{row.place}: {name} is {row.label}, before {standing[key] or 'without label'}")
        return False


def open_task_rows(
    task: TextColumns,
    path: str | Path,
    *,
    fields: Sequence[str],
    labels: Sequence[str],
    written_columns: Sequence[str] = (),
    chunk_rows: int,
    on_bad_row: str = "refuse",
) -> RowSource:
    """The rows of a table as a task of texts reads them (`auto` columns settled), checked as `open_rows` does.

    A task with an only_column, set or null, is one of skills: each is read once.
    """
    columns = [str(name) for name in read_head(Path(path)).columns]
    task = task.with_columns(columns)
    source = open_rows(
        path,
        fields=fields,
        text_column=task.text_column,
        id_column=task.id_column,
        label_column=task.label_column,
        keep_columns=task.keep_columns,
        labels=labels,
        written_columns=written_columns,
        chunk_rows=chunk_rows,
        on_bad_row=on_bad_row,
    )
    if not isinstance(task, SkillColumns):
        return source
    only_column = task.only_column if task.only_column in columns else None
    return SkillSource(
        source.path, source.field_columns, source.id_column, source.label_column, source.keep_columns, source.labels,
        source.chunk_rows, on_bad_row, _field_of(source.field_columns, task.text_column), only_column, task.only_value,
    )  # fmt: skip


def _field_of(field_columns: Mapping[str, str], text_column: str) -> str:
    """The template's field that is filled by the text column. Refuses a template that does not show it."""
    for name, column in field_columns.items():
        if column == text_column:
            return name
    raise ValueError(
        f"question.prompt has the fields {', '.join(field_columns)}, none of them the skill (column {text_column}): "
        "two rows of one skill could differ. Write {text} where the skill stands."
    )
