"""The model card beside each checkpoint: data, score, baselines and command, in the hub's README format.

Knows the run's metrics, nothing of how they came about.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.settings import Settings
from models.tasks.files import write_atomically


def write_cards(settings: Settings, metrics: dict[str, Any], folds: list[int], folder: Path) -> None:
    """Write checkpoint/README.md in every fold."""
    for fold in folds:
        text = card(settings, metrics, fold=fold, folds=len(folds))
        with write_atomically(folder / f"fold{fold}" / "checkpoint" / "README.md") as temporary:
            temporary.write_text(text, encoding="utf-8")


def card(settings: Settings, metrics: dict[str, Any], *, fold: int, folds: int) -> str:
    """The card of one fold's checkpoint."""
    kind = _KINDS.get(settings.method.name, _FITTED)
    # The hub wants a hub name there; a folder or package of one machine means nothing to a reader elsewhere.
    name = settings.model.name
    on_hub = kind is not _FITTED and ":" not in name and not Path(name).exists()
    base = f"base_model: {name}\n" if on_hub else ""
    low, high = metrics["log_loss_interval"]
    beside = "\n".join(f"| {name} | {loss:.4f} |" for name, loss in metrics["baselines"].items())
    arena = settings.task.name == "arena"
    source = settings.arena.train_csv if arena else settings.text.labelled_csv
    return f"""---
library_name: {kind.library}
pipeline_tag: text-classification
{base}tags: [tiebreak, {"arena-preference" if arena else settings.task.name}]
---

# {settings.name}, seed {settings.seed}, fold {fold} of {folds}

{_purpose(settings)}
{kind.reading(settings)}
| held-out log loss, {metrics["rows"]} rows, all folds | |
| --- | --- |
| this run | {metrics["log_loss"]:.4f} (95 % interval {low:.4f} to {high:.4f}) |
| this run, temperature {metrics["temperature"]:.3f}, cross-fitted | {metrics["log_loss_calibrated"]:.4f} |
{beside}

Accuracy {metrics["accuracy"]:.4f}, macro-F1 {metrics["macro_f1"]:.4f}, Brier {metrics["brier"]:.4f}.
Calibration error {metrics["calibration_error"]:.4f}.
Trained on `{source}`; {"folds are grouped by prompt" if arena else "rows with the same text share a fold"}.

    {shlex.join(["python", "-m", "train", *sys.argv[1:]])}
"""


@dataclass(frozen=True)
class _Kind:
    """What a card says of a kind of checkpoint. reading: settings -> how it is opened."""

    library: str
    reading: Callable[[Settings], str]


def _purpose(settings: Settings) -> str:
    if settings.task.name == "arena":
        return "Predicts which of two chat answers a person prefers: model_a, model_b, or a tie."
    return f"Gives a text the probability of each label: {', '.join(settings.question.labels)}."


def _encoder_reading(settings: Settings) -> str:
    if settings.task.name != "arena":
        return _text_reading(settings)
    opened = (
        f"Base {settings.model.name}, {settings.encoder.head} head, {settings.arena.budget_tokens} tokens. "
        "`AutoModelForSequenceClassification.from_pretrained` opens it; `python -m infer` reads pairs with it.\n"
    )
    if settings.encoder.head != "siamese":
        return opened
    return opened + (
        "The network reads the prompt with one answer; tiebreak.json and pair_head.safetensors say how two readings "
        "become the label probabilities.\n"
    )


def _text_reading(settings: Settings) -> str:
    opened = (
        f"Base {settings.model.name}. `AutoModelForSequenceClassification.from_pretrained` opens it; `python -m infer` "
        "reads texts with it.\n"
    )
    if settings.encoder.pooling == "own":
        return opened
    return opened + "The logits also have a part that is linear in the mean over the tokens: text_head.safetensors.\n"


def _adapter_reading(settings: Settings) -> str:
    adapter = settings.adapter
    return (
        f"A LoRA adapter (rank {adapter.rank}, {adapter.head} head) for {settings.model.name}, trained on it with "
        f"quantization {settings.language_model.quantization}. `PeftModel.from_pretrained(base, folder)` opens it; "
        "tiebreak.json holds the question that it was taught to answer, and `python -m infer` asks it.\n"
    )


_KINDS = {"encoder": _Kind("transformers", _encoder_reading), "adapter": _Kind("peft", _adapter_reading)}
_FITTED = _Kind("sklearn", lambda settings: f"Method {settings.method.name} (scikit-learn).\n")
