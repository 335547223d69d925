"""Exploratory figures of two answers side by side: who wins, lengths and what they decide, ties, repeats, models.

Knows arena rows; never files or HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from infer.report import ExtraTable
from infer.report.figure_page import Figure, FigurePage
from models.tasks.arena import LABELS, ArenaRow, ArenaTable
from models.tasks.groups import prompt_groups
from train.doctor import repeats
from train.explore_numbers import boxes, by_equal_bins, length_histogram, writing_systems

WINNERS = {"model_a": "a wins", "model_b": "b wins", "tie": "tie"}
MODELS_SHOWN = 20
LEAST_GAMES = 10  # of a model that is shown


def arena_page(title: str, source: str, table: ArenaTable) -> FigurePage:
    """The page of a table of labelled pairs."""
    rows = table.rows
    winners = np.array([WINNERS[str(row.label)] for row in rows], dtype=object)
    lengths = {side: answer_lengths(rows, side) for side in ("a", "b")}
    names = list(WINNERS.values())
    shares = np.stack([winners == name for name in names], axis=1).astype(float)  # (N, 3)
    ratio = np.log2((lengths["a"] + 1) / (lengths["b"] + 1))  # one more: an answer may be empty
    apart = np.abs(ratio)
    figures = [
        _winners(shares, names),
        _histogram(rows, lengths),
        Figure(
            "lengths_by_winner", "Answer lengths by winner", "Middle half of the rows, median, 5 % and 95 %.", "boxes",
            names, {f"answer {side}": boxes(values, winners, names) for side, values in lengths.items()},
            y_title="characters",
        ),
        _shares_by(
            "length_difference", "Longer, hence better?", "Winners by how much longer a is; bins of equal count.",
            ratio, shares, names, "log2(length a / length b)",
        ),
        _shares_by(
            "ties_by_difference", "Ties by difference in length", "The share of ties where lengths are alike, and not.",
            apart, shares[:, 2:], names[2:], "|log2(length a / length b)|",
        ),
        _shares_by(
            "ties_by_length", "Ties by length", "The share of ties by what both answers have together.",
            lengths["a"] + lengths["b"], shares[:, 2:], names[2:], "characters of both answers", log=True,
        ),
    ]  # fmt: skip
    if any(len(row.prompt) > 1 for row in rows):
        figures.append(_turns(rows, shares, names))
    repeated, conflicting = repeats(rows)
    groups = Counter(prompt_groups(rows).tolist())
    shared = sum(count for count in groups.values() if count > 1)
    longer = shares[ratio > 0, 0].sum() + shares[ratio < 0, 1].sum()
    decided = int((shares[:, 2] == 0)[ratio != 0].sum())
    tiles = [
        (
            "rows",
            f"{len(rows):,}",
            f"{len(table.bad_rows)} more cannot be read" if table.bad_rows else "all can be read",
        ),
        ("ties", f"{shares[:, 2].mean():.1%}", "of all rows"),
        ("the longer one wins", f"{longer / max(1, decided):.1%}", "of rows with a winner and unequal lengths"),
        ("share a prompt", f"{shared / len(rows):.1%}", f"largest group {max(groups.values())}: keep groups whole"),
        ("repeated pairs", f"{repeated:,}", f"{conflicting} of them with another winner"),
    ]
    summary = f"{len(rows):,} pairs of answers from {source}. Nothing has been trained."
    tables = [_oddities(table), ExtraTable("Writing systems", "Of most letters of the prompt.", _scripts(rows))]
    return FigurePage(title, summary, figures, [*tables, _models(rows)], tiles)


def answer_lengths(rows: Sequence[ArenaRow], side: str) -> np.ndarray:
    """(N,) characters of answer a or b, all turns together."""
    return np.array([sum(map(len, row.response_a if side == "a" else row.response_b)) for row in rows])


def _winners(shares: np.ndarray, names: list[str]) -> Figure:
    return Figure(
        "winners", "Who wins", "Share of rows.", "bars", names, {"share": shares.mean(axis=0).tolist()},
        share=True, rows=shares.sum(axis=0).astype(int).tolist(),
    )  # fmt: skip


def _histogram(rows: Sequence[ArenaRow], lengths: dict[str, np.ndarray]) -> Figure:
    prompts = np.array([sum(map(len, row.prompt)) for row in rows])
    given = {"prompt": prompts, "answer a": lengths["a"], "answer b": lengths["b"]}
    middles, counts = length_histogram(given)
    note = "Rows by characters, all turns together."
    return Figure("lengths", "Lengths", note, "lines", middles, counts, "characters", "rows", log=True)


def _shares_by(
    key: str, title: str, note: str, values: np.ndarray, shares: np.ndarray, names: list[str], x_title: str, *,
    log: bool = False,
) -> Figure:  # fmt: skip
    middles, means, rows = by_equal_bins(values, shares)
    series = dict(zip(names, means.T.tolist(), strict=True))
    return Figure(key, title, note, "lines", middles, series, x_title, "share of rows", share=True, log=log, rows=rows)


def _turns(rows: Sequence[ArenaRow], shares: np.ndarray, names: list[str]) -> Figure:
    turns = np.minimum([len(row.prompt) for row in rows], 5)
    shown = np.unique(turns)
    means = np.stack([shares[turns == one].mean(axis=0) for one in shown])
    x = [f"{one}{'+' if one == 5 else ''}" for one in shown]
    return Figure(
        "turns", "Winners by turns", "One turn is a question and its answers.", "bars", x,
        dict(zip(names, means.T.tolist(), strict=True)), "turns", "share of rows", stacked=True, share=True,
        rows=[int((turns == one).sum()) for one in shown],
    )  # fmt: skip


def _oddities(table: ArenaTable) -> ExtraTable:
    rows = table.rows
    counts = {
        "an empty answer": sum(not "".join(r.response_a).strip() or not "".join(r.response_b).strip() for r in rows),
        "two identical answers": sum(row.response_a == row.response_b for row in rows),
        "an empty prompt": sum(not "".join(row.prompt).strip() for row in rows),
        **table.repairs.counts,
        **({"cannot be read": len(table.bad_rows)} if table.bad_rows else {}),
    }
    note = "Empty and odd cells, and what reading mended; null turns are read as empty ones."
    return ExtraTable("What is odd", note, [{"what": what, "rows": count} for what, count in counts.items()])


def _scripts(rows: Sequence[ArenaRow]) -> list[dict[str, object]]:
    return writing_systems(" ".join(row.prompt) for row in rows)


def _models(rows: Sequence[ArenaRow]) -> ExtraTable:
    """Wins of the models that answered most often, where the file names them; a tie counts as half a win."""
    played: Counter[str] = Counter()
    won: Counter[str] = Counter()
    for row in rows:
        for model, label in ((row.model_a, LABELS[0]), (row.model_b, LABELS[1])):
            if model:
                played[model] += 1
                won[model] += 1.0 if row.label == label else 0.5 * (row.label == LABELS[2])  # type: ignore[assignment]
    shown = [model for model, games in played.most_common(MODELS_SHOWN) if games >= LEAST_GAMES]
    found = [{"model": one, "rows": played[one], "wins, ties half": f"{won[one] / played[one]:.1%}"} for one in shown]
    found.sort(key=lambda line: -won[str(line["model"])] / played[str(line["model"])])
    return ExtraTable("Models", f"The {MODELS_SHOWN} most frequent; the test rows do not name theirs.", found)
