"""The model card beside each checkpoint: data, score, baselines and command, in the hub's README format.

Knows the run's metrics, nothing of how they came about.
"""

from __future__ import annotations

import shlex
import sys
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
    encoder = settings.method.name == "encoder"
    # The hub wants a hub name there; a folder or package of one machine means nothing to a reader elsewhere.
    name = settings.model.name
    base = f"base_model: {name}\n" if encoder and ":" not in name and not Path(name).exists() else ""
    low, high = metrics["log_loss_interval"]
    beside = "\n".join(f"| {name} | {loss:.4f} |" for name, loss in metrics["baselines"].items())
    reading = (
        f"Base {settings.model.name}, {settings.encoder.head} head, {settings.arena.budget_tokens} tokens. "
        "`AutoModelForSequenceClassification.from_pretrained` opens it; `python -m infer` reads pairs with it.\n"
        if encoder
        else f"Method {settings.method.name} (scikit-learn).\n"
    )
    siamese = (
        "The network reads the prompt with one answer; tiebreak.json and pair_head.safetensors say how two readings "
        "become the label probabilities.\n"
        if encoder and settings.encoder.head == "siamese"
        else ""
    )
    return f"""---
library_name: {"transformers" if encoder else "sklearn"}
pipeline_tag: text-classification
{base}tags: [tiebreak, arena-preference]
---

# {settings.name}, seed {settings.seed}, fold {fold} of {folds}

Predicts which of two chat answers a person prefers: model_a, model_b, or a tie.
{reading}{siamese}
| held-out log loss, {metrics["rows"]} rows, all folds | |
| --- | --- |
| this run | {metrics["log_loss"]:.4f} (95 % interval {low:.4f} to {high:.4f}) |
| this run, temperature {metrics["temperature"]:.3f}, cross-fitted | {metrics["log_loss_calibrated"]:.4f} |
{beside}

Accuracy {metrics["accuracy"]:.4f}, Brier {metrics["brier"]:.4f}, calibration error {metrics["calibration_error"]:.4f}.
Trained on `{settings.arena.train_csv}`; folds are grouped by prompt.

    {shlex.join(["python", "-m", "train", *sys.argv[1:]])}
"""
