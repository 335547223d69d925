"""The rows of one opened table stream: CSV text, JSON lines or Parquet in, cells as written out; opens no file.

A row is (the file's line where it starts, its cells); a cell is text as written, None where there is none, a list where
the file holds one, `Nested` where it holds another thing that is no text. Where damaged rows are marked, `Damage`
stands in place of their cells.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from models.tasks.damaged_rows import Damage, damage_in, whole_csv_rows

PARQUET_ROWS = 1024  # decoded at once
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}

Row = tuple[int | None, Sequence[Any]]


class Nested(str):
    """An object as JSON, or the look of bytes that are no text: text to who takes anything, told apart by its type."""


@dataclass(frozen=True)
class Head:
    """What a file says of itself before its rows.

    float_columns: the columns of numbers with a decimal point, known of Parquet and of a JSON file's first object.
    has_lines: False for Parquet.
    """

    columns: tuple[str, ...]
    float_columns: frozenset[str] = frozenset()
    has_lines: bool = True


def read_csv(
    path: Path, lines: Iterator[str], wanted: Sequence[str] | None, *, mark_damage: bool = False
) -> tuple[Head, Iterator[Row]]:
    """The head and the rows of CSV text.

    Python's csv module, not pandas: it knows line numbers, and reads no 'null' or 'NA' as missing.
    """
    # The default, 131,072 characters, is less than a long conversation. Global, so only ever raised: another file
    # may be open.
    csv.field_size_limit(2**31 - 1)
    first = next(lines, "")
    delimiter = _delimiter(first)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header = _next_cells(path, reader, 1) if first else None
    if not header:
        raise ValueError(f"{path} is empty: it needs a first line with the column names.")
    _refuse_repeated(path, header)
    if mark_damage:
        kept = [header.index(name) for name in wanted or header]
        rows = whole_csv_rows(lines, reader.line_num + 1, delimiter, header, kept, DELIMITERS[delimiter])
        return Head(tuple(header)), rows
    return Head(tuple(header)), _csv_rows(path, reader, header, wanted, DELIMITERS[delimiter])


def _delimiter(header: str) -> str:
    """The comma wherever the header has one outside quotes; else the semicolon or the tab, whichever is more."""
    bare = re.sub(r'"[^"]*("|$)', "", header)
    if "," in bare or not ({";", "\t"} & set(bare)):
        return ","
    return ";" if bare.count(";") >= bare.count("\t") else "\t"


def _csv_rows(
    path: Path, reader: Any, header: Sequence[str], wanted: Sequence[str] | None, separators: str
) -> Iterator[Row]:
    kept = [header.index(name) for name in wanted or header]
    number, line = 0, reader.line_num + 1
    while (cells := _next_cells(path, reader, line)) is not None:
        if cells:  # a blank line has none
            number += 1
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, row {number} (line {line}) has {len(cells)} cells, the header has {len(header)}. "
                    f"Check its {separators} and quotes."
                )
            yield line, [cells[at] for at in kept]
        line = reader.line_num + 1


def _next_cells(path: Path, reader: Any, line: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a whole CSV file: {error}, in the row that starts on line {line}. "
            "Check the quotes, or fetch it again."
        ) from error


def read_json(
    path: Path, lines: Iterator[str], wanted: Sequence[str] | None, *, mark_damage: bool = False
) -> tuple[Head, Iterator[Row]]:
    """The head and the rows of JSON lines; the head is the first object's keys."""
    if mark_damage:
        return _marked_json(path, lines, wanted)
    objects = ((line, _json_object(path, line, text)) for line, text in enumerate(lines, 1) if text.strip())
    first = next(objects, None)
    if first is None or not first[1]:
        raise ValueError(f'{path} is empty: it needs an object on each line, such as {{"text": "..."}}.')
    columns = tuple(first[1])
    floats = frozenset(name for name, value in first[1].items() if isinstance(value, float))
    return Head(columns, floats), _json_rows(path, chain([first], objects), columns, wanted)


def _marked_json(path: Path, lines: Iterator[str], wanted: Sequence[str] | None) -> tuple[Head, Iterator[Row]]:
    """As read_json, each line by itself; the first object must be whole: it is the head."""
    filled = ((line, text) for line, text in enumerate(lines, 1) if text.strip())
    number, text = next(filled, (1, ""))
    head, first = read_json(path, iter(["\n"] * (number - 1) + [text]), wanted)

    def rows() -> Iterator[Row]:
        yield from first
        for line, text in filled:
            reason = damage_in([text])
            if reason is None:
                try:
                    values = iter([(line, _json_object(path, line, text))])
                    yield from _json_rows(path, values, head.columns, wanted)
                    continue
                except ValueError as error:
                    reason = str(error)
            yield line, Damage(reason)  # type: ignore[misc]

    return head, rows()


def _json_rows(
    path: Path, objects: Iterator[tuple[int, dict[str, Any]]], columns: Sequence[str], wanted: Sequence[str] | None
) -> Iterator[Row]:
    known = set(columns)
    for line, values in objects:
        if not values.keys() <= known:
            unknown = next(key for key in values if key not in known)
            raise ValueError(
                f"{path}, line {line} has the key '{unknown}', the first object has: {', '.join(columns)}. "
                "Mend the key, or give it to the first object too (null where there is none)."
            )
        yield line, [_as_written(values.get(name)) for name in wanted or columns]


def _json_object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text.rstrip(), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at character {error.pos + 1}"
        raise ValueError(f"{path}, line {line} is no JSON ({found}). Write one whole object on each line.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {line} cannot be read as JSON: {error}. Mend the line.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {line} is a {type(value).__name__}, expected one object on each line, {{...}}.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(n for n in names if names.count(n) > 1)}' stands twice in one object")
    return values


def read_parquet(path: Path, file: Any, wanted: Sequence[str] | None, first: int) -> tuple[Head, Iterator[Row]]:
    """The head and the rows of a pyarrow ParquetFile from row `first` on, decoded a few at a time."""
    import pyarrow as pa

    schema = file.schema_arrow
    if not schema.names:
        raise ValueError(f"{path} is empty: it has no columns.")
    _refuse_repeated(path, schema.names)
    floats = frozenset(field.name for field in schema if pa.types.is_floating(field.type))
    return Head(tuple(schema.names), floats, has_lines=False), _parquet_rows(file, wanted or schema.names, first)


def _parquet_rows(file: Any, names: Sequence[str], first: int) -> Iterator[Row]:
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = list(accumulate(sizes))
    groups = [group for group, end in enumerate(ends) if end > first]
    before = max(first - (ends[groups[0]] - sizes[groups[0]]), 0) if groups else 0  # of the first group's rows
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=list(names), row_groups=groups):
        batch, before = batch.slice(before), max(before - len(batch), 0)
        # to_pylist, not to_pandas: a missing value beside integers must not turn 64-bit ids into rounded floats
        columns = [batch.column(name).to_pylist() for name in names]
        for cells in zip(*columns, strict=True):
            yield None, [_as_written(cell) for cell in cells]


def _as_written(value: Any) -> Any:
    if value is None or isinstance(value, str | list):
        return value
    if isinstance(value, float) and value != value:  # NaN is how pandas writes a missing cell
        return None
    if isinstance(value, dict):
        return Nested(json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, bytes):  # older writers of Parquet leave text unmarked
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return Nested(value)
    return str(value)


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has column '{repeated[0]}' more than once. Keep one of them.")
