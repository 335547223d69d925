"""The settings of who reads the rows: this command alone, or actors on a Ray cluster.

Part of the schema in models.settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.choices import one_of, within
from models.kind_settings import ArenaTask, SkillsTask

if TYPE_CHECKING:
    from models.settings import Settings

RUNNERS = ("local", "ray")


@dataclass
class RaySettings:
    """How runner=ray spreads a model over machines; none of it changes a probability."""

    address: str | None  # of a running cluster, or auto; None: RAY_ADDRESS, or else a Ray of its own on this machine
    actors: int | None  # copies of the model; None: as many as the cluster has room for
    cpus_per_actor: float | None  # None: beside a GPU 1, else all cores of the smallest machine
    gpus_per_actor: float | None  # a share below 1 lets several read on one GPU; None: 1 where the cluster has any
    retries: int  # of rows whose worker died, before they are refused

    def __post_init__(self) -> None:
        if self.actors is not None:
            within("ray.actors", self.actors, 1, 100_000)
        for key in ("cpus_per_actor", "gpus_per_actor"):
            if getattr(self, key) is not None:
                within(f"ray.{key}", getattr(self, key), 0, 1_000)
        within("ray.retries", self.retries, 0, 1_000)


def check_runner(settings: Settings) -> None:
    """Refuse, by name, what the runner cannot do. Raises ValueError."""
    one_of("runner", settings.runner, RUNNERS)
    if settings.runner == "local":
        if settings.input is not None:
            raise ValueError(
                f"input={settings.input} is for runner=ray; runner=local reads one table: task.input_csv=FILE."
            )
        return
    if isinstance(settings.task, ArenaTask):
        raise ValueError("runner=ray reads texts, not arena rows: task=text, or runner=local.")
    if isinstance(settings.task, SkillsTask):
        raise ValueError(
            "runner=ray reads every row, and task.name=skills reads each skill once, which takes one machine: "
            "task=text with the same question and task.text_column, or runner=local."
        )
    for key, given in (("calibration.fit", settings.calibration.fit), ("compare.ways", settings.compare.ways)):
        if given is not None:
            raise ValueError(
                f"{key} needs one table on one machine: fit on a sample with runner=local, then give "
                "calibration.use=FILE to runner=ray."
                if key == "calibration.fit"
                else f"{key} with runner=ray: compare on a sample with runner=local."
            )
    if settings.spreadsheet:
        raise ValueError("spreadsheet=true with runner=ray, which writes Parquet: a spreadsheet opens .csv. Leave it.")
    _check_folder(settings.output)


def _check_folder(output: str | None) -> None:
    """Refuse an output that is no folder of this machine's file system."""
    if output is None or output.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(
            f"output={'null' if output is None else output}: runner=ray writes a folder of Parquet parts: output=out/."
        )
