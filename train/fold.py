"""One fold: train on the other folds' rows, save the checkpoint, predict the held-out rows from what was saved.

Knows rows and settings; how a network is trained is train.attempts, what is trained train.learners.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.batching import release_memory
from infer.files import write_json
from infer.predictions import Predictions
from models.manifest import sha256
from models.settings import Settings
from models.tasks.files import write_atomically
from train.learners import TRAINED
from train.record import refuse_vanished
from train.rows import LabelledRows

log = logging.getLogger("tiebreak")

DONE, HELDOUT, DISAGREEMENT = "done.json", "heldout.csv", "disagreement.npy"


@dataclass
class FoldData:
    """What all folds of a run share.

    rows: N labelled rows. folds: (N,) the fold that holds each row out, -1 for never. prepared: what the learner made
    of all rows beforehand (tokens); None for methods that read text. processes: that a step is made for, those of the
    launch that began the run; another number of them reads the same steps.
    """

    rows: LabelledRows
    folds: np.ndarray
    prepared: Any = None
    processes: int = 1

    def training(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.folds != fold)

    def heldout(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.folds == fold)

    def texts(self, rows: np.ndarray) -> list[Any]:
        """The rows themselves at these numbers."""
        return [self.rows.rows[row] for row in rows]

    def predictions(
        self, rows: np.ndarray, probs: np.ndarray, fold: int | None = None, other: np.ndarray | None = None
    ) -> Predictions:
        """The table of some rows; their true labels beside the probabilities. other: (n,), None: nothing."""
        return Predictions(
            ids=self.rows.ids[rows],
            labels=self.rows.labels,
            probs=probs,
            other=np.zeros(len(rows), dtype=np.float32) if other is None else other,
            truth=self.rows.truth[rows],
            fold=None if fold is None else np.full(len(rows), fold),
        )


def train_fold(
    settings: Settings, data: FoldData, fold: int, folder: Path, *, deliver: bool = True
) -> tuple[bool, float]:
    """Leave checkpoint/, heldout.csv and, last of all, done.json in `folder`; resumes what it finds there.

    Returns (was it cut short, the seconds that must be left for another fold to be worth its beginning).

    deliver: where the time budget ends before the training does, with the network of then; else raises TimeIsUp.
    Raises Stopped where a signal came.
    """
    from infer.classifiers import load_classifier, make_classifier, save_classifier
    from infer.ranks import is_main, wait_for_all
    from train.attempts import fit_network
    from train.checkpoints import clear_attempts

    refuse_vanished(folder.parent)
    started = time.monotonic()
    story: dict[str, Any] = {}
    if settings.method.name in TRAINED:
        story = fit_network(settings, data, fold, folder, deliver=deliver)
        least_s = story.pop("least_s")
    elif is_main():
        classifier = make_classifier(
            settings.method, seed=settings.seed, labels=data.rows.labels, embedding=settings.embedding
        )
        fit_rows(classifier, data, data.training(fold))
        save_classifier(classifier, folder / "checkpoint", task=settings.task.name, method=settings.method.name)
    wait_for_all()
    held = data.heldout(fold)
    attention = getattr(settings.model, "attention", "auto")  # language models have none
    classifier = load_classifier(folder / "checkpoint", attention=attention)
    probs, other, disagreement = predict_heldout(settings, classifier, data, held)
    del classifier  # its memory is the next fold's
    release_memory()
    if is_main():
        refuse_vanished(folder.parent)
        table = data.predictions(held, probs, fold, other)
        table.write(folder / HELDOUT)
        with write_atomically(folder / DISAGREEMENT) as temporary:
            np.save(temporary, disagreement)
        marks = {name: sha256(folder / name) for name in (HELDOUT, DISAGREEMENT)}
        done = {"fold": fold, "log_loss": table.log_loss(), "rows": len(held), "seconds": time.monotonic() - started}
        write_json(folder / DONE, done | {"sha256": marks} | story)
        if not story.get("cut_short"):
            clear_attempts(folder)
        log.info(f"fold {fold}: held-out log loss {table.log_loss():.4f} on {len(held)} rows")
    wait_for_all()
    if settings.method.name not in TRAINED:  # what learns by fit cannot stop half-way
        least_s = time.monotonic() - started
    return bool(story.get("cut_short")), least_s


def fit_rows(classifier: Any, data: FoldData, rows: np.ndarray) -> None:
    """Fit a method that learns by fit: arena rows bring their targets, texts stand beside theirs."""
    if data.rows.swap is not None:
        classifier.fit(data.texts(rows))
    else:
        classifier.fit(data.texts(rows), data.rows.label_index[rows])


def predict_heldout(
    settings: Settings, classifier: Any, data: FoldData, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What Learner.predict gives, for the rows `held` by a saved checkpoint: the code of the submission."""
    if settings.method.name == "encoder" and settings.task.name == "arena":
        from train.encoder_learner import predict_rows

        return predict_rows(classifier, data.prepared.fields, data.prepared.matrix, held, settings.trainer)
    if settings.method.name in TRAINED:
        found: tuple[np.ndarray, np.ndarray, np.ndarray] = classifier.predict(data.texts(held))
        return found
    nothing = np.zeros(len(held), dtype=np.float32)
    return np.asarray(classifier.predict_proba(data.texts(held))), nothing, nothing
