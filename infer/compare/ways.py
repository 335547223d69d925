"""The ways of a comparison, one process after the other: each is trained where it must be, read, and not read twice.

    compare/ways/few_shot/
      predictions.parquet (.json, ...)   the usual table, of test.csv
      cost.json                          what reading cost, by the process itself
      way.json                           written last: what the way was, and what it cost
      log.txt                            what its processes said
      run/                               checkpoints of a way that learns

A way that fails costs the others nothing. Knows commands and files; never a method's insides.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.compare.rows import CompareRows
from infer.compare.way import COST_FILE, learns_by_fit
from infer.files import read_json, write_json
from infer.identity import as_json, differences, identity_in, input_identity
from infer.logs import log
from infer.overrides import laid_over, override_key
from infer.parts import as_written
from infer.readers.by_method import identify, identify_model
from models.method_settings import ASKED_METHODS, EMBEDDING_METHODS, NETWORK_METHODS
from models.settings import FREE_KEYS, Settings, flatten

WAY_FILE, LOG_FILE, TABLE_FILE = "way.json", "log.txt", "predictions.parquet"
# The settings that a fitted classifier, and a network trained by its loop, depend on.
FITTED = ("method.", "seed", "task.", "question.labels", "embedding.")
TRAINED = (*FITTED, "question.", "model.", "adapter.", "trainer.", "folds.", "engine.")
LEARN = "compare.learn"
OWN_KEYS = ("output", "out_dir", "report", "task.input_csv", "task.train_csv", "task.id_column", "task.label_column")
RAISED = re.compile(r"[A-Za-z_.]+(Error|Exception|Interrupt)\b")
PR_SET_PDEATHSIG, SIGKILL = 1, 9


@dataclass(frozen=True)
class Way:
    """One way: its name, its whole command line, and its settings as that line composes them."""

    name: str
    arguments: tuple[str, ...]
    settings: Settings

    @property
    def folder(self) -> Path:
        return Path(str(self.settings.output)).parent

    @property
    def table(self) -> Path:
        return self.folder / TABLE_FILE

    @property
    def trained(self) -> bool:
        """Does `python -m train` come first?"""
        settings = self.settings
        used = settings.method.name == "encoder" or settings.adapter.use != "none"
        return settings.method.name in NETWORK_METHODS and used and settings.compare.learn == "auto"

    @property
    def hard(self) -> bool:
        """Does its method say a label and no more? One that is asked for numbers may write 1 and 0, and mean them."""
        return self.settings.method.name == "generate_hard"

    def labelled_rows(self, fit_rows: int) -> int:
        """Labelled rows that it needs: those it learns from, or the examples that its prompt shows."""
        if self.trained or learns_by_fit(self.settings):
            return fit_rows
        return len(self.settings.question.examples) if self.settings.method.name in ASKED_METHODS else 0


@dataclass(frozen=True)
class Done:
    """What came of a way. trouble: why it has no table, or None. cost: seconds, MiB and rows by name."""

    way: Way
    trouble: str | None
    cost: Mapping[str, Any]


def way_arguments(arguments: Sequence[str], name: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """The command line of a way, but for its rows: the comparison's, the way's overrides over it, its own folder.

    folder: of the comparison. A way that does not learn (compare.learn=no) may name the run_dir whose checkpoints it
    reads. Raises ValueError for an override that the comparison itself sets.
    """
    keys, own = [override_key(one) for one in overrides], folder / "ways" / name
    taken = next((key for key in keys if key in OWN_KEYS or (key.startswith("compare.") and key != LEARN)), None)
    if taken is not None:
        raise ValueError(
            f"A way cannot set {taken}: all ways read the same rows, each into its own folder. Take it out."
        )
    reads = "run_dir" in keys
    if reads and f"{LEARN}=no" not in [one.lstrip("+") for one in overrides]:
        raise ValueError(
            f"A way that may learn cannot set run_dir: it would be trained into that folder. Add {LEARN}=no to read "
            "the checkpoints there, or take run_dir out."
        )
    run = [] if reads else [f"run_dir={own / 'run'}"]
    said = laid_over(arguments, overrides)
    return laid_over(said, [f"compare.way={name}", *run, f"output={own / TABLE_FILE}", "out_dir=null", "report=false"])


def run_ways(ways: Sequence[Way], rows: CompareRows, only: Sequence[str] | None = None) -> list[Done]:
    """Make the table of every way that has none of these rows yet. Raises what the settings of a way cannot mean.

    only: names of ways to make; of the others those that are finished come back.
    """
    identities = {way.name: identity_of(way, rows) for way in ways}  # of all before the first: some refuse
    done = []
    for number, way in enumerate(ways, 1):
        identity = identities[way.name]
        if identity_in(way.folder / WAY_FILE) == identity and way.table.is_file() and as_written(way.table):
            log.info(f"{way.name} ({number} of {len(ways)}): finished before, kept")
        elif only is not None and way.name not in only:
            continue
        else:
            log.info(f"{way.name} ({number} of {len(ways)}): {way.settings.method.name} ...")
            trouble = _make(way, rows, identity)
            if trouble is not None:
                log.info(f"{way.name} failed: {trouble} ({way.folder / LOG_FILE} has all it said)")
                done.append(Done(way, trouble, {}))
                continue
        done.append(Done(way, None, read_json(way.folder / WAY_FILE)["cost"]))
    return done


def identity_of(way: Way, rows: CompareRows) -> dict[str, Any]:
    """What a way's table depends on: the rows, its settings, the files of its model, its calibrator and its decision.

    Raises ValueError, with the way's name, where its model is not there.
    """
    free = {*FREE_KEYS, "task.input_csv", "task.train_csv"}
    settings = way.settings
    try:
        if way.trained or learns_by_fit(settings):
            kept = FITTED if learns_by_fit(settings) else TRAINED
            found = {key: value for key, value in flatten(settings).items() if key.startswith(kept)}
            found["learns from"] = identify_start(settings)
        else:
            found = {**identify(settings), "seed": settings.seed}  # of what is sampled
        for name, path in (("calibrator", settings.calibration.use), ("decision", settings.decision)):
            if path:
                found[name] = input_identity(path)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"compare.ways.{way.name}: {error}") from error
    return as_json({**{key: value for key, value in found.items() if key not in free}, "rows": rows.identity})


def identify_start(settings: Settings) -> Any:
    """What stands on disk before a way learns: a mark of the network that it trains or embeds with, None where none."""
    if settings.method.name == "encoder":
        from models.fingerprint import fingerprint, model_files
        from models.names import local_folder, resolve_model

        where = resolve_model(settings.model.name)
        # Of a hub model perhaps the config alone is here so far; its commit says as much as its files.
        folder = local_folder(where)
        return fingerprint(model_files(folder)) if Path(where).is_dir() else folder.name
    if settings.method.name == "adapter":
        return identify_model(settings)
    if settings.method.name in EMBEDDING_METHODS:
        from infer.classifiers import embedding_of
        from infer.text_embeddings import identify_embedding

        return identify_embedding(embedding_of(settings.embedding))
    return None


def _make(way: Way, rows: CompareRows, identity: dict[str, Any]) -> str | None:
    """Run a way's processes; why it failed, or None."""
    _make_room(way, identity)
    write_json(way.folder / "started.json", {"identity": identity})
    cost: dict[str, Any] = {}
    arguments = laid_over(way.arguments, rows.overrides())
    if way.trained:
        seconds, peak, trouble = _run("train", arguments, way.folder)
        if trouble is not None:
            return trouble
        cost |= {"fit_seconds": seconds, "fit_peak_mib": peak}
    seconds, _, trouble = _run("infer", arguments, way.folder)
    if trouble is not None:
        return trouble
    cost = {**read_json(way.folder / COST_FILE), **cost, "process_seconds": seconds}
    write_json(way.folder / WAY_FILE, {"identity": identity, "cost": cost, "command": arguments})
    return None


def _make_room(way: Way, identity: Mapping[str, Any]) -> None:
    """Keep what a killed process of this very way has left; what was made otherwise goes, and is made again."""
    made = identity_in(way.folder / "started.json")
    if made is not None and made != identity:
        log.info(f"  made otherwise before, and made again: {differences(made, identity)}")
        shutil.rmtree(way.folder)
    way.folder.mkdir(parents=True, exist_ok=True)


def _run(verb: str, arguments: Sequence[str], folder: Path) -> tuple[float, float | None, str | None]:
    """(seconds, MiB of memory at most where the system tells, why it failed or None) of `python -m VERB ARGUMENTS`."""
    environment = {**os.environ, "TIEBREAK_VECTORS": str(folder)}
    command, started = [sys.executable, "-m", verb, *arguments], time.monotonic()
    with (folder / LOG_FILE).open("a", encoding="utf-8") as out:
        begin = out.tell()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        try:
            peak = _wait(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
    seconds = time.monotonic() - started
    if process.returncode == 0:
        return seconds, peak, None
    return seconds, peak, _last_words(folder / LOG_FILE, begin, process.returncode)


def _wait(process: subprocess.Popen[Any]) -> float | None:
    """Until it ends; the most memory it held, in MiB."""
    if not hasattr(os, "wait4"):
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _die_with_parent() -> None:
    """A comparison that is killed must not leave a process that still writes what the next one begins anew."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)


def _last_words(path: Path, begin: int, code: int) -> str:
    """The sentence of the door, else the last line of what a process said."""
    if code < 0:
        return f"killed by signal {-code}" + (", memory may have run out" if code == -SIGKILL else "")
    with path.open("rb") as stream:
        stream.seek(begin)
        lines = [line for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if RAISED.match(line)]  # of a traceback; Hydra puts its advice behind it
    return next((said[-1] for said in (told, raised, lines) if said), f"exit code {code}")
