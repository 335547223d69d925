"""Losses and gradients that are no numbers: the step is skipped and counted, too many in a row end the run."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pair_rows
from stopped_trainings import STEPS
from test_loop import trainer
from warm_runs import encoder_road

from models.reader import load_tokenizer
from train.checkpoints import last_whole_checkpoint
from train.loop import FoldTrainer

POISON = "scene"  # a word of the tokenizer that no row has


def poisoned(folder: Path, encoder: str, rows: list, *overrides: str) -> FoldTrainer:
    """A training of a network that makes NaN of the word POISON."""
    loop = trainer(folder, encoder, *STEPS, *overrides, rows=rows)
    token = load_tokenizer(encoder).convert_tokens_to_ids(POISON)
    with torch.no_grad():
        loop.model.encoder.bert.embeddings.word_embeddings.weight[token] = math.nan
    return loop


def with_poison(rows: list, *numbers: int) -> list:
    return [replace(row, response_a=(POISON,)) if at in numbers else row for at, row in enumerate(rows)]


@pytest.mark.parametrize("budget", [10_000, 60])
def test_a_step_without_a_number_changes_nothing_and_is_counted(
    tiny_encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, budget: int
) -> None:
    """The row with the poison is met once in each of three epochs, in one of two steps."""
    rows = with_poison(pair_rows(16), 3)
    loop = poisoned(tmp_path, tiny_encoder, rows, f"trainer.budget_tokens={budget}")
    states: list[list[torch.Tensor]] = []
    inner = loop.training_step

    def watched(*given, **named):
        states.append([weight.detach().clone() for weight in loop.model.parameters()])
        return inner(*given, **named)

    loop.training_step = watched  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "tiebreak"):
        loop.train()
    states.append(list(loop.model.parameters()))
    moved = [any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(x, y, strict=True))
             for x, y in itertools.pairwise(states)]  # fmt: skip
    assert len(moved) == 6 and sum(moved) == 3 and loop.skipped_steps == 3
    assert caplog.text.count("the step is skipped") == 3 and rows[3].id in caplog.text
    losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(0.5 < loss < 2 for loss in losses), "the mean of the steps that had a loss"
    if budget == 60:  # only the micro-batch is named
        assert caplog.text.count(rows[0].id) + caplog.text.count(rows[1].id) < 6


def test_an_infinite_gradient_behind_a_finite_loss_is_skipped_too(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, *STEPS)
    weight = next(weight for weight in loop.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: gradient * (math.inf if loop.state.global_step == 1 else 1.0))
    loop.train()
    assert loop.skipped_steps == 1
    assert all(bool(weight.isfinite().all()) for weight in loop.model.parameters())


def test_too_many_such_steps_in_a_row_stop_the_run_at_its_last_save_and_name_the_rows(
    tiny_encoder: str, tmp_path: Path
) -> None:
    rows = pair_rows(16)
    loop = poisoned(tmp_path, tiny_encoder, with_poison(rows, *range(16)), "trainer.nan_steps=3")
    with pytest.raises(ValueError, match=r"Step 3: the loss was not a number in 3 step\(s\) in a row") as stopped:
        loop.train()
    assert sum(row.id in str(stopped.value) for row in rows) == 8, "the rows of the third step"
    newest = last_whole_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2"
    assert json.loads((newest / "progress.json").read_text())["skipped_in_a_row"] == 2


def test_the_command_stops_with_2_where_every_loss_is_no_number(road, warm, tmp_path: Path, tiny_encoder: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_encoder, tmp_path / "poison")
    weights = load_file(tmp_path / "poison" / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"][0] = math.nan
    save_file(weights, tmp_path / "poison" / "model.safetensors", metadata={"format": "pt"})
    command = encoder_road(tmp_path, str(tmp_path / "poison"))
    code, _ = warm.run(*command, f"run_dir={tmp_path / 'run'}", log=tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert code == 2, said[-3000:]
    assert "error: Step" in said or "gave a logit that is not a number" in said
    assert "Rows: 100" in said
