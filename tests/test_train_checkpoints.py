"""The checkpoints of a training under way: which one it goes on from, and what of the older ones is kept."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import trainer

from train.checkpoints import NETWORK, STATE, UNFINISHED, best_whole_step, last_whole_checkpoint, put_in_place
from train.loop import trained

STEPS = ("trainer.batch_rows=8", "trainer.epochs=3", "trainer.evals_per_epoch=1", "trainer.saves_per_eval=1")


def put(folder: Path, step: int, *, best: int, optimizer: str = "optimizer.pt", weights: str = "weights") -> None:
    unfinished = folder / UNFINISHED / f"checkpoint-{step}"
    (unfinished / "global_step0").mkdir(parents=True)
    (unfinished / "global_step0" / "shard.pt").write_bytes(b"state")
    (unfinished / NETWORK).write_text(weights)
    (unfinished / optimizer).write_bytes(b"state")
    (unfinished / STATE).write_text(json.dumps({"best_global_step": best}))
    put_in_place(unfinished)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Cut(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["optimizer.pt", "optimizer.bin"])  # accelerate's FSDP writes the second
def test_of_an_older_best_checkpoint_the_optimizer_goes(tmp_path: Path, optimizer: str) -> None:
    for step in (4, 8, 12):
        put(tmp_path, step, best=4, optimizer=optimizer)
    assert names(tmp_path / "checkpoint-4") == ["manifest.json", NETWORK, STATE]
    assert names(tmp_path / "checkpoint-8") == ["global_step0", "manifest.json", optimizer, NETWORK, STATE]


def test_a_damaged_best_network_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (4, 8, 12):
        put(tmp_path, step, best=4)
    flip(tmp_path / "checkpoint-4" / NETWORK)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    assert best_whole_step(tmp_path, {4: 0.5, 8: 0.7, 12: 0.6}, told=4) == 12
    assert "the best network so far" in caplog.text and "Set aside as damaged-checkpoint-4" in caplog.text
    assert best_whole_step(tmp_path, {4: 0.5}, told=4) is None
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-8", "damaged-checkpoint-4"]


def test_a_network_without_an_optimizer_is_none_to_go_on_from_and_not_called_damaged_by_what_was_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (4, 8, 12):
        put(tmp_path, step, best=4)
    for step in (8, 12):
        flip(tmp_path / f"checkpoint-{step}" / NETWORK)
    assert last_whole_checkpoint(tmp_path) is None
    assert "checkpoint-4: it holds a network and no optimizer's state to go on with" in caplog.text


def test_a_checkpoints_name_is_on_the_disk_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 4, best=4)
    put(tmp_path, 8, best=8)
    events: list[tuple[str, str]] = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def synced(descriptor: int) -> None:
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(one, other) -> None:
        events.append(("replace", str(other)))
        replace(one, other)

    def removed(path, *given, **named) -> None:
        events.append(("rmtree", str(path)))
        rmtree(path, *given, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    put(tmp_path, 12, best=12)
    named = events.index(("replace", str(tmp_path / "checkpoint-12")))
    assert named < events.index(("fsync", str(tmp_path))) < events.index(("rmtree", str(tmp_path / "checkpoint-4")))


@pytest.mark.parametrize(("renames", "newest"), [(0, "first"), (1, "first"), (2, "second"), (3, "second")])
def test_a_step_that_is_saved_again_has_a_checkpoint_wherever_a_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, newest: str
) -> None:
    """The renames of a save are three: the manifest, the older checkpoint out of the way, the newer into its place."""
    put(tmp_path, 4, best=0, weights="first")
    done: list[str] = []
    replace = os.replace

    def cut(one, other) -> None:
        if len(done) == renames:
            raise Cut
        done.append(str(other))
        replace(one, other)

    with monkeypatch.context() as patched, contextlib.nullcontext() if renames == 3 else pytest.raises(Cut):
        patched.setattr(os, "replace", cut)
        put(tmp_path, 4, best=0, weights="second")
    assert len(done) == renames
    found = last_whole_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-4" and (found / NETWORK).read_text() == newest
    assert names(tmp_path) == ["checkpoint-4"]


def cut_at_step_5(folder: Path, encoder: str, *options: str):
    """A training whose second step is its best, cut off in its sixth; its newest checkpoint is of step 4."""
    scores = {2: 0.5, 4: 0.7, 6: 0.9}

    def scored():
        loop = trainer(folder, encoder, *STEPS, *options)
        loop.evaluate_heldout = lambda network: {"log_loss": scores[loop.state.global_step], "accuracy": 0.5}
        return loop

    first = scored()
    step = first.training_step

    def cut(*given, **named):
        if first.state.global_step == 5:
            raise Cut
        return step(*given, **named)

    first.training_step = cut  # type: ignore[method-assign]
    with pytest.raises(Cut):
        first.train()
    return scored()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_training_goes_on_from_its_newest_checkpoint_though_its_best_network_is_damaged(
    tiny_encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, keep: str
) -> None:
    again = cut_at_step_5(tmp_path, tiny_encoder, f"trainer.keep={keep}")
    flip(tmp_path / "checkpoint-2" / NETWORK)
    newest = last_whole_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-4"
    second = load_file(newest / NETWORK)
    with caplog.at_level(logging.WARNING, "tiebreak"):
        again.train(resume_from_checkpoint=str(newest))
    assert ("the best network so far" in caplog.text) is (keep == "best"), "nobody looks at what is not used"
    same = [torch.equal(second[name], weight) for name, weight in trained(again.model).items()]
    if keep == "best":
        assert again.state.best_global_step == 4 and again.state.best_metric == 0.7 and all(same)
    else:
        assert not all(same), "the last network"
