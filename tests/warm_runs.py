"""Tiny trainings as command lines, one for each kind of network, and what they leave, to be compared byte by byte."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from conftest import pair_rows, write_arena_csv

# Dropout, evaluations that fall on no end of an epoch, a last epoch of a half, and saves between evaluations.
TRAINING = (
    "trainer.batch_rows=4", "trainer.epochs=2.5", "trainer.evals_per_epoch=1.5", "trainer.saves_per_eval=2",
    "report=false", "folds.count=2", "track.wandb=disabled",
)  # fmt: skip
SKILLS = ("Hard", "Soft", "Unknown")


def encoder_road(folder: Path, model: str) -> list[str]:
    """An encoder on pairs of answers, 48 rows."""
    write_arena_csv(folder / "train.csv", pair_rows(48))
    write_arena_csv(folder / "test.csv", pair_rows(7, seed=5), labelled=False)
    return [
        "train", "+experiment=arena_quickstart", f"task.train_csv={folder / 'train.csv'}",
        f"task.test_csv={folder / 'test.csv'}", f"model.name={model}", "model.dropout=0.1", "task.budget_tokens=64",
        "trainer.learning_rate=1e-3", *TRAINING,
    ]  # fmt: skip


def text_road(folder: Path, model: str) -> list[str]:
    """An encoder on texts, 48 rows."""
    texts = [f"the {('good', 'bad')[n % 2]} film is {('fine', 'dull')[n % 2]} {n}" for n in range(48)]
    labels = [("positive", "negative")[n % 2] for n in range(48)]
    pd.DataFrame({"id": range(48), "text": texts, "label": labels}).to_csv(folder / "in.csv", index=False)
    return [
        "train", "+experiment=reviews_encoder", f"task.input_csv={folder / 'in.csv'}", f"model.name={model}",
        "model.frozen_layers=0", "model.dropout=0.1", "trainer.learning_rate=5e-3", *TRAINING,
    ]  # fmt: skip


def adapter_road(folder: Path, model: str) -> list[str]:
    """Adapters beside a language model, 24 rows."""
    skills = [f"{('good film', 'bad plot', 'dull account')[n % 3]} {n}" for n in range(24)]
    table = pd.DataFrame({"Skill": skills, "label": [SKILLS[n % 3] for n in range(24)]})
    table.to_csv(folder / "in.csv", sep=";", index=False)
    return [
        "train", "+experiment=skills_quickstart", f"task.input_csv={folder / 'in.csv'}", f"model.name={model}",
        "adapter.rank=4", "trainer.learning_rate=0.01", *TRAINING,
    ]  # fmt: skip


def outcome(run: Path) -> dict[str, Any]:
    """What a run leaves: every file's bytes, JSON without its seconds. Without what names the folder or the clock."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        named = name in ("lock", "train.log", "config.yaml", "environment.json") or path.name == "README.md"
        if path.is_dir() or named or "damaged-" in name:
            continue
        if path.name in ("metrics.json", "done.json"):
            content = json.loads(path.read_text())
            content.pop("seconds")
            found[name] = content
        else:
            found[name] = path.read_bytes()
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def moments(count: int, seed: int, longest_s: float) -> list[float]:
    """Seconds after the start, uniform over a run's time."""
    return np.random.default_rng(seed).uniform(0.0, longest_s, count).tolist()


@dataclass
class Road:
    """A command, how long it takes undisturbed, and what it leaves then."""

    command: list[str]
    seconds: float
    whole: dict[str, Any]
    run: Callable[..., tuple[int, float]]

    def ends_as_undisturbed(self, folder: Path) -> None:
        code, _ = self.run(*self.command, f"run_dir={folder / 'run'}", log=folder / "log")
        assert code == 0, (folder / "log").read_text()[-3000:]
        odd = differing(outcome(folder / "run"), self.whole)
        assert not odd, f"{odd} are not as in the undisturbed run; {folder / 'log'}"

    def killed(self, folder: Path, after_s: float) -> bool:
        """Whether it was killed before it ended."""
        code, _ = self.run(
            *self.command, f"run_dir={folder / 'run'}", log=folder / "log", number=signal.SIGKILL, after_s=after_s
        )
        assert code in (0, -signal.SIGKILL), (folder / "log").read_text()[-3000:]
        return code != 0


ROADS = {"encoder": encoder_road, "text": text_road, "adapter": adapter_road}
