"""What a model wrote as its answer, read strictly: a label, a probability per label, or one number from 0 to 1.

An answer stands in `<answer>` tags, else as the text's one JSON object, else it is the whole text. Whatever else was
written is unparsable, with a reason in words: nothing is searched for a label, so "not positive" is never positive.
Knows texts and labels; no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.method_settings import WRITTEN_METHODS

CLOSING_TAG = "</answer>"
ANSWER_KEYS = ("answer", "label")
SCORE_KEYS = ("answer", "score", "probability")
MARKS = " \t\r\n\"'`*_.,;:!"  # what a short answer may be dressed in: **Positive.**
SHOWN = 60  # characters of what was written, in a reason

_TAG = re.compile(r"<\s*(/?)\s*answer\s*>", re.IGNORECASE)
_FENCE = re.compile(r"\A```\w*\s*\n(.*?)\n?```\Z", re.DOTALL)
_HEADER = re.compile(r"\A\W*(?:answer|label|score|probability)\s*:", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(\s*%)?", re.ASCII)


class Unparsable(ValueError):
    """No single answer stands there; the reason in words."""


@dataclass(frozen=True)
class Spellings:
    """Every way in which each of L labels may be written: its name, and its answers. labels: in column order."""

    labels: tuple[str, ...]
    spellings: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[str]]) -> Spellings:
        """From question.labels."""
        return cls(tuple(labels), tuple((label, *answers) for label, answers in labels.items()))

    def column(self, written: str) -> int:
        """The column of the one label that `written` spells: to the letter, else case and marks aside."""
        exact = [at for at, known in enumerate(self.spellings) if written.strip() in (one.strip() for one in known)]
        plain = _plain(written)
        near = [at for at, known in enumerate(self.spellings) if plain and plain in map(_plain, known)]
        found = exact or near
        if len(found) != 1:
            raise Unparsable(f"{'several labels' if found else 'no label'}: {_shown(written)}")
        return found[0]


def read_written(method: str, text: str, spellings: Spellings, *, cut: bool = False) -> np.ndarray:
    """(L,) float64 that sums to one, as `method` (one of WRITTEN_METHODS) reads it. Raises Unparsable.

    cut: the model was stopped before it had ended. Then a label or a number without its closing tag may go on ("Home"
    of "Home Decor", "0.9" of "0.95"): only whole JSON is an answer.
    """
    assert method in WRITTEN_METHODS, method
    if cut and not _may_be_whole(text):
        raise Unparsable("cut off before its end")
    if method == "generate_hard":
        return np.eye(len(spellings.labels))[read_label(text, spellings)]
    if method == "verbalized":
        return read_distribution(text, spellings)
    score = read_score(text)
    return np.array([score, 1 - score])


def read_label(text: str, spellings: Spellings) -> int:
    """The column of the label that the text answers with. Raises Unparsable."""
    content = answer_part(text)
    found = _json_in(content)
    if isinstance(found, dict):
        content = _only_text(found, ANSWER_KEYS)
    elif found is not None:
        content = found if isinstance(found, str) else _spelt(found)
    return spellings.column(content)


def read_distribution(text: str, spellings: Spellings) -> np.ndarray:
    """(L,) the shares of the numbers that a JSON object gives each label, each once. Raises Unparsable."""
    content = answer_part(text)
    found = _json_in(content)
    if not isinstance(found, dict):
        raise Unparsable(f"no JSON object: {_shown(content)}")
    weights = np.full(len(spellings.labels), np.nan)
    for key, value in found.items():
        column = spellings.column(key)
        if not np.isnan(weights[column]):
            raise Unparsable(f"the label {spellings.labels[column]} twice")
        weights[column] = _weight(value)
    missing = [label for label, weight in zip(spellings.labels, weights, strict=True) if np.isnan(weight)]
    if missing:
        raise Unparsable(f"no number for {', '.join(missing)}")
    if weights.max() <= 0:
        raise Unparsable("every number is 0")
    shares: np.ndarray = weights / weights.max()  # first: a sum of large numbers may not be finite
    return shares / shares.sum()


def read_score(text: str) -> float:
    """The one number from 0 to 1, or from 0 % to 100 %. Raises Unparsable."""
    content = answer_part(text)
    found = _json_in(content)
    if isinstance(found, dict):
        content = _only_text(found, SCORE_KEYS)
    number = _NUMBER.fullmatch(_HEADER.sub("", content).strip(" \t\r\n\"'`*_"))
    if number is None:
        raise Unparsable(f"no single number: {_shown(content)}")
    score = float(number[1]) / (100 if number[2] else 1)
    if not score <= 1:
        raise Unparsable(f"{number[0]} is not within 0 and 1")
    return score


def answer_part(text: str) -> str:
    """What stands in the text's `<answer>` tags, or the whole text where it has none.

    The closing tag may lack: generation stops before it. Refuses two answers that differ, and an opening tag in one.
    """
    tags = list(_TAG.finditer(text))
    if not tags:
        return text
    parts = []
    for number, tag in enumerate(tags):
        following = tags[number + 1] if number + 1 < len(tags) else None
        if tag[1]:  # a closing one
            if number == 0 or tags[number - 1][1]:
                raise Unparsable("a closing tag without its opening one")
            continue
        if following is not None and not following[1]:
            raise Unparsable("an answer inside an answer")
        parts.append(text[tag.end() : following.start() if following else len(text)])
    if len({_plain(part) for part in parts}) != 1:
        raise Unparsable("several answers")
    return parts[0]


def _may_be_whole(text: str) -> bool:
    """Whether a text that was cut off has its closing tag, or JSON, whose end is seen."""
    tags = list(_TAG.finditer(text))
    return bool(tags and tags[-1][1]) or "{" in text[tags[-1].end() if tags else 0 :]


def _json_in(text: str) -> Any:
    """The JSON value that the text is, or its one object; None where it has none. Raises Unparsable for several."""
    text = text.strip()
    fenced = _FENCE.match(text)
    text = fenced[1].strip() if fenced else text
    if text.startswith('"'):
        value, end = _decoded(text, 0)
        return value if isinstance(value, str) and end == len(text) else None
    found, at = [], text.find("{")
    while at >= 0:
        value, end = _decoded(text, at)
        found.append(value)
        at = text.find("{", end)
    if len(found) > 1 and any(one != found[0] for one in found):
        raise Unparsable("several JSON objects")
    return found[0] if found else None


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """(the JSON value that begins there, where it ends). Raises Unparsable for a broken one or a key twice."""
    try:
        return _DECODER.raw_decode(text, at)
    except Unparsable:
        raise
    except (ValueError, RecursionError):
        raise Unparsable(f"JSON that is not whole: {_shown(text[at:])}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unparsable("a key twice in one JSON object")
    return found


def _no_constant(name: str) -> Any:
    raise Unparsable(f"{name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _only_text(found: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The value of the one key of `keys` that an object has, as text; other keys may say why."""
    there = [value for key, value in found.items() if key.strip().casefold() in keys]
    if len(there) != 1:
        raise Unparsable(f"{'several of' if there else 'none of'} the keys {', '.join(keys)}")
    return there[0] if isinstance(there[0], str) else _spelt(there[0])


def _spelt(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unparsable(f"{_shown(str(value))} is no answer")
    return str(value)


def _weight(value: Any) -> float:
    if isinstance(value, str) and (number := _NUMBER.fullmatch(value.strip())) is not None and not number[2]:
        value = float(number[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unparsable(f"{_shown(str(value))} is no number")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    if not 0 <= weight < math.inf:
        raise Unparsable(f"{_shown(str(value))} is no share")
    return weight


def _plain(text: str) -> str:
    """Case, surrounding marks, an `Answer:` before it, and the width of its blanks aside."""
    return " ".join(_HEADER.sub("", text).strip(MARKS).casefold().split())


def _shown(text: str) -> str:
    line = " ".join(text.split()) or "(nothing)"
    return repr(line if len(line) <= SHOWN else line[:SHOWN] + "...")
