"""What is noted of each row that was asked for its answer: what was written, and whether that was one; and the figures.

Knows words and counts; no model and no parser.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from infer.logs import log
from models.tasks.cells import join_surrogates

ANSWERED, UNPARSABLE, FAILED = "answered", "unparsable", "failed"
OUTCOMES = (ANSWERED, UNPARSABLE, FAILED)
REASONS_NAMED = 5


def note(written: str | None, outcome: str, why: str | None = None, **details: Any) -> dict[str, Any]:
    """One row's note. written: None where no answer came. why: of an outcome that is no answer."""
    assert outcome in OUTCOMES and (why is None) == (outcome == ANSWERED), (outcome, why)
    # A server's JSON may spell half of a surrogate pair, where it cut a character; no file takes one.
    texts = [None if text is None else join_surrogates(text) for text in (written, why)]
    return {"written": texts[0], "outcome": outcome, "why": texts[1], **details}


def answer_figures(notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a run's notes: rows of each outcome, rows cut off, and the reasons that came most often, [[words, rows]]."""
    outcomes, reasons, cut = Counter[str](), Counter[str](), 0
    for one in notes:
        outcomes[one["outcome"]] += 1
        cut += bool(one.get("cut"))
        if one["why"] is not None:
            reasons[one["why"]] += 1
    counts = {outcome: outcomes[outcome] for outcome in OUTCOMES}
    return {"rows": sum(counts.values()), **counts, "cut": cut, "reasons": list(map(list, _most(reasons)))}


def report_answers(notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{"answers": figures} of a run's notes, said in the log; {} where they are none of answers. Holds no text."""
    notes = iter(notes)
    first = next(notes, {})
    if "outcome" not in first:
        return {}
    figures = answer_figures(chain([first], notes))
    log.info(
        f"of {figures['rows']} rows {figures[ANSWERED]} answered, {figures[UNPARSABLE]} unparsable, {figures[FAILED]} "
        f"failed; {figures['cut']} texts were cut off"
    )
    for words, rows in figures["reasons"]:
        log.info(f"  no answer in {rows} rows: {words}")
    return {"answers": figures}


def _most(reasons: Counter[str]) -> list[tuple[str, int]]:
    """The same for the same counts, whatever order they came in."""
    return sorted(reasons.items(), key=lambda one: (-one[1], one[0]))[:REASONS_NAMED]
