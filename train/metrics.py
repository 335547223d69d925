"""The metric that the Trainer sees after every evaluation; the score of a whole table stands in infer.metrics.

Knows arrays of one evaluation; never ids or files.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from infer.predictions import PROB_FLOOR


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

    # It makes a folder for what it then keeps in memory: not in a home that may be full or read-only.
    with tempfile.TemporaryDirectory() as folder:
        return LogLoss(keep_in_memory=True, cache_dir=folder)


def heldout_scores() -> Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]:
    """(probs (n, L), true columns (n,), disagreement of the orders (n,), NaN unknown) -> what an evaluation logs."""
    log_loss = log_loss_metric()

    def score(probs: np.ndarray, truth: np.ndarray, disagreement: np.ndarray) -> dict[str, float]:
        return {
            **log_loss.compute(predictions=probs, references=truth),
            "accuracy": float((probs.argmax(axis=1) == truth).mean()),
            **({} if np.isnan(disagreement).any() else {"swap_disagreement": float(disagreement.mean())}),
        }

    return score
