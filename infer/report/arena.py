"""The figures of two answers side by side: who wins, how long the answers are, what the order of showing them does.

Knows a ReportInput; never HTML or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from infer.report.content import ReportInput

ANSWER_A, ANSWER_B = "model_a", "model_b"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LENGTH_BINS = 11  # of equal count


def arena_figures(report: ReportInput) -> dict[str, Any] | None:
    """Shares of winners, lengths by winner, length difference against prediction, swap disagreement."""
    facts, table = report.arena, report.predictions
    if facts is None or not {ANSWER_A, ANSWER_B} <= set(table.labels):
        return None
    lengths = np.array([facts.lengths.get(row_id, (-1, -1)) for row_id in table.ids], dtype=np.float64)
    known = np.all(lengths >= 0, axis=1)
    a, b = (table.labels.index(answer) for answer in (ANSWER_A, ANSWER_B))
    return {
        "winners": winners(report),
        "lengths": _lengths_by_winner(report, lengths, known) if known.any() else None,
        "difference": _difference(report, lengths, known, a, b) if known.any() else None,
        "disagreement": disagreement([facts.disagreement[i] for i in table.ids if i in facts.disagreement]),
    }


def winners(report: ReportInput) -> dict[str, Any]:
    """Per label the mean probability given to it, and the share of rows it truly won, None where unknown."""
    table = report.predictions
    truth = table.truth
    known = [label for label in ([] if truth is None else truth) if label is not None]
    return {
        "labels": list(table.labels),
        "predicted": table.probs64().mean(axis=0).tolist(),
        "true": [known.count(label) / len(known) for label in table.labels] if known else None,
    }


def _lengths_by_winner(report: ReportInput, lengths: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """Five quantiles of the characters of answers a and b, per winner: the true one where known, else the likeliest."""
    table = report.predictions
    truth = table.predicted if table.truth is None else table.truth
    boxes = []
    for label in table.labels:
        chosen = lengths[known & (truth == label)]
        if len(chosen):
            values = np.quantile(chosen, QUANTILES, axis=0)
            boxes.append({"winner": label, "a": values[:, 0].tolist(), "b": values[:, 1].tolist()})
    return {"by": "predicted winner" if table.truth is None else "winner", "boxes": boxes}


def _difference(report: ReportInput, lengths: np.ndarray, known: np.ndarray, a: int, b: int) -> dict[str, Any]:
    """Per bin of log2(length a / length b), of equal count: mean of P(a) - P(b), and of a's wins minus b's."""
    table = report.predictions
    ratio = np.log2((lengths[known, 0] + 1) / (lengths[known, 1] + 1))  # one more: an answer may be empty
    probs = table.probs64()[known]
    begins = np.unique(np.quantile(ratio, np.arange(LENGTH_BINS) / LENGTH_BINS))
    bins = np.searchsorted(begins, ratio, side="right") - 1
    rows = np.bincount(bins)
    filled = rows > 0
    true = None
    if table.truth is not None and all(label is not None for label in table.truth[known]):
        won = (table.truth[known] == ANSWER_A).astype(float) - (table.truth[known] == ANSWER_B)
        true = (np.bincount(bins, weights=won)[filled] / rows[filled]).tolist()
    return {
        "ratio": (np.bincount(bins, weights=ratio)[filled] / rows[filled]).tolist(),
        "rows": rows[filled].tolist(),
        "predicted": (np.bincount(bins, weights=probs[:, a] - probs[:, b])[filled] / rows[filled]).tolist(),
        "true": true,
    }


def disagreement(values: list[float]) -> dict[str, Any] | None:
    """Bins of the L1 distance between the two orders' probabilities; None where it is unknown."""
    finite = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
    if not len(finite):
        return None
    edges = np.linspace(0, max(0.1, float(np.ceil(finite.max() * 10) / 10)), 31)
    return {"edges": edges.tolist(), "rows": np.histogram(finite, edges)[0].tolist(), "mean": float(finite.mean())}
