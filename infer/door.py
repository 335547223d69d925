"""The door of both commands: a Hydra config comes in, checked plain dataclasses go on.

Imports Hydra and nothing heavy, so that `--help` answers at once. Past this module nobody knows Hydra.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from infer.ranks import rank, world_size
from models.settings import Settings, flatten

MULTIRUN_FLAGS = {"-m", "--multirun"}


def open_door(run: Callable[[Settings], Any]) -> None:
    """Compose the config, check it, hand it to `run`; what a user got wrong ends as a sentence and exit code 2."""
    # Before torch starts its threads: spinning threads make two busy cores 4 to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if world_size() > 1 and MULTIRUN_FLAGS & set(sys.argv[1:]):
        if rank() == 0:
            print(
                f"error: --multirun under {world_size()} processes would run every job on every process. "
                "Start the jobs one by one, or sweep with a single process: python -m train --multirun ...",
                file=sys.stderr,
            )
        sys.exit(2)

    refuse_unknown_overrides(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def compose(cfg: DictConfig) -> None:
        try:
            run(to_settings(cfg, sweep_name()))
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("TIEBREAK_TRACEBACK"):
                traceback.print_exc()
            elif rank() == 0:
                print(f"error: {error}\n(TIEBREAK_TRACEBACK=1 shows where it came from)", file=sys.stderr)
            sys.exit(2)

    compose()


def refuse_unknown_overrides(arguments: list[str]) -> None:
    """Exit with a sentence for KEY=VALUE with a key that does not exist; Hydra's own answer advises a +, in vain."""
    known = list(flatten(_typical()))
    groups = {name.rpartition(".")[0] for name in known} - {""}
    for argument in arguments:
        found = re.match(r"([A-Za-z_][\w.]*)=", argument)
        if found is None or found[1] in known or found[1] in groups or found[1].startswith("hydra."):
            continue
        hint = "Write +experiment=NAME." if found[1] == "experiment" else _unknown_key(found[1])
        if rank() == 0:
            print(f"error: {hint}", file=sys.stderr)
        sys.exit(2)


def sweep_name() -> str:
    """The overrides that tell this job of a sweep from its sisters; "" outside a sweep."""
    config = HydraConfig.get()
    return config.job.override_dirname if config.mode == RunMode.MULTIRUN else ""


def to_settings(cfg: DictConfig, sweep: str = "") -> Settings:
    """Checked settings. Refuses, by name, an unknown key, a wrong type, a value out of range.

    sweep: appended to the run folder, so that the jobs of a sweep do not share one.
    Raises ValueError.
    """
    if OmegaConf.is_missing(cfg, "name"):
        raise ValueError("No experiment was chosen: add +experiment=NAME (python -m train --help lists them).")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Settings), cfg)
        settings = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise ValueError(_unknown_key(str(error.full_key))) from None
    except MissingMandatoryValue as error:
        raise ValueError(f"The setting {error.full_key} has no value. Give one: {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The setting {error.full_key} cannot be read: {reason}.") from None
    assert isinstance(settings, Settings)
    if sweep:
        settings.run_dir = str(Path(settings.run_dir) / sweep.replace("/", "-"))
    return settings


def _unknown_key(key: str) -> str:
    known = list(flatten(_typical()))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else f" Known in its group: {', '.join(_siblings(key, known))}."
    return f"There is no setting {key!r}.{hint}"


def _siblings(key: str, known: list[str]) -> list[str]:
    group = key.rpartition(".")[0]
    return [name for name in known if name.rpartition(".")[0] == group]


def _typical() -> Any:
    """The schema's own tree, to list its keys (the values are never read)."""
    import typing

    def build(cls: type) -> Any:
        hints = typing.get_type_hints(cls)
        instance: Any = object.__new__(cls)
        for key, kind in hints.items():
            setattr(instance, key, build(kind) if hasattr(kind, "__dataclass_fields__") else None)
        return instance

    return build(Settings)
