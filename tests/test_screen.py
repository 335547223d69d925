"""The screen and the log may fail: a run goes on, says so once, and ends with the code of its work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SPEAK = """
import sys
from infer.door import open_door
from infer.logs import open_log

def run(settings):
    log = open_log({log!r}, main=True)
    for number in range(200):
        log.info(f"line {{number}} " + "x" * 200)
    open({done!r}, "w").write("done")

sys.argv = ["python -m infer", "+experiment=arena_quickstart"]
open_door(run)
"""


def speak(folder: Path, log: str | None = None, tail: str = "") -> tuple[int, str]:
    """(exit code, stderr) of a command of 200 lines whose screen is what `tail` says; its work is done."""
    pieces = SPEAK.format(log=None, done=str(folder / "done"))
    if log is not None:
        pieces = pieces.replace("open_log(None", f"open_log(__import__('pathlib').Path({log!r})")
    (folder / "speak.py").write_text(pieces)
    command = f"set -o pipefail; {sys.executable} {folder / 'speak.py'} {tail}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (folder / "done").read_text() == "done"
    return done.returncode, done.stderr


def test_a_reader_that_has_seen_enough_leaves_no_trace(tmp_path: Path) -> None:
    assert speak(tmp_path, str(tmp_path / "run.log"), "| head -n 1") == (0, "")
    assert len((tmp_path / "run.log").read_text().splitlines()) == 200


def test_a_reader_of_both_streams_that_has_seen_enough_leaves_no_trace(tmp_path: Path) -> None:
    assert speak(tmp_path, None, "2>&1 | head -n 1") == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_screen_on_a_full_disk_is_told_once(tmp_path: Path) -> None:
    code, said = speak(tmp_path, str(tmp_path / "run.log"), "> /dev/full")
    assert code == 0
    assert said == "warning: the screen takes no more lines (No space left on device); the run goes on\n"
    assert len((tmp_path / "run.log").read_text().splitlines()) == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_on_a_full_disk_is_told_once_and_the_screen_has_every_line(tmp_path: Path) -> None:
    code, said = speak(tmp_path, "/dev/full", f"> {tmp_path / 'screen'}")
    assert code == 0
    assert said == "warning: /dev/full lacks lines from here on (No space left on device); the run goes on\n"
    assert len((tmp_path / "screen").read_text().splitlines()) == 200


@pytest.mark.parametrize(("tail", "code"), [("| true", 141), ("> /dev/full", 2)])
def test_help_that_nobody_can_read_is_no_traceback(tail: str, code: int) -> None:
    command = f"set -o pipefail; {sys.executable} -m train --help {tail}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert done.stderr == ("" if code == 141 else "error: [Errno 28] No space left on device\n")
