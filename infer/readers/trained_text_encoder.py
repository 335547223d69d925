"""A text encoder that the project trained: one fold's checkpoint as a classifier, a run's folds as one reader.

The held-out table of training and tables of texts both come from here. Knows checkpoints; nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from infer.adapter_reading import mean_reading, predict_rows, tempered
from infer.checkpoints import checkpoint_identity, find_checkpoints, precision_here, run_temperature
from infer.logs import log
from infer.readers.label import LabelReading
from infer.readers.text_encoder import TextEncoderReader
from models.checkpoint import read_identity, write_identity
from models.precision import device_and_precision
from models.reader import load_tokenizer
from models.settings import Settings
from models.text_encoder import load_text_network, save_text_network


class TextEncoderClassifier:
    """A reader whose outputs are our labels, as a classifier of rows of texts. base: the model it was made of."""

    def __init__(self, reader: TextEncoderReader, *, base: str) -> None:
        self.reader, self.base = reader, base
        self.labels = reader.labels

    def predict_proba(self, rows: Sequence[Any]) -> np.ndarray:
        """(N, L) float32, rows sum to one. Every process of a launch must call it; each reads its share."""
        return self.predict(rows)[0]

    def predict(self, rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((N, L) probabilities, zeros: nothing is outside the labels, zeros: there is one order)."""
        return predict_rows(self.reader.read, rows, labels=len(self.labels), tta=False)

    def save(self, folder: Path, *, task: str) -> None:
        """Write an ordinary sequence-classification checkpoint; the identity, written last, says that it is whole."""
        save_text_network(self.reader.model, folder)
        encoding = self.reader.encoding
        encoding.tokenizer.save_pretrained(folder)
        write_identity(
            folder, task=task, method="encoder", labels=self.labels, base=self.base,
            max_tokens=encoding.max_tokens, precision=self.reader.precision,
        )  # fmt: skip

    @classmethod
    def load(
        cls, folder: Path, *, precision: str | None = None, max_tokens: int | None = None,
        budget_tokens: int | None = None, attention: str = "auto",
    ) -> Self:  # fmt: skip
        """The classifier of a checkpoint folder; needs nothing outside it. None: as it was trained.

        Raises ValueError for the checkpoint of another task or method, and what loading raises.
        """
        identity = read_identity(folder)
        check_trained(folder, identity)
        labels = identity["labels"]
        reader = TextEncoderReader(
            load_text_network(str(folder), attention=attention), load_tokenizer(folder, newlines=False), labels,
            range(len(labels)),
            precision=precision or precision_here(identity["precision"]),
            max_tokens=max_tokens or identity["max_tokens"], budget_tokens=budget_tokens,
        )  # fmt: skip
        return cls(reader, base=identity["base"])


class TrainedReader:
    """Reads rows with the encoders of one or more folds: their mean probabilities, with the run's temperature."""

    def __init__(
        self, classifiers: Sequence[TextEncoderClassifier], identity: Mapping[str, Any], temperature: float | None
    ) -> None:
        self.readers = [one.reader for one in classifiers]
        self.labels = self.readers[0].labels
        self.identity, self.temperature = dict(identity), temperature

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The labels' log-probabilities for rows of text fields. names: of the rows, for errors."""
        reading = mean_reading([one.read(rows, names=names, progress=progress) for one in self.readers])
        return reading if self.temperature is None else tempered(reading, self.temperature)


def load_trained_reader(settings: Settings) -> TrainedReader:
    """The encoders of a run's finished folds. Raises what identify_trained raises, before anything is loaded."""
    folder, labels, engine = Path(settings.run_dir), tuple(settings.question.labels), settings.engine
    identity = {**identify_trained(settings), **checkpoint_identity(folder, labels)}
    folders = find_checkpoints(folder)
    precision = None if engine.precision == "auto" else engine.precision
    classifiers = [
        TextEncoderClassifier.load(
            one,
            precision=precision,
            max_tokens=engine.max_tokens,
            budget_tokens=engine.budget_tokens,
            attention=settings.encoder.attention,
        )
        for one in folders
    ]
    log.info(f"{len(folders)} checkpoint(s) in {folder}: {classifiers[0].reader.said()}")
    return TrainedReader(classifiers, identity, run_temperature(folder, labels, say=True))


def identify_trained(settings: Settings) -> dict[str, Any]:
    """The number format that a run's checkpoints are read in here; their files have marks of their own.

    Refuses checkpoints of another base, task, method or label list.
    """
    asked = settings.engine.precision
    for folder in find_checkpoints(Path(settings.run_dir)):
        identity = read_identity(folder, labels=list(settings.question.labels))
        check_trained(folder, identity)
        if identity["base"] != settings.model.name:
            raise ValueError(
                f"{folder} was trained from {identity['base']}, and model.name is {settings.model.name}. To read what "
                f"was trained set model.name={identity['base']}; to read another checkpoint as it is, another run_dir."
            )
        asked = precision_here(identity["precision"]) if asked == "auto" else asked
    return {"precision": device_and_precision(asked, "engine.precision")[1]}


def check_trained(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that reads no texts, or was made by another method than method=encoder."""
    if identity["task"] == "arena" or identity["method"] != "encoder":
        raise ValueError(
            f"{folder} was trained for the task {identity['task']} by method={identity['method']}, expected texts and "
            "method=encoder. Name another run_dir."
        )
