"""The fitted classifiers of a run's folds as one reader of texts: their mean, with the run's temperature.

Knows checkpoints and rows of texts; nothing of how a classifier learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.checkpoints import checkpoint_identity, find_checkpoints, refuse_other_method, run_temperature
from infer.logs import log
from infer.readers.label import LabelReading
from infer.text_classifiers import KINDS, TextClassifier
from models.checkpoint import read_identity
from models.settings import Settings
from models.tasks.text import TextRow


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
        from infer.calibration.temperature import floored_softmax

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
    refuse_other_method(checkpoints, method)
    for checkpoint in checkpoints:
        read_identity(checkpoint, labels=labels)
    log.info(f"{len(checkpoints)} checkpoint(s) in {folder}: {method}")
    temperature = run_temperature(folder, labels, say=True)
    classifiers = [KINDS[method].load(checkpoint) for checkpoint in checkpoints]
    return CheckpointReader(classifiers, {"method": method, **checkpoint_identity(folder, labels)}, temperature)
