"""An encoder that a fold trains on texts: a new head on any encoder, tokens made once for all folds.

Knows rows of texts and settings; nothing of the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.text_encoder import TextEncoderReader
from infer.trained_text_encoder import TextEncoderClassifier
from models.encoder import check_budget
from models.names import resolve_model
from models.reader import load_tokenizer
from models.settings import Settings
from models.text_encoder import TextNetwork
from train.encoder_learner import load_trainable
from train.levers import length_multiple

if TYPE_CHECKING:
    from train.fold import FoldData


class TextEncoderLearner:
    """The TextNetwork of one fold. The first learner of a run leaves the rows' token ids in data.prepared.

    Raises FileNotFoundError for a model that is not there, ValueError for engine.max_tokens past its positions.
    """

    def __init__(self, settings: Settings, data: FoldData) -> None:
        self.task, self.rows = settings.task.name, data.rows.rows
        tokenizer = load_tokenizer(resolve_model(settings.model.name), newlines=False)
        encoder = load_trainable(settings, tokenizer, data.rows.labels)
        if settings.engine.max_tokens is not None:
            check_budget(encoder, settings.engine.max_tokens, settings.model.name, "engine.max_tokens")
        self.network = TextNetwork(encoder, settings.encoder.pooling)
        labels, engine = data.rows.labels, settings.engine
        self.reader = TextEncoderReader(
            self.network, tokenizer, labels, range(len(labels)), precision=settings.trainer.precision,
            max_tokens=engine.max_tokens, budget_tokens=engine.budget_tokens,
        )  # fmt: skip
        self.reader.encoding.multiple = length_multiple(settings.trainer)
        self.classifier = TextEncoderClassifier(self.reader, base=settings.model.name)
        if data.prepared is None:
            data.prepared = self.reader.encoding.encode(["\n".join(row.fields.values()) for row in self.rows])[0]
        self.ids: list[np.ndarray] = data.prepared

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.array([len(self.ids[row]) for row in rows])

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        return self.reader.encoding.batch([self.ids[item // 2] for item in items])  # a text has one order

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.classifier.predict([self.rows[row] for row in rows])

    def save(self, folder: Path) -> None:
        self.classifier.save(folder, task=self.task)

    def callbacks(self) -> list[Any]:
        return []
