"""Makes a classifier of arena rows exactly symmetric: it is fitted on both orders and averages its answers to both.

Knows matrices, targets and the label order; never a text, a file or a kind of classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.tasks.arena import LABELS, SWAP, ArenaRow

# predict_proba of a row is never below this, so that one sure mistake does not decide the log loss of a table.
PROB_FLOOR = 1e-4


def soft_targets(rows: Sequence[ArenaRow]) -> np.ndarray:
    """(N, 3) float64 targets over LABELS, sums one. Refuses rows without a target: there is nothing to fit."""
    unlabelled = [row.id for row in rows if row.target is None]
    if unlabelled or not rows:
        raise ValueError(
            f"{len(unlabelled)} of {len(rows)} rows have no target (ids {', '.join(unlabelled[:3]) or 'none'}), "
            "expected labelled rows. Fit on a file that has the winner columns."
        )
    return np.array([row.target for row in rows], dtype=np.float64)


def both_orders(matrix: Any, swapped: Any, targets: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Examples, label indices and weights for a classifier that takes one hard label per example.

    matrix, swapped: (N, F) dense or sparse, the rows as written and exchanged. targets: (N, 3).
    A row whose target is spread over k labels becomes k examples that share its weight; then all again, exchanged.
    """
    from scipy import sparse

    rows, labels = np.nonzero(targets)
    weights = targets[rows, labels]
    stack = sparse.vstack if sparse.issparse(matrix) else np.concatenate
    examples = stack([matrix[rows], swapped[rows]])
    return examples, np.concatenate([labels, np.array(SWAP)[labels]]), np.concatenate([weights, weights])


def averaged_over_orders(classifier: Any, matrix: Any, swapped: Any) -> np.ndarray:
    """(N, 3) float64 mean of both orders' probabilities; exchanging the matrices exchanges columns 0 and 1."""
    return (label_probs(classifier, matrix) + label_probs(classifier, swapped)[:, SWAP]) / 2


def label_probs(classifier: Any, matrix: Any) -> np.ndarray:
    """(N, 3) probabilities over LABELS of a fitted classifier, zero for a label that it never saw."""
    probs = np.zeros((matrix.shape[0], len(LABELS)))
    probs[:, classifier.classes_] = classifier.predict_proba(matrix)
    return probs


def finished(probs: np.ndarray) -> np.ndarray:
    """(N, 3) float32 rows that sum to one, no entry below about PROB_FLOOR."""
    floored = np.maximum(probs, PROB_FLOOR)
    return (floored / floored.sum(axis=1, keepdims=True)).astype(np.float32)
