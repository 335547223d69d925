"""What a language model has to beat on texts: chance, the labels' shares, n-grams and sentence vectors.

Each class has fit(rows, label_index), predict_proba(rows) -> (N, L) float32, save(folder) and load(folder). Knows rows
and labels; never folds, scores or a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from infer.fitted_files import load_fitted, save_fitted
from infer.text_embeddings import MINILM, Embedding, embed
from models.tasks.text import TextRow

# Inverse strengths of the ridge that are tried; the best by log loss on inner folds is kept.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
INNER_FOLDS = 3
TEMPERATURES = (0.003, 10.0)  # between which that of the class means is sought
USUAL_TEMPERATURE = 0.1


class TextClassifier:
    """A classifier of texts into `labels`; says nothing of how. seed: of the inner folds, where there are any."""

    kind: ClassVar[str]

    def __init__(self, labels: Sequence[str], seed: int = 0) -> None:
        self.labels = tuple(labels)
        self.seed = seed
        self.settings: dict[str, Any] = {}
        self.parts: dict[str, Any] = {}

    def fit(
        self, rows: Sequence[TextRow], label_index: np.ndarray | Sequence[int], sample_weight: np.ndarray | None = None
    ) -> Self:
        """Learns. label_index: (N,) column of each row's label. sample_weight: (N,) what a row counts; None: 1."""
        index = np.asarray(label_index, dtype=np.int64)
        if len(rows) == 0 or index.shape != (len(rows),):
            raise ValueError(f"{len(rows)} rows and {index.shape} labels were given, expected one label for each row.")
        weight = np.ones(len(rows)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        self._learn([text_of(row) for row in rows], index, weight)
        return self

    def predict_proba(self, rows: Sequence[TextRow]) -> np.ndarray:
        """(N, L) float32, columns in the order of labels, rows sum to one."""
        probs = self._probs([text_of(row) for row in rows]) if rows else np.zeros((0, len(self.labels)))
        return probs.astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes what was learnt."""
        self._require_fitted()
        save_fitted(folder, self.kind, {"labels": list(self.labels), "seed": self.seed, **self.settings}, self.parts)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What save wrote."""
        settings, parts = load_fitted(folder, cls.kind)
        loaded = cls(settings.pop("labels"), settings.pop("seed"))
        loaded.settings, loaded.parts = settings, parts
        return loaded

    def _learn(self, texts: list[str], index: np.ndarray, weight: np.ndarray) -> None:
        raise NotImplementedError

    def _probs(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def _require_fitted(self) -> None:
        if not self.settings:
            raise ValueError(f"This {type(self).__name__} is not fitted. Call fit(rows, label_index) or load(folder).")


class UniformTexts(TextClassifier):
    """The same share for each label."""

    kind = "text_uniform"

    def _learn(self, texts: list[str], index: np.ndarray, weight: np.ndarray) -> None:
        self.settings = {"prior": [1 / len(self.labels)] * len(self.labels)}

    def _probs(self, texts: list[str]) -> np.ndarray:
        self._require_fitted()
        return np.tile(np.array(self.settings["prior"]), (len(texts), 1))


class PriorTexts(UniformTexts):
    """The labels' shares of the training rows, each with one row added, so that none is impossible."""

    kind = "text_prior"

    def _learn(self, texts: list[str], index: np.ndarray, weight: np.ndarray) -> None:
        counts = np.bincount(index, weights=weight, minlength=len(self.labels)) + 1
        self.settings = {"prior": (counts / counts.sum()).tolist()}


class _LogisticTexts(TextClassifier):
    """Logistic regression on the columns of a text; its strength is chosen by log loss on inner folds."""

    def _learn(self, texts: list[str], index: np.ndarray, weight: np.ndarray) -> None:
        self.parts = self._fit_columns(texts)
        columns = self._columns(texts)
        strength = best_strength(columns, index, weight, seed=self.seed)
        self.parts["logistic"] = _logistic(strength).fit(columns, index, sample_weight=weight)
        self.settings = {"strength": strength, "rows": len(texts)}

    def _probs(self, texts: list[str]) -> np.ndarray:
        self._require_fitted()
        logistic = self.parts["logistic"]
        known = logistic.predict_proba(self._columns(texts))
        return _spread_out(known, logistic.classes_, len(self.labels), self.settings)

    def _fit_columns(self, texts: list[str]) -> dict[str, Any]:
        return {}

    def _columns(self, texts: list[str]) -> Any:
        raise NotImplementedError


class TfidfTexts(_LogisticTexts):
    """Logistic regression on character n-grams inside words, 2 to 5 long, and on words and pairs of words."""

    kind = "text_tfidf"

    def _fit_columns(self, texts: list[str]) -> dict[str, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Of few texts an n-gram that stands once is all there is; of many it is a name that will not come again.
        least = 2 if len(texts) > 200 else 1
        common = {"sublinear_tf": True, "min_df": least, "max_features": 100_000, "dtype": np.float32}
        vectorizers = {
            "signs": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **common),
            "words": TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **common),
        }
        return {name: vectorizer.fit(texts) for name, vectorizer in vectorizers.items()}

    def _columns(self, texts: list[str]) -> Any:
        from scipy import sparse

        return sparse.hstack([self.parts[name].transform(texts) for name in ("signs", "words")], "csr")


class _EmbeddedTexts(TextClassifier):
    """Reads the sentence vectors of an Embedding, which its folder names: MiniLM's unless another is set before fit."""

    embedding: Embedding = MINILM

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        loaded = super().load(folder)
        if "embedding" in loaded.settings:  # folders written before there was a choice have none
            loaded.embedding = Embedding(**loaded.settings["embedding"])
        return loaded

    def _columns(self, texts: list[str]) -> Any:
        return embed(texts, self.embedding)


class EmbeddingLogistic(_EmbeddedTexts, _LogisticTexts):
    """Logistic regression on sentence vectors."""

    kind = "text_embedding_logistic"

    def _learn(self, texts: list[str], index: np.ndarray, weight: np.ndarray) -> None:
        super()._learn(texts, index, weight)
        self.settings["embedding"] = asdict(self.embedding)


class EmbeddingCentroid(_EmbeddedTexts):
    """Cosine to the mean sentence vector of each label's rows, over a temperature that is learnt from them."""

    kind = "text_embedding_centroid"

    def _learn(self, texts: list[str], index: np.ndarray, weight: np.ndarray) -> None:
        vectors = self._columns(texts).astype(np.float64)
        owns = np.eye(len(self.labels))[index] * weight[:, None]  # (N, L)
        sums = owns.T @ vectors  # (L, H)
        self.parts = {"centroids": unit(sums)}
        self.settings = {
            "temperature": _centroid_temperature(vectors, sums, index, weight),
            "known": sorted(set(index.tolist())), "rows": len(texts), "embedding": asdict(self.embedding),
        }  # fmt: skip

    def _probs(self, texts: list[str]) -> np.ndarray:
        self._require_fitted()
        known = self.settings["known"]
        cosines = self._columns(texts).astype(np.float64) @ self.parts["centroids"][known].T
        return _spread_out(tempered(cosines, self.settings["temperature"]), known, len(self.labels), self.settings)


# method.name -> its class; a checkpoint says which one made it.
KINDS: dict[str, type[TextClassifier]] = {
    "uniform": UniformTexts,
    "prior": PriorTexts,
    "tfidf": TfidfTexts,
    "embedding_logistic": EmbeddingLogistic,
    "embedding_centroid": EmbeddingCentroid,
}


def text_of(row: TextRow) -> str:
    """All texts of a row, a line each."""
    return "\n".join(row.fields.values())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length; a row of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def tempered(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """(N, L) probabilities: the softmax of cosines over the temperature."""
    logits = cosines / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _centroid_temperature(vectors: np.ndarray, sums: np.ndarray, index: np.ndarray, weight: np.ndarray) -> float:
    """The temperature of least log loss where each row is left out of its own label's mean; 0.1 where none can be.

    vectors: (N, H) unit. sums: (L, H) of each label's rows, weighted.
    """
    from scipy.optimize import minimize_scalar

    known = np.unique(index)
    counts = np.bincount(index, minlength=len(sums))
    rows = np.flatnonzero(counts[index] > 1)  # a label's only row has no mean without it
    if len(known) < 2 or not len(rows):
        return USUAL_TEMPERATURE
    cosines = vectors[rows] @ unit(sums[known]).T
    own = np.searchsorted(known, index[rows])
    without = unit(sums[index[rows]] - weight[rows, None] * vectors[rows])
    at = np.arange(len(rows))
    cosines[at, own] = np.sum(vectors[rows] * without, axis=1)

    def loss(log_temperature: float) -> float:
        probs = tempered(cosines, float(np.exp(log_temperature)))[at, own]
        return float(-np.average(np.log(np.maximum(probs, 1e-15)), weights=weight[rows]))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def _spread_out(probs: np.ndarray, known: Any, labels: int, settings: dict[str, Any]) -> np.ndarray:
    """(N, labels) from the (N, K) of the labels that had training rows, whose columns are `known`.

    A label that no training row had gets half a row's share: it is rare, not impossible.
    """
    full = np.full((len(probs), labels), 0.5 / (settings["rows"] + 1))
    full[:, known] = probs
    return full / full.sum(axis=1, keepdims=True)


def best_strength(columns: Any, index: np.ndarray, weight: np.ndarray, *, seed: int) -> float:
    """The one of STRENGTHS with the least log loss on inner folds; 1 where a label has too few rows for two folds."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    _, counts = np.unique(index, return_counts=True)
    folds = min(INNER_FOLDS, int(counts.min()))
    if folds < 2:
        return 1.0
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(index, index))
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for training, held_out in splits:
        for strength in STRENGTHS:
            fitted = _logistic(strength).fit(columns[training], index[training], sample_weight=weight[training])
            probs = fitted.predict_proba(columns[held_out])
            losses[strength] += log_loss(
                index[held_out], probs, labels=fitted.classes_, sample_weight=weight[held_out], normalize=False
            )
    return min(losses, key=lambda strength: losses[strength])


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=3000)
