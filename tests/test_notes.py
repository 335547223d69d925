"""The figures of a run's notes are made of a stream: the notes of millions of rows are never held at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from infer.readers.answer_notes import note, report_answers
from infer.readers.reasoning_notes import report_reasoning

ROWS = 100


class Noted(dict[str, Any]):
    """A note whose end can be seen."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def stream(values: dict[str, Any], most: list[int]) -> Iterator[dict[str, Any]]:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    for _ in range(ROWS):
        one = Noted(values)
        alive.add(one)
        most.append(len(alive))
        yield one


REASONED = {"reasoning": "so", "tokens": 3, "cut": False, "last_word": "hard", "read": "hard", "answered": None}


@pytest.mark.parametrize(
    ("report", "values", "kind"),
    [(report_answers, note("hard", "answered"), "answers"), (report_reasoning, REASONED, "reasoning")],
)
def test_figures_of_notes_hold_few_of_them(report: Any, values: dict[str, Any], kind: str) -> None:
    most: list[int] = []
    assert report(stream(values, most))[kind]["rows"] == ROWS
    assert max(most) <= 4
