"""Numbers that describe how one text is written: length, layout, wording, repetition, scripts and ending.

Knows one text at a time and no language model; never sees a prompt, a row or a label. Every cost is linear in the text,
so that the 57,477 rows of the arena take about three minutes on one core.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

# A Han or kana sign counts as a word of its own: those scripts put no blanks between words.
WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+(?:'[a-z]+)?")
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[\u3002\uff01\uff1f]")
_FUNCTION_WORDS = (
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it "
    "its me my no not of on or our she should so such than that the their them then there these they this those to up "
    "us was we were what when where which while who will with would you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

# Counts of marks: the feature is log(1 + matches), so that its difference between two answers is a log ratio.
LAYOUT_MARKS = {
    "bullets": re.compile(r"^[ \t]*[-*\u2022\u25cf+][ \t]+\S", re.M),
    "numbered": re.compile(r"^[ \t]*\(?\d{1,3}[.)\]:][ \t]*\S", re.M),
    "headings": re.compile(r"^[ \t]*#{1,6}[ \t]+\S", re.M),
    "code_fences": re.compile(r"```"),
    "inline_code": re.compile(r"`[^`\n]{1,80}`"),
    "code_lines": re.compile(
        r"[;{}][ \t]*$|^[ \t]*(?:def|class|import|from|return|for|if|while|public|var|let)\b.*[:;({]$", re.M
    ),
    "bold": re.compile(r"\*\*[^*\n]{1,200}\*\*"),
    "table_rows": re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.M),
    "links": re.compile(r"https?://|www\."),
    "html_tags": re.compile(r"</?[a-zA-Z][^<>\n]{0,80}>"),
    "formulas": re.compile(r"\$[^$\n]{1,200}\$|\\[(\[a-z]"),
    "labels": re.compile(r"^[ \t]*[A-Z][^\n:]{0,40}:(?:\s|$)", re.M),
    "numbers": re.compile(r"\d+(?:[.,]\d+)*"),
    "question_marks": re.compile(r"[?\uff1f]"),
    "exclamations": re.compile(r"[!\uff01]"),
    "quotes": re.compile(r"[\"\u201c\u201d]"),
    "parentheses": re.compile(r"\("),
    "commas": re.compile(r"[,\uff0c]"),
    "capitalised": re.compile(r"(?<=[a-z,] )[A-Z][a-z]+"),
    "placeholders": re.compile(r"\[[A-Za-z][^\]\n]{1,40}\]|_{3,}"),
    "emoji": re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]"),
}

# Searched in the casefolded text with typewriter apostrophes; again log(1 + matches).
PHRASES = {
    "refusal": re.compile(
        r"\b(?:i (?:cannot|can't|can not|am unable|am not able|won't|don't have (?:access|the ability|enough|personal))"
        r"|i'm (?:unable|not able)|unable to (?:provide|answer|assist|help|access)|not (?:possible|able) to provide)"
    ),
    "ai_self": re.compile(
        r"\b(?:as an? (?:ai|artificial|language|large)|language model|i am an ai|i'm an ai|my training)\b"
    ),
    "caution": re.compile(
        r"\b(?:important to|keep in mind|please note|it's worth|consult|be careful|make sure|ensure|recommended)\b"
    ),
    "clarify": re.compile(
        r"\b(?:could you|can you|please provide|more (?:information|context|details)|please (?:clarify|specify))\b"
    ),
    "opener": re.compile(
        r"^\W*(?:sure|certainly|of course|absolutely|great|yes|no|here (?:is|are)|here's|dear|hi|hello)\b"
    ),
    "closing_offer": re.compile(
        r"\b(?:let me know|hope this helps|feel free|happy to help|any (?:other|further) questions)\b"
    ),
    # What an untuned model writes when it runs past its answer into the next turn of a transcript.
    "run_on": re.compile(
        r"#{2,}[ \t]*(?:instruction|input|response|output|human|assistant)"
        r"|^(?:human|user|assistant|input|output|question|q|a):",
        re.M,
    ),
}

# Counted among the words, which is ten times faster than a search; log(1 + count).
WORD_LISTS = {
    "apology": "sorry apologize apologise apologies unfortunately regret",
    "hedge": "may might perhaps possibly probably likely seem seems appear appears generally typically usually",
    "connectives": "first firstly second secondly third finally next then also additionally moreover furthermore "
    "therefore thus overall however because since such",
    "first_person": "i i'm i've i'd i'll me my mine we our",
    "second_person": "you you're you'll your yours",
}

SCRIPTS = {
    "cyrillic": re.compile(r"[\u0400-\u04ff]+"),
    "cjk": re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"),
    "other_script": re.compile(
        r"[\u0370-\u03ff\u0590-\u1cff]+"
    ),  # Greek, Hebrew, Arabic, Indic, Thai and their neighbours
    "accented": re.compile(r"[\u00c0-\u024f]+"),
}


def words(text: str) -> list[str]:
    """Casefolded words of a text in order, with typewriter apostrophes; each Han or kana sign is one word."""
    return WORD.findall(_casefolded(text))


def text_features(text: str, tokens: Sequence[str] | None = None) -> dict[str, float]:
    """How `text` is written, by name; every value is finite, also for "".

    tokens: words(text), where the caller has them already.
    """
    tokens = words(text) if tokens is None else tokens
    return {
        **size_features(text, tokens),
        **_log_counts(LAYOUT_MARKS, text),
        **_log_counts(PHRASES, _casefolded(text)),
        **wording_features(text, tokens),
        **repetition_features(text, tokens),
        **script_shares(text),
        **ending_features(text),
    }


def size_features(text: str, tokens: Sequence[str]) -> dict[str, float]:
    """log(1 + count) of characters, words, sentences, lines and paragraphs, and what an average one holds."""
    lines = [line for line in text.split("\n") if line.strip()]
    sentences = max(1, len(SENTENCE_END.findall(text)))
    return {
        "empty": float(not text.strip()),
        "chars": math.log1p(len(text)),
        "words": math.log1p(len(tokens)),
        "sentences": math.log1p(sentences),
        "lines": math.log1p(len(lines)),
        "paragraphs": math.log1p(text.count("\n\n")),
        "words_per_sentence": math.log1p(len(tokens) / sentences),
        "words_per_line": math.log1p(len(tokens) / max(1, len(lines))),
        "longest_line": math.log1p(max(map(len, lines), default=0)),
        "word_length": sum(map(len, tokens)) / max(1, len(tokens)),
    }


def wording_features(text: str, tokens: Sequence[str]) -> dict[str, float]:
    """Richness of the vocabulary, WORD_LISTS, and shares of kinds of words and of signs."""
    counts = Counter(tokens)
    n_words, n_chars = max(1, len(tokens)), max(1, len(text))
    letters = sum(map(str.isalpha, text))
    blanks = sum(map(str.isspace, text))
    digits = sum(map(str.isdigit, text))
    return {
        "distinct_share": len(counts) / n_words,
        "root_richness": len(counts) / math.sqrt(n_words),  # Guiraud 1954: hardly depends on length
        "once_share": sum(count == 1 for count in counts.values()) / n_words,
        "commonest_share": max(counts.values(), default=0) / n_words,
        "function_share": sum(counts[word] for word in FUNCTION_WORDS) / n_words,
        "long_word_share": sum(len(word) > 7 for word in tokens) / n_words,
        "upper_share": sum(map(str.isupper, text)) / n_chars,
        "digit_share": digits / n_chars,
        "blank_share": blanks / n_chars,
        "mark_share": (len(text) - letters - blanks - digits) / n_chars,
        **{name: math.log1p(sum(counts[word] for word in listed.split())) for name, listed in WORD_LISTS.items()},
    }


def repetition_features(text: str, tokens: Sequence[str]) -> dict[str, float]:
    """Shares of repeated word pairs, four-grams and lines (0 where nothing repeats), and the size under zlib."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    encoded = text.encode("utf-8", "replace")
    return {
        "repeated_pairs": repeated_share(list(pairwise(tokens))),
        "repeated_fours": repeated_share(list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))),
        "repeated_lines": repeated_share(lines),
        "zlib_ratio": len(zlib.compress(encoded, 1)) / (len(encoded) + 20),  # + 20: a short text cannot be compressed
        "zlib_bytes": math.log1p(len(zlib.compress(encoded, 1))),
    }


def repeated_share(items: Sequence[object]) -> float:
    """Share of items that an earlier one equals; 0 for none."""
    return 1.0 - len(set(items)) / len(items) if items else 0.0


def script_shares(text: str) -> dict[str, float]:
    """Share of the characters in each of SCRIPTS and outside ASCII."""
    if text.isascii():  # most answers: saves the five searches
        return dict.fromkeys([*SCRIPTS, "non_ascii"], 0.0)
    n_chars = len(text)
    shares = {name: sum(map(len, pattern.findall(text))) / n_chars for name, pattern in SCRIPTS.items()}
    return shares | {"non_ascii": sum(character > "\x7f" for character in text) / n_chars}


def ending_features(text: str) -> dict[str, float]:
    """Flags of the first and the last sign: does it start like a sentence, does it stop in the middle of one."""
    stripped = text.strip()
    last = stripped[-1:]
    return {
        "starts_lower": float(stripped[:1].islower()),
        "starts_with_mark": float(bool(stripped) and not stripped[0].isalnum()),
        "ends_sentence": float(last in set(".!?\u3002\uff01\uff1f") and bool(last)),
        "ends_question": float(last in {"?", "\uff1f"}),
        # Closing signs end an answer too; a letter, digit, comma or dash mostly means that the model ran out of tokens.
        "ends_cut": float(last.isalnum() or last in {",", ";", ":", "-", "("}),
        "open_fence": float(text.count("```") % 2),
    }


def _casefolded(text: str) -> str:
    return text.casefold().replace("\u2019", "'")


def _log_counts(patterns: dict[str, re.Pattern[str]], text: str) -> dict[str, float]:
    return {name: math.log1p(len(pattern.findall(text))) for name, pattern in patterns.items()}
