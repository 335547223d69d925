"""runner=ray: workers are killed and parts are torn, and every row is there once, as the single machine reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from ray_jobs import DiesOnce
from text_runs import NUMBERS, arguments, read, reviews, settings_of

from infer.run import run

pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[data]"')

ROWS = 640
WAIT_S = 300.0  # on a busy machine
BUDGET_S = 60.0


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets, whose paths must be short; nothing of it is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tbr", dir="/tmp"))
    yield folder
    for pid in ray_processes(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def ray_processes(folder: Path) -> list[int]:
    """Of the Rays that keep their files there."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in line.read_bytes():
                found.append(int(line.parent.name))
        except OSError:
            continue
    return found


def write_inputs(folder: Path) -> pd.DataFrame:
    """Three files: row groups of 50, one of all rows, and a CSV."""
    rows = reviews(ROWS)
    (folder / "in").mkdir()
    rows[:300].to_parquet(folder / "in" / "a.parquet", row_group_size=50)
    rows[300:500].to_parquet(folder / "in" / "b.parquet")
    rows[500:].to_csv(folder / "in" / "c.csv", index=False)
    rows.to_csv(folder / "in.csv", index=False)
    return rows


def overrides(folder: Path, *, workers: int) -> list[str]:
    return ["runner=ray", f"input={folder / 'in'}", f"ray.actors={workers}", "ray.cpus_per_actor=1"]


def start(folder: Path, model: str, ray_folder: Path, *more: str) -> subprocess.Popen[str]:
    given = arguments(folder, model, *overrides(folder, workers=2), *more, output="out")
    command = [sys.executable, "-m", "infer", *given]
    environment = os.environ | {"RAY_TMPDIR": str(ray_folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(process: subprocess.Popen[str], found: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not found():
        if process.poll() is not None:
            pytest.fail(f"it ended before its time: {process.communicate()}")
        assert time.monotonic() - begun < WAIT_S
        time.sleep(0.01)


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "out").glob("part-*.parquet"))


def assert_as_local(folder: Path, model: str) -> None:
    """Every row once, with the numbers of the single machine up to what other batches change: 1e-6 in float32."""
    found = pd.read_parquet(folder / "out")
    assert len(found) == ROWS and found["id"].is_unique
    expected = read(folder, model, output="local.parquet").set_index("id")
    found = found.set_index("id").loc[expected.index]
    np.testing.assert_allclose(found[NUMBERS], expected[NUMBERS], atol=2e-5)
    pd.testing.assert_frame_equal(found[["label", "predicted"]], expected[["label", "predicted"]])
    record = json.loads((folder / "out" / "_record.json").read_text())
    assert record["rows"] == ROWS and record["parts"] == len(parts(folder)) == 38 + 25 + 18


def test_a_killed_worker_costs_no_row_and_torn_parts_alone_are_made_again(
    tmp_path: Path, tiny_language_model: str, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # where workers find DiesOnce
    with monkeypatch.context() as patch:
        patch.setattr("infer.cluster.pool.SliceReader", DiesOnce)
        run(settings_of(tmp_path, tiny_language_model, *overrides(tmp_path, workers=2), output="out"))
    assert (tmp_path / "killed").exists()
    assert not ray_processes(ray_folder)
    assert_as_local(tmp_path, tiny_language_model)

    made = {path.name: path.stat().st_ino for path in parts(tmp_path)}
    one, other, torn = parts(tmp_path)[3], parts(tmp_path)[50], parts(tmp_path)[70]
    one.unlink()
    other.unlink()
    torn.write_bytes(torn.read_bytes()[:1000])
    run(settings_of(tmp_path, tiny_language_model, *overrides(tmp_path, workers=1), output="out"))
    assert_as_local(tmp_path, tiny_language_model)
    again = {path.name: path.stat().st_ino for path in parts(tmp_path)}
    assert {name for name in made if made[name] != again[name]} <= {one.name, other.name, torn.name}
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("part-")) == [
        "_ends", "_identity.json", "_record.json"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_stopped_and_a_killed_driver_leave_parts_and_no_process(
    tmp_path: Path, tiny_language_model: str, ray_folder: Path
) -> None:
    write_inputs(tmp_path)
    process = start(tmp_path, tiny_language_model, ray_folder)
    wait_for(process, lambda: len(parts(tmp_path)) >= 5)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, (said, errors)
    assert "The same command goes on" in errors
    assert not ray_processes(ray_folder)
    stopped = {path.name: path.stat().st_ino for path in parts(tmp_path)}
    assert 5 <= len(stopped) < 81

    process = start(tmp_path, tiny_language_model, ray_folder)
    wait_for(process, lambda: len(parts(tmp_path)) >= len(stopped) + 5)
    process.kill()
    process.communicate(timeout=WAIT_S)
    begun = time.monotonic()
    while ray_processes(ray_folder):
        assert time.monotonic() - begun < WAIT_S, "Ray outlived its driver"
        time.sleep(0.1)
    killed = {path.name: path.stat().st_ino for path in parts(tmp_path)}
    assert len(killed) < 81 and stopped.items() <= killed.items()

    process = start(tmp_path, tiny_language_model, ray_folder)
    said, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors[-3000:]
    there = re.search(r"(\d+) parts are there already", said)
    assert there is not None and int(there[1]) >= len(killed), "a worker may end its chunk after its driver's death"
    assert_as_local(tmp_path, tiny_language_model)
    assert killed.items() <= {path.name: path.stat().st_ino for path in parts(tmp_path)}.items()


@pytest.mark.slow
def test_a_time_budget_ends_in_time_and_leaves_its_parts(
    tmp_path: Path, tiny_language_model: str, ray_folder: Path
) -> None:
    """So many long rows that two quiet cores need minutes for them, and not the budget."""
    rows = reviews(20 * ROWS)
    rows["text"] = [f"{text} " * 100 for text in rows["text"]]
    (tmp_path / "in").mkdir()
    rows.to_parquet(tmp_path / "in" / "a.parquet", row_group_size=80)
    minutes = [f"time_budget_minutes={BUDGET_S / 60}", "engine.max_tokens=2048"]
    begun = time.monotonic()
    process = start(tmp_path, tiny_language_model, ray_folder, *minutes)
    said, errors = process.communicate(timeout=WAIT_S)
    seconds = time.monotonic() - begun
    print(f"{seconds:.1f} s of {BUDGET_S}", said[-2000:], errors[-2000:])
    assert process.returncode == 2 and "time_budget_minutes is spent" in errors, errors
    assert "chunks of a.parquet. The same command goes on from there" in errors
    assert seconds < BUDGET_S + 15, "Python's own start and end are not of the budget"
    assert not ray_processes(ray_folder)
    made = {path.name: path.stat().st_ino for path in parts(tmp_path)}
    assert len(made) < 20 * 80 and not (tmp_path / "out" / "_record.json").exists()
    assert not (tmp_path / "out" / "_reading").exists()
