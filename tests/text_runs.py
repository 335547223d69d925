"""Small tables of texts and runs of `python -m infer` over them, for the tests of the file road."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import WORDS, compose

from infer.run import run

LABELS = ("positive", "negative")
COLUMNS = ["id", "label", "p_positive", "p_negative", "p_other", "predicted", "confidence", "logp_positive",
           "logp_negative", "cut_share"]  # fmt: skip
NUMBERS = [name for name in COLUMNS if name.startswith(("p_", "logp_")) or name in ("confidence", "cut_share")]


def reviews(count: int, *, labelled: bool = True) -> pd.DataFrame:
    """Rows of few words, each text its own."""
    random = np.random.default_rng(3)
    texts = [f"{' '.join(random.choice(WORDS, random.integers(2, 9)))} {number}" for number in range(count)]
    table = pd.DataFrame({"id": [f"r{number}" for number in range(count)], "text": texts})
    return table.assign(label=random.choice(LABELS, count)) if labelled else table


def settings_of(folder: Path, model: str, *overrides: str, source: str = "in.csv", output: str = "out.csv"):
    return compose(*arguments(folder, model, *overrides, source=source, output=output))


def arguments(folder: Path, model: str, *overrides: str, source: str = "in.csv", output: str = "out.csv") -> list[str]:
    return [
        "+experiment=reviews_soft", f"model.name={model}", f"task.input_csv={folder / source}",
        f"output={folder / output}", "engine.chunk_rows=8",
        "report=false", *overrides,
    ]  # fmt: skip


def read(folder: Path, model: str, *overrides: str, **names: str) -> pd.DataFrame:
    """The table that a run writes, as pandas reads it."""
    written = run(settings_of(folder, model, *overrides, **names))
    return pd.read_parquet(written) if str(written).endswith(".parquet") else pd.read_csv(written)


def record_of(path: Path) -> dict:
    return json.loads(Path(f"{path}.json").read_text())


def both_files(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), Path(f"{path}.json").read_bytes()
