"""Turns rows and a model into probabilities, then into files people use; knows nothing of training.

from infer import SoftClassifier, answer_log_probs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer.next_token import answer_log_probs
    from infer.predictions import Predictions
    from infer.soft_classifier import SoftClassifier

__all__ = ["Predictions", "SoftClassifier", "answer_log_probs"]
_HOMES = {
    "Predictions": "infer.predictions",
    "SoftClassifier": "infer.soft_classifier",
    "answer_log_probs": "infer.next_token",
}


def __getattr__(name: str) -> Any:
    """Imported when asked for, so that `python -m infer --help` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
