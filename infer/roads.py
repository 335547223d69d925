"""The roads of `python -m infer`, and which settings each understands; one that would do nothing is refused by name.

    refuse_ignored(settings)      infer +experiment=arena_length decision=cut.yaml   -> ValueError

Knows settings; never a file. What a setting of `python -m train` would do here is not asked: both verbs take the same
command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infer.outputs import output_of
from infer.readers.by_method import reader_kind
from models.kind_settings import TextTask
from models.method_settings import ASKED_METHODS
from models.settings import Settings, flatten

COMPARE, TEXTS, RAY, BLEND, JUDGE, ARENA = (
    "a comparison (compare.ways)", "a table of texts", "runner=ray", "a blend", "an arena judge", "an arena run",
)  # fmt: skip
TABLES = (TEXTS, RAY, COMPARE)  # COMPARE: its ways
# setting -> (the roads that understand it, what to do on another)
UNDERSTOOD: dict[str, tuple[tuple[str, ...], str]] = {
    "output": (TABLES, "The answer goes to out_dir=FOLDER."),
    "spreadsheet": (TABLES, "Leave it out."),
    "decision": (
        TABLES,
        "It chooses a label for each row, and the arena's answer is probabilities. Leave it out; python -m "
        "infer.cutoffs TABLE --decision FILE shows what it would do.",
    ),
    "calibration.use": (TABLES, "Leave it out: a run's own temperature is applied without being asked for."),
    "calibration.fit": (TABLES, "Leave it out: a run's own temperature is fitted by python -m train."),
    "blend.runs": ((BLEND,), "Blend with method=blend: python -m infer +experiment=arena_blend."),
    **{
        f"ray.{key}": ((RAY,), "Add runner=ray, or leave it out.")
        for key in ("address", "actors", "cpus_per_actor", "gpus_per_actor")
    },
}


def road_of(settings: Settings) -> str:
    """The road that `python -m infer` takes with these settings."""
    method = settings.method.name
    if settings.compare.ways is not None and settings.compare.way is None:
        return COMPARE
    if method == "blend":
        return BLEND
    if isinstance(settings.task, TextTask):
        return RAY if settings.runner == "ray" else TEXTS
    return JUDGE if method in ASKED_METHODS and reader_kind(settings) == "label" else ARENA


def refuse_ignored(settings: Settings) -> None:
    """Refuses a setting that is given and would do nothing on this road. Raises ValueError."""
    road, flat = road_of(settings), flatten(settings)
    for key, (roads, instead) in UNDERSTOOD.items():
        if road not in roads and _given(flat[key]):
            raise ValueError(f"{key}={flat[key]} does nothing in {road}, expected none. {instead}")
    if road in (TEXTS, RAY) and settings.out_dir is not None and settings.output is not None:
        output, folder = output_of(settings), Path(settings.out_dir)  # a default follows out_dir
        if folder not in (output, *output.parents):
            raise ValueError(
                f"out_dir={folder} does nothing with output={output}, which says where the table goes. Leave one of "
                f"them out, or set output={folder / output.name}."
            )


def _given(value: Any) -> bool:
    return value is not None and value is not False and value != []
