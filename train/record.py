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
from models.settings import FREE_KEYS, Settings, flatten
from models.tasks.files import read_record, write_atomically

PROCESSES = "processes.json"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "scikit-learn", "numpy", "pandas", "tiebreak")


def open_run(settings: Settings) -> Path:
    """The run folder, with config.yaml in it.

    Raises ValueError where the folder belongs to a run with other settings: resuming would mix the two.
    """
    folder = Path(settings.run_dir)
    config = folder / "config.yaml"
    if config.is_file():
        mine = flatten(settings)
        stored = _stored_values(_read_config(config), mine)
        changed = [key for key in stored if key not in FREE_KEYS and stored[key] != mine[key]]
        if changed:
            listed = ", ".join(f"{key} ({stored[key]} there, {mine[key]} now)" for key in changed)
            raise ValueError(
                f"{folder} holds a run with other settings: {listed}. "
                f"Choose another folder (run_dir=...), or delete {folder} to start over."
            )
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
    """What a run's config.yaml holds. Raises ValueError where it is damaged: what the run is of, nobody knows."""
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is damaged. Put it back from a copy, or delete {path.parent} to start over.")
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
