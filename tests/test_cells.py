"""models.tasks.cells: what a cell's turns are, which repairs it took, which cells are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks import cells
from models.tasks.cells import Repairs, read_turns

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(TEXT, min_size=1), st.booleans())
def test_a_json_list_of_texts_gives_them_back_unrepaired(turns: list[str], ascii_only: bool) -> None:
    assert read_turns(json.dumps(turns, ensure_ascii=ascii_only)) == (tuple(turns), ())


@given(st.lists(TEXT, min_size=1))
def test_a_python_list_of_texts_gives_the_same_turns(turns: list[str]) -> None:
    read, repairs = read_turns(repr(turns))
    assert read == tuple(turns)
    assert repairs in ((), (cells.PYTHON_LIST,))  # without quotes or escapes of its own it is JSON as well


@given(st.lists(TEXT, min_size=1))
def test_a_native_list_needs_no_repair(turns: list[str]) -> None:
    assert read_turns(turns) == (tuple(turns), ())


def test_a_null_turn_is_empty_in_every_notation() -> None:
    assert read_turns('["a",null,""]') == (("a", "", ""), (cells.NULL_TURN,))
    assert read_turns("['a', None]") == (("a", ""), (cells.PYTHON_LIST, cells.NULL_TURN))
    assert read_turns(["a", None]) == (("a", ""), (cells.NULL_TURN,))


@pytest.mark.parametrize("cell", ["", "  ", None, "null", "[]", []])
def test_a_cell_without_turns_is_one_empty_turn(cell: object) -> None:
    assert read_turns(cell) == (("",), (cells.MISSING_CELL,))


@pytest.mark.parametrize("cell", ["Hello, [you]", '"quoted"', "null hypothesis", '{"a": 1}', "  indented"])
def test_plain_text_is_one_turn_as_written(cell: str) -> None:
    assert read_turns(cell) == ((cell,), (cells.PLAIN_CELL,))


def test_turns_that_are_not_text_become_their_json() -> None:
    assert read_turns('[true, 3, {"é": [1]}]') == (("true", "3", '{"é": [1]}'), (cells.NOT_TEXT,) * 3)


def test_a_surrogate_pair_is_its_character_and_a_half_alone_is_replaced() -> None:
    assert read_turns('["\\ud83d\\ude00"]') == (("\U0001f600",), ())
    assert read_turns('["a\\ud83db","\\ude00"]') == (("a\ufffdb", "\ufffd"), (cells.LONE_SURROGATE,) * 2)
    assert read_turns('["\ufffd\\ud83d\\ud83d\\ude00"]') == (("\ufffd\ufffd\U0001f600",), (cells.LONE_SURROGATE,))
    # Python's own notation leaves pairs apart: they are joined, and none counts as a half
    assert read_turns("['\\ud83d\\ude00']") == (("\U0001f600",), (cells.PYTHON_LIST,))


@given(st.text(st.characters()))
def test_every_turn_can_be_written_as_utf8(text: str) -> None:
    (turn,), repairs = read_turns(json.dumps([text]))
    assert turn.encode("utf-8").decode("utf-8") == turn
    assert bool(repairs) == (turn != text)


def test_a_raw_line_break_inside_a_turn_is_kept() -> None:
    assert read_turns('["one\ntwo"]') == (("one\ntwo",), ())


@pytest.mark.parametrize(
    "cell",
    [
        '["cut off',
        '["a" "b"]',
        "['a' 'b']",  # a printed numpy array: Python would glue the turns together
        "['a'\n 'b']",
        '["a"] and more',
    ],
)
def test_what_begins_like_a_list_and_is_none_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="begins like a list but is neither a JSON nor a Python one") as refusal:
        read_turns(cell)
    assert len(str(refusal.value)) < 400
    assert 'Write it as a JSON list of turns, ["..."].' in str(refusal.value)


@pytest.mark.parametrize("cell", ["[Intro] Hello", "[1], [2]", "[" * 100_000, "[__import__('os')]"])
def test_text_that_merely_begins_with_a_bracket_is_one_turn(cell: str) -> None:
    assert read_turns(cell) == ((cell,), (cells.PLAIN_CELL,))


def test_the_report_counts_each_kind_and_names_the_first_ids_once() -> None:
    repairs = Repairs()
    assert repairs.report() == "nothing repaired"
    for row_id in ["7", "7", "8", "9", "10"]:
        repairs.add(cells.NULL_TURN, row_id)
    repairs.add(cells.PLAIN_CELL, "8")
    assert repairs.report() == ("5 x null turn -> empty (id 7, 8, 9)\n1 x text that is no list -> one turn (id 8)")
