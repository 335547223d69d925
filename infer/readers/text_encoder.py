"""Any sequence-classification checkpoint as a reader of texts, its names of the labels mapped to ours.

A label of the checkpoint that is left out (model.labels: null) counts as mass outside the label set: the others are
normalised without it, and p_other says what it took. Knows texts and logits; nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.batching import in_batches
from infer.logs import log
from infer.readers.label import LabelReading
from models.checkpoint import IDENTITY, read_identity
from models.fingerprint import fingerprint, model_files
from models.names import local_folder, resolve_model
from models.precision import device_and_precision
from models.reader import load_tokenizer
from models.settings import Settings
from models.text_encoder import TextEncoding, TextNetwork, load_text_network, longest_text

BUDGET_TOKENS = {"cpu": 1024}  # of a batch; another device takes what a GPU takes
GPU_BUDGET_TOKENS = 16_384


class TextEncoderReader:
    """Rows of text fields in; the softmax of a checkpoint's logits out, summed into our labels.

    owners: for each of the checkpoint's C outputs the column of our label, -1 where it is left out. max_tokens: a
    longer text loses its middle; None: what the network takes. budget_tokens: of a batch; None: by the device.
    """

    def __init__(
        self, model: TextNetwork, tokenizer: Any, labels: Sequence[str], owners: Sequence[int], *,
        precision: str = "auto", max_tokens: int | None = None, budget_tokens: int | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.labels, self.owners = tuple(labels), np.asarray(owners)
        self.device, self.precision, self.line = device_and_precision(precision, "engine.precision")
        self.model = model.to(self.device).eval()
        self.encoding = TextEncoding(tokenizer, longest_text(model, tokenizer, max_tokens))
        self.budget_tokens = budget_tokens or BUDGET_TOKENS.get(self.device, GPU_BUDGET_TOKENS)
        self.identity = dict(identity or {})

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The labels' log-probabilities; a row whose logits are not finite is NaN."""
        ids, cut_share = self.encoding.encode(["\n".join(row.values()) for row in rows])
        lengths = np.array([len(one) for one in ids], dtype=np.int64)
        log_probs = np.full((len(rows), len(self.labels)), np.nan)

        def work(batch: np.ndarray) -> None:
            log_probs[batch] = self._summed(self._logits([ids[row] for row in batch]))

        def name(row: int) -> str:
            return names[row] if names else f"row {row}"

        order = np.argsort(-lengths, kind="stable")
        self.budget_tokens = in_batches(work, order, lengths, self.budget_tokens, progress=progress, name=name)
        return LabelReading(log_probs, cut_share)

    def said(self) -> str:
        """The network, its device and what it takes, for the log."""
        return f"{type(self.model.encoder).__name__}, {self.line}, texts of {self.encoding.max_tokens} tokens"

    def _logits(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """(B, C) float64. In evaluation mode, also while the network is being trained."""
        import torch

        self.model.eval()
        inputs = {name: tensor.to(self.device) for name, tensor in self.encoding.batch(ids).items()}
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        with torch.inference_mode(), torch.autocast(self.device, dtype=half, enabled=half is not None):
            logits: np.ndarray = self.model(**inputs).double().cpu().numpy()
        return logits

    def _summed(self, logits: np.ndarray) -> np.ndarray:
        """(B, L) logs of our labels' mass among the (B, C) outputs."""
        with np.errstate(invalid="ignore"):
            log_shares = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            columns = [np.logaddexp.reduce(log_shares[:, self.owners == at], axis=1) for at in range(len(self.labels))]
        found = np.stack(columns, axis=1)
        return np.where(np.isfinite(found).all(axis=1, keepdims=True), found, np.nan)


def load_text_encoder(settings: Settings) -> TextEncoderReader:
    """The checkpoint of model.name. Raises ValueError where its labels are not ours or its head would be random."""
    source, labels = resolve_model(settings.model.name), list(settings.question.labels)
    owners = owners_of(source, labels, settings.encoder.labels)
    engine = settings.engine
    network = load_text_network(
        source, allow_pickle=settings.encoder.allow_pickle, attention=settings.encoder.attention
    )  # fmt: skip
    reader = TextEncoderReader(
        network, load_tokenizer(source, newlines=False), labels, owners, precision=engine.precision,
        max_tokens=engine.max_tokens, budget_tokens=engine.budget_tokens, identity=identify_text_encoder(settings),
    )  # fmt: skip
    log.info(f"{settings.model.name}: {reader.said()}")
    return reader


def identify_text_encoder(settings: Settings) -> dict[str, Any]:
    """What the probabilities depend on: name, files, precision. Raises FileNotFoundError where it is not there."""
    _, precision, _ = device_and_precision(settings.engine.precision, "engine.precision")
    mark = fingerprint(model_files(local_folder(resolve_model(settings.model.name))))
    return {"name": settings.model.name, "files": mark, "precision": precision}


def owners_of(source: str, labels: Sequence[str], given: Mapping[str, Any] | None) -> list[int]:
    """For each output of a checkpoint the column of our label, -1 where it is left out.

    given: the checkpoint's name -> ours, or None; None: its names are ours. Raises ValueError naming the checkpoint's
    labels where they do not fit, and for a checkpoint that reads pairs or gives no softmax.
    """
    from transformers import AutoConfig

    if (Path(source) / IDENTITY).is_file() and read_identity(Path(source))["task"] == "arena":
        raise ValueError(f"{source} was trained for the task 'arena': it reads pairs of answers, not texts.")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    theirs = [str(config.id2label[at]) for at in range(config.num_labels)]
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ValueError(
            f"{source} has {config.num_labels} output(s), problem_type={config.problem_type}: expected one label of "
            "several to be right for each text. Use another checkpoint."
        )
    mapped = {name: name for name in theirs} if given is None else dict(given)
    unknown = [str(ours) for ours in mapped.values() if ours is not None and ours not in labels]
    missing = [label for label in labels if label not in mapped.values()]
    if set(mapped) != set(theirs) or unknown or missing:
        raise ValueError(
            f"{source} has the labels {', '.join(theirs)}, and question.labels are {', '.join(labels)}: give each of "
            f"the former one of the latter, or null: 'model.labels={{{theirs[0]}: {labels[0]}, ...}}'. Or teach it the "
            "latter first: python -m train with the same arguments."
        )
    return [-1 if mapped[name] is None else list(labels).index(mapped[name]) for name in theirs]
