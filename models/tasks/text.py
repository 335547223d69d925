"""The text task: rows of any table with a text column, streamed; their fields fill a prompt template.

Knows columns and labels; no tokenizer, no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.tasks.bad_rows import damaged_rows
from models.tasks.cells import join_surrogates
from models.tasks.damaged_rows import BadRow
from models.tasks.seen import SeenTexts
from models.tasks.table_rows import Head, Nested
from models.tasks.tables import Table, offer_closest, read_head, require_names, stream_table

TEXT_FIELD = "text"  # the template's field that stands for the text column, whatever the column is called
ID_COLUMN, LABEL_COLUMN = "id", "label"  # of the output
MOST_DAMAGED = 0.01  # of a file's rows: where more are, the file as a whole is in another form than it should be


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row: the texts that fill the template's fields, and what is carried into the output.

    fields: field of the template -> text, "" where the cell is. label: None where unknown. kept: column -> cell as
    text (a list as its JSON), None where there is none. place: where the row stands, for an error. mended: a text had
    halves of surrogate pairs, which no tokenizer and no output file takes: two that meet were joined, one alone is
    U+FFFD.
    """

    id: str
    fields: dict[str, str]
    label: str | None
    kept: dict[str, str | None]
    place: str
    mended: bool = False


@dataclass(frozen=True)
class Survey:
    """What reading every row once has found. empty: rows with no text in any field. unlabelled: label unknown.

    left_out: rows of the file that are none of the source's, by reason. bad_rows: those that could not be read.
    """

    rows: int
    empty: int
    unlabelled: int
    mended: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad_rows: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class RowSource:
    """A table file's rows, chunk_rows at a time, read anew at every pass; made by `open_rows`, which checks the names.

    field_columns: field of the template -> column. id_column: None numbers the rows from 0.
    on_bad_row: refuse; skip_damaged passes over rows that the file itself has broken; skip also over those whose cells
    are wrong.
    """

    path: Path
    field_columns: Mapping[str, str]
    id_column: str | None
    label_column: str | None
    keep_columns: tuple[str, ...]
    labels: tuple[str, ...]
    chunk_rows: int
    on_bad_row: str = "refuse"

    def chunks(self, bad_rows: list[BadRow] | None = None) -> Iterator[tuple[int, list[TextRow]]]:
        """(number of the chunk from 0, its rows), in the file's order; holds one chunk, and 8 bytes a row of ids.

        Refuses, with its place, a row whose text is missing or is none, whose label is not one of the labels, or
        whose id is missing or stood before; with on_bad_row=skip such rows are added to bad_rows instead.
        """
        number = 0
        for _, rows in self.chunks_from(0, bad_rows):
            if rows:
                yield number, rows
                number += 1

    def chunks_from(
        self, first_chunk: int, bad_rows: list[BadRow] | None = None
    ) -> Iterator[tuple[int, list[TextRow]]]:
        """(chunk's place in the file, its rows) from chunk `first_chunk` on; an id is compared with those after alone.

        Where rows are left out, a chunk has fewer, or none.
        """
        bad = [] if bad_rows is None else bad_rows
        named = (*self.field_columns.values(), self.id_column, self.label_column, *self.keep_columns)
        columns = list(dict.fromkeys(name for name in named if name is not None))
        seen = SeenTexts()
        first, mark = first_chunk * self.chunk_rows, self.on_bad_row != "refuse"
        tables = stream_table(self.path, self.chunk_rows, columns, first, mark_damage=mark)
        for number, table in enumerate(tables, first_chunk):
            bad += damaged_rows(table, self.id_column)
            rows = self._rows(table, bad)
            if self.id_column is not None:
                repeated = {at for at in seen.add([row.id for row in rows]) if self._is_repeated(rows[at], bad)}
                rows = [row for at, row in enumerate(rows) if at not in repeated]
            yield number, rows

    def survey(self) -> Survey:
        """Reads every row once and keeps none: all that `chunks` refuses is found before a model is loaded."""
        rows = empty = unlabelled = mended = 0
        bad_rows: list[BadRow] = []
        for _, chunk in self.chunks(bad_rows):
            rows += len(chunk)
            empty += sum(not any(row.fields.values()) for row in chunk)
            unlabelled += sum(row.label is None for row in chunk)
            mended += sum(row.mended for row in chunk)
        self.refuse_too_many(rows, bad_rows)
        return Survey(rows, empty, unlabelled, mended, bad_rows=sorted(bad_rows, key=lambda bad: bad.row))

    def refuse_too_many(self, rows: int, bad_rows: Sequence[BadRow]) -> None:
        """Refuses a table of which nothing is left, or of which so much is damaged that the file as a whole is."""
        if not bad_rows:
            return
        every, first = rows + len(bad_rows), bad_rows[0]
        said = f"{first.file}, row {first.row}{'' if first.line is None else f' (line {first.line})'}: {first.reason}"
        if not rows:
            raise ValueError(f"{self.path} has no rows to read: all {every} are bad. {said}.")
        most = 0.5 if self.on_bad_row == "skip" else MOST_DAMAGED
        if len(bad_rows) > max(1, most * every) or 2 * len(bad_rows) >= every:
            skips = self.on_bad_row == "skip_damaged" and 2 * len(bad_rows) < every  # else skip would refuse them too
            raise ValueError(
                f"{len(bad_rows)} of {every} rows are bad. The first: {said}. Mend the file"
                + (", or leave such rows out with task.on_bad_row=skip." if skips else ".")
            )

    def _rows(self, table: Table, bad: list[BadRow]) -> list[TextRow]:
        cells = {str(name): table.frame[name].tolist() for name in table.frame.columns}
        rows = []
        for at in range(len(table.frame)):
            try:
                rows.append(self._row(table, cells, at))
            except ValueError as error:
                if self.on_bad_row != "skip":
                    raise
                row_id = "" if self.id_column is None else str(cells[self.id_column][at] or "")
                reason = str(error).removeprefix(f"{table.place(at)}: ")
                bad.append(BadRow(str(self.path), int(table.numbers[at]) + 1, table.line(at), row_id, reason))
        return rows

    def _row(self, table: Table, cells: Mapping[str, Sequence[Any]], at: int) -> TextRow:
        place = table.place(at)
        fields = {name: _text(cells[column][at], place, column) for name, column in self.field_columns.items()}
        row_id = str(table.numbers[at])
        if self.id_column is not None:
            row_id = read_id(cells[self.id_column][at], place, self.id_column)
        label = None
        if self.label_column is not None:
            label = self._label(cells[self.label_column][at], place)
        kept = {column: _kept(cells[column][at]) for column in self.keep_columns}
        row = TextRow(row_id, fields, label, kept, place)
        texts = (*fields.values(), *kept.values())
        return row if all(text is None or text.isascii() for text in texts) else _mended(row)

    def _label(self, cell: Any, place: str) -> str | None:
        if cell is None or cell == "":
            return None
        if cell not in self.labels:
            raise ValueError(
                f"{place}: {self.label_column} is {cell!r}, expected one of {', '.join(self.labels)}"
                f"{offer_closest(str(cell), self.labels)}. Mend the cell, empty it, or set task.label_column=null."
            )
        return str(cell)

    def _is_repeated(self, row: TextRow, bad: list[BadRow]) -> bool:
        """Refuses the row if an earlier one has its id: a second look, since equal digests may be chance.

        With on_bad_row=skip it is left out at once, True: a file may repeat every id.
        """
        assert self.id_column is not None
        if self.on_bad_row == "skip":
            number, _, line = row.place.rpartition(", row ")[2].rstrip(")").partition(" (line ")
            reason = f"{self.id_column} {row.id!r} stands already in an earlier row"
            bad.append(BadRow(str(self.path), int(number), int(line) if line else None, row.id, reason))
            return True
        mark = self.on_bad_row != "refuse"
        for table in stream_table(self.path, self.chunk_rows, [self.id_column], mark_damage=mark):
            for at, cell in enumerate(table.frame[self.id_column]):
                if table.place(at) == row.place:
                    return False
                if read_id(cell, "", self.id_column) == row.id:
                    raise ValueError(
                        f"{row.place}: {self.id_column} {row.id!r} stands already in {table.place(at)}. Give each row "
                        "its own, or let rows be numbered: task.id_column=null."
                    )
        return False


def open_rows(
    path: str | Path,
    *,
    fields: Sequence[str],
    text_column: str,
    id_column: str | None = None,
    label_column: str | None = None,
    keep_columns: Sequence[str] = (),
    labels: Sequence[str],
    written_columns: Sequence[str] = (),
    chunk_rows: int,
    on_bad_row: str = "refuse",
) -> RowSource:
    """The rows of a table file, once its head and its first row show that they can be read.

    fields: of the prompt template; `text` stands for text_column, any other for the column of its name.
    written_columns: what the output will hold beside id, label and the kept columns.
    Refuses a template without fields, a missing column (naming the closest), an id column of floats, a kept column
    that stands in the output anyway, an input that has one of written_columns already, a file without rows.
    """
    path = Path(path)
    if not fields:
        raise ValueError(
            "question.prompt is a template without {text}: every row would get the same answer. "
            "Put {text} where the row's text belongs."
        )
    field_columns = {name: text_column if name == TEXT_FIELD else name for name in fields}
    head = read_head(path)
    _require(path, head, field_columns, id_column, label_column, keep_columns)
    taken = {ID_COLUMN, *written_columns} | ({LABEL_COLUMN} if label_column is not None else set())
    _refuse_clash(path, head, keep_columns, taken, written_columns)
    source = RowSource(
        path, field_columns, id_column, label_column, tuple(keep_columns), tuple(labels), chunk_rows=chunk_rows,
        on_bad_row=on_bad_row,
    )  # fmt: skip
    if next(stream_table(path, 1, mark_damage=on_bad_row != "refuse"), None) is None:
        raise ValueError(f"{path} has no rows to read: nothing below the header. Give a file with at least one row.")
    if id_column in head.float_columns:
        raise ValueError(
            f"{path}: column '{id_column}' holds numbers with a decimal point, which do not keep long ids whole. "
            "Write the ids as text or whole numbers, or let rows be numbered: task.id_column=null."
        )
    return source


def _require(
    path: Path,
    head: Head,
    field_columns: Mapping[str, str],
    id_column: str | None,
    label_column: str | None,
    keep_columns: Sequence[str],
) -> None:
    for name, column in field_columns.items():
        setting = "task.text_column" if name == TEXT_FIELD else "question.prompt"
        require_names(path, head.columns, [column], f"Mend {setting}.")
    for setting, named in (("task.id_column", id_column), ("task.label_column", label_column)):
        if named is not None:
            require_names(path, head.columns, [named], f"Mend {setting}, or set it to null.")
    require_names(path, head.columns, keep_columns, "Mend task.keep_columns.")


def _refuse_clash(
    path: Path, head: Head, keep_columns: Sequence[str], taken: set[str], written_columns: Sequence[str]
) -> None:
    there = [name for name in written_columns if name in head.columns]
    if there:
        raise ValueError(
            f"{path} already has a column {', '.join(there)}, which the output would write. Rename it, or drop it."
        )
    for name in keep_columns:
        if name in taken:
            raise ValueError(f"task.keep_columns names '{name}', which the output has anyway. Leave it out there.")
        if list(keep_columns).count(name) > 1:
            raise ValueError(f"task.keep_columns names '{name}' twice. Name it once.")


def _text(cell: Any, place: str, column: str) -> str:
    if cell is None:
        raise ValueError(f"{place}: {column} is missing. Fill the cell (an empty text may be), or drop the row.")
    if not isinstance(cell, str) or isinstance(cell, Nested):
        raise ValueError(f"{place}: {column} is {str(cell)[:40]!r}, expected text. Name a column of texts.")
    return cell


def read_id(cell: Any, place: str, column: str) -> str:
    """A row's id as the output has it. Refuses a missing one and what is no text."""
    if cell is None or cell == "":
        raise ValueError(f"{place}: {column} is empty. Give the row one, or let rows be numbered: task.id_column=null.")
    return join_surrogates(_text(cell, place, column))


def _kept(cell: Any) -> str | None:
    return cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)


def _mended(row: TextRow) -> TextRow:
    fields = {name: join_surrogates(text) for name, text in row.fields.items()}
    kept = {name: None if text is None else join_surrogates(text) for name, text in row.kept.items()}
    as_given = fields == row.fields and kept == row.kept
    return row if as_given else replace(row, fields=fields, kept=kept, mended=True)
