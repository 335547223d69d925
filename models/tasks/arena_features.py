"""Structural features of an arena row: how the answers are written, what they share with the prompt and each other.

Knows no network, no label and no model name, only the texts, which the test file has too. Turns are joined by blank
lines.

    columns = [a minus b of every answer feature | mean of a and b | pair features | prompt features]

Exchanging the answers negates the first block and leaves the rest, to the last bit.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
from tqdm.auto import tqdm

from models.tasks.arena import ArenaRow
from models.tasks.text_features import FUNCTION_WORDS, text_features, words

TURN_BREAK = "\n\n"
# Joint compression reads this much of each text: zlib looks back 32 kB and would lose sight of the first one otherwise.
NCD_CHARS = 12_000
# Rows whose features stay in memory, 1.5 kB each: the competition's 57,477 with room to spare.
KEPT_ROWS = 100_000

PROMPT_KINDS = {
    "asks_question": re.compile(r"\?|^(?:what|why|how|who|when|where|which|is|are|can|do|does|should)\b"),
    "asks_list": re.compile(r"\b(?:list|ideas|suggest(?:ions)?|examples|steps|tips|ways|bullet|names?)\b"),
    "asks_writing": re.compile(
        r"\b(?:write|compose|draft|story|poem|essay|email|letter|article|post|script|create|generate)\b"
    ),
    "asks_code": re.compile(r"```|\b(?:code|function|python|javascript|java|sql|html|regex|algorithm|program)\b"),
    "asks_rewrite": re.compile(
        r"\b(?:rewrite|edit|paraphrase|summari[sz]e|translate|correct|classify|extract|convert|identify)\b"
    ),
    "asks_maths": re.compile(
        r"\b(?:calculate|solve|equation|probability|sum|average|how many|how much)\b|\d\s*[+*/=^]\s*\d"
    ),
    "asks_opinion": re.compile(r"\b(?:should i|recommend|best|advice|think|opinion|favou?rite|help me)\b"),
    "asks_brevity": re.compile(
        r"\b(?:short|brief(?:ly)?|concise|one (?:word|sentence|paragraph)|in \d+ words|less than)\b"
    ),
    "asks_role": re.compile(r"\b(?:act as|pretend|you are|imagine|role)\b"),
}


@dataclass(frozen=True)
class _Text:
    """A text with what several features need of it, counted once."""

    text: str
    tokens: list[str] = field(init=False)
    vocabulary: frozenset[str] = field(init=False)
    content: frozenset[str] = field(init=False)  # vocabulary without function words
    pairs: frozenset[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        tokens = words(self.text)
        vocabulary = frozenset(tokens)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "vocabulary", vocabulary)
        object.__setattr__(self, "content", vocabulary - FUNCTION_WORDS)
        object.__setattr__(self, "pairs", frozenset(pairwise(tokens)))


def answer_features(prompt: str, answer: str) -> dict[str, float]:
    """How one answer is written (text_features) and how it relates to its prompt, by name."""
    return _answer_features(_Text(prompt), _Text(answer))


def pair_features(prompt: str, a: str, b: str) -> dict[str, float]:
    """What the two answers have in common; exchanging a and b changes nothing."""
    return _pair_features(_Text(prompt), _Text(a), _Text(b))


def prompt_features(prompt: str) -> dict[str, float]:
    """Length and layout of the prompt and the kinds of request it holds."""
    return _prompt_features(_Text(prompt))


@cache
def feature_names() -> tuple[str, ...]:
    """Names of the columns of `features`, in order."""
    answer = answer_features("", "")
    blocks = (
        ("diff_", answer),
        ("mean_", answer),
        ("pair_", pair_features("", "", "")),
        ("prompt_", prompt_features("")),
    )
    return tuple(prefix + name for prefix, block in blocks for name in block)


def antisymmetric_columns() -> np.ndarray:
    """(F,) bool: the columns that a swap negates, a minus b; it leaves the others alone."""
    return np.array([name.startswith("diff_") for name in feature_names()])


def features(rows: Sequence[ArenaRow]) -> np.ndarray:
    """(N, F) float32, columns feature_names(); every value is finite. About 300 rows of 2,700 characters a second."""
    matrix = np.empty((len(rows), len(feature_names())), dtype=np.float32)
    for index, row in enumerate(tqdm(rows, desc="features", unit="row", delay=3, leave=False, disable=None)):
        matrix[index] = _row_features(row.prompt, row.response_a, row.response_b)
    return matrix


def swap_features(matrix: np.ndarray) -> np.ndarray:
    """The features of the swapped rows, bit for bit, from those of the rows as written. matrix: (N, F)."""
    antisymmetric = antisymmetric_columns()
    if matrix.shape[1] != len(antisymmetric):
        raise ValueError(
            f"The matrix has {matrix.shape[1]} columns, features() makes {len(antisymmetric)}. "
            "Swap the structural features before other columns are appended."
        )
    swapped = matrix.copy()
    swapped[:, antisymmetric] *= -1
    return swapped


@lru_cache(maxsize=KEPT_ROWS)
def _row_features(*fields: tuple[str, ...]) -> np.ndarray:
    """(F,) float64 of a row's prompt, response_a and response_b. Kept, since five folds ask for the same rows."""
    prompt, a, b = (_Text(TURN_BREAK.join(turns)) for turns in fields)
    first = np.array(list(_answer_features(prompt, a).values()))
    second = np.array(list(_answer_features(prompt, b).values()))
    shared = [*_pair_features(prompt, a, b).values(), *_prompt_features(prompt).values()]
    return np.concatenate([first - second, (first + second) / 2, shared])


def _answer_features(prompt: _Text, answer: _Text) -> dict[str, float]:
    return text_features(answer.text, answer.tokens) | {
        "prompt_recall": _share_found(prompt.content, answer.content),
        "prompt_precision": _share_found(answer.content, prompt.content),
        "prompt_pairs_recall": _share_found(prompt.pairs, answer.pairs),
        "prompt_pairs_precision": _share_found(answer.pairs, prompt.pairs),
        "new_content_words": math.log1p(len(answer.content - prompt.content)),
        "starts_like_prompt": _shared_start(prompt.text, answer.text),
        "repeats_prompt": float(bool(prompt.text.strip()) and prompt.text.strip() in answer.text),
        "other_language": abs(_ascii_share(prompt.text) - _ascii_share(answer.text)),
        "length_over_prompt": math.log1p(len(answer.text)) - math.log1p(len(prompt.text)),
    }


def _pair_features(prompt: _Text, a: _Text, b: _Text) -> dict[str, float]:
    lengths = len(a.text), len(b.text)
    new_a, new_b = a.content - prompt.content, b.content - prompt.content
    return {
        "identical": float(a.text.strip() == b.text.strip()),
        "empty_answers": float((not a.text.strip()) + (not b.text.strip())),
        "length_ratio": (1 + min(lengths)) / (1 + max(lengths)),
        "longer": math.log1p(max(lengths)),
        "shorter": math.log1p(min(lengths)),
        "words_shared": _jaccard(a.vocabulary, b.vocabulary),
        "content_shared": _jaccard(a.content, b.content),
        "new_content_shared": _jaccard(new_a, new_b),
        "word_pairs_shared": _jaccard(a.pairs, b.pairs),
        "shorter_inside_longer": max(_share_found(a.content, b.content), _share_found(b.content, a.content)),
        "starts_alike": _shared_start(a.text, b.text),
        "ends_alike": _shared_start(a.text[::-1], b.text[::-1]),
        "same_first_word": float(bool(a.tokens) and a.tokens[:1] == b.tokens[:1]),
        "compressed_distance": _compressed_distance(a.text, b.text),
    }


def _prompt_features(prompt: _Text) -> dict[str, float]:
    lowered = prompt.text.casefold().strip()
    return {
        "chars": math.log1p(len(prompt.text)),
        "words": math.log1p(len(prompt.tokens)),
        "lines": math.log1p(prompt.text.count("\n")),
        "has_input_block": float("\n\n" in prompt.text),
        "ends_sentence": float(lowered[-1:] in {".", "!", "?"}),
        "starts_lower": float(prompt.text[:1].islower()),
        "ascii_share": _ascii_share(prompt.text),
        "numbers": math.log1p(sum(token.isdigit() for token in prompt.tokens)),
        "first_person": float(bool({"i", "my", "me", "i'm"} & prompt.vocabulary)),
        **{name: float(bool(pattern.search(lowered))) for name, pattern in PROMPT_KINDS.items()},
    }


def _share_found(wanted: frozenset, present: frozenset) -> float:
    return len(wanted & present) / len(wanted) if wanted else 0.0


def _jaccard(a: frozenset[object], b: frozenset[object]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _shared_start(a: str, b: str) -> float:
    """Length of the common start over the shorter text's; 0 where one is empty."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return float(shorter > 0)
    return next(index for index in range(shorter) if a[index] != b[index]) / shorter


def _ascii_share(text: str) -> float:
    return 1.0 if text.isascii() else sum(map(str.isascii, text)) / len(text)


def _compressed_distance(a: str, b: str) -> float:
    """Normalised compression distance: about 0 for equal texts, about 1 for unrelated ones.

    Source: Li, Chen, Li, Ma and Vitanyi, The similarity metric, 2004, section VI. The pair is joined in sorted order,
    since zlib's size depends on which of the two comes first.
    """
    first, second = sorted(text[:NCD_CHARS].encode("utf-8", "replace") for text in (a, b))
    size_first, size_second, joint = (len(zlib.compress(data, 1)) for data in (first, second, first + second))
    return (joint - min(size_first, size_second)) / max(size_first, size_second)
