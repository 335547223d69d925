"""Adapters under ZeRO-3: the base is dealt out for a fold's training and whole again after it, in 4 bits or not.

Needs DeepSpeed, see test_sharding.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_sharding import launched, needs_deepspeed
from warm_runs import adapter_road

SMALL = ("trainer=zero3", "trainer.bucket_weights=2000", "trainer.whole_below=0")  # so that a tiny base is dealt out


def road(model: str, folder: Path, name: str, *, rows: int) -> list[str]:
    """The tiny training of adapters, without dropout, which each process would draw otherwise; rows: of a batch."""
    command = adapter_road(folder, model)
    return ["-m", *command, "adapter.dropout=0", f"run_dir={folder / name}", f"trainer.batch_rows={rows}"]


def adapters_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights of both folds' checkpoints, which hold nothing else."""
    found = {}
    for fold in (0, 1):
        weights = load_file(run / f"fold{fold}" / "checkpoint" / "adapter_model.safetensors")
        assert all("lora_" in name for name in weights), "the checkpoint holds more than the adapter"
        found |= {f"fold{fold}/{name}": weight for name, weight in weights.items()}
    return found


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_train_dealt_out_as_in_one_process_and_resume(
    quantization: str, tiny_language_model: str, tmp_path: Path, warm
) -> None:
    """Two folds beside one base; a launch that ends after a step and one that goes on from there."""
    options = [f"model.quantization={quantization}", "trainer.precision=fp32"]
    single = road(tiny_language_model, tmp_path, "single", rows=4)[2:]
    code, _ = warm.run("train", *single, *options, log=tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    dealt = [*road(tiny_language_model, tmp_path, "dealt", rows=2), *options, *SMALL]
    for more in (["time_budget_minutes=0.001"], []):
        done = launched(2, [*dealt, *more])
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "fold 0: cut short before, trained on" in done.stdout
    expected, found = adapters_of(tmp_path / "single"), adapters_of(tmp_path / "dealt")
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        # Sums in another order; Adam at a rate of 0.01 makes the most of a gradient near zero.
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4, msg=name)
    scores = [json.loads((tmp_path / run / "metrics.json").read_text())["log_loss"] for run in ("single", "dealt")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    code, _ = warm.run("infer", *dealt[2:], "trainer=default", "trainer.batch_rows=4", log=tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
