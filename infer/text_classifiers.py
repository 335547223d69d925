"""What a language model has to beat on texts: chance, the labels' shares, n-grams and sentence vectors.

Each class has fit(rows, label_index), predict_proba(rows) -> (N, L) float32, save(folder) and load(folder). Knows rows
and labels; never folds, scores or a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from infer.checkpoints import checkpoint_identity, find_checkpoints, run_temperature
from infer.fitted_files import load_fitted, save_fitted
from infer.label_reader import LabelReading
from infer.logs import log
from models.checkpoint import read_identity
from models.settings import Settings
from models.tasks.text import TextRow

# Inverse strengths of the ridge that are tried; the best by log loss on inner folds is kept.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
INNER_FOLDS = 3


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
        # A label that no training row had gets half a row's share: it is rare, not impossible.
        floor = 0.5 / (self.settings["rows"] + 1)
        probs = np.full((len(texts), len(self.labels)), floor)
        probs[:, logistic.classes_] = logistic.predict_proba(self._columns(texts))
        return probs / probs.sum(axis=1, keepdims=True)

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


class EmbeddingLogistic(_LogisticTexts):
    """Logistic regression on the sentence vectors of all-MiniLM-L6-v2 (its package: infer.text_embeddings)."""

    kind = "text_embedding_logistic"

    def _columns(self, texts: list[str]) -> Any:
        from infer.text_embeddings import embed

        return embed(texts)


# method.name -> its class; a checkpoint says which one made it.
KINDS: dict[str, type[TextClassifier]] = {
    "uniform": UniformTexts,
    "prior": PriorTexts,
    "tfidf": TfidfTexts,
    "embedding_logistic": EmbeddingLogistic,
}


class CheckpointReader:
    """Rows of text fields in, the mean of several fitted classifiers out, with the run's temperature."""

    def __init__(
        self, classifiers: Sequence[TextClassifier], identity: Mapping[str, Any], temperature: float | None
    ) -> None:
        self.classifiers = list(classifiers)
        self.labels = self.classifiers[0].labels
        self.identity = dict(identity)
        self.temperature = temperature

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """log_probs of normalised probabilities: nothing is outside the labels."""
        from infer.calibration import floored_softmax

        texts = [TextRow("", dict(row), None, {}, "") for row in rows]
        mean = np.mean([one.predict_proba(texts).astype(np.float64) for one in self.classifiers], axis=0)
        with np.errstate(divide="ignore"):
            log_probs = np.log(mean / mean.sum(axis=1, keepdims=True))
        if self.temperature is not None:
            log_probs = np.log(floored_softmax(log_probs / self.temperature))
        return LabelReading(log_probs, np.zeros(len(rows)))


def load_checkpoint_reader(settings: Settings) -> CheckpointReader:
    """The fitted classifiers of a run's finished folds. Refuses checkpoints of another method or other labels."""
    folder, labels = Path(settings.run_dir), tuple(settings.question.labels)
    method = settings.method.name
    checkpoints = find_checkpoints(folder)
    for checkpoint in checkpoints:
        made = read_identity(checkpoint, labels=labels)["method"]
        if made != method:
            raise ValueError(f"{checkpoint} was made by method={made}, not {method}. Name it, or another run_dir.")
    log.info(f"{len(checkpoints)} checkpoint(s) in {folder}: {method}")
    temperature = run_temperature(folder, labels, say=True)
    classifiers = [KINDS[method].load(checkpoint) for checkpoint in checkpoints]
    return CheckpointReader(classifiers, {"method": method, **checkpoint_identity(folder, labels)}, temperature)


def text_of(row: TextRow) -> str:
    """All texts of a row, a line each."""
    return "\n".join(row.fields.values())


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
