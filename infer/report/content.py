"""What a report is made of: a table of predictions, and whatever else is known of how it came about.

Knows tables by id; never files or HTML.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infer.predictions import Predictions, align_like


@dataclass(frozen=True)
class ArenaFacts:
    """What the figures of two answers are drawn from; ids without an entry are left out of the figure.

    lengths: id -> characters of answers a and b. disagreement: id -> L1 distance of both presentation orders, 0 to 2.
    """

    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    disagreement: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtraTable:
    """A table of a page: its title, what one should know of it, and its rows, column -> value."""

    title: str
    note: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ReportInput:
    """All that a report shows; only title and predictions are needed, a figure without its data is left out.

    predictions: the table that is scored. raw: the same rows before calibration, where predictions are after it;
    calibrated: the same rows after it, cross-fitted, where predictions are before it. One of the two at most.
    methods: other ways of answering the same rows, or some of them, by name; `name` is that of predictions among them.
    calibrated_methods: the tables of some of these ways (`name` too) after calibration, for the reliability diagram.
    comparison: one mapping per method, column -> value, the table of a comparison as it is to be shown. tables: more.
    texts: id -> the row's text, or column -> text where there are several. Shown as text, whatever stands in it.
    score: what infer.metrics.score says of predictions; computed where None. groups: id -> group, for its intervals.
    baselines: name -> log loss on the same rows. about: what the header says (task, model, data, command), in order.
    strays: (token's text, mean share of all rows) that took the mass from the labels, heaviest first.
    unanswered: rows that are not in predictions, having no answer.
    training_log: fold's name -> the Trainer's log history. disagreement and lengths of two answers: arena.
    """

    title: str
    predictions: Predictions
    raw: Predictions | None = None
    calibrated: Predictions | None = None
    name: str = "this run"
    methods: Mapping[str, Predictions] = field(default_factory=dict)
    calibrated_methods: Mapping[str, Predictions] = field(default_factory=dict)
    comparison: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[ExtraTable] = ()
    texts: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    score: Mapping[str, Any] | None = None
    groups: Mapping[str, Hashable] | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    strays: Sequence[tuple[str, float]] = ()
    unanswered: int = 0
    training_log: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    arena: ArenaFacts | None = None

    def __post_init__(self) -> None:
        if not len(self.predictions):
            raise ValueError(f"The report of {self.title} has 0 rows, expected at least one. Check what was predicted.")
        if self.raw is not None and self.calibrated is not None:
            raise ValueError("raw and calibrated are both given, expected one: predictions are the other of the two.")
        if self.name in self.methods:
            raise ValueError(f"methods has {self.name!r}, the name of predictions itself. Set another name=.")
        for name, table in {"raw": self.raw, "calibrated": self.calibrated}.items():
            if table is not None:
                align_like(table, self.predictions, name)
        for name, table in self.methods.items():
            shared(table, self.predictions, name)

    def decided(self) -> Predictions:
        """The table that thresholds are chosen on: after calibration, where there is one."""
        return self.predictions if self.calibrated is None else aligned(self.calibrated, self.predictions)

    def before_after(self) -> tuple[Predictions, Predictions | None]:
        """The table before calibration and after it, None where there was none."""
        if self.raw is not None:
            return aligned(self.raw, self.predictions), self.predictions
        return self.predictions, None if self.calibrated is None else self.decided()

    def all_methods(self) -> dict[str, Predictions]:
        """Name -> table, predictions first, each with its own rows and, where it has none, the truth of predictions."""
        others = {name: shared(table, self.predictions, name) for name, table in self.methods.items()}
        return {self.name: self.predictions, **others}


def aligned(table: Predictions, pattern: Predictions) -> Predictions:
    """`table` in the pattern's order, with the pattern's truth where it has none of its own."""
    if table is pattern:
        return table
    rows = align_like(table, pattern, "table")
    return Predictions(rows.ids, rows.labels, rows.probs, rows.other, pattern.truth, rows.fold)


def shared(table: Predictions, pattern: Predictions, name: str) -> Predictions:
    """A way's table beside the pattern's: it may lack rows that the way left open, or have some that the other did.

    Refuses other labels, a table that shares no row, and a true label that differs.
    """
    common = np.isin(table.ids, pattern.ids)
    if not common.any():
        raise ValueError(f"{name} has none of the rows of the first table. Give ways that answered the same rows.")
    held = np.isin(pattern.ids, table.ids)
    same = align_like(table.take(common), pattern.take(held), name)
    if table.truth is not None or pattern.truth is None:
        return table
    return (
        table
        if not common.all()
        else Predictions(same.ids, same.labels, same.probs, same.other, pattern.truth[held], same.fold)
    )


def is_hard(table: Predictions) -> bool:
    """Does every row say a label and no more? It has a place in a plot of curves, and no curve."""
    return bool(len(table)) and bool((table.probs.max(axis=1) == 1.0).all())


def known_rows(table: Predictions) -> np.ndarray:
    """(N,) bool: the rows whose true label is known."""
    if table.truth is None:
        return np.zeros(len(table), dtype=bool)
    return np.array([label is not None for label in table.truth])


def labelled(table: Predictions) -> Predictions | None:
    """The rows whose true label is known, None where there are none."""
    known = known_rows(table)
    if not known.any():
        return None
    return table if known.all() else table.take(known)
