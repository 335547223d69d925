"""ZeRO-2, ZeRO-3 and FSDP: every experiment takes them, and they train, save, resume and predict as one process does.

The slow ones need DeepSpeed: .venv/bin/pip install -c constraints/cpu.txt -e '.[test,deepspeed]' && \
    .venv/bin/python -m pytest -m slow tests/test_sharding.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, compose, free_port, pair_rows, tiny_run, write_arena_csv
from step_ranks import COMMON, ROWS, SHARDED, TRAININGS
from test_loop import trainer
from test_micro_batches import LENGTHS, micro

from infer.predictions import Predictions
from models.adapter_base import refuse_sharding
from train.learners import TRAINED
from train.loop import training_arguments
from train.run import run as train
from train.sharding import PASCAL_SWITCH, allow_pascal, check_sharding, sharding_arguments, trainer_precision

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: .venv/bin/pip install -c constraints/cpu.txt -e '.[test,deepspeed]'",
)
each_sharding = pytest.mark.parametrize(
    "sharding", [*(pytest.param(one, marks=needs_deepspeed) for one in ("zero2", "zero3")), "fsdp"]
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


@cache
def trained(sharding: str) -> list:
    """The settings of every experiment that trains a network, sharded."""
    found = []
    for name in EXPERIMENTS:
        settings = compose(f"+experiment={name}", f"trainer={sharding}", "run_dir=run")
        if settings.method.name in TRAINED:
            found.append(settings)
    assert len(found) >= 10
    return found


@needs_deepspeed
@pytest.mark.parametrize(("sharding", "stage"), [("zero2", 2), ("zero3", 3)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_deepspeed_takes_the_configuration_of_every_experiment(sharding: str, stage: int, precision: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

    for settings in trained(sharding):
        plain = replace(settings, trainer=replace(settings.trainer, sharding="none"))
        arguments = training_arguments(
            plain,
            Path("unused"),
            items=100,
            step_items=plain.trainer.batch_rows * plain.trainer.accumulation,
            seed=0,
            rate=1e-4,
            precision="fp32",
            report_to=[],
            quiet=True,
        )
        for key, value in trainer_precision(settings.trainer, precision).items():
            setattr(arguments, key, value)
        config = HfTrainerDeepSpeedConfig(sharding_arguments(settings.trainer, precision)["deepspeed"])
        config.trainer_config_process(arguments)
        config.trainer_config_finalize(arguments, torch.nn.Linear(1, 1), 100)  # raises where the two disagree
        unset_hf_deepspeed_config()
        asked = settings.trainer
        read = DeepSpeedConfig(config.config)
        assert read.zero_optimization_stage == stage
        assert read.gradient_accumulation_steps == 1
        assert read.train_micro_batch_size_per_gpu == asked.batch_rows * asked.accumulation
        assert read.gradient_clipping == asked.max_grad_norm
        assert read.float16_config.enabled is (precision == "fp16")
        assert read.torch_autocast_enabled is (precision == "bf16") and not read.bfloat16_config.enabled


def test_accelerate_takes_the_fsdp_of_every_experiment() -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    for settings in trained("fsdp"):
        asked = sharding_arguments(settings.trainer, "fp32")
        plugin = FullyShardedDataParallelPlugin(**TrainingArguments(output_dir="unused", **asked).fsdp_plugin_args)
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("+experiment=arena_deberta", "trainer=zero2", "trainer.optimizer=adamw_8bit"), "trainer.optimizer=adamw"),
        (("+experiment=arena_llama_qlora", "trainer=fsdp"), "which the folds share.*trainer=zero3.*trainer=zero2"),
        (("+experiment=arena_deberta", "trainer=zero3", "trainer.compile=true"), "trainer.compile=true"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused_before_anything_is_loaded(monkeypatch, overrides, said) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=said):
        check_sharding(compose(*overrides, "run_dir=run"))


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_4_bit_adapters_take_both_of_deepspeeds_ways(monkeypatch, sharding: str) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in ("arena_llama_qlora", "skills_llama_qlora", "arena_gemma2_qlora"):
        settings = compose(
            f"+experiment={name}", f"trainer={sharding}", "trainer.optimizer=paged_adamw_8bit", "run_dir=run"
        )
        check_sharding(settings)
    refuse_sharding("nf4", {"ACCELERATE_USE_DEEPSPEED": "true"})  # as transformers announces ours


def test_sharding_without_a_launch_names_the_launcher(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        check_sharding(compose("+experiment=arena_deberta", "trainer=zero2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_fsdp_on_a_cpu_is_refused_where_accelerate_would_quietly_do_without(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="on GPUs only"):
        check_sharding(compose("+experiment=arena_deberta", "trainer=fsdp"))


def test_a_launcher_that_shards_by_itself_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="say trainer=zero2, zero3 or fsdp"):
        check_sharding(compose("+experiment=arena_deberta"))


def test_fp16_on_pascal_sets_the_switch_and_says_so(monkeypatch) -> None:
    monkeypatch.setenv(PASCAL_SWITCH, "0")
    settings = compose("+experiment=arena_deberta", "trainer=zero2").trainer
    assert allow_pascal(settings, "fp16", (7, 5)) is None
    assert allow_pascal(replace(settings, sharding="none"), "fp16", (6, 0)) is None
    assert os.environ[PASCAL_SWITCH] == "0"
    assert "sm_60: DS_ALLOW_DEPRECATED_FP16=1" in (allow_pascal(settings, "fp16", (6, 0)) or "")
    assert os.environ[PASCAL_SWITCH] == "1"


@pytest.mark.parametrize(("count", "budget", "processes"), [(31, 900, 2), (32, 600, 3), (5, 400, 4), (2, 100, 3)])
def test_even_shares_are_as_many_passes_for_all_and_the_same_mean(count: int, budget: int, processes: int) -> None:
    items = [2 * row for row in range(count)]
    losses = np.random.default_rng(0).normal(size=2 * count)
    total, passes, found = 0.0, set(), set()
    for process in range(processes):
        cut = micro(LENGTHS[:count], budget_tokens=budget, processes=processes, process=process, even=True)
        mine = cut.cuts(items)[process]
        passes.add(len(mine))
        for number, part in enumerate(mine):
            total += cut.weight(part, items, mine[:number]) * losses[part].mean()
            found |= set(part)
    assert len(passes) == 1 and found == set(items)
    assert total / processes == pytest.approx(losses[items].mean(), abs=1e-12)


def launched(processes: int, script: list[str], **environment: str) -> subprocess.CompletedProcess:
    port = free_port()
    launcher = ["torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *script],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        # DeepSpeed builds an operator of its own with ninja, which is beside this Python.
        env=os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        } | environment,
    )  # fmt: skip


def same_as_one_process(sharding: str, processes: int, encoder: str, folder: Path) -> None:
    names = [name for name in SHARDED if name.startswith(sharding)]
    done = launched(processes, [str(ROOT / "tests" / "step_ranks.py"), encoder, str(folder), *names])
    assert done.returncode == 0, done.stderr[-3000:]
    stories = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    for name in names:
        training = name.partition("-")[2]
        rows = dict(part.split("=") for part in TRAININGS[training] if "batch_rows" in part)
        options = (*COMMON, *TRAININGS[training], f"trainer.batch_rows={int(rows['trainer.batch_rows']) * processes}")
        single = trainer(folder / "single" / training, encoder, *options, rows=ROWS)
        single.train()
        log = single.state.log_history
        story = stories[0][name]
        assert story["steps"] == single.state.global_step and story["exchanged"] == 0
        # Sums in another order: float32 keeps 7 digits.
        assert story["losses"] == pytest.approx([entry["loss"] for entry in log if "loss" in entry], abs=1e-5)
        norms = [float(entry["grad_norm"]) for entry in log if "grad_norm" in entry]
        assert story["norms"] == pytest.approx(norms, rel=1e-4)
        found = torch.load(folder / f"{name}.pt", weights_only=True)
        for key, weight in single.model.named_parameters():
            # Adam divides by the gradient's size: a rounding error of 1e-8 shows where a gradient is nearly zero.
            torch.testing.assert_close(found[key].view_as(weight), weight.detach().cpu(), rtol=0, atol=1e-3, msg=key)
        if processes > 1:
            held = sum(one[name]["mine"] for one in stories) / sum(weight.numel() for weight in found.values())
            assert held == pytest.approx(2 if sharding == "zero2" else 1, abs=0.05), (
                "weights are not where they should be"
            )
    whole, again = (
        torch.load(folder / f"{sharding}-{name}.pt", weights_only=True) for name in ("plain", "plain-again")
    )
    assert all(torch.equal(whole[key], again[key]) for key in whole), "a resume does not go on as if unbroken"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharding", [*(pytest.param(one, marks=needs_deepspeed) for one in ("zero2", "zero3")), "fsdp"]
)
def test_two_sharded_processes_train_clip_and_resume_as_one(sharding: str, tiny_encoder: str, tmp_path: Path) -> None:
    same_as_one_process(sharding, 2, tiny_encoder, tmp_path)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "sharding", [*(pytest.param(one, marks=needs_deepspeed) for one in ("zero2", "zero3")), "fsdp"]
)
def test_gpus_train_sharded_as_one_does(sharding: str, tiny_encoder: str, tmp_path: Path) -> None:
    same_as_one_process(sharding, torch.cuda.device_count(), tiny_encoder, tmp_path)


def a_whole_run(sharding: str, processes: int, encoder: str, folder: Path, *options: str) -> dict:
    """A run by the command, sharded, and its submission by `python -m infer`; the metrics."""
    write_arena_csv(folder / "train.csv", pair_rows(48)[:47])
    write_arena_csv(folder / "test.csv", pair_rows(7, seed=5), labelled=False)
    words = [
        "+experiment=arena_quickstart", f"task.train_csv={folder / 'train.csv'}", f"run_dir={folder / 'run'}",
        f"task.test_csv={folder / 'test.csv'}", f"model.name={encoder}", "task.budget_tokens=64", "report=false",
        "trainer.learning_rate=1e-3", "trainer.epochs=2", "model.dropout=0.0", *options,
    ]  # fmt: skip
    sharded = [f"trainer={sharding}", "trainer.bucket_weights=2000", "trainer.whole_below=0"]
    batch = f"trainer.batch_rows={max(1, 8 // processes)}"
    done = launched(processes, ["-m", "train", *words, *sharded, batch])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert not list((folder / "run").rglob("global_step*")), "the optimizer's state stayed behind"
    predicted = subprocess.run(
        [sys.executable, "-m", "infer", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    assert len(pd.read_csv(folder / "run" / "submission.csv")) == 7
    assert len(Predictions.read(folder / "run" / "heldout.csv").ids) == 47
    metrics: dict = json.loads((folder / "run" / "metrics.json").read_text())
    return metrics


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_a_sharded_run_ends_with_the_tables_of_one_process(sharding: str, tiny_encoder: str, tmp_path: Path) -> None:
    """The siamese head, frozen embeddings, two folds, a checkpoint that plain `python -m infer` reads."""
    metrics = a_whole_run(sharding, 2, tiny_encoder, tmp_path)
    single = train(
        tiny_run(tmp_path, tiny_encoder, "trainer.epochs=2", "model.dropout=0.0", f"run_dir={tmp_path / 'single'}")
    )
    assert metrics.keys() == single.keys()
    assert metrics["log_loss"] == pytest.approx(single["log_loss"], abs=1e-4)
    one, two = (Predictions.read(tmp_path / run / "heldout.csv") for run in ("single", "run"))
    assert list(one.ids) == list(two.ids)
    np.testing.assert_allclose(one.probs, two.probs, atol=1e-4)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "auto", "bf16"])
@pytest.mark.parametrize(
    "sharding", [*(pytest.param(one, marks=needs_deepspeed) for one in ("zero2", "zero3")), "fsdp"]
)
def test_gpus_finish_a_sharded_run(sharding: str, precision: str, tiny_encoder: str, tmp_path: Path) -> None:
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 needs sm_80")
    metrics = a_whole_run(sharding, torch.cuda.device_count(), tiny_encoder, tmp_path, f"trainer.precision={precision}")
    assert metrics["log_loss"] < 1.2
