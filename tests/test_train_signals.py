"""A signal ends a training after its step, saved; the next launch goes on to the same run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from stopped_trainings import STEPS, go_on, same_training, signals_heard
from test_loop import trainer
from warm_runs import Road, differing, moments, outcome

from infer import stopping
from infer.stopping import Stopped
from train.checkpoints import last_whole_checkpoint
from train.loop import FoldTrainer


@pytest.fixture
def listening():
    with signals_heard():
        yield


@pytest.mark.parametrize(("at", "number"), [(3, signal.SIGTERM), (4, signal.SIGINT)])
def test_a_signal_amid_a_step_ends_it_and_saves(
    tiny_encoder: str, tmp_path: Path, listening, at: int, number: int
) -> None:
    """Step 4 is followed by an evaluation, which is left to the next launch: with dropout it must not draw anew."""
    whole = trainer(tmp_path / "whole", tiny_encoder, *STEPS, dropout=0.1)
    whole.train()
    loop = trainer(tmp_path / "cut", tiny_encoder, *STEPS, dropout=0.1)
    step = loop.compute_loss

    def signalled(*given, **named):
        if loop.state.global_step == at - 1:
            os.kill(os.getpid(), number)
        return step(*given, **named)

    loop.compute_loss = signalled  # type: ignore[method-assign]
    saved = pytest.raises(Stopped, match=rf"fold 0, step {at} of 6 is saved in .*cut")
    with saved as stopped, stopping.finishing_steps():
        loop.train()
    assert stopped.value.exit_code == 128 + number
    stopping.forget()
    again = trainer(tmp_path / "cut", tiny_encoder, *STEPS, dropout=0.1)
    go_on(again)
    assert same_training(whole, again)


def test_a_signal_amid_an_evaluation_drops_it_and_the_next_launch_makes_it(
    tiny_encoder: str, tmp_path: Path, listening
) -> None:
    def scored(folder: str, *, signalled: bool = False) -> FoldTrainer:
        loop = trainer(tmp_path / folder, tiny_encoder, *STEPS, dropout=0.1)

        def evaluate(network) -> dict[str, float]:
            if signalled and loop.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)  # Python takes the signal between two of its instructions
                raise AssertionError("the evaluation went on")
            return {"log_loss": 1.0 / loop.state.global_step, "accuracy": 0.5}

        loop.evaluate_heldout = evaluate
        return loop

    whole = scored("whole")
    whole.train()
    cut = scored("cut", signalled=True)
    with pytest.raises(Stopped, match="step 4 of 6 is saved"), stopping.finishing_steps():
        cut.train()
    stopping.forget()
    newest = last_whole_checkpoint(tmp_path / "cut")
    assert newest is not None and json.loads((newest / "progress.json").read_text())["evaluation_due"]
    again = scored("cut")
    go_on(again)
    assert same_training(whole, again)
    assert again.state.best_global_step == whole.state.best_global_step == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signalled_at_any_moment_the_command_goes_on_to_the_same_run(road, warm, tmp_path: Path, number: int) -> None:
    one: Road = road("encoder")
    for after_s in moments(1, number, one.seconds):
        folder = tmp_path / str(number)
        folder.mkdir()
        while True:
            code, _ = warm.run(
                *one.command, f"run_dir={folder / 'run'}", log=folder / "log", number=number, after_s=after_s
            )
            if code:
                break
            shutil.rmtree(folder / "run")  # it was faster than the signal
            (folder / "log").unlink(missing_ok=True)
            after_s *= 0.8
        said = (folder / "log").read_text()
        # Before the command listens, a signal ends it as it ends any process.
        assert code in (128 + number, -number), said[-3000:]
        assert "Traceback" not in said or code == -number or "KeyboardInterrupt" in said
        one.ends_as_undisturbed(folder)


@pytest.mark.slow
def test_the_real_command_is_stopped_with_143_and_goes_on_to_the_same_run(road, tmp_path: Path) -> None:
    """In processes of their own, which hash text otherwise: equal bytes do not hang on the order of sets."""
    one: Road = road("encoder")
    command = [sys.executable, "-m", *one.command, f"run_dir={tmp_path / 'run'}"]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | quiet | {"PYTHONHASHSEED": "1"},
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run/fold0/attempts/0/checkpoint-4").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said[-3000:]
    assert "Stopped by SIGTERM: fold 0, step" in said and "The same command goes on from there." in said
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | quiet | {"PYTHONHASHSEED": "2"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fold 0: going on from" in done.stdout
    assert differing(outcome(tmp_path / "run"), one.whole) == []


def test_a_signal_to_a_training_and_its_loaders_workers_stops_it_as_one_to_itself(
    tiny_encoder: str, tmp_path: Path, listening
) -> None:
    """SLURM, systemd and `timeout` signal the whole group; a worker that ended of it would look like a failure."""
    loop = trainer(tmp_path, tiny_encoder, *STEPS, "trainer.workers=2", dropout=0.1)
    step, workers = loop.compute_loss, set()

    def signalled(*given, **named):
        if loop.state.global_step == 3:  # the second of its epoch: both workers have given a batch
            found = multiprocessing.active_children()
            workers.update(worker.pid for worker in found)
            for worker in found:
                os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.3)
            assert all(worker.is_alive() for worker in found)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given, **named)

    loop.compute_loss = signalled  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="step 4 of 6 is saved"), stopping.finishing_steps():
        loop.train()
    assert len(workers) == 2
