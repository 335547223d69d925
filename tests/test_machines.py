"""More than one machine: accelerate's own file, two launchers that meet over the network, a sweep by SLURM's road."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, free_port, pair_rows, write_arena_csv

needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="hydra-submitit-launcher is not installed: .venv/bin/pip install -e '.[slurm]'",
)


def test_accelerate_reads_the_file_of_two_machines() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(ROOT / "docs" / "two_nodes.yaml"))
    assert read.distributed_type == "MULTI_GPU"  # a file that shards by itself is refused: test_sharding.py
    assert (read.num_machines, read.num_processes, read.mixed_precision) == (2, 8, "no")


@needs_submitit
def test_the_slurm_launcher_composes_with_an_experiment() -> None:
    from hydra import compose, initialize_config_module

    with initialize_config_module("conf", version_base="1.3"):
        overrides = ["+experiment=arena_deberta", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
        launcher = compose("config", overrides=overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.tasks_per_node, launcher.gpus_per_node) == ("gpu", 1, 1)


@pytest.mark.slow
@needs_submitit
def test_a_sweep_by_submitit_gives_each_job_its_folder_and_the_command_as_written(tmp_path: Path) -> None:
    """submitit_local takes the road of submitit_slurm, pickle and all, without SLURM."""
    data = write_arena_csv(tmp_path / "train.csv", pair_rows(48))
    words = [
        "--multirun", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "+experiment=arena_length", f"task.train_csv={data}", f"run_dir={tmp_path / 'run'}", "folds.count=2,3",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "train", *words], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted((tmp_path / "run").rglob("metrics.json"))
    assert [len(json.loads(path.read_text())["folds"]) for path in found] == [2, 3]
    for path in found:
        assert " ".join(words) in json.loads((path.parent / "environment.json").read_text())["command"]


def two_machines(encoder: str, folder: Path, run_dirs: list[str]) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of a run on two "machines" of one process each: LOCAL_RANK is 0 on both."""
    data = write_arena_csv(folder / "train.csv", pair_rows(48))
    port = free_port()
    launched = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={machine}",
                "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}", "-m", "train",
                "+experiment=arena_quickstart", f"task.train_csv={data}", f"run_dir={folder / run_dirs[machine]}",
                f"model.name={encoder}", "task.budget_tokens=64", "trainer.batch_rows=4", "report=false",
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for machine in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=400) for process in launched]
    return [(process.returncode, *both) for process, both in zip(launched, said, strict=True)]


@pytest.mark.slow
def test_two_launchers_over_the_network_make_one_run(tiny_encoder: str, tmp_path: Path) -> None:
    """Only the first of all processes writes and speaks, though each is the first of its machine."""
    first, second = two_machines(tiny_encoder, tmp_path, ["run", "run"])
    assert (first[0], second[0]) == (0, 0), first[2][-3000:] + second[2][-3000:]
    assert "2 process(es)" in first[1] and "held-out log loss" not in second[1]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["folds"] == [0, 1]


@pytest.mark.slow
def test_machines_that_do_not_share_the_run_folder_are_refused(tiny_encoder: str, tmp_path: Path) -> None:
    first, second = two_machines(tiny_encoder, tmp_path, ["here", "there"])
    assert first[0] != 0 and second[0] != 0
    assert "is not the same folder on every machine" in first[2]
