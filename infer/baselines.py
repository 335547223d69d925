"""What a network has to beat in the arena: chance, the prior, lengths, words, and structural features.

Each class has fit(rows), predict_proba(rows) -> (N, 3) float32 over LABELS, save(folder) and load(folder); what it says
of a swapped row is what it says of the row with columns 0 and 1 exchanged, to the last bit. Knows rows; never folds,
scores or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from infer.fitted_files import load_fitted, save_fitted
from infer.swap_symmetry import averaged_over_orders, both_orders, finished, soft_targets
from models.tasks.arena import LABELS, ArenaRow
from models.tasks.arena_features import TURN_BREAK, feature_names, features, swap_features


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
        _require_fitted(self, self.prior)
        return finished(np.tile(np.array(self.prior), (len(rows), 1)))

    def save(self, folder: str | Path) -> None:
        """Writes the prior."""
        _require_fitted(self, self.prior)
        save_fitted(folder, self.kind, {"prior": self.prior}, {})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What save wrote."""
        settings, _no_parts = load_fitted(folder, cls.kind)
        return cls(**settings)


class _Fitted:
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
        for name, classifier in self._classifiers().items():
            self.parts[name] = _fit_weighted(classifier, examples, labels, weights)
        return self

    def predict_proba(self, rows: Sequence[ArenaRow]) -> np.ndarray:
        """(N, 3) float32, mean over the classifiers and both orders."""
        _require_fitted(self, self.parts)
        if not rows:
            return np.zeros((0, len(LABELS)), dtype=np.float32)
        matrix, swapped = self._matrices(rows)
        probs = [averaged_over_orders(self.parts[name], matrix, swapped) for name in self._classifiers()]
        return finished(np.mean(probs, axis=0))

    def save(self, folder: str | Path) -> None:
        """Writes the settings and the fitted parts; no pickle."""
        _require_fitted(self, self.parts)
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

    def _classifiers(self) -> dict[str, Any]:
        """Unfitted classifiers by name."""
        raise NotImplementedError


LENGTH_FEATURES = ("chars", "words", "lines", "sentences", "empty")


class Length(_Fitted):
    """Multinomial logistic regression on the answers' lengths: log ratios, their absolute values, and means."""

    kind: ClassVar[str] = "length"

    def __init__(self, c: float = 1.0) -> None:
        super().__init__(c=c)

    def _matrices(self, rows: Sequence[ArenaRow]) -> tuple[np.ndarray, np.ndarray]:
        first, second = (_lengths([turns[side] for turns in map(_answers, rows)]) for side in (0, 1))
        difference, mean = first - second, (first + second) / 2
        shared = np.hstack([np.abs(difference), mean])
        return np.hstack([difference, shared]), np.hstack([-difference, shared])

    def _classifiers(self) -> dict[str, Any]:
        return {"logistic": _scaled_logistic(self.settings["c"])}


class Tfidf(_Fitted):
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

    def _classifiers(self) -> dict[str, Any]:
        return {"logistic": _logistic(self.settings["c"])}


class Features(_Fitted):
    """Structural features, read by boosted trees and by a logistic regression; their mean."""

    kind: ClassVar[str] = "features"

    def __init__(self, seed: int = 0, c: float = 0.003, trees: int = 200) -> None:
        super().__init__(seed=seed, c=c, trees=trees)

    def _matrices(self, rows: Sequence[ArenaRow]) -> tuple[np.ndarray, np.ndarray]:
        matrix = features(rows)
        return with_absolute(matrix), with_absolute(swap_features(matrix))

    def _classifiers(self) -> dict[str, Any]:
        from sklearn.ensemble import HistGradientBoostingClassifier

        trees = HistGradientBoostingClassifier(
            max_iter=self.settings["trees"],
            learning_rate=0.03,
            max_leaf_nodes=8,
            min_samples_leaf=40,
            l2_regularization=10.0,
            max_features=0.3,
            early_stopping=False,  # it would keep rows aside by chance, a row's swapped twin perhaps not among them
            random_state=self.settings["seed"],
        )
        return {"trees": trees, "logistic": _scaled_logistic(self.settings["c"])}


def with_absolute(matrix: np.ndarray) -> np.ndarray:
    """Appends |a - b| of every answer feature: which a linear model needs to see ties. matrix: (N, F) of `features`."""
    antisymmetric = [index for index, name in enumerate(feature_names()) if name.startswith("diff_")]
    return np.hstack([matrix, np.abs(matrix[:, antisymmetric])])


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


def _fit_weighted(classifier: Any, examples: Any, labels: np.ndarray, weights: np.ndarray) -> Any:
    steps = getattr(classifier, "steps", None)
    weight_name = f"{steps[-1][0]}__sample_weight" if steps else "sample_weight"
    return classifier.fit(examples, labels, **{weight_name: weights})


def _require_fitted(classifier: object, state: object) -> None:
    if not state:
        raise RuntimeError(f"{type(classifier).__name__} has not been fitted. Call fit(rows) or load(folder) first.")
