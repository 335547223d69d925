"""The baselines of a run, on its own folds: what a score is worth is what it beats.

Knows rows and folds; what each baseline is stands in infer.baselines.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from infer.files import write_json
from infer.metrics import PRIOR
from infer.predictions import Predictions, join
from models.settings import MethodSettings
from train.fold import FoldData

log = logging.getLogger("tiebreak")

BASELINES = {"uniform": "uniform", "prior": PRIOR, "length": "length only", "features": "structural features"}


def score_baselines(data: FoldData, folds: list[int], *, seed: int, folder: Path) -> dict[str, float]:
    """Held-out log loss of every baseline on these folds, by its name in words. Kept in baselines.json."""
    path = folder / "baselines.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("folds") != folds:
        log.info(f"baselines on the same folds: {', '.join(BASELINES.values())}")
        losses = {words: heldout_of(method, data, folds, seed=seed).log_loss() for method, words in BASELINES.items()}
        kept = {"folds": folds, "log_loss": losses}
        write_json(path, kept)
    return dict(kept["log_loss"])


def heldout_of(method: str, data: FoldData, folds: list[int], *, seed: int) -> Predictions:
    """A method's held-out table: fitted anew for each fold on the rows outside it."""
    from infer.classifiers import make_classifier

    parts = []
    for fold in folds:
        classifier = make_classifier(MethodSettings(name=method, embeddings="no"), seed=seed)
        classifier.fit([data.rows[row] for row in data.training(fold)])
        held = data.heldout(fold)
        parts.append(
            data.predictions(held, np.asarray(classifier.predict_proba([data.rows[row] for row in held])), fold)
        )
    return join(parts)
