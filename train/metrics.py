"""Turns a table of predictions into its score, with intervals, and sets the score beside its baselines.

Knows the table only: never how the probabilities were made. All numbers are plain floats, ready for metrics.json;
what is undefined (the AUC of a class that never occurs) is None.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from infer.predictions import PROB_FLOOR, Predictions

CALIBRATION_BINS = 15  # equal widths, as in Guo et al. 2017, table 1
INTERVAL_PERCENTILES = (2.5, 97.5)
DRAWS_AT_ONCE = 4_000_000  # 32 MB per array of drawn indices
PRIOR = "class prior"


def score(
    predictions: Predictions,
    *,
    groups: Mapping[str, Hashable] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Log loss, accuracy, Brier score, calibration error and per-class figures of labelled predictions.

    groups: id -> prompt group; whole groups are drawn then, since rows of one prompt are not independent. None: rows.
    bootstrap: number of draws for the 95 % percentile intervals; 0 leaves them out.
    Losses are in nats; Brier is the sum over labels of squared errors, 0 to 2 (Brier 1950).
    Refuses an empty table, and a row whose truth is unknown.
    """
    log_loss = predictions.log_loss()
    truth, probs = predictions.label_index(), predictions.probs64()
    predicted = probs.argmax(axis=1)
    per_class = _per_class(predictions.labels, truth, predicted, probs)
    rows = np.stack([-np.log(predictions.truth_probs()), predicted == truth], axis=1)  # (N, 2): loss, right or wrong
    result: dict[str, Any] = {
        "rows": len(predictions),
        "log_loss": log_loss,
        "accuracy": float((predicted == truth).mean()),
        "brier": float(((probs - np.eye(len(predictions.labels))[truth]) ** 2).sum(axis=1).mean()),
        "calibration_error": calibration_error(predictions),
        "macro_f1": float(np.mean([figures["f1"] for figures in per_class.values()])),
        "confidence": float(probs.max(axis=1).mean()),
        "per_class": per_class,
    }
    if bootstrap:
        units = None if groups is None else _group_numbers(predictions.ids, groups)
        low, high = bootstrap_interval(rows, units, draws=bootstrap, seed=seed)
        result["log_loss_interval"] = [float(low[0]), float(high[0])]
        result["accuracy_interval"] = [float(low[1]), float(high[1])]
    return result


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


def bootstrap_interval(
    rows: np.ndarray, units: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of each column's mean: rows (N, C) -> low (C,), high (C,).

    units: (N,) whole number 0..U-1 of the group each row is drawn with; None draws single rows.
    Source: Efron and Tibshirani 1993, chapter 13.
    """
    units = np.arange(len(rows)) if units is None else units
    # Per group its sums and its size: a draw's mean is a ratio of two sums, since groups differ in size.
    columns = [*rows.T.astype(np.float64), np.ones(len(rows))]
    sums = np.stack([np.bincount(units, weights=column) for column in columns], axis=1)  # (U, C + 1)
    random, means = np.random.default_rng(seed), np.empty((draws, rows.shape[1]))
    at_once = max(1, DRAWS_AT_ONCE // len(sums))
    for start in range(0, draws, at_once):
        chosen = random.integers(len(sums), size=(min(at_once, draws - start), len(sums)))
        drawn = np.stack([column[chosen].sum(axis=1) for column in sums.T], axis=1)
        means[start : start + len(drawn)] = drawn[:, :-1] / drawn[:, -1:]
    low, high = np.percentile(means, INTERVAL_PERCENTILES, axis=0)
    return low, high


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


def log_loss_metric() -> Any:
    """A local `evaluate.Metric` for the Trainer: compute(predictions=(N, L) probabilities, references=(N,) columns).

    Built here, since importing evaluate takes five seconds, and without evaluate.load, which asks the hub.
    """
    import datasets
    import evaluate

    class LogLoss(evaluate.Metric):
        """Mean of minus log p(true label), in nats."""

        def _info(self) -> evaluate.MetricInfo:
            features = {
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Value("int64"),
            }
            return evaluate.MetricInfo(
                description=str(LogLoss.__doc__),
                citation="",
                inputs_description="predictions: a probability per label; references: the true label's column.",
                features=datasets.Features(features),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            probs = np.asarray(predictions, dtype=np.float64)
            truth_probs = probs[np.arange(len(probs)), np.asarray(references)] / probs.sum(axis=1)
            return {"log_loss": float(-np.log(np.maximum(truth_probs, PROB_FLOOR)).mean())}

    return LogLoss(keep_in_memory=True)


def _per_class(
    labels: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray, probs: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Label -> count of true rows, precision, recall, f1 (0 where undefined) and one-vs-rest AUC (None there)."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    columns = range(len(labels))
    figures = precision_recall_fscore_support(truth, predicted, labels=list(columns), zero_division=0)
    table: dict[str, dict[str, Any]] = {}
    for column, precision, recall, f1, count in zip(columns, *figures, strict=True):
        both_sides = 0 < count < len(truth)
        auc = float(roc_auc_score(truth == column, probs[:, column])) if both_sides else None
        table[labels[column]] = {
            "count": int(count),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "auc": auc,
        }
    return table


def _group_numbers(ids: np.ndarray, groups: Mapping[str, Hashable]) -> np.ndarray:
    """(N,) the groups numbered 0, 1, ... as they appear. Refuses an id without a group."""
    missing = [row_id for row_id in ids if row_id not in groups]
    if missing:
        raise ValueError(f"{len(missing)} ids have no group, first {missing[0]!r}, expected one each. Give all groups.")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(groups[row_id], len(number)) for row_id in ids])
