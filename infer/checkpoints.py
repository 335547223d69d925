"""The checkpoints of a run: where its finished folds stand, what their probabilities depend on, how they are read.

Knows the run folder; never a method or a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infer.calibration.temperature import read_calibration
from infer.logs import log
from models.checkpoint import IDENTITY, read_identity
from models.fingerprint import fingerprint
from models.precision import device_and_precision

CARD = "README.md"


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's finished folds, or the folder itself where it is one checkpoint.

    Raises FileNotFoundError with the command that makes them.
    """
    found = finished_checkpoints(folder)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no finished fold. Train first (python -m train with the same arguments), or name the run "
            "or checkpoint folder: run_dir=..."
        )
    return found


def refuse_other_method(checkpoints: Sequence[Path], method: str) -> None:
    """Refuses checkpoints that another method made: what is written would say that this one had read the rows."""
    for checkpoint in checkpoints:
        made = read_identity(checkpoint)["method"]
        if made != method:
            raise ValueError(
                f"{checkpoint} was made by method={made}, not {method}. Take that run's experiment, or name another "
                "run: run_dir=..."
            )


def finished_checkpoints(folder: Path) -> list[Path]:
    """As find_checkpoints, and [] where there is none."""
    if (folder / IDENTITY).is_file():
        return [folder]
    return sorted(path.parent / "checkpoint" for path in folder.glob("fold*/done.json"))


def say_missing_folds(folder: Path, only: Sequence[int] | None) -> None:
    """A warning where a run's folds.csv has folds, of those in `only` or of all, that have no finished checkpoint."""
    dealt = folder / "folds.csv"
    if not dealt.is_file() or (folder / IDENTITY).is_file():
        return
    import pandas as pd

    there = [int(checkpoint.parent.name.removeprefix("fold")) for checkpoint in finished_checkpoints(folder)]
    wanted = sorted(pd.read_csv(dealt)["fold"].unique()) if only is None else sorted(only)
    missing = [str(fold) for fold in wanted if fold >= 0 and fold not in there]
    if missing:
        log.warning(
            f"warning: fold {', '.join(missing)} of {folder} is not finished: what follows is read by fold "
            f"{', '.join(map(str, sorted(there)))} alone. python -m train with the same arguments finishes it"
        )


def checkpoint_identity(folder: Path, labels: Sequence[str]) -> dict[str, object]:
    """What the mean of a run's checkpoints depends on: a mark of each one's files, and the run's temperature.

    The model card is for people: one that is written or mended later changes no probability.
    """
    marks = [
        fingerprint(file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name != CARD)
        for checkpoint in find_checkpoints(folder)
    ]
    return {"checkpoints": marks, "temperature": run_temperature(folder, labels)}


def run_temperature(folder: Path, labels: Sequence[str], *, say: bool = False) -> float | None:
    """The temperature of the run's calibration.json, None where there is none. Refuses one fitted for other labels."""
    path = folder / "calibration.json"
    if not path.is_file():
        if say:
            log.info(f"no temperature: {folder} has no calibration.json")
        return None
    temperature = read_calibration(path, tuple(labels))
    if say and temperature != 1:
        log.info(f"temperature {temperature:.3f}, fitted on the held-out rows")
    return temperature


def precision_here(trained: str) -> str:
    """The number format of training where this device has it, else auto."""
    try:
        return device_and_precision(trained)[1]
    except ValueError:
        log.info(f"trained in {trained}, which this device lacks: reading in its own format")
        return "auto"
