"""Turns a table of predictions into its score, with intervals, and sets the score beside its baselines.

Knows the table only: never how the probabilities were made. All numbers are plain floats, ready for metrics.json;
what is undefined (the AUC of a class that never occurs) is None.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from infer.intervals import auc_interval, bootstrap_interval
from infer.predictions import PROB_FLOOR, Predictions

CALIBRATION_BINS = 15  # equal widths, as in Guo et al. 2017, table 1
PRIOR = "class prior"
NAMED_LABELS = 8  # as many as a line holds


def score(
    predictions: Predictions,
    *,
    groups: Mapping[str, Hashable] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Log loss, accuracy, AUC, average precision, Brier score, calibration error and per-class figures.

    AUC and average precision are one label against the rest, averaged over the labels that occur, for two labels too:
    no label is the positive one, and each label's own stands in per_class. None where all rows have one label.

    groups: id -> prompt group; whole groups are drawn then, since rows of one prompt are not independent. None: rows.
    bootstrap: number of draws for the 95 % percentile intervals; 0 leaves them out. Large tables get fewer draws.
    Losses are in nats; Brier is the sum over labels of squared errors, 0 to 2 (Brier 1950).
    Refuses an empty table, and a row whose truth is unknown: leave these out, with take().
    """
    log_loss = predictions.log_loss()
    truth, probs = predictions.label_index(), predictions.probs64()
    predicted = probs.argmax(axis=1)
    per_class = _per_class(predictions.labels, truth, predicted, probs)
    result: dict[str, Any] = {
        "rows": len(predictions),
        "log_loss": log_loss,
        "accuracy": float((predicted == truth).mean()),
        "auc": _mean_of_defined(per_class, "auc"),
        "average_precision": _mean_of_defined(per_class, "average_precision"),
        "brier": float(((probs - np.eye(len(predictions.labels))[truth]) ** 2).sum(axis=1).mean()),
        "calibration_error": calibration_error(predictions),
        "macro_f1": float(np.mean([figures["f1"] for figures in per_class.values()])),
        "confidence": float(probs.max(axis=1).mean()),
        "per_class": per_class,
        "auc_pairs": pair_aucs(predictions) if len(predictions.labels) <= NAMED_LABELS else None,
    }
    if bootstrap:
        units = None if groups is None else _group_numbers(predictions.ids, groups)
        result |= _intervals(predictions, units, draws=bootstrap, seed=seed)
    return result


def pair_aucs(predictions: Predictions) -> dict[str, float]:
    """{"Hard/Soft": AUC, ...}: how well each pair of labels is told apart on the rows that have one of the two.

    Ranked by p_Soft / (p_Hard + p_Soft); pairs of which a label never occurs are left out. Source: Hand and Till 2001,
    section 3, whose two directions agree for a ratio.
    """
    from sklearn.metrics import roc_auc_score

    truth, log_probs = predictions.label_index(), np.log(np.maximum(predictions.probs64(), PROB_FLOOR))
    found = {}
    for one, first in enumerate(predictions.labels):
        for other in range(one + 1, len(predictions.labels)):
            rows = (truth == one) | (truth == other)
            if len(np.unique(truth[rows])) == 2:
                ranked = log_probs[rows, other] - log_probs[rows, one]
                found[f"{first}/{predictions.labels[other]}"] = float(roc_auc_score(truth[rows] == other, ranked))
    return found


def reliability(predictions: Predictions, bins: int = CALIBRATION_BINS) -> list[dict[str, float]]:
    """Per bin of confidence (probability of the top label) that has rows: rows, mean confidence, accuracy.

    Bin m of M holds confidences in ((m-1)/M, m/M]. Source: Guo et al. 2017, section 2.
    """
    probs = predictions.probs64()
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == predictions.label_index()
    bin_of_row = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(bin_of_row, minlength=bins)
    sums = [np.bincount(bin_of_row, weights=values, minlength=bins) for values in (confidence, right)]
    return [
        {"rows": int(rows[b]), "confidence": float(sums[0][b] / rows[b]), "accuracy": float(sums[1][b] / rows[b])}
        for b in np.flatnonzero(rows)
    ]


def calibration_error(predictions: Predictions, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of the top label, 15 bins of equal width. Source: Guo et al. 2017, equation 3."""
    gaps = [part["rows"] * abs(part["accuracy"] - part["confidence"]) for part in reliability(predictions, bins)]
    return float(sum(gaps) / len(predictions))


def baseline_lines(score: Mapping[str, Any], baselines: Mapping[str, float]) -> str:
    """The last lines a run prints: its log loss beside the baselines' (name -> log loss), best first.

    A plain sentence follows where the run is worse than the class prior, hence of no use.
    """
    interval = score.get("log_loss_interval")
    spread = f"   95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    notes = {"this run": f"{spread}   accuracy {score['accuracy']:.4f}"}
    losses = {"this run": score["log_loss"], **baselines}
    width = max(map(len, losses))
    ranked = sorted(losses, key=lambda name: losses[name])
    lines = [f"log loss, {score['rows']} rows, lower is better"]
    lines += [f"  {name:<{width}}  {losses[name]:7.4f}{notes.get(name, '')}" for name in ranked]
    if score["log_loss"] > baselines.get(PRIOR, np.inf):
        lines.append(
            f"This run is worse than the class prior ({score['log_loss']:.4f} against {baselines[PRIOR]:.4f}): "
            "answering with the class shares for every row would score better."
        )
    return "\n".join(lines)


def metric_lines(score: Mapping[str, Any]) -> str:
    """What a person reads after a file of labelled rows: one figure a line, with its 95 % interval where it has one."""
    per_class = score["per_class"]
    lines = [f"{score['rows']} labelled rows" + _never_true(per_class)]
    for name, words in (
        ("log_loss", "log loss"),
        ("accuracy", "accuracy"),
        ("auc", "AUC"),
        ("average_precision", "average precision"),
        ("calibration_error", "calibration error"),
    ):
        value, interval = score[name], score.get(f"{name}_interval")
        figure = f"{value:7.4f}" if value is not None else "   none: the rows have but one true label"
        spread = f"   95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        each = _by_label(per_class) if name == "average_precision" and value is not None else ""
        lines.append(f"  {words:<17}  {figure}{spread}{each}")
    return "\n".join(lines)


def _never_true(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    absent = [label for label, figures in per_class.items() if not figures["count"]]
    return f", none of them {' or '.join(absent)}" if absent else ""


def _by_label(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    """The labels' own average precisions: their mean alone does not say which label is found."""
    known = {label: figures["average_precision"] for label, figures in per_class.items()}
    defined = [f"{label} {value:.4f}" for label, value in known.items() if value is not None]
    return f"   {', '.join(defined)}" if len(defined) <= NAMED_LABELS else ""


def _per_class(
    labels: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray, probs: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Label -> count of true rows, precision, recall, f1 (0 where undefined) and two one-vs-rest figures (None there).

    Average precision steps from recall to recall, without interpolation, as scikit-learn does.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    columns = range(len(labels))
    figures = precision_recall_fscore_support(truth, predicted, labels=list(columns), zero_division=0)
    table: dict[str, dict[str, Any]] = {}
    for column, precision, recall, f1, count in zip(columns, *figures, strict=True):
        both_sides = 0 < count < len(truth)
        ranked = (truth == column, probs[:, column])
        table[labels[column]] = {
            "count": int(count),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "auc": float(roc_auc_score(*ranked)) if both_sides else None,
            "average_precision": float(average_precision_score(*ranked)) if both_sides else None,
        }
    return table


def _intervals(predictions: Predictions, units: np.ndarray | None, *, draws: int, seed: int) -> dict[str, Any]:
    """The 95 % intervals of log loss, accuracy and AUC, by the figure's name; of the AUC None where it has none."""
    truth, probs = predictions.label_index(), predictions.probs64()
    # (N, 2): loss, right or wrong
    rows = np.stack([-np.log(predictions.truth_probs()), probs.argmax(axis=1) == truth], axis=1)
    low, high = bootstrap_interval(rows, units, draws=draws, seed=seed)
    occurring = np.unique(truth)
    # Of two labels one is enough: the other's scores are its mirror image, and so is the ranking.
    columns = occurring[:1] if len(predictions.labels) == 2 else occurring
    auc = None
    if len(occurring) > 1:
        auc = auc_interval(truth[:, None] == columns, probs[:, columns], units, draws=draws, seed=seed)
    return {
        "log_loss_interval": [float(low[0]), float(high[0])],
        "accuracy_interval": [float(low[1]), float(high[1])],
        "auc_interval": auc and list(auc),
    }


def _mean_of_defined(per_class: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    defined = [figures[name] for figures in per_class.values() if figures[name] is not None]
    return float(np.mean(defined)) if defined else None


def _group_numbers(ids: np.ndarray, groups: Mapping[str, Hashable]) -> np.ndarray:
    """(N,) the groups numbered 0, 1, ... as they appear. Refuses an id without a group."""
    missing = [row_id for row_id in ids if row_id not in groups]
    if missing:
        raise ValueError(f"{len(missing)} ids have no group, first {missing[0]!r}, expected one each. Give all groups.")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(groups[row_id], len(number)) for row_id in ids])
