"""The numbers of every figure, as plain lists: the page and the PNGs draw the same ones.

Knows a ReportInput; never HTML, colours or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from infer.metrics import calibration_error, reliability, score
from infer.predictions import Predictions
from infer.report.arena import arena_figures
from infer.report.content import ReportInput, is_hard, labelled
from infer.report.curves import precision_recall_points, roc_points
from infer.report.cutoff_counts import cutoff_counts
from infer.report.rows import row_table

BINS = 40
DIGITS = 6  # of a drawn curve: a millionth of the width
LABELS_DRAWN = 12  # curves of one method; those with most rows
STEPS_DRAWN = 500  # of a loss curve


def figures(report: ReportInput) -> dict[str, Any]:
    """Everything the page draws, by section; None where the data for it is not there."""
    table = labelled(report.predictions)
    decided = labelled(report.decided()) or report.decided()
    return {
        "labels": list(report.predictions.labels),
        "title": report.title,
        "score": None if table is None else dict(report.score or score(table, groups=report.groups)),
        "curves": curves(report),
        "reliability": None if table is None else reliabilities(report),
        "confusion": None if table is None else confusion(table),
        "confidence": confidence(report.predictions),
        "mass": label_mass(report),
        "folds": folds(table),
        "training": training(report),
        "cutoffs": {
            "rows": len(decided),
            "labelled": table is not None,
            "calibrated": report.calibrated is not None or report.raw is not None,
            "modes": cutoff_counts(decided),
        },
        "arena": arena_figures(report),
        "rows": row_table(report.decided(), report.texts),
    }


def curves(report: ReportInput) -> list[dict[str, Any]] | None:
    """A ROC and a precision-recall curve with their areas, per method and label that has rows on both sides."""
    found = []
    for method, table in report.all_methods().items():
        known = labelled(table)
        if known is None:
            return None
        truth, probs = known.label_index(), known.probs64()
        commonest = np.argsort(-np.bincount(truth, minlength=len(known.labels)), kind="stable")[:LABELS_DRAWN]
        for column in sorted(commonest):
            true = truth == column
            if true.any() and not true.all():
                drawn = _point(true, probs[:, column]) if is_hard(known) else _curve(true, probs[:, column])
                found.append({"method": method, "label": known.labels[column], **drawn})
    return found or None


def _point(true: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """Where a way that says labels and no more stands among curves: [false, true positive rate], [recall, precision].

    Precision is None where it gives the label to no row.
    """
    said, hits = given > 0, float((given > 0)[true].sum())
    rates = [float(said[~true].mean()), float(said[true].mean())]
    precision = hits / float(said.sum()) if said.any() else None
    return {"point": rates, "pr_point": [rates[1], precision], "share": float(true.mean())}


def _curve(true: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "roc": [np.round(axis, DIGITS).tolist() for axis in roc_points(true, scores)],
        "auc": float(roc_auc_score(true, scores)),
        "pr": [np.round(axis, DIGITS).tolist() for axis in precision_recall_points(true, scores)],
        "average_precision": float(average_precision_score(true, scores)),
        "share": float(true.mean()),
    }


def reliabilities(report: ReportInput) -> list[dict[str, Any]]:
    """Per way and table (before calibration, after it) its calibration error, log loss and bins with their counts.

    A way that says labels and no more has none.
    """
    found = []
    for method, table in report.all_methods().items():
        before, after = table, report.calibrated_methods.get(method)
        if method == report.name and after is None:
            before, after = report.before_after()
        named = (
            {"as predicted": before} if after is None else {"before calibration": before, "after calibration": after}
        )
        for name, one in named.items():
            known = labelled(one)
            if known is not None and (len(report.methods) == 0 or not is_hard(known)):
                figures = {"error": calibration_error(known), "log_loss": known.log_loss(), "bins": reliability(known)}
                found.append({"method": method, "name": name, **figures})
    return found


def confusion(table: Predictions) -> list[list[int]]:
    """(L, L) rows: true label by likeliest label."""
    size = len(table.labels)
    cells = table.label_index() * size + table.probs.argmax(axis=1)
    return np.bincount(cells, minlength=size**2).reshape(size, size).tolist()


def confidence(predictions: Predictions) -> dict[str, Any]:
    """How many rows have a winning probability in each bin from 1 / L to 1: right, wrong, of unknown label."""
    top = predictions.probs.max(axis=1)
    edges = np.linspace(1 / len(predictions.labels), 1, BINS + 1)
    truth = np.full(len(predictions), None) if predictions.truth is None else predictions.truth
    unknown = np.array([label is None for label in truth])
    right = (predictions.predicted == truth) & ~unknown
    parts = {"right": right, "wrong": ~right & ~unknown, "unknown": unknown}
    return {"edges": edges.tolist(), **{name: histogram(top[rows], edges) for name, rows in parts.items()}}


def label_mass(report: ReportInput) -> dict[str, Any] | None:
    """Bins of the mass on the labels and of p_other, and the tokens that took it; None where no row lost any."""
    other = report.predictions.other.astype(np.float64)
    if not other.any():
        return None
    # p_other spans decades: a prompt that asks well leaves a thousandth, a poor one a half.
    decades = np.linspace(-6, 0, 31)
    return {
        "edges": np.linspace(0, 1, BINS + 1).tolist(),
        "mass": histogram(1 - other, np.linspace(0, 1, BINS + 1)),
        "decades": decades.tolist(),
        "other": histogram(np.log10(np.clip(other, 1e-6, 1)), decades),
        "median": float(np.median(1 - other)),
        "strays": [[str(text), float(share)] for text, share in report.strays],
    }


def histogram(values: np.ndarray, edges: np.ndarray) -> list[int]:
    """Rows per bin; a value outside the edges by a rounding error counts in the last bin on its side."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist()


def folds(table: Predictions | None) -> list[dict[str, Any]] | None:
    """Per fold its rows, log loss and accuracy; None for less than two folds."""
    if table is None or table.fold is None or len(np.unique(table.fold)) < 2:
        return None
    parts = {int(fold): table.take(table.fold == fold) for fold in np.unique(table.fold)}
    return [
        {
            "fold": fold,
            "rows": len(part),
            "log_loss": part.log_loss(),
            "accuracy": float((part.predicted == part.truth).mean()),
        }
        for fold, part in parts.items()
    ]


def training(report: ReportInput) -> dict[str, Any] | None:
    """Per fold the steps and losses of training and of the held-out rows, from the Trainer's log."""
    found = {}
    for fold, entries in report.training_log.items():
        lines = {"train": _series(entries, "loss"), "heldout": _series(entries, "eval_log_loss")}
        if lines["train"] or lines["heldout"]:
            found[fold] = lines
    return found or None


def _series(entries: Any, key: str) -> list[list[float]]:
    points = [[float(entry["step"]), float(entry[key])] for entry in entries if key in entry and "step" in entry]
    finite = [point for point in points if np.isfinite(point).all()]
    every = -(-len(finite) // STEPS_DRAWN) if finite else 1
    return finite[:: every or 1]
