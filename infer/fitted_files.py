"""Keeps a fitted classifier in a folder: settings as JSON, scikit-learn parts by skops, which runs no code.

Knows files; never what a part predicts.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infer.files import write_json
from models.tasks.files import read_record, told_of, write_atomically

SETTINGS_FILE = "settings.json"
# The types of scikit-learn that skops does not trust by itself; anything else in a file is refused.
TRUSTED_TYPES = [
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.tree._tree.Tree",
]


def save_fitted(folder: str | Path, kind: str, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Writes one .skops file per part, then `kind` and `settings` (JSON values): their file says that all is there."""
    import skops.io

    for name, part in parts.items():
        with write_atomically(Path(folder) / f"{name}.skops") as temporary:
            skops.io.dump(part, temporary, compression=zipfile.ZIP_DEFLATED)
    write_json(Path(folder) / SETTINGS_FILE, {"kind": kind, "settings": dict(settings), "parts": sorted(parts)})


def load_fitted(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and parts as saved. Refuses a folder that holds another kind, or that holds none."""
    import skops.io

    content = read_settings(folder)
    if content["kind"] != kind:
        raise ValueError(
            f"{folder} holds a classifier of kind {content['kind']!r}, expected {kind!r}. Load it by that class."
        )
    parts = {name: skops.io.load(Path(folder) / f"{name}.skops", trusted=TRUSTED_TYPES) for name in content["parts"]}
    return content["settings"], parts


def read_settings(folder: str | Path) -> dict[str, Any]:
    """kind, settings and the names of the parts of a saved classifier."""
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, expected a folder that save() wrote. Fit and save the classifier first."
        )
    content = read_record(path)
    with told_of(path, "is no saved classifier's"):
        names = [content["kind"], *content["parts"]]
        # A part is a file beside this one: a folder from someone else must not lead out of itself.
        if not isinstance(content["settings"], dict) or not all(re.fullmatch(r"\w+", name) for name in names):
            raise ValueError(f"kind and parts {names}, expected words, and settings as an object")
    return content
