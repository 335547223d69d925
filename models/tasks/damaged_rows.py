"""Rows that the file itself has broken, passed over one by one where a reader wants the others; opens no file.

A damaged row of a CSV ends where the next line reads as a whole row: a quote that is never closed costs its own row,
not all rows up to the next quote. Bytes that are no UTF-8 reach this module as `NOT_UTF8`, which no text holds, since
a NUL is damage by itself.
"""

from __future__ import annotations

import codecs
import csv
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NOT_UTF8 = "\0\ufdd0"
DECODING = "tiebreak-damaged"  # the name of the codecs' error handler
# A record of several lines that is longer than this has lost its closing quote; conversations of millions of characters
# are one line each.
RECORD_CHARACTERS = 4 * 2**20
# A cell of more lines than this, each of which is a whole row by itself, is an open quote that another one closed.
SWALLOWED_LINES = 20


@dataclass(frozen=True)
class Damage:
    """Stands for the cells of a damaged row. cells: what could be read of them, in the header's order."""

    reason: str
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row left out and why. row counts the file's data rows from 1; line is the file's line, None for Parquet."""

    file: str
    row: int
    line: int | None
    id: str
    reason: str


def damage_in(texts: Sequence[str]) -> str | None:
    """Why texts cannot be taken as they are: they hold a NUL, or bytes that were no UTF-8."""
    for text in texts:
        if "\0" in text:
            return "it holds bytes that are not UTF-8" if NOT_UTF8 in text else "it holds a NUL byte"
    return None


class _Unclosed(Exception):
    """A record has grown past all that a row can be."""


class _Lines:
    """Lines of text, those of the current record remembered so that they can be given back."""

    def __init__(self, lines: Iterator[str], number: int) -> None:
        self._lines, self._back = lines, deque[str]()
        self.record: list[str] = []
        self._characters = 0
        self.number = number  # of the file's line on which the next record starts, from 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.record.append(line)
        self._characters += len(line)
        if len(self.record) > 1 and self._characters > RECORD_CHARACTERS:
            raise _Unclosed
        return line

    def begin(self) -> None:
        """The lines read until now belong to a record that is done."""
        self.number += len(self.record)
        self.record, self._characters = [], 0

    def give_back(self) -> None:
        """All lines of the record but its first are to be read again."""
        self._back.extendleft(reversed(self.record[1:]))
        del self.record[1:]


def whole_csv_rows(
    lines: Iterator[str], first_line: int, delimiter: str, header: Sequence[str], kept: Sequence[int], separators: str
) -> Iterator[tuple[int, Any]]:
    """(line of the file, the cells at `kept`) of each row; Damage in place of the cells of one that is broken."""
    source = _Lines(lines, first_line)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    lost = False  # between a damaged row of several lines and the next whole one
    while True:
        source.begin()
        cells, reason = _next_row(reader, source, delimiter, header, separators)
        if not source.record:
            return
        if not cells and reason is None:
            continue  # a blank line
        if lost and reason is None and "".join(source.record).count('"') % 2:
            reason = "it is the end of the damaged row"  # with the quote that closes it, however many cells it has
        if reason is None:
            reason = damage_in(cells)
            yield source.number, [cells[at] for at in kept] if reason is None else Damage(reason, tuple(cells))
            lost = False
            continue
        if not lost:
            yield source.number, Damage(reason, tuple(_read_alone(source.record[0], delimiter)))
        lost = lost or len(source.record) > 1
        source.give_back()


def _next_row(
    reader: Any, source: _Lines, delimiter: str, header: Sequence[str], separators: str
) -> tuple[list[str], str | None]:
    """(cells, None) of a whole row, ([], why) of a damaged one."""
    try:
        cells: list[str] = next(reader, [])
    except csv.Error as error:
        return [], f"it is no whole row of a CSV ({error}). Check its quotes"
    except _Unclosed:
        return [], f"a quote is not closed within {RECORD_CHARACTERS} characters"
    if cells and len(cells) != len(header):
        return [], f"it has {len(cells)} cells, the header has {len(header)}. Check its {separators} and quotes"
    inner = source.record[1:-1]
    if len(header) > 1 and len(inner) > SWALLOWED_LINES:
        whole = all(len(_read_alone(line, delimiter)) == len(header) for line in inner[:SWALLOWED_LINES])
        if whole:
            return [], f"a quote is not closed: its cell holds {len(inner)} lines that are rows by themselves"
    return cells, None


def _read_alone(line: str, delimiter: str) -> list[str]:
    """The cells of one line; [] where it is no row by itself."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Halves of surrogate pairs pass, as they do elsewhere; other bytes that are no UTF-8 become NOT_UTF8."""
    assert isinstance(error, UnicodeDecodeError)
    try:
        found, end = codecs.lookup_error("surrogatepass")(error)
        return str(found), end
    except UnicodeDecodeError:
        return NOT_UTF8, error.end


codecs.register_error(DECODING, _mark)
