"""`python -m infer`, killed at random moments and told to stop: the same command goes on to an unbroken run's bytes.

Texts and the arena, each killed at five seeded moments of its whole time, from before the first row to the writing of
the answer; at 25 under `pytest -m nightly`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import pair_rows, tiny_run, write_arena_csv
from text_runs import arguments, reviews
from warm_commands import WarmCommands

from train.run import run as train

SEED = 7
STOPPED = {signal.SIGTERM: 143, signal.SIGINT: 130}
ANSWERS = {"text": ("out.csv", "out.csv.json"), "arena": ("submission.csv", "predictions.csv", "submission.csv.json")}


@pytest.fixture(scope="module")
def commands(tiny_language_model: str, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory):
    """commands[kind](folder): the arguments of a run that writes into the folder."""
    folder = tmp_path_factory.mktemp("inputs")
    reviews(400, labelled=False).to_csv(folder / "in.csv", index=False)
    train(tiny_run(folder, tiny_encoder, "model.head=joint", "trainer.tta=true"))
    rows = write_arena_csv(folder / "rows.csv", pair_rows(120, seed=5), labelled=False)

    def text(out: Path) -> list[str]:
        given = arguments(folder, tiny_language_model)
        return [f"output={out / 'out.csv'}" if one.startswith("output=") else one for one in given]

    def arena(out: Path) -> list[str]:
        return [
            "+experiment=arena_quickstart", f"run_dir={folder / 'run'}", f"out_dir={out}", f"task.test_csv={rows}",
            "trainer.predict_batch_rows=1", "report=false",
        ]  # fmt: skip

    return {"text": text, "arena": arena}


def answers(kind: str, out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ANSWERS[kind]]


@pytest.fixture(scope="module")
def unbroken(warm: WarmCommands, commands, tmp_path_factory: pytest.TempPathFactory):
    """{kind: (bytes of its answers, seconds it took)}."""
    found = {}
    for kind, command in commands.items():
        out = tmp_path_factory.mktemp(f"unbroken-{kind}")
        started = time.monotonic()
        pid = warm.start("infer", command(out), out / "log")
        assert warm.wait(pid) == 0, (out / "log").read_text()
        found[kind] = answers(kind, out), time.monotonic() - started
    return found


@pytest.mark.parametrize("kind", ["text", "arena"])
@pytest.mark.parametrize("moments", [5, pytest.param(25, marks=pytest.mark.nightly)])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(
    warm: WarmCommands, commands, unbroken, tmp_path: Path, kind: str, moments: int
) -> None:
    expected, seconds = unbroken[kind]
    chance, kills, kept = random.Random(SEED), 0, 0
    while kills < moments or (not kept and kills < 5 * moments):
        out = tmp_path / "out"
        out.mkdir()
        pid = warm.start("infer", commands[kind](out), tmp_path / "log")
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)  # one that has ended waits for its parent: its number is nobody else's
        if warm.wait(pid) == -signal.SIGKILL:
            kills += 1
            parts = len(list(out.glob("*.parts/part-*")))
            pid = warm.start("infer", commands[kind](out), out / "log")
            assert warm.wait(pid) == 0, (out / "log").read_text()
            found = re.search(r"(\d+) rows were there already", (out / "log").read_text())
            assert bool(found) == bool(parts), (found, parts)
            kept += bool(parts)
        assert answers(kind, out) == expected
        assert not list(out.glob("*.parts")) and not list(out.glob(".tmp-*"))
        shutil.rmtree(out)
    print(f"{kind}: {kills} kills over {seconds:.1f} s, {kept} with parts to go on from")
    assert kept, "no kill fell between the first part and the last"


@pytest.mark.parametrize("number", STOPPED)
@pytest.mark.parametrize("kind", ["text", "arena"])
def test_a_run_that_is_told_to_stop_says_what_is_kept_and_goes_on(
    warm: WarmCommands, commands, unbroken, tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    log, parts = tmp_path / "stopped.log", tmp_path / f"{ANSWERS[kind][0]}.parts"
    pid = warm.start("infer", commands[kind](tmp_path), log, halt=parts / "part-*04.*")
    warm.halted(pid)
    warm.resume(pid, number)
    assert warm.wait(pid) == STOPPED[number], log.read_text()
    there = len(list(parts.glob("part-*")))
    said = log.read_text()
    assert f"Stopped by {number.name}: {there * 8} of " in said and f"kept in {parts}. The same command goes" in said
    pid = warm.start("infer", commands[kind](tmp_path), tmp_path / "again.log")
    assert warm.wait(pid) == 0, (tmp_path / "again.log").read_text()
    assert f"{there * 8} rows were there already" in (tmp_path / "again.log").read_text()
    assert answers(kind, tmp_path) == unbroken[kind][0]


def test_texts_that_time_is_too_short_for_are_kept_and_read_by_the_same_command(
    warm: WarmCommands, commands, unbroken, tmp_path: Path
) -> None:
    """A table lacks no row: it is written whole, or not yet. The run ends with a sentence and exit code 2."""
    short = [*commands["text"](tmp_path), "time_budget_minutes=0.001"]
    pid = warm.start("infer", short, tmp_path / "log")
    assert warm.wait(pid) == 2
    said = (tmp_path / "log").read_text()
    assert "time_budget_minutes is spent: 0 of 400 rows are read and kept in" in said
    assert not (tmp_path / "out.csv").exists()
    pid = warm.start("infer", [*commands["text"](tmp_path), "time_budget_minutes=30"], tmp_path / "log")
    assert warm.wait(pid) == 0
    assert answers("text", tmp_path) == unbroken["text"][0]


def test_the_arena_answers_when_its_time_is_short(warm: WarmCommands, commands, unbroken, tmp_path: Path) -> None:
    """The budget covers the reserve and some of the reading. That it is kept to: tests/test_arena_damage.py."""
    log = tmp_path / "log"
    pid = warm.start("infer", [*commands["arena"](tmp_path), f"time_budget_minutes={6.5 / 60}"], log)
    assert warm.wait(pid) == 0, log.read_text()
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert len(lines) == 121 and lines[0] == "id,winner_model_a,winner_model_b,winner_tie"
