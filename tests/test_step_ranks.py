"""Two processes make the steps of one: same gradients, also where one of them runs out of memory or has no row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, free_port
from step_ranks import COMMON, ROWS
from test_loop import trainer


@pytest.fixture(scope="module")
def ranks(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    launch = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(ROOT / "tests" / "step_ranks.py"), tiny_encoder, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", ("trainer.batch_rows=16", "trainer.epochs=2")),
        ("full", ("trainer.batch_rows=16", "trainer.epochs=2")),
        ("odd", ("trainer.batch_rows=2",)),  # the last step's one row is read by one process
    ],
)
def test_two_processes_train_as_one(
    ranks, tiny_encoder: str, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    folder, stories = ranks
    single = trainer(tmp_path, tiny_encoder, *COMMON, *options, rows=ROWS)
    single.train()
    losses = [entry["loss"] for entry in single.state.log_history if "loss" in entry]
    for story in stories:
        assert story[name]["steps"] == single.state.global_step
    assert stories[0][name]["losses"] == pytest.approx(losses, abs=1e-4)
    found = torch.load(folder / f"{name}.pt", weights_only=True)
    for key, weight in single.model.state_dict().items():
        # Adam divides by the gradient's size, so that a rounding error of 1e-8 shows where a gradient is nearly zero.
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-3, msg=key)


def test_one_process_out_of_memory_makes_both_read_less_at_once(ranks) -> None:
    first, second = (story["full"] for story in ranks[1])
    assert first["budget"] == second["budget"] <= 150 < max(second["tried"])
    assert sum(tokens > 150 for tokens in second["tried"]) <= 2, "what did not fit was tried again"


def test_gradients_go_by_ddp_once_every_process_has_been_through_as_much(ranks) -> None:
    plain = ranks[1][0]["plain"]
    assert plain["steps"] == 6 and 2 <= plain["exchanged"] < 6  # the first step does not count as proof


def test_every_process_names_the_rows_of_the_one_that_had_no_loss(ranks) -> None:
    innocent, guilty = (story["lost"] for story in ranks[1])
    assert guilty["said"] == innocent["said"]
    assert "Step 2: the loss was not a number" in innocent["said"]
    assert all(row in innocent["said"] for row in guilty["read"])
    assert not any(row in innocent["said"] for row in innocent["read"])
