"""Rows of skills that a classifier can tell apart by their words, for tests."""

from __future__ import annotations

import numpy as np

from models.tasks.text import TextRow

LABELS = ("Hard", "Soft", "Unknown")
_NAMES = (("welding", "python", "surgery", "tax law"), ("patience", "kindness", "tact", "humour"),
          ("parking", "salary", "branch", "night"))  # fmt: skip
_BESIDE = ("daily", "basic", "senior", "practical", "advanced", "early")


def skill_rows(count: int, *, seed: int = 0) -> tuple[list[TextRow], np.ndarray]:
    """(rows, label_index): each text a word of its label between words of none."""
    random = np.random.default_rng(seed)
    index = np.arange(count) % len(LABELS)
    texts = [f"{random.choice(_BESIDE)} {random.choice(_NAMES[label])} {random.choice(_BESIDE)}" for label in index]
    rows = [TextRow(str(at), {"text": text}, LABELS[index[at]], {}, f"row {at + 1}") for at, text in enumerate(texts)]
    return rows, index
