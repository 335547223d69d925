"""Structural features: what the counts count, what exchanging answers does to them, which texts they survive."""

import math
import time

import numpy as np
import pytest

from models.tasks.arena import ArenaRow
from models.tasks.arena_features import (
    answer_features,
    feature_names,
    features,
    pair_features,
    prompt_features,
    swap_features,
)
from models.tasks.text_features import repeated_share, text_features, words

ODD_TEXTS = [
    "",
    " \n\t ",
    "x",
    "\ufffd",
    "ответ",
    "答案是四。",
    "👍🏽",
    "```",
    "a" * 30_000,
    "word " * 6_000,
    "**" * 5_000,
    "\x00\r\n",
]


def row_of(prompt: str, a: str, b: str) -> ArenaRow:
    return ArenaRow(id="1", prompt=(prompt,), response_a=(a,), response_b=(b,))


def odd_rows() -> list[ArenaRow]:
    return [row_of(p, a, b) for p in ODD_TEXTS[:6] for a in ODD_TEXTS for b in ODD_TEXTS[:7]]


def test_swapping_the_features_equals_the_features_of_swapped_rows() -> None:
    rows = [
        *odd_rows(),
        row_of("Name two fruits", "1. Apple\n2. Pear", "I'm sorry, as an AI language model I cannot eat."),
    ]
    assert np.array_equal(swap_features(features(rows)), features([row.swapped() for row in rows]))


def test_every_feature_of_odd_texts_is_finite() -> None:
    assert np.isfinite(features(odd_rows())).all()


def test_a_row_with_equal_answers_has_no_difference() -> None:
    matrix = features([row_of("Why is the sky blue?", "It scatters blue light.", "It scatters blue light.")])
    columns = dict(zip(feature_names(), matrix[0], strict=True))
    assert all(value == 0 for name, value in columns.items() if name.startswith("diff_"))
    assert columns["pair_identical"] == columns["pair_words_shared"] == columns["pair_length_ratio"] == 1


def test_names_are_distinct_and_one_per_column() -> None:
    names = feature_names()
    assert len(set(names)) == len(names) == features([row_of("p", "a", "b")]).shape[1]


def test_no_rows_give_an_empty_matrix_with_all_columns() -> None:
    assert features([]).shape == (0, len(feature_names()))


def test_turns_are_joined_by_a_blank_line() -> None:
    two_turns = ArenaRow(id="1", prompt=("hi", "more"), response_a=("one", "two"), response_b=("x", "y"))
    assert np.array_equal(features([two_turns]), features([row_of("hi\n\nmore", "one\n\ntwo", "x\n\ny")]))


def test_swap_refuses_a_matrix_with_other_columns() -> None:
    with pytest.raises(ValueError, match="3 columns"):
        swap_features(np.zeros((2, 3), dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("bullets", "- one\n* two\n  \u2022 three\n-four", 3),
        ("numbered", "1. one\n2) two\n(3) three\n1999 was a year", 3),
        ("headings", "# A\n### B\n#tag", 2),
        ("code_fences", "```python\nx\n```", 2),
        ("bold", "**a** and **b c** and **\n**", 2),
        ("table_rows", "| a | b |\n|---|---|\nnot | a row", 2),
        ("links", "see https://a.org and www.b.org", 2),
        ("numbers", "3 apples, 1,000 pears, 2.5 kg", 3),
        ("question_marks", "Why? 为什么\uff1f", 2),
        ("refusal", "I cannot do that. I\u2019m unable to help.", 2),
        ("ai_self", "As an AI language model I pass.", 2),
        ("apology", "Sorry. I apologize!", 2),
        ("run_on", "Paris\n\nInput: Rome\nOutput: Italy", 2),
    ],
)
def test_counts_of_marks_and_phrases_match_a_count_by_hand(name: str, text: str, count: int) -> None:
    assert text_features(text)[name] == pytest.approx(math.log1p(count))


def test_sizes_match_a_count_by_hand() -> None:
    sizes = text_features("One two. Three!\n\nFour?")
    expected = {"chars": 22, "words": 4, "sentences": 3, "lines": 2, "paragraphs": 1, "longest_line": 15}
    assert {name: sizes[name] for name in expected} == pytest.approx({k: math.log1p(n) for k, n in expected.items()})


def test_a_han_sign_counts_as_a_word() -> None:
    assert words("Say 你好 isn\u2019t") == ["say", "你", "好", "isn't"]


def test_repeated_share_is_the_share_that_came_before() -> None:
    assert repeated_share("abab") == 0.5
    assert repeated_share("abcd") == repeated_share("") == 0


def test_script_shares_count_characters() -> None:
    shares = text_features("да ok 你é")  # nine characters: two Cyrillic, one Han, one accented
    assert (shares["cyrillic"], shares["cjk"], shares["accented"]) == (2 / 8, 1 / 8, 1 / 8)
    assert shares["non_ascii"] == 4 / 8


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("It ends.", "ends_sentence"),
        ("Shall it?", "ends_question"),
        ("It does not", "ends_cut"),
        ("lower", "starts_lower"),
    ],
)
def test_ending_flags_tell_how_a_text_ends_and_starts(text: str, flag: str) -> None:
    assert text_features(text)[flag] == 1
    assert text_features("")[flag] == 0


def test_overlap_with_the_prompt_ignores_function_words() -> None:
    overlap = answer_features("capital of France", "the capital is Paris")
    assert overlap["prompt_recall"] == 1 / 2  # capital, not france
    assert overlap["prompt_precision"] == 1 / 2  # capital, not paris
    assert overlap["prompt_pairs_recall"] == 0


def test_unrelated_answers_lie_further_apart_than_edited_ones() -> None:
    text = "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen inside the leaves of plants."
    edited = pair_features("", text, text.replace("sugar", "glucose"))
    unrelated = pair_features(
        "", text, "Quarterly revenue rose nine percent after Brazilian customs reopened every harbour."
    )
    for name in ("words_shared", "word_pairs_shared", "starts_alike"):
        assert edited[name] > unrelated[name]
    assert edited["compressed_distance"] < unrelated["compressed_distance"]


def test_prompt_kinds_are_recognised() -> None:
    kinds = prompt_features("Write a short poem about my cat")
    assert (kinds["asks_writing"], kinds["asks_brevity"], kinds["first_person"], kinds["asks_code"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("piece", ["*", "[a", "<a", "|", "$", "\n", "# ", "1.", "`", " ", "a:", "- ", "(", "ab "])
def test_a_long_monotonous_answer_costs_no_quadratic_time(piece: str) -> None:
    def seconds(repeats: int) -> float:
        start = time.process_time()
        text_features(piece * repeats)
        return time.process_time() - start

    # Ten times the text may take ten times as long; a quadratic search takes a hundred. 50 ms: noise of a busy machine,
    # which the processor's own time has little of, and the least of three tries less.
    assert min(seconds(50_000) for _attempt in range(3)) < 40 * min(seconds(5_000) for _attempt in range(3)) + 0.05
