"""What is noted of a model's reasoning: where its header stands, what its last word says, and the figures of a run.

Last-word parsing is what reading the answer's probability replaces; it is reported beside, never used. Knows texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from infer.logs import log

MARKS = " \t\r\n*_#`"  # what a header that the model wrote may be dressed in: **Answer:** Hard


def part_at_header(text: str, header: str) -> tuple[str, str | None]:
    """(the text up to the first header, what stands behind it); (the text, None) where there is none.

    White space and Markdown's marks around the header go.
    """
    before, found, after = text.partition(header.strip())
    return before.rstrip(MARKS if found else None), after.strip(MARKS) if found else None


def last_label(text: str, spellings: Mapping[str, Sequence[str]]) -> str | None:
    """The label whose answer the text ends with, case and marks aside; None where it ends otherwise.

    The parsing that a probability replaces: it says nothing of a sentence that was cut off.
    """
    said = _words(text)
    best: tuple[int, str] | None = None
    for label, answers in spellings.items():
        for words in map(_words, answers):
            if words and said[-len(words) :] == words and (best is None or len(words) > best[0]):
                best = len(words), label
    return None if best is None else best[1]


def reasoning_figures(notes: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of a run's notes: rows, tokens (mean), and shares: cut, no_label (by last-word parsing), differs (from the
    label read, where parsing found one), closed (by the model itself with the header)."""
    kept = [(n["tokens"], n["cut"], n["last_word"], n["read"], n["answered"]) for n in notes]
    rows = max(1, len(kept))
    return {
        "rows": len(kept),
        "tokens": sum(one[0] for one in kept) / rows,
        "cut": sum(one[1] for one in kept) / rows,
        "no_label": sum(one[2] is None for one in kept) / rows,
        "differs": sum(None not in one[2:4] and one[2] != one[3] for one in kept) / rows,
        "closed": sum(one[4] is not None for one in kept) / rows,
    }


def report_reasoning(notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{"reasoning": figures} of a run's notes, said in the log; {} where they are none of reasoning. Holds no text."""
    notes = iter(notes)
    first = next(notes, {})
    if "reasoning" not in first:
        return {}
    figures = reasoning_figures(chain([first], notes))
    log.info(reasoning_line(figures))
    return {"reasoning": figures}


def reasoning_line(figures: Mapping[str, float]) -> str:
    """The figures as a sentence for the log."""
    return (
        f"reasoning of {figures['rows']:.0f} rows: {figures['tokens']:.0f} tokens on average, {figures['cut']:.1%} cut "
        f"off, {figures['closed']:.1%} with the header; last-word parsing finds no label in {figures['no_label']:.1%} "
        f"and another than the one read in {figures['differs']:.1%}"
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
