"""One cell of a conversation file in, its turns as clean text out, every repair named; knows no file and no row."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

NULL_TURN = "null turn -> empty"
MISSING_CELL = "missing cell -> one empty turn"
PLAIN_CELL = "text that is no list -> one turn"
PYTHON_LIST = "Python list -> read as one"
NOT_TEXT = "turn that is not text -> its JSON"
LONE_SURROGATE = "half of a surrogate pair -> U+FFFD"
UNEVEN_TURNS = "fewer turns than beside it -> padded with empty ones"

EXAMPLES = 3  # ids kept per kind: enough to look one up, short enough for one line

_SURROGATE = re.compile("[\ud800-\udfff]")
# What only a list begins with: refused when the rest cannot be read, since the turns would be guessed.
_BROKEN_LIST = re.compile(r"\s*\[\s*(?:[\"']|\]|null\b|None\b|$)")
# strict=False: a line break written raw inside a quoted turn has only one reading
_DECODER = json.JSONDecoder(strict=False)


@dataclass
class Repairs:
    """What was mended while reading: how often each kind, and the first ids it happened to."""

    counts: dict[str, int] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, row_id: str) -> None:
        """Counts one repair of a kind in a row."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        known = self.ids.setdefault(kind, [])
        if len(known) < EXAMPLES and row_id not in known:
            known.append(row_id)

    def report(self) -> str:
        """One line a kind with its first ids, or `nothing repaired`."""
        if not self.counts:
            return "nothing repaired"
        return "\n".join(f"{count} x {kind} (id {', '.join(self.ids[kind])})" for kind, count in self.counts.items())


def read_turns(cell: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The turns of a cell (at least one) and the kind of each repair that it took.

    A cell is a JSON list of texts (`["Hi","Bye"]`), a Python list as text, a native list, or plain text.
    Refuses text that begins like a list and cannot be read as one: the turns would be guessed.
    """
    if cell is None or (isinstance(cell, str) and cell.strip() in ("", "null")):
        return ("",), (MISSING_CELL,)
    kinds: list[str] = []
    values = _read_list(cell, kinds) if isinstance(cell, str) else list(cell)
    if not values:
        return ("",), (MISSING_CELL,)
    return tuple(_as_text(value, kinds) for value in values), tuple(kinds)


def write_turns(turns: Iterable[str]) -> str:
    r"""The turns as the competition's files write them: an ASCII JSON list, no blanks between, `/` as `\/`."""
    return json.dumps(list(turns), ensure_ascii=True, separators=(",", ":")).replace("/", "\\/")


def _read_list(cell: str, kinds: list[str]) -> list[Any]:
    if not cell.lstrip().startswith("["):
        kinds.append(PLAIN_CELL)
        return [cell]
    try:
        return list(_DECODER.decode(cell.strip()))
    except (json.JSONDecodeError, RecursionError) as error:
        values = _read_python_list(cell.strip())
        if values is None and not _BROKEN_LIST.match(cell):
            kinds.append(PLAIN_CELL)  # "[Verse 1] ..." begins with a bracket and is no list
            return [cell]
        if values is None:
            start = cell if len(cell) <= 60 else cell[:57] + "..."
            raise ValueError(
                f"begins like a list but is neither a JSON nor a Python one ({error}): {start!r}. "
                'Write it as a JSON list of turns, ["..."].'
            ) from error
    kinds.append(PYTHON_LIST)
    return values


def _read_python_list(text: str) -> list[Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd backslash in an answer is text, no concern of the user's
            values = ast.literal_eval(text)
        # ['a' 'b'], a printed numpy array, would be read as the one turn 'ab'
        return values if isinstance(values, list) and not _has_texts_side_by_side(text) else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None


def _has_texts_side_by_side(text: str) -> bool:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = [token.type for token in tokens if token.type not in (tokenize.NL, tokenize.NEWLINE)]
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))


def _as_text(value: Any, kinds: list[str]) -> str:
    if value is None:
        kinds.append(NULL_TURN)
        return ""
    if not isinstance(value, str):
        kinds.append(NOT_TEXT)
        value = json.dumps(value, ensure_ascii=False, default=str)
    return value if value.isascii() else _mend_surrogates(value, kinds)


def _mend_surrogates(text: str, kinds: list[str]) -> str:
    if not _SURROGATE.search(text):
        return text
    mended = join_surrogates(text)
    kinds.extend([LONE_SURROGATE] * (mended.count("\ufffd") - text.count("\ufffd")))
    return mended


def join_surrogates(text: str) -> str:
    """The text with halves of surrogate pairs that meet joined to their character; one alone becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
