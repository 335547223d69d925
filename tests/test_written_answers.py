"""What a model wrote is read as exactly one answer or not at all; nothing a model can write becomes a made-up label."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.readers.written_answers import Spellings, Unparsable, read_distribution, read_label, read_score, read_written
from models.method_settings import WRITTEN_METHODS

LABELS = {"positive": [" positive", " good"], "negative": [" negative"], "not sure": ["not sure"]}
SPELLINGS = Spellings.of(LABELS)
TWO = Spellings.of({"positive": ["positive"], "negative": ["negative"]})


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("<answer>positive</answer>", "positive"),
        ("I would say <answer> Negative. ", "negative"),  # generation stopped before the closing tag
        ("<ANSWER>good</ANSWER> because of the plot", "positive"),
        ("<answer>positive</answer> Once more: <answer>Positive</answer>", "positive"),
        ('<answer>{"label": "negative"}</answer>', "negative"),
        ('{"answer": "negative", "why": "it is not positive"}', "negative"),
        ('```json\n{"answer": "not  sure"}\n```', "not sure"),
        ('Here it is: {"Label": "Positive"}', "positive"),
        (" positive", "positive"),
        ('"negative"', "negative"),
        ("**Not sure**", "not sure"),
        ("Answer: positive.", "positive"),
    ],
)
def test_an_answer_in_tags_json_or_plain_text_is_its_label(written: str, label: str) -> None:
    assert SPELLINGS.labels[read_label(written, SPELLINGS)] == label


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "no label: '(nothing)'"),
        ("not positive", "no label: 'not positive'"),
        ("positive or negative", "no label"),
        ("It is positive", "no label"),
        ("<answer></answer>", "no label"),
        ("<answer>positive</answer><answer>negative</answer>", "several answers"),
        ("<answer>positive<answer>positive</answer>", "an answer inside an answer"),
        ("positive</answer>", "a closing tag without its opening one"),
        ('{"answer": "positive", "label": "negative"}', "several of the keys"),
        ('{"answer": "positive"} {"answer": "negative"}', "several JSON objects"),
        ('{"answer": "positive", "answer": "negative"}', "a key twice"),
        ('{"answer": "posit', "JSON that is not whole"),
        ('{"answer": ["positive"]}', "is no answer"),
        ('{"answer": true}', "is no answer"),
        ('{"sentiment": "positive"}', "none of the keys"),
    ],
)
def test_anything_else_is_unparsable_and_says_why(written: str, why: str) -> None:
    with pytest.raises(Unparsable, match=why.replace("(", r"\(").replace(")", r"\)")):
        read_label(written, SPELLINGS)


def test_labels_that_are_marks_or_differ_by_case_are_read_to_the_letter() -> None:
    signs = Spellings.of({"+": ["+"], "-": ["-"], "C": ["C"], "c": ["c"], "...": ["..."]})
    assert [read_label(written, signs) for written in ("+", "<answer>-</answer>", "C", " c", "...")] == [0, 1, 2, 3, 4]
    with pytest.raises(Unparsable, match="several labels"):
        read_label("**C**", signs)
    with pytest.raises(Unparsable, match="no label"):
        read_label("....", signs)


def test_numbers_are_labels() -> None:
    stars = Spellings.of({"1": ["1"], "2": ["2"], "10": ["10"]})
    assert read_label('{"answer": 10}', stars) == 2 and read_label("<answer>1</answer>", stars) == 0


@pytest.mark.parametrize(
    ("written", "shares"),
    [
        ('{"positive": 0.5, "negative": 0.25, "not sure": 0.25}', [0.5, 0.25, 0.25]),
        ('<answer>{"Negative": 30, "positive": 70, "not sure": 0}</answer>', [0.7, 0.3, 0]),
        ('Sure: {"good": "0.6", "negative": "0.2", "not sure": 0.0}', [0.75, 0.25, 0]),
        ('{"positive": 1e308, "negative": 1e308, "not sure": 0}', [0.5, 0.5, 0]),
    ],
)
def test_a_distribution_is_the_shares_of_its_numbers(written: str, shares: list[float]) -> None:
    np.testing.assert_allclose(read_distribution(written, SPELLINGS), shares, atol=1e-12)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("positive", "no JSON object"),
        ('{"positive": 0.5, "negative": 0.5}', "no number for not sure"),
        ('{"positive": 0.5, "good": 0.4, "negative": 0.1, "not sure": 0}', "the label positive twice"),
        ('{"positive": 0.5, "negative": 0.4, "not sure": 0.1, "mixed": 0}', "no label: 'mixed'"),
        ('{"positive": -0.5, "negative": 1.4, "not sure": 0.1}', "is no share"),
        ('{"positive": NaN, "negative": 1, "not sure": 1}', "NaN is no number"),
        ('{"positive": 1e999, "negative": 1, "not sure": 1}', "is no share"),
        ('{"positive": true, "negative": 1, "not sure": 1}', "is no number"),
        ('{"positive": "70%", "negative": 1, "not sure": 1}', "is no number"),
        ('{"positive": 0, "negative": 0, "not sure": 0}', "every number is 0"),
    ],
)
def test_a_distribution_that_lacks_or_doubts_a_number_is_unparsable(written: str, why: str) -> None:
    with pytest.raises(Unparsable, match=why):
        read_distribution(written, SPELLINGS)


@pytest.mark.parametrize(
    ("written", "score"),
    [
        ("0.8", 0.8),
        ("<answer> 1 </answer>", 1),
        ('{"score": 0.25}', 0.25),
        ("85%", 0.85),
        (".5", 0.5),
        ("**0.0**", 0),
        ("Score: 0.3", 0.3),
    ],
)
def test_one_number_within_0_and_1_is_a_score(written: str, score: float) -> None:
    assert read_score(written) == pytest.approx(score)


@pytest.mark.parametrize(
    "written",
    ["", "8/10", "0.8 or 0.9", "1.2", "85", "-0.5", "0,8", "120%", "nan", "0.5 0.5", "\N{ARABIC-INDIC DIGIT ZERO}"],
)
def test_any_other_number_is_unparsable(written: str) -> None:
    with pytest.raises(Unparsable):
        read_score(written)


@pytest.mark.parametrize(
    ("method", "written", "read"),
    [
        ("generate_hard", "<answer>positive", False),
        ("generate_hard", "positive", False),
        ("generate_hard", "<answer>positive</answer> since", True),
        ("generate_hard", '<answer>{"answer": "positive"}', True),
        ("generate_hard", '{"answer": "positive"} since', True),
        ("generate_hard", '{"answer": "positive"', False),
        ("verbalized", '<answer>{"positive": 0.9, "negative": 0.1}', True),
        ("verbalized", '<answer>{"positive": 0.9, "negative": 0.1', False),
        ("verbalized_score", "0.9", False),
        ("verbalized_score", "<answer>0.9</answer>", True),
    ],
)
def test_a_text_that_was_cut_off_is_an_answer_only_where_its_end_is_seen(method: str, written: str, read: bool) -> None:
    if read:
        assert read_written(method, written, TWO, cut=True).argmax() == 0
        return
    with pytest.raises(Unparsable, match=r"cut off|not whole"):
        read_written(method, written, TWO, cut=True)


PIECES = st.sampled_from([
    "<answer>", "</answer>", "positive", "negative", "not sure", "good", "{", "}", '"', ":", ",", "0.7", "1", "NaN",
    "%", '{"answer": ', '{"positive": ', '"negative": ', " ", "\n", "```json\n", "[", "-", "not ", "Answer:", "1e999",
    "null",
])  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join))


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from(WRITTEN_METHODS))
def test_the_only_outcomes_are_a_distribution_or_unparsable(text: str, method: str) -> None:
    """And a distribution is only read where each label it favours was written down."""
    try:
        probs = read_written(method, text, TWO)
    except Unparsable as error:
        assert str(error)
        return
    assert probs.shape == (2,) and (probs >= 0).all() and probs.sum() == pytest.approx(1)
    if method != "verbalized_score":
        assert all(label in text.casefold() for label, prob in zip(TWO.labels, probs, strict=True) if prob == 1)


WEIGHTS = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=3, max_size=3).filter(lambda one: sum(one) > 1e-6)
FRAMES = st.sampled_from(["{}", "<answer>{}</answer>", "Well. <answer>{}", "```json\n{}\n```", "Here: {}"])


@settings(max_examples=500, deadline=None)
@given(WEIGHTS, st.permutations(range(3)), FRAMES, st.booleans())
def test_what_is_written_rightly_is_read_rightly(
    weights: list[float], order: list[int], frame: str, capitals: bool
) -> None:
    written = {SPELLINGS.labels[at].upper() if capitals else SPELLINGS.labels[at]: weights[at] for at in order}
    found = read_distribution(frame.replace("{}", json.dumps(written)), SPELLINGS)
    np.testing.assert_allclose(found, np.array(weights) / math.fsum(weights), atol=1e-9)
    label = order[0]
    named = SPELLINGS.labels[label].upper() if capitals else SPELLINGS.labels[label]
    if not frame.startswith("Here"):
        content = named if "`" not in frame else json.dumps({"answer": named})
        assert read_label(frame.replace("{}", content), SPELLINGS) == label
