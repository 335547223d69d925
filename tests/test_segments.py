"""models.tasks.segments: the layout by hand, the budget's laws on drawn rows, every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks.segments import (
    LEAST_TEXT,
    Frame,
    encode_answer,
    encode_pair,
    smallest_budget,
)
from models.tasks.tokens import TokenFields

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug

# Frame ids are below 20, texts' ids above 100, so every id of a sequence tells where it came from.
START, SEP, MARK, PROMPT, A, B, ANSWER = 1, 2, 3, 10, 11, 12, 13
FRAME = Frame((START,), (SEP,), (), (MARK,), (PROMPT,), (A,), (B,), (ANSWER,))
# Answer markers of unlike lengths, as some vocabularies give them, a long mark, and an end token of its own.
ODD_FRAME = Frame((START,), (SEP, SEP), (9,), (MARK,) * 5, (PROMPT,) * 3, (A,), (B,) * 4, (ANSWER,))


def turn(length: int, start: int = 100) -> np.ndarray:
    return np.arange(start, start + length, dtype=np.int32)


def row(prompt: list[int], answer_a: list[int], answer_b: list[int]) -> TokenFields:
    """Turns of these lengths; turn k of the prompt counts from 10,000 k + 1000, of a from + 3000, of b from + 6000."""
    fields = (
        tuple(turn(length, 10_000 * k + base) for k, length in enumerate(lengths))
        for lengths, base in ((prompt, 1000), (answer_a, 3000), (answer_b, 6000))
    )
    return TokenFields(*fields)


@st.composite
def drawn_rows(draw: st.DrawFn) -> TokenFields:
    count = draw(st.integers(1, 4))
    length = st.integers(0, 12) | st.integers(0, 300)
    lengths = st.lists(length, min_size=count, max_size=count)
    return row(draw(lengths), draw(lengths), draw(lengths))


frames = st.sampled_from([FRAME, ODD_FRAME])
budgets = st.one_of(st.integers(0, 60), st.integers(0, 1500)).map(lambda extra: smallest_budget(ODD_FRAME) + extra)


def text_ids(ids: np.ndarray) -> list[int]:
    return [i for i in ids.tolist() if i >= 100]


def size(turns: tuple[np.ndarray, ...]) -> int:
    return sum(map(len, turns))


def full_length(fields: TokenFields, frame: Frame) -> int:
    around = len(frame.prompt_marker + frame.answer_a_marker + frame.answer_b_marker + 3 * frame.separator)
    texts = size(fields.prompt) + size(fields.answer_a) + size(fields.answer_b)
    return len(frame.start + frame.end) + texts + around * len(fields.prompt)


# --- by hand


def test_a_row_that_fits_is_laid_out_turn_by_turn() -> None:
    encoded = encode_pair(row([1, 2], [2, 0], [1, 1]), False, FRAME, 64)
    assert encoded.input_ids.tolist() == [
        START, PROMPT, 1000, SEP, A, 3000, 3001, SEP, B, 6000, SEP, PROMPT, 11000, 11001, SEP, A, SEP, B, 16000, SEP,
    ]  # fmt: skip
    assert encoded.token_type_ids.tolist() == [0] * 4 + [1] * 7 + [0] * 4 + [1] * 5
    assert encoded.cut == (0, 0, 0)


def test_one_answer_is_laid_out_with_its_prompt() -> None:
    encoded = encode_answer(row([1, 1], [1, 1], [1, 1]), "b", FRAME, 64)
    expected = [START, PROMPT, 1000, SEP, ANSWER, 6000, SEP, PROMPT, 11000, SEP, ANSWER, 16000, SEP]
    assert encoded.input_ids.tolist() == expected
    assert encoded.cut == (0, 0)


def test_a_long_row_gives_the_prompt_a_quarter_and_the_answers_half_of_the_rest() -> None:
    encoded = encode_pair(row([100], [100], [100]), False, FRAME, 65)
    # 64 tokens of room: 16 for the prompt, 24 for each answer; 2 of each are marker and separator, 1 the cut mark
    prompt = [*range(1000, 1007), MARK, *range(1094, 1100)]
    first = [*range(3000, 3011), MARK, *range(3090, 3100)]
    second = [*range(6000, 6011), MARK, *range(6090, 6100)]
    assert encoded.input_ids.tolist() == [START, PROMPT, *prompt, SEP, A, *first, SEP, B, *second, SEP]
    assert encoded.cut == (87, 79, 79)


def test_what_a_short_answer_does_not_need_the_other_takes_then_the_prompt() -> None:
    one_short = encode_pair(row([100], [5], [100]), False, FRAME, 65)
    assert one_short.cut == (87, 0, 100 - (64 - 16 - 7 - 3))
    both_short = encode_pair(row([100], [5], [6]), False, FRAME, 65)
    assert both_short.cut == (100 - (64 - 7 - 8 - 3), 0, 0)


def test_earlier_turns_are_cut_first_and_left_out_with_their_markers() -> None:
    fields = row([1, 1, 1], [50, 50, 20], [0, 0, 0])
    encoded = encode_answer(fields, "a", FRAME, 51)
    # 50 of room less the prompt's 9: 22 for the last turn, 19 for the one before, nothing for the first
    middle = [*range(13000, 13008), MARK, *range(13042, 13050)]
    assert encoded.input_ids.tolist() == [
        START, PROMPT, 1000, SEP, PROMPT, 11000, SEP, ANSWER, *middle, SEP, PROMPT, 21000, SEP, ANSWER,
        *range(23000, 23020), SEP,
    ]  # fmt: skip
    assert encoded.cut == (0, 84)


def test_a_turn_of_which_too_little_would_show_is_left_out() -> None:
    # last turn 22 with its frame; 41 - 22 - 2 leaves room for the mark and LEAST_TEXT in one case, not in the other
    def shown(budget: int) -> set[int]:
        fields = row([1, 1], [50, 20], [0, 0])
        return {
            i // 10_000 for i in text_ids(encode_answer(fields, "a", FRAME, budget).input_ids) if i % 10_000 >= 3000
        }

    exact = 1 + 3 + 3 + 22 + 2 + 1 + LEAST_TEXT
    assert shown(exact) == {0, 1}
    assert shown(exact - 1) == {1}


# --- laws


@given(drawn_rows(), frames, budgets, st.floats(0, 1))
def test_the_budget_is_never_exceeded(fields: TokenFields, frame: Frame, budget: int, share: float) -> None:
    for encoded in (
        encode_pair(fields, False, frame, budget, share),
        encode_answer(fields, "a", frame, budget, share),
    ):
        assert len(encoded.input_ids) == len(encoded.token_type_ids) <= budget
        assert encoded.input_ids.dtype == np.int32


@given(drawn_rows(), frames)
def test_nothing_is_cut_when_all_fits_exactly(fields: TokenFields, frame: Frame) -> None:
    budget = max(full_length(fields, frame), smallest_budget(frame))
    encoded = encode_pair(fields, False, frame, budget)
    assert encoded.cut == (0, 0, 0)
    assert len(encoded.input_ids) == full_length(fields, frame)


@given(drawn_rows(), frames, budgets)
def test_cut_counts_every_token_of_text_that_is_not_there(fields: TokenFields, frame: Frame, budget: int) -> None:
    encoded = encode_pair(fields, False, frame, budget)
    kept = set(text_ids(encoded.input_ids))
    for turns, cut in zip((fields.prompt, fields.answer_a, fields.answer_b), encoded.cut, strict=True):
        assert sum(int(i) not in kept for t in turns for i in t) == cut


@given(drawn_rows(), frames, budgets)
def test_the_last_turn_of_every_field_stays_in_sight(fields: TokenFields, frame: Frame, budget: int) -> None:
    kept = set(text_ids(encode_pair(fields, False, frame, budget).input_ids))
    for turns in (fields.prompt, fields.answer_a, fields.answer_b):
        last = turns[-1].tolist()
        assert sum(i in kept for i in last) >= min(len(last), LEAST_TEXT)
        assert not last or (last[0] in kept and last[-1] in kept)  # its head and its tail


@given(drawn_rows(), frames, budgets)
def test_a_swap_mirrors_the_cut_and_keeps_the_very_same_text(fields: TokenFields, frame: Frame, budget: int) -> None:
    upright, swapped = (encode_pair(fields, order, frame, budget) for order in (False, True))
    prompt, first, second = upright.cut
    assert swapped.cut == (prompt, second, first)
    assert sorted(text_ids(upright.input_ids)) == sorted(text_ids(swapped.input_ids))


@given(drawn_rows(), frames, budgets)
def test_encoding_swapped_is_encoding_the_swapped_row(fields: TokenFields, frame: Frame, budget: int) -> None:
    by_order = encode_pair(fields, True, frame, budget)
    by_row = encode_pair(fields.swapped(), False, frame, budget)
    np.testing.assert_array_equal(by_order.input_ids, by_row.input_ids)
    np.testing.assert_array_equal(by_order.token_type_ids, by_row.token_type_ids)
    assert by_order.cut == by_row.cut


@given(drawn_rows(), budgets)
def test_later_turns_outrank_earlier_ones(fields: TokenFields, budget: int) -> None:
    kept = set(text_ids(encode_pair(fields, False, FRAME, budget).input_ids))
    for turns in (fields.prompt, fields.answer_a, fields.answer_b):
        whole = [all(int(i) in kept for i in t) for t in turns if len(t)]
        seen = [any(int(i) in kept for i in t) for t in turns if len(t)]
        assert seen == sorted(seen)  # nothing, then something
        assert whole == sorted(whole)
        assert sum(seen) - sum(whole) <= 1  # one turn at most is cut


@given(drawn_rows(), budgets)
def test_both_answers_get_their_part_however_long_the_prompt_and_the_other(fields: TokenFields, budget: int) -> None:
    encoded = encode_pair(fields, False, FRAME, budget)
    kept = set(text_ids(encoded.input_ids))
    even_part = (budget - 1 - (budget - 1) // 4) // 2
    for turns in (fields.answer_a, fields.answer_b):
        shown = sum(int(i) in kept for t in turns for i in t)
        # less what the markers, the mark and a turn too short to show take
        spare = 2 * len(turns) + 1 + 2 + LEAST_TEXT
        assert shown >= min(size(turns), even_part - spare)


@given(drawn_rows(), frames, budgets)
def test_types_are_one_in_answers_and_zero_elsewhere(fields: TokenFields, frame: Frame, budget: int) -> None:
    encoded = encode_pair(fields, False, frame, budget)
    place = 0
    for token, kind in zip(encoded.input_ids.tolist(), encoded.token_type_ids.tolist(), strict=True):
        place = {PROMPT: 0, A: 1, B: 1}.get(token, place)
        assert kind == place


@given(drawn_rows(), budgets)
def test_text_keeps_its_order(fields: TokenFields, budget: int) -> None:
    order = {PROMPT: 0, A: 1, B: 2}
    keys, segment = [], 0
    for token in encode_pair(fields, False, FRAME, budget).input_ids.tolist():
        segment = order.get(token, segment)
        if token >= 100:
            keys.append((token // 10_000, segment, token))
    assert keys == sorted(keys)


@pytest.mark.parametrize("frame", [FRAME, ODD_FRAME])
@pytest.mark.parametrize("answers", [1, 2])
def test_a_budget_that_cannot_show_every_field_is_refused_with_the_smallest_that_can(
    frame: Frame, answers: int
) -> None:
    fields, least = row([50], [50], [50]), smallest_budget(frame, answers)

    def encode(budget: int) -> Any:
        if answers == 2:
            return encode_pair(fields, False, frame, budget)
        return encode_answer(fields, "a", frame, budget)

    assert len(encode(least).input_ids) == least or frame is ODD_FRAME  # there the shorter marker leaves a rest
    said = f"A budget of {least - 1} tokens cannot show the prompt and every answer. Give {least} or more."
    with pytest.raises(ValueError, match=said):
        encode(least - 1)


def test_an_answer_that_is_neither_a_nor_b_is_refused() -> None:
    with pytest.raises(ValueError, match="which is 'c', expected 'a' or 'b'"):
        encode_answer(row([1], [1], [1]), "c", FRAME, 64)  # type: ignore[arg-type]
