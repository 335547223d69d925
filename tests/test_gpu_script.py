"""`scripts/gpu.sh` without a GPU: what it refuses, that no stage costs the others theirs, and a rehearsal of all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = [
    "tests", "attention", "attention_flex", "attention_large", "levers", "batches", "engine_many", "engine_two",
    "qlora", "label",
]  # fmt: skip


def gpu(*arguments: str | Path, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, without this project on the path and where no GPU is seen."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu.sh"), *map(str, arguments)], capture_output=True, text=True,
        timeout=timeout, env=settings | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment,
    )  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """An interpreter that says which script it was given; deberta.py never ends, levers.py fails."""
    path = tmp_path / "python"
    path.write_text(
        '#!/bin/bash\ncase "$*" in\n*deberta.py*) echo begun; sleep 300 ;;\n*levers.py*) echo no; exit 3 ;;\n'
        '*) echo "$PYTHONPATH: $*" ;;\nesac\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: bash scripts/gpu.sh FOLDER"),
        (["out", "atention"], "no stage atention"),
        (["out", "--rehearsal"], "--rehearsal is no option"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_runs(arguments: list[str], said: str, stub: str) -> None:
    found = gpu(*arguments, PYTHON=stub)
    assert found.returncode == 2 and said in found.stderr and " ".join(STAGES) in found.stderr
    assert not found.stdout and not (ROOT / "out").exists()


def test_without_a_gpu_it_says_so_and_how_to_rehearse(tmp_path: Path, stub: str) -> None:
    Path(stub).write_text("#!/bin/bash\nexit 1\n")
    found = gpu(tmp_path / "out", "levers", PYTHON=stub)
    assert found.returncode == 2 and "torch sees no CUDA GPU" in found.stderr and "--rehearse" in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_stage_that_fails_or_takes_too_long_costs_the_others_nothing(tmp_path: Path, stub: str) -> None:
    out = tmp_path / "out"
    found = gpu(out, "attention", "levers", "batches", PYTHON=stub, STAGE_SECONDS="1")
    assert found.returncode == 1 and found.stderr.endswith("failed: attention levers\n"), found.stderr
    assert "begun" in (out / "attention.log").read_text()
    assert "ended after 1 s; it keeps the figures it had" in (out / "attention.log").read_text()
    assert "batches.py" in (out / "batches.log").read_text()


def test_every_stage_finds_this_checkout_where_it_is_not_installed(tmp_path: Path, stub: str) -> None:
    gpu(tmp_path / "out", "batches", PYTHON=stub)
    assert (tmp_path / "out" / "batches.log").read_text().startswith(f"{ROOT}: scripts/bench/batches.py")
    gpu(tmp_path / "out", "batches", PYTHON=stub, PYTHONPATH="/tmp/site")
    assert (tmp_path / "out" / "batches.log").read_text().startswith(f"{ROOT}:/tmp/site: scripts/bench/batches.py")


def test_stages_end_within_the_time_of_all(tmp_path: Path, stub: str) -> None:
    found = gpu(tmp_path / "out", "attention", "batches", PYTHON=stub, TOTAL_SECONDS="2")
    assert found.returncode == 1 and "failed: attention batches" in found.stderr
    assert "no time is left for it" in (tmp_path / "out" / "batches.log").read_text()


def test_a_test_file_that_fails_does_not_stop_the_next(tmp_path: Path, stub: str) -> None:
    Path(stub).write_text('#!/bin/bash\necho "ran $*"\n[[ "$*" != *test_engine_gpu* ]]\n')
    found = gpu(tmp_path / "out", "tests", PYTHON=stub)
    assert found.returncode == 1 and "failed: tests" in found.stderr
    ran = [line.split()[-1] for line in (tmp_path / "out" / "tests.log").read_text().splitlines()]
    mark = "pytest." + "mark.gpu"  # in one word this file would be one of them
    marked = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if mark in path.read_text()]
    assert ran == [f"tests/{path.name}" for path in marked] and "tests/test_levers.py" in ran


@pytest.mark.slow
def test_every_stage_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    found = gpu(tmp_path, "--rehearse", timeout=900)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr
    assert re.findall(r"^== (\w+): \d+ s$", found.stdout, re.MULTILINE) == STAGES
    for name in ("attention", "attention_flex", "attention_large", "levers", "batches"):
        lines = json.loads((tmp_path / f"{name}.json").read_text())["lines"]
        assert lines and not any("Error" in (one.get("cannot") or "") for one in lines), lines
    cells = json.loads((tmp_path / "qlora.json").read_text())["cells"]
    assert len(cells) == 2 and all(cell["rows_per_s"] > 0 for cell in cells)
    assert len(json.loads((tmp_path / "label.json").read_text())["label"]) == 3
    for name in ("engine_many", "engine_two"):
        text = (tmp_path / f"{name}.md").read_text()
        assert "| ours | 1." in text and "Roofline" in text and "process ended" not in text
    assert (tmp_path / "tables.md").read_text().count("`python scripts/bench/") == 5
