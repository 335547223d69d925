"""The figures of a comparison: each way's score and cost, p-values against the best, calibration, hard against soft.

Knows the ways' tables and what they cost; never how they were made. What has no meaning is None: a written label has
no log loss, and no area under a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from infer.calibration.answers import FEWEST_ROWS, crossfit
from infer.calibration.methods import FROM_TRUTH
from infer.compare.table import WayTable, floored
from infer.intervals import wilson_interval
from infer.metrics import calibration_error, score
from infer.predictions import Predictions
from infer.significance import mcnemar, paired_bootstrap

CALIBRATIONS = {"contextual": "content_free", "pmi": "premise", "batch": None, "temperature": None, "vector": None}
NO_CALIBRATION = "as read"


def score_way(table: WayTable) -> dict[str, Any]:
    """How well a way answers.

    Accuracy and macro-F1 are of all rows, one without an answer counting as wrong; the others are of the answered rows,
    and None for a way that says a label and no more. log_loss: inf where a true label was given 0.
    """
    from sklearn.metrics import f1_score

    right, rows = int(table.right.sum()), len(table.ids)
    columns = list(range(len(table.labels)))
    figures: dict[str, Any] = {
        "rows": rows,
        "accuracy": right / rows,
        "accuracy_interval": wilson_interval(right, rows),
        "macro_f1": float(f1_score(table.index, table.chosen, labels=columns, average="macro", zero_division=0)),
        "unanswered": int((~table.answered).sum()),
    }
    soft = dict.fromkeys(("log_loss", "auc", "average_precision", "calibration_error"))
    if table.scored:
        whole = score(table.predictions(), bootstrap=0)
        soft = {name: whole[name] for name in soft}
        soft["log_loss"] = float(np.nanmean(table.losses()))
    tempered = calibrated(table, "temperature")
    return {
        **figures,
        **soft,
        "log_loss_calibrated": None if tempered is None else tempered.log_loss(),
        "calibration_error_calibrated": None if tempered is None else calibration_error(tempered),
    }


@lru_cache(maxsize=128)  # the table, the calibrations' table and the page ask for the same, at seconds each
def calibrated(table: WayTable, method: str) -> Predictions | None:
    """The answered rows by a calibrator that was fitted without them (five parts); None where it cannot be fitted.

    contextual and pmi are fitted on the prompts without content that the run kept, for a way that has them.
    """
    kept = table.answered
    if not table.scored or kept.sum() < 2 * FEWEST_ROWS or len(np.unique(table.index[kept])) < 2:
        return None
    key = CALIBRATIONS[method]
    asked = None if key is None else table.record.get(key)
    if key is not None and asked is None:
        return None
    probs = crossfit(
        method, table.log_probs[kept], table.index[kept], table.ids[kept],
        content_free=None if asked is None else np.array(asked),
    )  # fmt: skip
    return Predictions(table.ids[kept], table.labels, probs, table.other[kept], table.truth[kept])


def calibration_rows(tables: Mapping[str, WayTable]) -> list[dict[str, Any]]:
    """Per way and calibration: the labels it needs, accuracy, log loss and calibration error of the answered rows."""
    rows = []
    for name, table in tables.items():
        if not table.scored:
            continue
        ways = {NO_CALIBRATION: table.predictions()} | {method: calibrated(table, method) for method in CALIBRATIONS}
        for method, found in ways.items():
            if found is not None:
                loss = float(np.nanmean(table.losses())) if method == NO_CALIBRATION else found.log_loss()
                rows.append(
                    {
                        "way": name,
                        "calibration": method,
                        "needs labels": "yes" if method in FROM_TRUTH else "no",
                        "accuracy": float((found.predicted == found.truth).mean()),
                        "log loss": loss,
                        "calibration error": calibration_error(found),
                    }
                )
    return rows


def most_accurate(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The way with the highest accuracy, the first of equals. scores: one or more."""
    return max(scores, key=lambda name: scores[name]["accuracy"])


def best_answering(scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The way of least log loss among those that leave the fewest rows open; None where no way has one.

    A log loss is of the answered rows: a way that answers two easy ones is not better than one that answers all.
    """
    known = {name: (found["unanswered"], found["log_loss"]) for name, found in scores.items()
             if found["log_loss"] is not None}  # fmt: skip
    return min(known, key=lambda name: known[name], default=None)


def p_values(
    tables: Mapping[str, WayTable], scores: Mapping[str, Mapping[str, Any]], *, seed: int
) -> dict[str, dict[str, Any]]:
    """Name -> p_accuracy against the most accurate way (McNemar, rows without an answer wrong), p_log_loss against
    best_answering (paired bootstrap over texts, on the rows that both answer), and the names of these two.

    None for that way itself, and where no row is answered by both. Each pair by itself: of many ways some differ by
    chance. A probability of 0 counts as the least that is counted.
    """
    most, least = most_accurate(scores), best_answering(scores)
    found: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        accuracy = log_loss = None
        if name != most:
            accuracy = mcnemar(table.right, tables[most].right)
        if least is not None and name != least and table.scored:
            both = table.answered & tables[least].answered
            if both.any():
                mine, best = floored(table.losses()[both]), floored(tables[least].losses()[both])
                log_loss = paired_bootstrap(mine, best, table.groups[both], seed=seed)
        found[name] = {"p_accuracy": accuracy, "p_log_loss": log_loss, "best_accuracy": most, "best_log_loss": least}
    return found


def hard_rows(tables: Mapping[str, WayTable], *, seed: int) -> list[dict[str, Any]]:
    """Per way with probabilities: what its likeliest label scores, and what one sampled label of each row scores.

    A sampled label is right with the probability given to the true one, and is the likeliest with that one's: both
    expectations are exact. drawn: one label of each row drawn with the seed, as a model asked at temperature 1 would.
    """
    rows = []
    for name, table in tables.items():
        kept = table.answered
        if not table.scored:
            continue
        probs, index = table.probs[kept], table.index[kept]
        places = np.arange(len(probs))
        drawn = sampled(probs, seed)
        likeliest = probs.argmax(axis=1)
        rows.append(
            {
                "way": name,
                "accuracy, likeliest": float((likeliest == index).mean()),
                "accuracy, sampled (expected)": float(probs[places, index].mean()),
                "accuracy, sampled (drawn)": float((drawn == index).mean()),
                "differ (expected)": float(1 - probs.max(axis=1).mean()),
                "differ (drawn)": float((drawn != likeliest).mean()),
            }
        )
    return rows


def sampled(probs: np.ndarray, seed: int) -> np.ndarray:
    """(N,) a column of each row, drawn by its probabilities (N, L)."""
    points = np.random.default_rng(seed).random(len(probs))
    return np.asarray((points[:, None] > probs.cumsum(axis=1)[:, :-1]).sum(axis=1))


def differ_rows(tables: Mapping[str, WayTable]) -> list[dict[str, Any]]:
    """Per pair of ways the share of rows to which they give different labels; an open row differs from any answer."""
    return [
        {"way": name, **{other: float((table.chosen != tables[other].chosen).mean()) for other in tables}}
        for name, table in tables.items()
    ]


def cost_of(cost: Mapping[str, Any]) -> dict[str, Any]:
    """rows_per_s of reading, without loading; fit_seconds of learning; peak_mib of the process that took most."""
    seconds = cost.get("seconds")
    peaks = [cost[key] for key in ("peak_mib", "fit_peak_mib") if cost.get(key) is not None]
    return {
        "rows_per_s": cost["rows"] / seconds if seconds else None,
        "fit_seconds": cost.get("fit_seconds"),
        "peak_mib": max(peaks, default=None),
        "gpu_peak_mib": cost.get("gpu_peak_mib"),
    }


def ordered(scores: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """The ways by accuracy, the best first; equals by log loss."""

    def key(name: str) -> tuple[float, float]:
        loss = scores[name]["log_loss"]
        return -scores[name]["accuracy"], np.inf if loss is None else loss

    return sorted(scores, key=key)
