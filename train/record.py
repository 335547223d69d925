"""What a run folder remembers: the settings it was started with, the machine, and which folds are done.

Knows files and settings, nothing of networks.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from infer.files import write_json
from infer.identity import refuse_foreign
from models.settings import FREE_KEYS, Settings, flatten
from models.tasks.files import read_record, write_atomically

PROCESSES = "processes.json"
# What training alone writes into a run's folder, beside its folds: a prediction may be writing there as well.
RUN_FILES = (
    "baselines.json", "calibration.json", "config.yaml", "decision.json", "environment.json", "folds.csv",
    "heldout.csv", "metrics.json", PROCESSES,
)  # fmt: skip
# All that it replaces there, as patterns; folds.csv is not: where it is there it is read.
REPLACED = (
    *(name for name in RUN_FILES if name != "folds.csv"), "bad_rows.csv", "fold[0-9]*/*", "lock", "report.html",
    "report_*.png", "tokens-*.bin", "train.log",
)  # fmt: skip
GROUPS = {"name", "seed", "task", "model", "method", "trainer"}  # a config.yaml of ours has them all

PACKAGES = ("torch", "transformers", "accelerate", "peft", "scikit-learn", "numpy", "pandas", "tiebreak")


def check_run(settings: Settings) -> None:
    """Raises ValueError where the run folder is no place for this run.

    It belongs to a run with other settings, and resuming would mix the two; or files stand there that no run has made.
    A run that was refused before its first fold began has nothing to lose, and gives way.
    """
    folder = Path(settings.run_dir)
    if not (folder / "config.yaml").is_file():
        names = [name for name in RUN_FILES if name != PROCESSES]  # which is read where it stands, and says its damage
        refuse_foreign([*(folder / name for name in names), *sorted(folder.glob("fold[0-9]*"))], [])
        return
    changed = _changed(settings)
    if changed and _begun(folder):
        raise ValueError(
            f"{folder} holds a run with other settings: {', '.join(changed)}. "
            f"Choose another folder (run_dir=...), or delete {folder} to start over."
        )


def open_run(settings: Settings) -> Path:
    """The run folder, with config.yaml in it. Raises what check_run raises."""
    check_run(settings)
    folder = Path(settings.run_dir)
    config = folder / "config.yaml"
    if config.is_file() and _changed(settings):
        for name in RUN_FILES:  # of a run that came to nothing: its folds are of other rows
            (folder / name).unlink(missing_ok=True)
    with write_atomically(config) as temporary:
        temporary.write_text(yaml.safe_dump(asdict(settings), sort_keys=False), encoding="utf-8")
    return folder


def settle_processes(folder: Path, now: int) -> int:
    """How many processes a run's steps are made for: those of the launch that began it; for one process of a launch.

    now: of this launch, recorded where it is the first. Raises ValueError where the record is damaged.
    """
    path = folder / PROCESSES
    if path.is_file():
        with contextlib.suppress(ValueError):
            begun = read_record(path).get("processes")
            if type(begun) is int and begun > 0:
                return begun
        raise ValueError(
            f"{path} is damaged, and tells how many processes began the run: a step has trainer.batch_rows x "
            f'trainer.accumulation rows for each. Write {{"processes": {now}}} into it, with that number, or delete '
            f"{folder} to start over."
        )
    write_json(path, {"processes": now})
    return now


def _changed(settings: Settings) -> list[str]:
    """What of the run that the folder holds is otherwise now, with both values; what may change is left out."""
    mine = flatten(settings)
    stored = _stored_values(_read_config(Path(settings.run_dir) / "config.yaml"), mine)
    changed = [key for key in stored if key not in FREE_KEYS and stored[key] != mine[key]]
    return [f"{key} ({stored[key]} there, {mine[key]} now)" for key in changed]


def _begun(folder: Path) -> bool:
    return (folder / "heldout.csv").exists() or any(folder.glob("fold[0-9]*"))


def refuse_vanished(folder: Path) -> None:
    """Raise FileNotFoundError where the run folder is not the one that was opened: nothing may be put in its place."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{folder} has vanished while its run was going: its config.yaml is gone. What was finished went with it. "
            "Put the folder back, or delete what is left of it and start over."
        )


@contextlib.contextmanager
def told_if_vanished(folder: Path) -> Iterator[None]:
    """Whatever fails in a run folder that is gone is told as that: which of its files is missed first is chance.

    Raises what `refuse_vanished` raises, or else the error as it was.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError):  # safetensors and torch raise the system's errors as their own
        refuse_vanished(folder)
        raise


def _read_config(path: Path) -> dict[str, Any]:
    """What a run's config.yaml holds. Raises ValueError where it is damaged, and what the run is of nobody knows, or is
    no run's.
    """
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is damaged. Put it back from a copy, or delete {path.parent} to start over.")
    if not stored.keys() >= GROUPS:
        raise ValueError(f"{path} is in the way: it is no run's, and a run's goes there. Choose another run_dir=...")
    return stored


def _stored_values(tree: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The values of those keys, "trainer.epochs", that a config.yaml holds; older runs may lack some."""
    values: dict[str, Any] = {}
    for key in keys:
        *groups, name = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.get(group, {})
        if name in branch:
            values[key] = branch[name]
    return values


def environment(device_line: str, processes: int) -> dict[str, Any]:
    """Versions, hardware, command and commit of this launch."""
    return {
        "command": " ".join(["python -m train", *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device_line,
        "processes": processes,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def write_environment(folder: Path, device_line: str, processes: int) -> None:
    write_json(folder / "environment.json", environment(device_line, processes))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit this code stands at, with + where it was changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None
