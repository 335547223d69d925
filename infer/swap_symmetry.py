"""Makes a classifier of arena rows exactly symmetric: it is fitted on both orders and averages its answers to both.

Knows matrices, targets and the label order; never a text, nor which classifiers and columns there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from infer.fitted_files import load_fitted, save_fitted
from infer.predictions import swap_average
from models.tasks.arena import LABELS, SWAP, ArenaRow

# predict_proba of a row is never below this, so that one sure mistake does not decide the log loss of a table.
LEAST_PROB = 1e-4


class SwapSymmetric:
    """The road the learning baselines share: rows -> matrices of both orders -> classifiers -> their mean.

    A subclass says how rows become matrices (`_matrices`), what is fitted (`_classifiers`) and with which settings.
    """

    kind: ClassVar[str]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.parts: dict[str, Any] = {}

    def fit(self, rows: Sequence[ArenaRow]) -> Self:
        """Fits on both orders of every row. Deterministic for the seed."""
        targets = soft_targets(rows)
        self.parts = self._prepare(rows)
        matrix, swapped = self._matrices(rows)
        examples, labels, weights = both_orders(matrix, swapped, targets)
        for name, classifiers in self._classifiers().items():
            self.parts[name] = [_fit_weighted(classifier, examples, labels, weights) for classifier in classifiers]
        return self

    def predict_proba(self, rows: Sequence[ArenaRow]) -> np.ndarray:
        """(N, 3) float32, mean over the classifiers and both orders."""
        require_fitted(self, self.parts)
        if not rows:
            return np.zeros((0, len(LABELS)), dtype=np.float32)
        matrix, swapped = self._matrices(rows)
        by_name = [
            np.mean([averaged_over_orders(part, matrix, swapped) for part in self.parts[name]], axis=0)
            for name in self._classifiers()
        ]
        return finished(np.mean(by_name, axis=0))

    def save(self, folder: str | Path) -> None:
        """Writes the settings and the fitted parts; no pickle."""
        require_fitted(self, self.parts)
        save_fitted(folder, self.kind, self.settings, self.parts)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What save wrote; predicts the same bits."""
        settings, parts = load_fitted(folder, cls.kind)
        loaded = cls(**settings)
        loaded.parts = parts
        return loaded

    def _prepare(self, rows: Sequence[ArenaRow]) -> dict[str, Any]:
        """Parts that must be fitted before rows can become matrices."""
        return {}

    def _matrices(self, rows: Sequence[ArenaRow]) -> tuple[Any, Any]:
        """(N, F) features of the rows as written and of the rows with the answers exchanged."""
        raise NotImplementedError

    def _classifiers(self) -> dict[str, list[Any]]:
        """Unfitted classifiers by name; those of one name share its weight, and all names weigh the same."""
        raise NotImplementedError


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
    return swap_average(label_probs(classifier, matrix), label_probs(classifier, swapped), SWAP)[0]


def label_probs(classifier: Any, matrix: Any) -> np.ndarray:
    """(N, 3) probabilities over LABELS of a fitted classifier, zero for a label that it never saw."""
    probs = np.zeros((matrix.shape[0], len(LABELS)))
    probs[:, classifier.classes_] = classifier.predict_proba(matrix)
    return probs


def finished(probs: np.ndarray) -> np.ndarray:
    """(N, 3) float32 rows that sum to one, no entry below about LEAST_PROB."""
    floored = np.maximum(probs, LEAST_PROB)
    return (floored / floored.sum(axis=1, keepdims=True)).astype(np.float32)


def _fit_weighted(classifier: Any, examples: Any, labels: np.ndarray, weights: np.ndarray) -> Any:
    steps = getattr(classifier, "steps", None)
    weight_name = f"{steps[-1][0]}__sample_weight" if steps else "sample_weight"
    with warnings.catch_warnings():
        # Networks stop after a set number of passes on purpose; with few rows there are fewer examples than quantiles.
        warnings.filterwarnings("ignore", message="Stochastic Optimizer: Maximum iterations")
        warnings.filterwarnings("ignore", message="n_quantiles")
        warnings.filterwarnings("ignore", message="Got `batch_size`")
        return classifier.fit(examples, labels, **{weight_name: weights})


def require_fitted(classifier: object, state: object) -> None:
    if not state:
        raise RuntimeError(f"{type(classifier).__name__} has not been fitted. Call fit(rows) or load(folder) first.")
