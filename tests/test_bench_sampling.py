"""`scripts/bench/sampling.py`: draws that follow the probabilities are inside their intervals, others are not."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "scripts" / "bench"))
bench = importlib.import_module("sampling")
SAMPLES = 200


def table(mass: np.ndarray) -> pd.DataFrame:
    """As python -m infer writes it. mass: (N, 2) of the labels a and b."""
    probs = mass / mass.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        columns = {"logp_a": np.log(mass[:, 0]), "logp_b": np.log(mass[:, 1]), "p_a": probs[:, 0], "p_b": probs[:, 1]}
    rows = len(mass)
    predicted = np.where(probs[:, 0] >= 0.5, "a", "b")
    return pd.DataFrame({"id": [str(at) for at in range(rows)], "label": ["a", "b"] * (rows // 2), **columns,
                         "p_other": 1 - mass.sum(axis=1), "predicted": predicted})  # fmt: skip


@pytest.fixture
def both() -> tuple[np.ndarray, np.ndarray]:
    """(probabilities of two labels and of neither, how often 200 draws were each), 2,000 rows."""
    random = np.random.default_rng(5)
    mass = random.dirichlet([3.0, 2.0, 0.5], 2000)
    return mass[:, :2], np.array([random.multinomial(SAMPLES, one)[:2] for one in mass])


def test_draws_by_the_probabilities_are_inside_as_often_as_they_should(both) -> None:
    mass, times = both
    for one in bench.agreements(table(mass), table(times / SAMPLES).iloc[::-1], SAMPLES):
        assert one.rows == 2000 and 0.95 <= one.expected < 0.975
        assert abs(one.inside - one.expected) < 4 * np.sqrt(0.05 * 0.95 / 2000) and one.worst < 5


def test_draws_by_other_probabilities_are_found_out(both) -> None:
    """Three hundredths more for one label are 0.9 standard deviations of 200 draws."""
    mass, times = both
    shifted = np.clip(mass + np.array([0.03, -0.03]), 0.001, 0.999)
    assert all(
        one.inside < one.expected - 0.08 for one in bench.agreements(table(shifted), table(times / SAMPLES), SAMPLES)
    )


def test_other_rows_are_refused(both) -> None:
    mass, _ = both
    with pytest.raises(ValueError, match="other rows"):
        bench.agreements(table(mass), table(mass).iloc[:-1], SAMPLES)


def test_the_command_prints_both_tables(tmp_path: Path, both, capsys: pytest.CaptureFixture[str]) -> None:
    mass, times = both
    table(mass).to_parquet(tmp_path / "read.parquet")
    table(times / SAMPLES).to_parquet(tmp_path / "drawn.parquet")
    (tmp_path / "drawn.parquet.json").write_text(json.dumps({"identity": {"generation.samples": SAMPLES}}))
    bench.main([str(tmp_path / "read.parquet"), str(tmp_path / "drawn.parquet")])
    said = capsys.readouterr().out
    assert said.startswith("200 draws of each of 2000 rows") and said.count("\n| ") == 2 + 2 + 2 + 3
    share = (times / times.sum(axis=1, keepdims=True))[np.arange(2000), np.arange(2000) % 2].mean()
    assert f"| one draw | {share:.3f} | - |" in said
