"""`scripts/bench/levers.py`: one run sets each lever beside the plain step; what cannot run says why."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
bench = importlib.import_module("levers")


def test_levers_stand_beside_the_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("plain", "transformers' attention", "embeddings frozen", "adapters", "compiled")
    monkeypatch.setattr(bench, "compile_lack", lambda: "this machine has no GPU")
    every = bench.levers
    monkeypatch.setattr(bench, "levers", lambda layers: [one for one in every(layers) if one.name in wanted])
    options = Namespace(
        network=bench.SHAPES["toy"], vocabulary=200, tokens=64, rows=2, rounds=1, precision="fp32", device="cpu",
        attention="auto",
    )  # fmt: skip
    plain, eager, frozen, adapters, compiled = lines = bench.measure(options)
    assert [one.attention for one in (plain, eager, frozen)] == ["sdpa", "eager", "sdpa"]
    assert plain.time_x == plain.peak_x == 1 and frozen.step_s > 0
    # The embeddings are 200 rows of 32 numbers, with a norm of two times 32; 512 relative ones, and theirs, stay too.
    least = (200 * 32 + 2 * 32 + 512 * 32 + 2 * 32) * 12 / 2**20
    assert plain.state_mib - frozen.state_mib == pytest.approx(least, rel=1e-6)
    assert adapters.state_mib < plain.state_mib
    assert compiled.step_s is None and compiled.cannot == "this machine has no GPU"
    text = bench.table(lines)
    assert "| plain | `-` |" in text and "compiled (this machine has no GPU)" in text


def test_a_lever_that_fails_costs_itself_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """bitsandbytes is not there, and no kernel can be made; what was measured before is on the disk by then."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it raises ModuleNotFoundError
    monkeypatch.setattr(bench, "compile_lack", lambda: None)
    kept: list[dict] = []

    def unmade(network):
        kept.extend(json.loads(path.read_text())["lines"])
        raise RuntimeError("the kernel needs more shared memory\nthan there is")

    monkeypatch.setattr(bench.torch, "compile", unmade)
    path = tmp_path / "levers.json"
    given = "--shape toy --tokens 64 --rows 2 --vocabulary 200 --rounds 1 --device cpu --json"
    monkeypatch.setattr(sys, "argv", ["levers.py", *given.split(), str(path)])
    bench.main()
    lines = {line["name"]: line for line in json.loads(path.read_text())["lines"]}
    assert lines["8-bit AdamW"]["cannot"].startswith("ModuleNotFoundError")
    assert lines["compiled"]["cannot"] == "RuntimeError: the kernel needs more shared memory"
    assert all(line["time_x"] for name, line in lines.items() if name not in ("8-bit AdamW", "compiled"))
    assert len(kept) == 9 and kept[0]["step_s"] > 0


def test_8_bits_are_counted_for_all_but_the_embeddings() -> None:
    pytest.importorskip("bitsandbytes")
    options = Namespace(
        network=bench.SHAPES["toy"], vocabulary=200, precision="fp32", device="cpu", attention="auto"
    )  # fmt: skip
    runner = bench.Runner(options, bench.Lever("8-bit AdamW", "", optimizer="adamw_8bit"))
    every = sum(weight.numel() for weight in runner.network.parameters())
    embedded = 200 * 32 + 512 * 32
    assert runner.state_bytes == 4 * every + 8 * embedded + 2 * (every - embedded)


def test_every_setting_of_a_lever_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import compose

    from models.settings import flatten

    known = flatten(compose("+experiment=arena_deberta"))
    words = " ".join(one.setting for one in bench.levers(12)).replace("=", " ").split()
    named = {word for word in words if word.startswith(("model.", "trainer."))}
    assert len(named) == 8 and named <= set(known)
