"""A checkpoint as a reader of arena rows in one order of their answers: how far each row reaches, what it says of them.

Knows which methods read two orders and how each is asked; never chunks, files or several processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.batching import batches
from infer.checkpoints import precision_here
from infer.classifiers import load_classifier
from models.checkpoint import read_identity
from models.precision import device_and_precision
from models.settings import Settings
from models.tasks.arena import LABELS, SWAP, ArenaRow, text_bytes

CHUNK_BATCHES = 8  # of an encoder: seconds on a GPU, a minute or two on a CPU


def orders_of(checkpoint: Path) -> int:
    """2 where the checkpoint reads a row in both orders of its answers and takes the mean; else 1."""
    identity = read_identity(checkpoint, task="arena", labels=LABELS)
    both = identity["method"] == "adapter" or (identity["method"] == "encoder" and identity["head"] == "joint")
    return 2 if both and identity["tta"] else 1


def format_of(checkpoint: Path, settings: Settings) -> str | None:
    """The number format in which this device reads the checkpoint: fp32, fp16 or bf16; None without a network."""
    identity = read_identity(checkpoint)
    if identity["method"] == "encoder":
        return device_and_precision(settings.trainer.precision)[1]
    if identity["method"] == "adapter":
        return device_and_precision(precision_here(identity["precision"]))[1]
    return None


@dataclass(frozen=True)
class RowChunks:
    """The rows in the order in which they are read, the longest first, and where a chunk of them begins.

    rows: the positions of each chunk's rows. cost: (N,) of a row, as its time grows. sizes: (N,) tokens of a row for
    encoders, bytes of its texts for others.
    """

    rows: list[np.ndarray]
    cost: np.ndarray
    sizes: np.ndarray
    fields: Any = None  # the rows' tokens, for encoders

    def digest(self) -> str:
        """SHA-256 of which rows each chunk holds: a chunk's number means nothing among other chunks."""
        digest = hashlib.sha256(np.array([len(rows) for rows in self.rows], dtype="<i8").tobytes())
        for rows in self.rows:
            digest.update(np.asarray(rows, dtype="<i8").tobytes())
        return digest.hexdigest()


def chunk_rows(checkpoint: Path, rows: Sequence[ArenaRow], settings: Settings, cache: Path) -> RowChunks:
    """The chunks of a run's rows, whichever of its checkpoints reads them; the same at every start.

    An encoder's chunks end where its batches end, so that they change no number. cache: the folder of the tokens.
    """
    if read_identity(checkpoint)["method"] == "encoder":
        from infer.encoder import load_reading
        from models.tasks.tokens import cached_fields

        tokenizer, reader = load_reading(checkpoint)
        fields = cached_fields(rows, tokenizer, cache)
        tokens = np.array([reader.tokens(one) for one in fields], dtype=np.int64)
        order = np.argsort(-tokens, kind="stable")  # running out of memory shows at once
        whole = list(batches(order, tokens, budget_of(tokens, settings)))
        groups = [whole[start : start + CHUNK_BATCHES] for start in range(0, len(whole), CHUNK_BATCHES)]
        return RowChunks([np.concatenate(group) for group in groups], _network_cost(tokens, checkpoint), tokens, fields)
    sizes = np.array([text_bytes(row) for row in rows], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    size = settings.engine.chunk_rows
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return RowChunks(chunks, sizes.astype(np.float64), sizes)


def budget_of(tokens: np.ndarray, settings: Settings) -> int:
    """Tokens of an encoder's batch: trainer.predict_batch_rows of the longest row."""
    return settings.trainer.predict_batch_rows * int(tokens.max(initial=1))


class OrderReader:
    """One checkpoint, loaded. Reads a chunk of rows in the order as given, or with the answers exchanged."""

    def __init__(self, checkpoint: Path, rows: Sequence[ArenaRow], chunks: RowChunks, settings: Settings) -> None:
        self.rows, self.chunks, self.settings = rows, chunks, settings
        self.method = settings.method.name
        # An adapter's base may stand elsewhere than in training: the run's settings say where.
        base = settings.model.name if self.method == "adapter" else None
        attention = settings.encoder.attention if self.method == "encoder" else "auto"
        self.classifier = load_classifier(checkpoint, task="arena", labels=LABELS, base=base, attention=attention)
        self.budget_tokens = budget_of(chunks.sizes, settings)

    def read(self, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        """(n, L + 1) float32: the labels' probabilities and the mass outside them, of the rows at these positions.

        The columns are those of the order as given, whichever is read; a row that could not be computed is NaN.
        """
        found = self._read(at, swapped=swapped).astype(np.float32)
        return found[:, [*SWAP, len(LABELS)]] if swapped else found

    def _read(self, at: np.ndarray, *, swapped: bool) -> np.ndarray:
        if self.chunks.fields is not None:
            from models.reader import scaled_features

            # Features of a chunk's rows alone: a reader counts items from the first row it is given.
            given = scaled_features([self.rows[row] for row in at], self.classifier.scale)
            fields = [self.chunks.fields[int(row)] for row in at]
            items = 2 * np.arange(len(at)) + int(swapped)
            probs, self.budget_tokens = self.classifier.read_items(
                fields, given, items, self.chunks.sizes[at], self.budget_tokens,
                precision=self.settings.trainer.precision, name=lambda item: f"row {self.rows[int(at[item])].id}",
            )  # fmt: skip
            return np.pad(probs, ((0, 0), (0, 1)))
        rows = [self.rows[row] for row in at]
        if self.method == "adapter":
            from infer.adapter_reading import read_order

            return read_order(self.classifier.reader.read, rows, swapped=swapped)
        assert not swapped, self.method
        return np.pad(self.classifier.predict_proba(rows), ((0, 0), (0, 1)))


def _network_cost(tokens: np.ndarray, checkpoint: Path) -> np.ndarray:
    """Multiplications of a transformer's layer over those of one token: T + T^2 / (2 H), H its hidden size.

    Weights take 24 H^2 a token, the scores and their sums about 4 H T, and DeBERTa's two kinds of distances twice that
    again. Source: Kaplan et al. 2020, table 1; He et al. 2021, section 3.1.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    hidden = getattr(config, "hidden_size", 768)
    return tokens + tokens.astype(np.float64) ** 2 / (2 * hidden)
