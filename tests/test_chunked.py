"""infer.chunked: chunks are read in time, loads apart from rows; a signal that something swallowed is asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from conftest import ROOT, free_port

from infer import chunked, stopping
from infer.chunked import OutOfTime, fill_parts, open_parts
from infer.logs import open_log
from infer.pace import Pace

SCHEMA = pa.schema([("x", pa.int64())])


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.forget()
    yield
    stopping.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


def filled(
    folder: Path, costs: list[float], *, load_s: float = 0.0, unit_s: float = 0.1, **how: Any
) -> tuple[list[int], list[Any]]:
    """(numbers of the chunks that were read, what was loaded); a chunk of cost 1 takes unit_s."""
    done: list[int] = []
    loads: list[Any] = []

    def load(model: Any) -> Any:
        time.sleep(load_s)
        loads.append(model)
        return "a reader"

    def read(reader: Any, number: int, chunk: list[float]) -> tuple[pd.DataFrame, dict[str, Any]]:
        time.sleep(unit_s * chunk[0])
        done.append(number)
        return pd.DataFrame({"x": [number]}), {}

    with open_parts(folder / "out.parquet", {"of": "a test"}, SCHEMA) as parts:
        chunks = [(number, [cost]) for number, cost in enumerate(costs)]
        try:
            fill_parts(parts, chunks, load, how.pop("read", read), rows=len(costs), cost=lambda one: one[0], **how)
        except OutOfTime:
            assert len(done) < len(costs)
        else:
            assert len(done) == len(costs)
    return done, loads


def seconds(budget: float) -> None:
    stopping.set_time_budget(budget / 60)


def test_a_chunk_that_does_not_fit_leaves_the_shorter_ones_to_be_read(tmp_path: Path, clock) -> None:
    seconds(3)
    done, _ = filled(tmp_path, [1, 1, 1, 40, *[1] * 10])
    assert done == [0, 1, 2, *range(4, 14)]
    assert stopping.time_left_s() > 0


def test_no_chunk_is_begun_where_its_models_loading_has_taken_the_time(tmp_path: Path, clock) -> None:
    seconds(0.3)
    done, loads = filled(tmp_path, [10, 10, 10], load_s=0.4)
    assert (done, loads) == ([], [None])
    assert stopping.time_left_s() > -0.5


@pytest.mark.parametrize(("load_s", "loaded"), [(100, []), (0, [None])])
def test_a_first_load_and_a_first_chunk_end_with_the_time(tmp_path: Path, load_s: float, loaded: list[None]) -> None:
    """Nobody knows how long they take: here 100 s each, of a budget of 0.5."""
    seconds(0.5)
    done, loads = filled(tmp_path, [100, 1, 1], load_s=load_s, unit_s=1)
    assert (done, loads) == ([], loaded)
    assert stopping.time_left_s() > -20, "the 20 s are for a busy machine"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    stopping.forget()
    assert filled(tmp_path, [0.01, 0.01, 0.01]) == ([0, 1, 2], [None])


def test_when_the_time_is_over_no_further_row_is_parsed(tmp_path: Path) -> None:
    seconds(-1)
    parsed: list[int] = []

    def chunks() -> Iterator[tuple[int, list[float]]]:
        for number in range(100):
            parsed.append(number)
            yield number, [1.0]

    with (
        open_parts(tmp_path / "out.parquet", {"of": "a test"}, SCHEMA) as parts,
        pytest.raises(OutOfTime, match=r"No chunk was read to its end: give more time, or smaller chunks"),
    ):
        fill_parts(parts, chunks(), lambda _: None, lambda *_: (pd.DataFrame(), {}), rows=100)
    assert parsed == [0]


def test_a_load_is_no_chunks_time_and_the_next_one_is_reckoned_with(tmp_path: Path, clock) -> None:
    """The load takes as long as ten chunks; all of the first model's fit, and then no other load does."""
    seconds(1 + 10 * 0.1 + 0.8)
    done, loads = filled(tmp_path, [1.0] * 10 + [1.0001] * 10, load_s=1, model=lambda chunk: "ab"[chunk[0] > 1])
    assert loads == ["a"] and done == list(range(10)), (done, loads)
    assert stopping.time_left_s() > 0.2


class _Dying:
    """A signal comes while it is taken away."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_there_is_no_terminal_lines_say_how_far_and_how_long(tmp_path: Path, monkeypatch, capsys) -> None:
    open_log(None, main=True)
    monkeypatch.setattr(chunked, "LINE_EVERY_S", 0.0)
    filled(tmp_path, [1.0, 1.0, 1.0, 1.0], unit_s=0.01)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "reading 4 rows, 1 at a time: then they are kept (engine.chunk_rows)"
    assert [line.partition(",")[0] for line in said[1:4]] == ["1 of 4 rows", "2 of 4 rows", "3 of 4 rows"]
    assert all(re.search(r", \d+\.\d rows/s, about \d+ s to go$", line) for line in said[1:4])
    assert len(said) == 5 and "4 rows read in" in said[4]


def test_lines_do_not_come_oftener_than_a_reader_wants_them(tmp_path: Path, capsys) -> None:
    open_log(None, main=True)
    filled(tmp_path, [1.0] * 20, unit_s=0.001)
    assert len(capsys.readouterr().out.splitlines()) == 2, "where it begins and where it ends"


def test_a_signal_that_a_finaliser_swallowed_stops_the_run_before_the_next_chunk(tmp_path: Path) -> None:
    """Python goes on after an exception in __del__, and in callbacks from C; a chunk of minutes asks nothing itself."""
    slow, done = Pace(), []
    slow.add(1, 1000)

    def read(reader: Any, number: int, chunk: list[float]) -> tuple[pd.DataFrame, dict[str, Any]]:
        done.append(number)
        if number == 1:
            dying = _Dying()
            del dying
        return pd.DataFrame({"x": [number]}), {}

    stopping.listen()
    with pytest.raises(stopping.Stopped, match="Stopped by SIGTERM: 2 of 4 rows are read and kept in") as stopped:
        filled(tmp_path, [1] * 4, read=read, pace=slow)
    assert stopped.value.exit_code == 143 and done == [0, 1]


SCRIPT = """
import sys, time
from pathlib import Path
import pandas as pd, pyarrow as pa
from infer.chunked import fill_parts, open_parts
from infer.door import open_door
from infer.logs import open_log
from infer.ranks import is_main, rank

def read(reader, number, chunk):
    if number == 3:
        raise ValueError("row 3 cannot be read.")
    return pd.DataFrame({"x": [number]}), {}

def run(settings):
    open_log(None, main=is_main())
    with open_parts(Path(FOLDER) / "out.parquet", {}, pa.schema([("x", pa.int64())])) as parts:
        fill_parts(parts, [(number, [1]) for number in range(6)], lambda _: "a reader", read, rows=6)

sys.argv = ["python -m infer", "+experiment=arena_quickstart"]
open_door(run)
"""


@pytest.mark.slow
def test_a_row_that_one_of_two_processes_cannot_read_is_told_by_its_own_words(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.replace("FOLDER", repr(str(tmp_path))))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stderr.count("error: row 3 cannot be read.") == 1
    assert len(list(tmp_path.glob("*.parts/part-*"))) == 4
    assert "RuntimeError" not in done.stderr, done.stderr
