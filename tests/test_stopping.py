"""Signals that are really sent, to children of this process: when they end a run, when they wait, and what is said."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from conftest import compose

from infer import stopping
from infer.door import open_door
from infer.locks import hold
from infer.ranks import RankError
from infer.stopping import Stopped, asked_to_stop, finishing_steps, listen, set_time_budget, time_left_s
from models.settings import Settings
from models.tasks.disk import DiskError
from models.tasks.files import write_atomically

Say = Callable[[str], None]


class Child:
    """A forked process that does work(say), as this one sees it. A Stopped that work lets through is said."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.dup2(writer, 1)
                os.dup2(writer, 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
                stopping.forget()
                work(lambda text: print(text, flush=True))
                code = 0
            except Stopped as stopped:
                print(f"raised {stopped}", flush=True)
                code = stopped.exit_code
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                os._exit(code)
        os.close(writer)
        self._said = os.fdopen(reader)

    def says(self) -> str:
        return self._said.readline().rstrip("\n")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def ends(self) -> tuple[int, list[str]]:
        """(exit code, the lines not read yet)."""
        lines = self._said.read().splitlines()
        self._said.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), lines


@pytest.mark.parametrize("deaf", [0, 3])
def test_a_block_is_told_that_its_time_is_over_until_it_hears(deaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that passes over errors takes the first ones."""
    monkeypatch.setattr(stopping, "AGAIN_S", 0.2)
    before, heard = signal.getsignal(signal.SIGALRM), 0
    with pytest.raises(stopping.TimeSpent), stopping.no_longer_than(0.1):
        while heard <= deaf:
            try:
                time.sleep(60)
            except BaseException:
                heard += 1
                if heard > deaf:
                    raise
    assert 1 <= heard <= deaf + 1  # on a busy machine one comes while another is taken, and is heard there
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is before


def test_a_block_that_ends_in_time_hears_nothing() -> None:
    with stopping.no_longer_than(300):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with pytest.raises(stopping.TimeSpent), stopping.no_longer_than(0):
        pytest.fail("it was begun")


def wait(seconds: float = 300) -> None:
    """Until a signal was received, or much too long."""
    end = time.monotonic() + seconds
    while asked_to_stop() is None and time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)])
def test_outside_of_steps_a_signal_ends_the_run_at_once(number: int, name: str, code: int) -> None:
    def work(say: Say) -> None:
        listen()
        say("ready")
        time.sleep(300)
        say("slept to the end")

    child = Child(work)
    assert child.says() == "ready"
    child.send(number)
    assert child.ends() == (code, [f"raised Stopped by {name}. The same command goes on."])


def test_inside_of_steps_a_signal_waits_for_the_end_of_the_outermost_block() -> None:
    def work(say: Say) -> None:
        listen()
        with finishing_steps():
            with finishing_steps():
                say("ready")
                wait()
                say(f"asked to stop by {asked_to_stop()}")
            say("saved")

    child = Child(work)
    assert child.says() == "ready"
    child.send(signal.SIGTERM)
    said = ["asked to stop by 15", "saved", "raised Stopped by SIGTERM. The same command goes on."]
    assert child.ends() == (143, said)


def test_a_loop_that_answers_a_signal_says_what_it_saved() -> None:
    def work(say: Say) -> None:
        listen()
        with finishing_steps():
            say("ready")
            wait()
            raise Stopped(asked_to_stop() or 0, "step 3 is saved.")

    child = Child(work)
    assert child.says() == "ready"
    child.send(signal.SIGINT)
    assert child.ends() == (130, ["raised Stopped by SIGINT: step 3 is saved."])


def test_a_second_signal_later_waits_for_nothing() -> None:
    def work(say: Say) -> None:
        stopping.AGAIN_S = 0.1
        listen()
        with finishing_steps():
            say("ready")
            wait()
            time.sleep(0.2)
            say("again")
            time.sleep(300)
            say("slept to the end")

    child = Child(work)
    assert child.says() == "ready"
    child.send(signal.SIGTERM)
    assert child.says() == "again"
    child.send(signal.SIGINT)
    assert child.ends() == (130, ["raised Stopped by SIGINT. The same command goes on."])


def test_a_signal_that_a_launcher_repeats_at_once_is_the_same_wish() -> None:
    def work(say: Say) -> None:
        stopping.AGAIN_S = 600  # however busy the machine is
        listen()
        with finishing_steps():
            say("ready")
            wait()
            say("first")
            time.sleep(0.3)  # in which two more come
            say("saved")

    child = Child(work)
    assert child.says() == "ready"
    child.send(signal.SIGTERM)
    assert child.says() == "first"
    child.send(signal.SIGTERM)
    child.send(signal.SIGINT)
    assert child.ends() == (143, ["saved", "raised Stopped by SIGTERM. The same command goes on."])


def test_what_is_being_written_when_a_signal_comes_goes_and_the_older_file_stays(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("older")

    def work(say: Say) -> None:
        listen()
        with write_atomically(tmp_path / "table.csv") as temporary:
            temporary.write_text("half")
            say("ready")
            time.sleep(300)

    child = Child(work)
    assert child.says() == "ready"
    child.send(signal.SIGTERM)
    assert child.ends()[0] == 143
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"table.csv": "older"}


@pytest.mark.parametrize(("rank", "said"), [("0", ["Stopped by SIGTERM: 7 rows are saved."]), ("1", [])])
def test_the_door_ends_with_the_signals_code_and_one_rank_speaks(
    rank: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hydra and compose  # imported before the fork

    def work(say: Say) -> None:
        def run(settings: Settings) -> None:
            with finishing_steps():
                say("ready")
                wait()
                raise Stopped(asked_to_stop() or 0, "7 rows are saved.")

        sys.argv = ["python -m infer", "+experiment=arena_quickstart"]
        open_door(run)

    child = Child(work)
    assert child.says() == "ready"
    child.send(signal.SIGTERM)
    assert child.ends() == (143, said)


@pytest.mark.parametrize(
    ("error", "said"),
    [(RankError("row 7 cannot be read."), "error: row 7 cannot be read."), (ValueError("that all say"), None)],
)
def test_what_one_process_alone_has_met_is_told_by_it(
    error: ValueError, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process knows nothing of it; what every process meets is told once."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hydra and compose

    def work(say: Say) -> None:
        def run(settings: Settings) -> None:
            raise error

        sys.argv = ["python -m infer", "+experiment=arena_quickstart"]
        open_door(run)

    code, lines = Child(work).ends()
    assert code == 2 and (lines[0] if lines else None) == said


def test_without_a_budget_time_is_endless_and_a_budget_counts_from_the_start() -> None:
    stopping.forget()
    assert time_left_s() == float("inf")
    set_time_budget(2)
    assert 60 < time_left_s() <= 120
    set_time_budget(0.0001)
    assert time_left_s() < 0.006
    stopping.forget()
    assert time_left_s() == float("inf")


def test_only_the_main_thread_listens() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_lock_is_one_runs_and_free_again_however_that_ends(tmp_path: Path) -> None:
    def work(say: Say) -> None:
        kept = hold(tmp_path / "lock", "taken")
        say("holds")
        time.sleep(300)
        kept.close()

    child = Child(work)
    assert child.says() == "holds"
    with pytest.raises(ValueError, match="another run writes here"):
        hold(tmp_path / "lock", "another run writes here")
    child.send(signal.SIGKILL)
    assert child.ends()[0] == -9
    with hold(tmp_path / "lock", "taken"), pytest.raises(ValueError, match="taken"):
        hold(tmp_path / "lock", "taken")
    hold(tmp_path / "lock", "taken").close()


def test_a_lock_in_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"gone has vanished\. Put it back"):
        hold(tmp_path / "gone" / "lock", "taken")


def test_a_forked_process_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    """A loader's worker lives on for seconds after its process was killed."""
    parent = os.fork()
    if parent == 0:
        try:
            kept = hold(tmp_path / "lock", "taken")
            worker = os.fork()
            if worker:
                (tmp_path / "worker.new").write_text(str(worker))
                os.replace(tmp_path / "worker.new", tmp_path / "worker")
            signal.pause()
            kept.close()
        finally:
            os._exit(1)
    while not (tmp_path / "worker").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="taken"):
        hold(tmp_path / "lock", "taken")
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    worker = int((tmp_path / "worker").read_text())
    os.kill(worker, 0)  # it lives
    try:
        hold(tmp_path / "lock", "taken").close()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_signal_that_meets_a_finaliser_is_heard_a_moment_later() -> None:
    def work(say: Say) -> None:
        listen()

        class Finalised:
            def __del__(self) -> None:
                say("in a finaliser")
                time.sleep(60)

        one = Finalised()
        del one
        say("past it")
        time.sleep(60)
        say("never heard")

    child = Child(work)
    assert child.says() == "in a finaliser"
    child.send(signal.SIGTERM)
    code, said = child.ends()
    assert code == 143 and said[0] == "past it", said
    assert len(said) == 2 and said[1].startswith("raised Stopped by SIGTERM"), said
