"""The ways of answering by name: made from settings, saved as checkpoints, loaded back whatever their method.

Knows which class stands behind a method's name; every one of them has predict_proba(rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.checkpoint import read_identity, save_whole, write_identity
from models.method_settings import EmbeddingSettings, MethodSettings
from models.tasks.arena import LABELS

EMBEDDINGS = {"auto": None, "yes": True, "no": False}  # None: where the package is installed


def _kinds() -> dict[str, Any]:
    from infer.baselines import ClassPrior, Features, Length, Tfidf, Uniform
    from infer.ensemble import Ensemble

    learn = {"length": Length, "tfidf": Tfidf, "features": Features, "ensemble": Ensemble}
    return {"uniform": Uniform, "prior": ClassPrior, **learn}


def _text_kinds() -> dict[str, Any]:
    from infer.text_classifiers import KINDS

    return KINDS


def make_classifier(
    method: MethodSettings, *, seed: int, labels: Sequence[str] = LABELS, embedding: EmbeddingSettings | None = None
) -> Any:
    """An unfitted classifier with fit(rows), or fit(rows, label_index) for texts: labels other than the arena's.

    embedding: of the texts, where the method reads sentence vectors; None: MiniLM's.
    A network, which needs a training loop, is made by train.learners.
    """
    of_texts = tuple(labels) != LABELS
    kinds = _text_kinds() if of_texts else _kinds()
    if method.name not in kinds:
        raise ValueError(f"method.name={method.name!r} does not learn by fit(rows); those that do: {', '.join(kinds)}.")
    kind = kinds[method.name]
    if of_texts:
        made = kind(labels, seed=seed)
        if embedding is not None and hasattr(made, "embedding"):
            made.embedding = embedding_of(embedding)
        return made
    if method.name in ("features", "ensemble"):
        return kind(seed=seed, embeddings=EMBEDDINGS[method.embeddings])
    return kind()


def embedding_of(settings: EmbeddingSettings) -> Any:
    """The infer.text_embeddings.Embedding that the settings name."""
    from infer.text_embeddings import Embedding

    return Embedding(settings.name, settings.max_tokens, settings.pooling)


def save_classifier(classifier: Any, folder: Path, *, task: str, method: str) -> None:
    """Write the checkpoint of a method that learnt by fit, all of it in one step."""

    def save(unfinished: Path) -> None:
        classifier.save(unfinished)
        write_identity(unfinished, task=task, method=method, labels=getattr(classifier, "labels", LABELS))

    save_whole(folder, save)


def load_classifier(
    folder: Path, *, task: str | None = None, labels: Sequence[str] | None = None, base: str | None = None,
    attention: str = "auto",
) -> Any:  # fmt: skip
    """The classifier of a checkpoint folder. task, labels: what it must be for; None takes any, see read_identity.

    base: where an adapter's base model is now; None: where it was in training. Other methods need none.
    attention: of an encoder, see load_encoder.

    Raises ValueError for another task or label order, a damaged file, or a method that this version does not know.
    """
    identity = read_identity(folder, task=task, labels=labels)
    method = identity["method"]
    if method == "encoder" and identity["task"] == "arena":
        from infer.encoder import EncoderClassifier

        return EncoderClassifier.load(folder, attention=attention)
    if method == "encoder":
        from infer.readers.trained_text_encoder import TextEncoderClassifier

        return TextEncoderClassifier.load(folder, attention=attention)
    if method == "adapter":
        from infer.adapter import AdapterClassifier

        return AdapterClassifier.load(folder, base=base)
    if identity["task"] == "arena":
        read_identity(folder, labels=LABELS)
    kinds = _kinds() if identity["task"] == "arena" else _text_kinds()
    if method not in kinds:
        raise ValueError(
            f"{folder} was made by the method {method!r}, which this version does not know. Update tiebreak."
        )
    return kinds[method].load(folder)
