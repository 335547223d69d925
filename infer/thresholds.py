"""Decision weights: what each label's probability counts when one label must be chosen for a row.

    label of a row = argmax over l of weight_l * p_l

The largest probability is right most often, but seldom names a rare label; other weights give a better macro-F1. They
are fitted on held-out rows, and judged on rows they were not fitted on. Knows tables of probabilities; never a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer.calibration.temperature import crossfit_parts
from infer.files import write_json
from infer.predictions import PROB_FLOOR, Predictions
from models.tasks.files import read_record, told_of

FORMAT = 1
METRICS = ("macro_f1", "balanced_accuracy", "accuracy")
# The metric is a step function of the weights, and its best step is often luck. It is smoothed as if every log-weight
# wavered by about this much: on 1,994 skills 0.1 to 0.3 gave the best cross-fitted macro-F1, 0.5 lost 0.04.
SMOOTHING = 0.2


@dataclass(frozen=True, eq=False)
class Decision:
    """weights: (L,) float64 above 0, the largest 1, one for each of `labels` in column order.

    metric: what they were fitted for. rows: how many they were fitted on. plain, decided: the metric on rows that the
    weights were not fitted on, of the largest probability and of the weighted one.
    """

    labels: tuple[str, ...]
    weights: np.ndarray
    metric: str
    rows: int
    plain: float
    decided: float

    def choose(self, probs: np.ndarray) -> np.ndarray:
        """(N,) column of the label chosen for each row of probs (N, L)."""
        return np.asarray((np.asarray(probs, dtype=np.float64) * self.weights).argmax(axis=1))


def settle_decision(predictions: Predictions, *, metric: str = "macro_f1", folds: np.ndarray | None = None) -> Decision:
    """The weights to use for rows like these, fitted on all of them; ones where fitting does not help.

    Whether it helps is seen across folds (the table's own, or five parts by a hash of the id): each fold's rows are
    decided by the weights of the others. predictions: held-out, with the temperature that will be used on new rows.
    Refuses rows whose truth is unknown, and fewer than two.
    """
    truth = predictions.label_index()
    plain = measure(truth, predictions.probs64().argmax(axis=1), len(predictions.labels), metric)
    decided = measure(truth, crossfit_choice(predictions, metric=metric, folds=folds), len(predictions.labels), metric)
    weights = np.ones(len(predictions.labels))
    if decided > plain:
        weights = fit_weights(predictions, metric=metric)
    return Decision(predictions.labels, weights, metric, len(predictions), plain, decided)


def crossfit_choice(
    predictions: Predictions, *, metric: str = "macro_f1", folds: np.ndarray | None = None
) -> np.ndarray:
    """(N,) column chosen for each row, by weights that were fitted on the other folds: an honest view of the gain."""
    parts = crossfit_parts(predictions, folds)
    chosen = np.empty(len(predictions), dtype=np.int64)
    for part in np.unique(parts):
        held_out = parts == part
        weights = fit_weights(predictions.take(~held_out), metric=metric)
        chosen[held_out] = (predictions.take(held_out).probs64() * weights).argmax(axis=1)
    return chosen


def fit_weights(predictions: Predictions, *, metric: str = "macro_f1") -> np.ndarray:
    """(L,) float64 weights, the largest 1, with the best smoothed metric on these rows.

    A label that is never true gets the geometric mean of the others' weights: nothing is known of it. (Left free, it
    would be pushed to almost 0, since no row gains by it.)
    """
    from scipy.optimize import minimize

    _check_metric(metric)
    log_probs = np.log(np.maximum(predictions.probs64(), PROB_FLOOR))
    truth = np.eye(len(predictions.labels))[predictions.label_index()]
    support = truth.sum(axis=0)
    known = np.flatnonzero(support)

    def whole(own: np.ndarray) -> np.ndarray:
        """(L,) log-weights of mean 0 over the labels that occur, 0 for the others."""
        log_weights = np.zeros(len(support))
        log_weights[known] = own - own.mean()
        return log_weights

    def loss(own: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _smoothed_loss(whole(own), log_probs, truth, metric)
        return value, slope[known] - slope[known].mean()

    # The surface has several hills: the climb starts at no weights, at the prior divided out, and half way.
    starts = [-power * np.log(support[known] / len(truth)) for power in (0.0, 0.5, 1.0)]
    climbs = [minimize(loss, start, jac=True, method="L-BFGS-B") for start in starts]
    best = whole(min(climbs, key=lambda climb: float(climb.fun)).x)
    return np.exp(best - best.max())


def measure(truth: np.ndarray, chosen: np.ndarray, count: int, metric: str) -> float:
    """The metric of chosen columns, 0 to 1. macro_f1 is the mean over all `count` labels, 0 for one without rows."""
    _check_metric(metric)
    hits = np.bincount(truth[truth == chosen], minlength=count).astype(np.float64)
    predicted, support = (np.bincount(columns, minlength=count).astype(np.float64) for columns in (chosen, truth))
    return _value(metric, hits, predicted, support)[0]


def write_decision(path: str | Path, decision: Decision) -> None:
    """Writes decision.json atomically; read_decision gives back the same bits."""
    content = {
        "format": FORMAT,
        "labels": list(decision.labels),
        "weights": decision.weights.tolist(),
        "metric": decision.metric,
        "rows": decision.rows,
        "plain": decision.plain,
        "decided": decision.decided,
    }
    write_json(path, content)


def read_decision(path: str | Path, labels: Sequence[str]) -> Decision:
    """What write_decision wrote. Refuses a file that is missing or damaged, and weights of other labels."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"decision={path} does not exist, expected a decision.json. A run writes one: python -m train."
        )
    with told_of(f"decision={path}", "holds no decision weights"):
        content = read_record(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        weights = np.array(content["weights"], dtype=np.float64)
        given = tuple(map(str, content["labels"]))
        found = Decision(given, weights, content["metric"], content["rows"], content["plain"], content["decided"])
    if found.labels != tuple(labels):
        raise ValueError(
            f"decision={path} has weights for the labels {', '.join(found.labels)}, not {', '.join(labels)} in this "
            "order. Give the decision of a run with these labels."
        )
    if weights.shape != (len(labels),) or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError(f"decision={path} has the weights {content['weights']}: expected one above 0 for each label.")
    return found


def _smoothed_loss(
    log_weights: np.ndarray, log_probs: np.ndarray, truth: np.ndarray, metric: str
) -> tuple[float, np.ndarray]:
    """(minus the metric, its gradient): each row is counted under label l by a softmax, sharp where SMOOTHING is small.

    log_weights: (L,). log_probs, truth: (N, L).
    """
    scores = (log_probs + log_weights) / SMOOTHING
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    value, by_hit, by_predicted = _value(metric, (shares * truth).sum(0), shares.sum(0), truth.sum(0))
    slope = truth * by_hit + by_predicted  # (N, L): of the metric by each share
    centred = slope - (shares * slope).sum(axis=1, keepdims=True)  # through the softmax
    return -value, -(shares * centred).sum(axis=0) / SMOOTHING


def _value(
    metric: str, hits: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """(the metric, its slope by each label's hits, by each label's predicted rows) of counts (L,), whole or not."""
    if metric == "macro_f1":
        total = np.maximum(predicted + support, 1e-12)
        f1 = 2 * hits / total
        return float(f1.mean()), 2 / total / len(hits), -f1 / total / len(hits)
    by_hit = np.full(len(hits), 1 / support.sum())
    if metric == "balanced_accuracy":
        by_hit = np.where(support > 0, 1 / np.maximum(support, 1e-12), 0.0) / max((support > 0).sum(), 1)
    return float((by_hit * hits).sum()), by_hit, np.zeros(len(hits))


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"The metric of a decision is {metric!r}, expected one of {', '.join(METRICS)}.")
