"""An encoder that a fold trains on texts: a new head on any encoder, tokens made once for all folds.

Knows rows of texts and settings; nothing of the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.readers.text_encoder import TextEncoderReader
from infer.readers.trained_text_encoder import TextEncoderClassifier
from models.encoder import check_budget
from models.names import resolve_model
from models.prompt_tokens import Encoded
from models.reader import load_tokenizer
from models.settings import Settings
from models.tasks.text import TextRow
from models.text_encoder import TextNetwork, whole_texts
from train.encoder_learner import load_trainable
from train.levers import length_multiple

if TYPE_CHECKING:
    from train.fold import FoldData


@dataclass
class PreparedTexts:
    """What all folds share. whole: the rows as tokens, not cut yet: where, a fold's network says."""

    tokenizer: Any
    whole: list[Encoded]


def prepare_texts(settings: Settings, rows: Sequence[TextRow]) -> PreparedTexts:
    """Tokenise every row once for all folds."""
    tokenizer = load_tokenizer(resolve_model(settings.model.name), newlines=False)
    return PreparedTexts(tokenizer, whole_texts(tokenizer, ["\n".join(row.fields.values()) for row in rows]))


class TextEncoderLearner:
    """The TextNetwork of one fold.

    Raises FileNotFoundError for a model that is not there, ValueError for engine.max_tokens past its positions.
    """

    def __init__(self, settings: Settings, data: FoldData) -> None:
        self.task, self.rows = settings.task.name, data.rows.rows
        prepared: PreparedTexts = data.prepared
        tokenizer = prepared.tokenizer
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
        self.ids = self.reader.encoding.cut(prepared.whole)[0]

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
