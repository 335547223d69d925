"""The door of both commands: a Hydra config comes in, checked plain dataclasses go on.

Imports Hydra and nothing heavy, so that `--help` answers at once. Past this module nobody knows Hydra.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from infer.logs import indented, mute
from infer.overrides import (
    KIND_KEYS,
    KINDS,
    MULTIRUN_FLAGS,
    as_meant,
    refuse_unknown_overrides,
    unknown_key,
    unknown_override,
)
from infer.ranks import RankError, rank, world_size
from infer.stopping import Stopped, listen, set_time_budget
from models.choices import one_of
from models.settings import Settings

OWN_WORDS = "HYDRA_FULL_ERROR"  # while it is set Hydra hands its errors on, instead of printing them
BROKEN_PIPE_CODE = 141  # as shells have it: 128 + SIGPIPE


def open_door(run: Callable[[Settings], Any]) -> None:
    """Compose the config, check it, hand it to `run`; what a user got wrong ends as a sentence and exit code 2."""
    # Before torch starts its threads: spinning threads make two busy cores 4 to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # MKL's sums depend on where a matrix lies in memory, unless told otherwise: a resumed run would differ from
    # an unbroken one in the last bit.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if world_size() > 1 and MULTIRUN_FLAGS & set(sys.argv[1:]):
        if rank() == 0:
            print(
                f"error: --multirun under {world_size()} processes would run every job on every process. "
                "Start the jobs one by one, or sweep with a single process: python -m train --multirun ...",
                file=sys.stderr,
            )
        sys.exit(2)

    listen()
    written = sys.argv
    refuse_unknown_overrides(written[1:])

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def compose(cfg: DictConfig) -> None:
        if not full:
            os.environ.pop(OWN_WORDS, None)
        sys.argv = written  # a run's record shows the command as it was given
        try:
            settings = to_settings(cfg, sweep_name())
            set_time_budget(settings.time_budget_minutes)
            run(settings)
            sys.stdout.flush()
        except Stopped as stopped:
            if rank() == 0:
                print(indented(str(stopped)), file=sys.stderr)
            sys.exit(stopped.exit_code)
        except (ValueError, OSError, ImportError, MemoryError) as error:
            if os.environ.get("TIEBREAK_TRACEBACK"):
                traceback.print_exc()
            elif rank() == 0 or isinstance(error, RankError | OSError | MemoryError):  # one process's own
                said = indented(_told(error))
                print(f"error: {said}\n(TIEBREAK_TRACEBACK=1 shows where it came from)", file=sys.stderr)
            sys.exit(2)

    sys.argv = [written[0], *as_meant(written[1:])]
    full = OWN_WORDS in os.environ
    os.environ[OWN_WORDS] = "1"
    try:
        compose()
    except BrokenPipeError:  # Hydra's own words, --help | head
        sys.exit(BROKEN_PIPE_CODE)
    except (HydraException, OmegaConfBaseException) as error:
        if rank() == 0:
            print(f"error: {_of_hydra(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {_told(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        _leave_quietly()


def _told(error: Exception) -> str:
    """The error as a sentence: ours are, and the system's say a number and a file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}. Mend that, then start again."
    return str(error)


def _of_hydra(error: Exception) -> str:
    """What Hydra refuses of a command line, without advice that only holds in a file."""
    said = str(error).partition("\nConfig search path:")[0].rstrip()
    if said.startswith("Multiple values for "):
        group = said.removeprefix("Multiple values for ").partition(".")[0]
        return f"{group} is given twice, expected once. Leave one {group}=... out."
    if "force-add of config groups" in said:
        return f"{said.splitlines()[0].rstrip('.')}. Write it with one +, as in +experiment=NAME."
    return indented(said)


def _leave_quietly() -> None:
    """What the screen has not taken goes, where nobody reads any more (`| head`) or its file is full.

    Else the interpreter would end with a traceback of its own, and exit code 120 for work that is done.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            mute(stream)


def settings_of(arguments: Sequence[str]) -> Settings:
    """The checked settings of another command line, while one runs. Raises ValueError."""
    said = unknown_override(arguments)
    if said is not None:
        raise ValueError(said)
    try:
        return to_settings(hydra.compose("config", overrides=as_meant(arguments)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def sweep_name() -> str:
    """The overrides that tell this job of a sweep from its sisters; "" outside a sweep."""
    config = HydraConfig.get()
    return config.job.override_dirname if config.mode == RunMode.MULTIRUN else ""


def to_settings(cfg: DictConfig, sweep: str = "") -> Settings:
    """Checked settings. Refuses, by name, an unknown key, a wrong type, a value out of range.

    sweep: appended to the folders of the run and of its output, so that the jobs of a sweep do not share one.
    Raises ValueError.
    """
    if OmegaConf.is_missing(cfg, "name"):
        raise ValueError("No experiment was chosen: add +experiment=NAME (python -m train --help lists them).")
    kinds = _kinds(cfg)
    try:
        merged = OmegaConf.merge(_schema(kinds), cfg)
        settings = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise ValueError(unknown_key(str(error.full_key), kinds)) from None
    except MissingMandatoryValue as error:
        raise ValueError(f"The setting {error.full_key} has no value. Give one: {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The setting {error.full_key} cannot be read: {reason}.") from None
    assert isinstance(settings, Settings)
    if sweep:
        folder = sweep.replace("/", "-")
        settings.run_dir = str(Path(settings.run_dir) / folder)
        if settings.output is not None:
            output = Path(settings.output)
            settings.output = str(output.parent / folder / output.name)
        if settings.out_dir is not None:
            settings.out_dir = str(Path(settings.out_dir) / folder)
    return settings


def _kinds(cfg: DictConfig) -> dict[str, str]:
    """{"task": "text", "model": "causal"}: the kinds that this config names. Raises ValueError for an unknown one."""
    kinds = {}
    for group, key in KIND_KEYS.items():
        kind = OmegaConf.select(cfg, f"{group}.{key}")
        one_of(f"{group}.{key}", kind, KINDS[group])
        kinds[group] = str(kind)
    return kinds


def _schema(kinds: dict[str, str]) -> DictConfig:
    """The schema of a run of these kinds."""
    schema = OmegaConf.structured(Settings)
    for group, kind in kinds.items():
        schema[group] = OmegaConf.structured(KINDS[group][kind])
    return schema
