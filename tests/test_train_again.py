"""One run in a folder; the same command and seed give the same, also where a file of it was damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run
from warm_runs import Road, differing, outcome

from infer.locks import hold
from infer.run import run as predict
from train.run import run as train


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(tiny_encoder: str, tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run" / "lock", "taken"), pytest.raises(ValueError, match="is being trained in by another"):
        train(settings)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert train(settings) is not None  # the lock is free again
    assert train(settings) is not None


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(road, warm, tmp_path: Path) -> None:
    one: Road = road("encoder")
    one.ends_as_undisturbed(tmp_path)
    code, _ = warm.run(*one.command, f"run_dir={tmp_path / 'other'}", "seed=43", log=tmp_path / "log")
    assert code == 0
    assert {"heldout.csv", "fold0/checkpoint/model.safetensors"} <= set(
        differing(outcome(tmp_path / "other"), one.whole)
    )


def test_the_seed_sets_every_generator_that_training_draws_from() -> None:
    import random

    from train.seeds import seed_everything

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(7)
    first = draws()
    assert draws() != first
    seed_everything(7)
    assert draws() == first


def test_a_config_of_zero_bytes_is_told_with_what_to_do(tiny_encoder: str, tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"config\.yaml"):
        train(settings)


def test_damaged_baselines_are_made_again(tiny_encoder: str, tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "method.name=prior")
    first = train(settings)
    (tmp_path / "run" / "baselines.json").write_bytes(b"")
    assert first is not None and train(settings)["baselines"] == first["baselines"]  # type: ignore[index]
    assert len(predict(settings)) == 7
