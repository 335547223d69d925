"""The baselines of a run, on its own folds: what a score is worth is what it beats.

Knows rows and folds; what each baseline is stands in infer.baselines.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from infer.files import write_json
from infer.metrics import PRIOR
from infer.predictions import Predictions, join
from models.method_settings import MethodSettings
from models.tasks.files import read_record
from train.fold import FoldData, fit_rows

log = logging.getLogger("tiebreak")

ARENA = {"uniform": "uniform", "prior": PRIOR, "length": "length only", "features": "structural features"}
TEXTS = {"uniform": "uniform", "prior": PRIOR, "tfidf": "TF-IDF", "embedding_logistic": "sentence vectors"}


def score_baselines(data: FoldData, folds: list[int], *, seed: int, folder: Path) -> dict[str, float]:
    """Held-out log loss of every baseline on these folds, by its name in words. Kept in baselines.json."""
    path = folder / "baselines.json"
    try:
        kept = read_record(path)
    except (OSError, ValueError):  # none yet, or damaged
        kept = {}
    if kept.get("folds") != folds:
        wanted = baselines_of(data)
        log.info(f"baselines on the same folds: {', '.join(wanted.values())}")
        losses = {words: heldout_of(method, data, folds, seed=seed).log_loss() for method, words in wanted.items()}
        kept = {"folds": folds, "log_loss": losses}
        write_json(path, kept)
    return dict(kept["log_loss"])


def baselines_of(data: FoldData) -> dict[str, str]:
    """{method: its name in words} for rows of this kind; sentence vectors where their package is installed."""
    from infer.text_embeddings import installed

    if data.rows.swap is not None:
        return ARENA
    return {method: words for method, words in TEXTS.items() if method != "embedding_logistic" or installed()}


def heldout_of(method: str, data: FoldData, folds: list[int], *, seed: int) -> Predictions:
    """A method's held-out table: fitted anew for each fold on the rows outside it."""
    from infer.classifiers import make_classifier

    parts = []
    for fold in folds:
        settings = MethodSettings(name=method, embeddings="no")
        classifier = make_classifier(settings, seed=seed, labels=data.rows.labels)
        fit_rows(classifier, data, data.training(fold))
        held = data.heldout(fold)
        parts.append(data.predictions(held, np.asarray(classifier.predict_proba(data.texts(held))), fold))
    return join(parts)
