"""models.tasks.groups: which prompts count as one, and how their groups are numbered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks.arena import ArenaRow
from models.tasks.groups import normalise_prompt, prompt_groups

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug


@pytest.mark.parametrize(
    "twin",
    [("hello  WORLD",), ("Hello\nworld ",), ("Hello", "world"), ("\uff28\uff45\uff4c\uff4c\uff4f world",)],
)
def test_prompts_that_differ_in_case_width_or_space_are_one(twin: tuple[str, ...]) -> None:
    assert normalise_prompt(twin) == normalise_prompt(("Hello world",)) == "hello world"


def test_prompts_that_differ_in_a_word_or_mark_are_two() -> None:
    assert normalise_prompt(("Hello world!",)) != normalise_prompt(("Hello world",))


@given(st.lists(st.text(), min_size=1))
def test_both_orders_of_a_row_share_their_group(prompt: list[str]) -> None:
    row = ArenaRow("1", tuple(prompt), ("a",), ("b",))
    assert prompt_groups([row, row.swapped()]).tolist() == [0, 0]


def test_groups_are_numbered_as_they_first_appear() -> None:
    rows = [ArenaRow(str(n), (prompt,), ("a",), ("b",)) for n, prompt in enumerate(["x", "y", "X ", "z", "y"])]
    assert prompt_groups(rows).tolist() == [0, 1, 0, 2, 1]
