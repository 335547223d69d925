"""The ways of answering by name: made from settings, saved as checkpoints, loaded back whatever their method.

Knows which class stands behind a method's name; every one of them has predict_proba(rows).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.checkpoint import read_identity, write_identity
from models.settings import MethodSettings

EMBEDDINGS = {"auto": None, "yes": True, "no": False}  # None: where the package is installed


def _kinds() -> dict[str, Any]:
    from infer.baselines import ClassPrior, Features, Length, Tfidf, Uniform
    from infer.ensemble import Ensemble

    learn = {"length": Length, "tfidf": Tfidf, "features": Features, "ensemble": Ensemble}
    return {"uniform": Uniform, "prior": ClassPrior, **learn}


def make_classifier(method: MethodSettings, *, seed: int) -> Any:
    """An unfitted classifier with fit(rows); the encoder, which needs a training loop, is made by train.fold."""
    kinds = _kinds()
    if method.name not in kinds:
        raise ValueError(f"method.name={method.name!r} does not learn by fit(rows); those that do: {', '.join(kinds)}.")
    kind = kinds[method.name]
    if method.name in ("features", "ensemble"):
        return kind(seed=seed, embeddings=EMBEDDINGS[method.embeddings])
    return kind()


def save_classifier(classifier: Any, folder: Path, *, method: str) -> None:
    """Write the checkpoint of a method that learnt by fit; the identity comes last and says that it is whole."""
    classifier.save(folder)
    write_identity(folder, task="arena", method=method)


def load_classifier(folder: Path) -> Any:
    """The classifier of a checkpoint folder. Raises ValueError for another task or label order, see read_identity."""
    method = read_identity(folder)["method"]
    if method == "encoder":
        from infer.encoder import EncoderClassifier

        return EncoderClassifier.load(folder)
    kinds = _kinds()
    if method not in kinds:
        raise ValueError(
            f"{folder} was made by the method {method!r}, which this version does not know. Update tiebreak."
        )
    return kinds[method].load(folder)
