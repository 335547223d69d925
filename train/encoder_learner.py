"""An encoder that a fold trains on arena rows: both heads, both orders, tokens made once for all folds.

Knows arena rows, tokens and settings; nothing of the training loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.encoder import EncoderClassifier, build_model
from infer.ranks import wait_for_all
from models.adapters import checkpoint_activations
from models.added_row import train_line_break
from models.encoder import check_budget, freeze_lowest, load_encoder
from models.encoder_adapters import add_adapters
from models.names import resolve_model
from models.reader import FeatureScale, PairReader, load_tokenizer, make_reader
from models.settings import Settings
from models.tasks.arena import LABELS, ArenaRow
from models.tasks.arena_features import features
from models.tasks.tokens import cached_fields
from train.levers import length_multiple, rounded

log = logging.getLogger("tiebreak")


@dataclass
class PreparedRows:
    """What all folds share. fields: the rows' token ids. lengths: (N,) tokens that each takes in a batch.

    matrix: (N, F) structural features, where asked for.
    """

    tokenizer: Any
    fields: Any
    reader: PairReader
    lengths: np.ndarray
    matrix: np.ndarray | None = None


def prepare_rows(settings: Settings, rows: Sequence[ArenaRow], folder: Path, main: bool) -> PreparedRows:
    """Tokenise every field once for all folds; compute the pair features where the head reads them."""
    tokenizer = load_tokenizer(resolve_model(settings.model.name))
    if main:
        cached_fields(rows, tokenizer, folder)
    wait_for_all()
    fields = cached_fields(rows, tokenizer, folder)
    task = settings.arena
    reader = make_reader(
        tokenizer, head=settings.encoder.head, budget_tokens=task.budget_tokens, prompt_share=task.prompt_share,
        multiple=length_multiple(settings.trainer),
    )  # fmt: skip
    lengths = np.array([reader.tokens(one) for one in fields])
    return PreparedRows(tokenizer, fields, reader, lengths, features(rows) if settings.encoder.pair_features else None)


class EncoderLearner:
    """The PairClassifier of one fold. training: numbers of the rows whose features set the scale."""

    def __init__(self, settings: Settings, prepared: PreparedRows, training: np.ndarray) -> None:
        self.trainer = settings.trainer
        self.fields, matrix = prepared.fields, prepared.matrix
        scale = None if matrix is None else FeatureScale.fit(matrix[training])
        self.matrix = matrix
        self.given = None if scale is None or matrix is None else scale.apply(matrix)
        self.reader, self.row_lengths = prepared.reader, prepared.lengths
        self.network = build_network(settings, prepared.tokenizer, scale)
        self.classifier = EncoderClassifier(
            self.network, prepared.tokenizer, self.reader, scale, tta=self.trainer.tta, base=settings.model.name
        )

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return self.row_lengths[rows]

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        return self.reader.batch(self.fields, list(items), self.given)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return predict_rows(self.classifier, self.fields, self.matrix, rows, self.trainer)

    def save(self, folder: Path) -> None:
        self.classifier.save(folder)

    def callbacks(self) -> list[Any]:
        return []


def predict_rows(
    classifier: EncoderClassifier, fields: Any, matrix: np.ndarray | None, rows: np.ndarray, trainer: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Learner.predict by any encoder of this tokenizer, from tokens that are made already."""
    given = None if classifier.scale is None or matrix is None else classifier.scale.apply(matrix[rows])
    mine = [fields[int(row)] for row in rows]
    probs, gap = classifier.probs_of(mine, given, batch_rows=trainer.predict_batch_rows, precision=trainer.precision)
    return probs, np.zeros(len(rows), dtype=np.float32), gap


def build_network(settings: Settings, tokenizer: Any, scale: Any) -> Any:
    """The PairClassifier that a fold of this run starts from. scale: a FeatureScale, or None to read text only.

    Raises FileNotFoundError for a model that is not there, ValueError for a budget past its positions.
    """
    encoder = load_trainable(settings, tokenizer, LABELS)
    longest = rounded(settings.arena.budget_tokens, length_multiple(settings.trainer))
    check_budget(encoder, longest, settings.model.name)
    return build_model(encoder, settings.encoder.head, scale)


def load_trainable(settings: Settings, tokenizer: Any, labels: Sequence[str]) -> Any:
    """The encoder of a run with a head for these labels, as its settings have it trained: dropout, adapters, frozen."""
    wanted = settings.encoder
    encoder: Any = load_encoder(
        resolve_model(wanted.name), labels=labels, dropout=wanted.dropout, vocab_size=len(tokenizer),
        attention=wanted.attention, allow_pickle=wanted.allow_pickle,
    )  # fmt: skip
    if wanted.adapters:
        add_adapters(encoder, settings.adapter)
    freeze_lowest(encoder, wanted.frozen_layers)
    # Below frozen layers its gradient would have to pass all of them: the time and memory that freezing them saves.
    if wanted.frozen_layers <= 1:
        train_line_break(encoder, tokenizer)
    if settings.trainer.activation_checkpointing:
        checkpoint_activations(encoder, settings.trainer.checkpoint_every)
    counts = [(weight.numel(), weight.requires_grad) for weight in encoder.parameters()]
    trained, whole = sum(size for size, trains in counts if trains), sum(size for size, _ in counts)
    if trained < whole:
        log.info(f"{trained / 1e6:.2f} M of {whole / 1e6:.2f} M weights train")
    return encoder
