"""What only a CUDA GPU can show: python -m pytest -m gpu tests/test_gpu.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair_rows, tiny_run

from infer.run import run as predict
from train.run import run as train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("head", ["joint", "siamese"])
def test_a_run_trains_and_predicts(tmp_path: Path, tiny_encoder: str, precision: str, head: str) -> None:
    settings = tiny_run(
        tmp_path, tiny_encoder, f"trainer.precision={precision}", f"model.head={head}", "trainer.epochs=12", rows=96
    )
    metrics = train(settings)
    assert metrics["log_loss"] < metrics["baselines"]["class prior"]
    assert np.isfinite(predict(settings).probs).all()


def test_fp16_predictions_agree_with_float32(tmp_path: Path, tiny_encoder: str) -> None:
    from infer.classifiers import load_classifier

    settings = tiny_run(tmp_path, tiny_encoder, "trainer.precision=fp16", "folds.only=[0]")
    train(settings)
    classifier = load_classifier(tmp_path / "run" / "fold0" / "checkpoint")
    rows = pair_rows(40, seed=3)
    half = classifier.predict_proba(rows, precision="fp16")
    # Half precision has eleven bits: a logit of size 1 is right to about 5e-4.
    np.testing.assert_allclose(half, classifier.predict_proba(rows, precision="fp32"), atol=5e-3)


def test_bf16_is_refused_or_runs_by_capability(tmp_path: Path, tiny_encoder: str) -> None:
    settings = tiny_run(tmp_path, tiny_encoder, "trainer.precision=bf16", "folds.only=[0]")
    if torch.cuda.get_device_capability() >= (8, 0):
        train(settings)
    else:
        with pytest.raises(ValueError, match="sm_80"):
            train(settings)
