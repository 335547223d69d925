"""`scripts/bench/qlora_arithmetic.py`: what an 8B Llama needs, beside figures worked out by hand from its config."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
arithmetic = importlib.import_module("qlora_arithmetic")
SHAPES = importlib.import_module("soft_model").SHAPES

GIB = 2**30
LLAMA_8B, TOY = SHAPES["8b"], SHAPES["toy"]


def gib(size: float) -> float:
    return round(size / GIB, 2)


def test_the_weights_of_an_8b_llama_take_3_35_gib_and_a_gib_for_each_table() -> None:
    assert arithmetic.linear_weights(LLAMA_8B) == pytest.approx(6.979e9, rel=1e-3)
    assert arithmetic.nf4_bits() == pytest.approx(4.127, abs=5e-4)
    assert gib(arithmetic.linear_bytes(LLAMA_8B)) == 3.35
    assert gib(arithmetic.linear_bytes(LLAMA_8B, double=False)) == 3.66
    assert gib(2 * arithmetic.table_weights(LLAMA_8B)) == 0.98
    assert gib(2 * 4 * arithmetic.table_weights(LLAMA_8B)) == 3.91  # both in float32


def test_the_adapters_of_an_8b_llama_take_0_63_gib_with_their_optimizer() -> None:
    sixteen, wide = (arithmetic.adapter_weights(LLAMA_8B, rank) for rank in (16, 64))
    assert (sixteen, wide) == (41_943_040, 167_772_160)
    assert arithmetic.adapter_bytes(sixteen) / GIB == 0.625
    assert gib(arithmetic.adapter_bytes(sixteen, moment_bytes=1)) == 0.39
    assert (gib(arithmetic.adapter_bytes(wide)), gib(arithmetic.adapter_bytes(wide, moment_bytes=1))) == (2.5, 1.56)
    queries_and_values = arithmetic.adapter_weights(LLAMA_8B, 16, only=(0, 2))
    assert queries_and_values == pytest.approx(6.8e6, rel=0.01)
    assert gib(arithmetic.adapter_bytes(queries_and_values)) == 0.1


@pytest.mark.parametrize(
    ("length", "rows", "checkpoints", "layer", "logits"),
    [(512, 1, 0.125, (0.08, 0.15), 0.73), (1024, 1, 0.25, (0.16, 0.3), 1.47), (1024, 4, 1.0, (0.64, 1.2), 5.87)],
)
def test_the_activations_are_the_hand_made_table_s(
    length: int, rows: int, checkpoints: float, layer: tuple[float, float], logits: float
) -> None:
    own, plain = (arithmetic.parts(LLAMA_8B, rows, length, 16, arithmetic.ROADS[road]) for road in ("ours", "plain"))
    assert own["checkpoints"] == (checkpoints, checkpoints)
    assert plain["checkpoints"] == (2 * checkpoints, 2 * checkpoints)  # float32
    least, most = own["one layer again"]
    assert layer[0] == pytest.approx(least, abs=0.005) and least < most <= layer[1]
    assert plain["logits"][0] == pytest.approx(logits, abs=0.005)
    assert own["logits"][0] < 0.01
    assert round(own["one matrix dequantised"][0], 2) == 0.11


@pytest.mark.parametrize(
    ("road", "rows", "least", "most"),
    [("plain", 1, 10.5, 11.1), ("plain", 4, 17.0, 17.8), ("ours", 4, 8.0, 9.0), ("ours", 8, 9.8, 11.1)],
)
def test_four_rows_of_1024_tokens_fit_16_gib_on_our_road_and_not_on_the_plain_one(
    road: str, rows: int, least: float, most: float
) -> None:
    found = arithmetic.total(arithmetic.parts(LLAMA_8B, rows, 1024, 16, arithmetic.ROADS[road]))
    assert least <= found[0] < found[1] <= most


def test_the_work_of_a_step_is_three_passes_over_the_layers() -> None:
    """2 x weights x tokens each: forward, forward again, and the inputs' gradient; the head is not recomputed."""
    layers, head = arithmetic.linear_weights(TOY), TOY.vocab * TOY.hidden
    assert arithmetic.step_flops(TOY, tokens=10, rows=2, full=False) == 3 * 2 * layers * 10 + 2 * 2 * head * 2
    assert arithmetic.step_flops(TOY, tokens=10, rows=2, full=True) == 3 * 2 * layers * 10 + 2 * 2 * head * 10
