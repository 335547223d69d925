"""`scripts/bench/deberta.py` on a toy network, and `scripts/results_table.py` on what it wrote."""

from __future__ import annotations

import gc
import importlib
import json
import sys
import weakref
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "scripts" / "bench"), str(ROOT / "scripts")]
bench = importlib.import_module("deberta")
cards = importlib.import_module("cards")
shapes = importlib.import_module("deberta_shapes")
results_table = importlib.import_module("results_table")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "deberta.json"
    bench.main(
        ["--shape", "toy", "--lengths", "16,600", "--tokens", "64", "--rounds", "1", "--device", "cpu",
         "--tiers", "eager,sdpa,flex,flashdeberta", "--json", str(path)]
    )  # fmt: skip
    return path


def test_every_tier_is_a_line_with_figures_or_a_reason(written: Path) -> None:
    found = json.loads(written.read_text())
    lines = {(line["lengths"], line["tier"]): line for line in found["lines"]}
    assert "this is a CPU" in lines["any", "flex"]["cannot"]
    assert "--dropout 0" in lines["any", "flashdeberta"]["cannot"]
    assert lines["16", "eager"]["rows"] == 4 and lines["600", "eager"]["rows"] == 1
    for name in ("16", "600"):
        sdpa = lines[name, "sdpa"]
        assert sdpa["difference"] < 1e-4 and sdpa["step_s"] > 0 and sdpa["peak_mib"] > 0
        assert sdpa["step_x"] == pytest.approx(lines[name, "eager"]["step_s"] / sdpa["step_s"])
        assert sdpa["peak_x"] == pytest.approx(sdpa["peak_mib"] / lines[name, "eager"]["peak_mib"])


def test_a_tier_that_does_not_fit_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one network and 20 rows at a time, in which sdpa's prediction never fits."""
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    made, step, predict = bench.Runner.__init__, bench.Runner.step, bench.Runner.predict

    def construct(self, options, tier):
        gc.collect()
        if len(alive):
            raise torch.OutOfMemoryError("two networks")
        made(self, options, tier)
        self.tier = tier
        alive.add(self)

    def limited(self, batch):
        if len(batch.ids) > 20:
            raise torch.OutOfMemoryError("too many rows")
        step(self, batch)

    def refused(self, batch):
        if self.tier == "sdpa":
            raise torch.OutOfMemoryError("no room to predict")
        return predict(self, batch)

    for name, one in {"__init__": construct, "step": limited, "predict": refused}.items():
        monkeypatch.setattr(bench.Runner, name, one)
    path = tmp_path / "full.json"
    bench.main(
        ["--shape", "toy", "--lengths", "8,16", "--tokens", "16", "--rounds", "1", "--device", "cpu",
         "--tiers", "eager,sdpa", "--largest", "--json", str(path)]
    )  # fmt: skip
    lines = {(one["lengths"], one["tier"]): one for one in json.loads(path.read_text())["lines"]}
    for length in ("8", "16"):
        assert lines[length, "sdpa"]["cannot"] == "out of memory"
        assert 18 <= lines[length, "eager"]["largest_rows"] <= 20 and lines[length, "eager"]["step_s"] > 0


def test_a_tier_whose_kernel_cannot_be_made_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file when a tier fails holds the tiers before it."""
    path, kept = tmp_path / "failed.json", []
    step = bench.Runner.step

    def failing(self, batch):
        if any(getattr(one, "tier", None) == "sdpa" for one in self.network.modules()):
            kept.append([line["tier"] for line in json.loads(path.read_text())["lines"]])
            raise RuntimeError("out of resource: shared memory")
        step(self, batch)

    monkeypatch.setattr(bench.Runner, "step", failing)
    monkeypatch.setattr(bench, "refusals", lambda options: {})
    bench.main(
        ["--shape", "toy", "--lengths", "8,16", "--tokens", "16", "--rounds", "1", "--device", "cpu",
         "--tiers", "eager,sdpa", "--json", str(path)]
    )  # fmt: skip
    lines = {(one["lengths"], one["tier"]): one for one in json.loads(path.read_text())["lines"]}
    for length in ("8", "16"):
        assert lines[length, "eager"]["step_s"] > 0
        assert lines[length, "sdpa"]["cannot"] == "RuntimeError: out of resource: shared memory"
    assert kept[0] == ["eager"]


def test_a_tier_that_raises_is_a_line_and_what_was_measured_before_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sdpa fails as a kernel does that was never compiled: at its first prediction of 16, in its timed turn of 8."""
    path, made, predict = tmp_path / "raises.json", bench.Runner.__init__, bench.Runner.predict
    before: list[dict] = []

    def construct(self, options, tier):
        made(self, options, tier)
        self.tier, self.predictions = tier, 0

    def broken(self, batch):
        self.predictions += 1
        # Alone, a network predicts before its first step; in turns it steps first, which AdamW's state shows.
        if self.tier == "sdpa" and (batch.name == "16" or self.optimiser.state):
            before.append(json.loads(path.read_text()))
            raise RuntimeError("OutOfResources: shared memory\nand much more")
        return predict(self, batch)

    monkeypatch.setattr(bench.Runner, "__init__", construct)
    monkeypatch.setattr(bench.Runner, "predict", broken)
    bench.main(
        ["--shape", "toy", "--lengths", "8,16", "--tokens", "16", "--rounds", "1", "--device", "cpu",
         "--tiers", "eager,sdpa", "--json", str(path)]
    )  # fmt: skip
    lines = {(one["lengths"], one["tier"]): one for one in json.loads(path.read_text())["lines"]}
    for length in ("8", "16"):
        assert lines[length, "sdpa"]["cannot"] == "RuntimeError: OutOfResources: shared memory"
        assert lines[length, "sdpa"]["step_s"] is None and lines[length, "eager"]["step_s"] > 0
    assert lines["8", "sdpa"]["peak_mib"] > 0 and lines["8", "sdpa"]["peak_x"] > 0
    assert [(one["lengths"], one["tier"]) for one in before[-1]["lines"]][-1] == ("16", "eager")


def test_a_size_that_fails_for_another_reason_is_no_size_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = bench.Runner.step

    def broken(self, batch):
        if len(batch.ids) > 4:
            raise RuntimeError("CUDA error: invalid configuration argument")
        step(self, batch)

    monkeypatch.setattr(bench.Runner, "step", broken)
    path = tmp_path / "odd.json"
    bench.main(
        ["--shape", "toy", "--lengths", "8", "--tokens", "16", "--rounds", "1", "--device", "cpu", "--tiers", "sdpa",
         "--largest", "--json", str(path)]
    )  # fmt: skip
    (line,) = json.loads(path.read_text())["lines"]
    assert line["largest_rows"] is None and line["cannot"] is None and line["peak_mib"] > 0 and line["step_s"] > 0


def test_a_package_that_breaks_on_its_import_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise AttributeError("module 'triton' has no attribute 'language'")

    monkeypatch.setattr(shapes.importlib, "import_module", broken)
    options = bench.parse(["--tiers", "eager,flashdeberta", "--dropout", "0", "--device", "cpu"])
    assert bench.refusals(options) == {"flashdeberta": "AttributeError: module 'triton' has no attribute 'language'"}


def test_the_work_is_that_of_the_matrices() -> None:
    """One layer of 2 units, one text of 3 tokens: twelve 2 x 2 matrices, five distances, nine scores twice."""
    expected = 2 * 3 * 12 * 4 + 2 * 2 * 3 * 5 * 2 + 2 * 2 * 9 * 2 + 2 * 2 * 5 * 4
    assert shapes.forward_flops(shapes.Shape(1, 2), [3]) == expected


def test_lines_become_a_table(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_table.main([str(written), "--columns", "lengths,tier,step_x,cannot"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("`python scripts/bench/deberta.py --shape toy") and "torch" in lines[0]
    assert lines[2] == "| lengths | tier | step x | cannot |" and len(lines) == 4 + 6


def test_a_card_leaves_its_tensors_what_the_context_does_not_take() -> None:
    assert cards.tensor_gib(cards.card_gib("t4"), "cuda") == pytest.approx(14.0, abs=0.05)
    assert cards.tensor_gib(cards.card_gib("p100"), "cuda") == pytest.approx(15.3, abs=0.05)
    assert cards.tensor_gib(cards.card_gib("8"), "cpu") == 8
    with pytest.raises(ValueError, match=r"CUDA's context alone takes about 0\.6 GiB"):
        cards.tensor_gib(0.5, "cuda")


@pytest.mark.parametrize("text", ["t5", "0", "-1", "nan", "inf"])
def test_a_card_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--memory-gib", text])
    assert "expected t4, p100 or a number of GiB" in capsys.readouterr().err


def test_figures_have_three_digits() -> None:
    assert [results_table.cell(one) for one in (None, 1234.5, 0.98765, 2.5e-7, 12, "a|b", 0.0)] == [
        "", "1,234", "0.988", "2.5e-07", "12", "a\\|b", "0",
    ]  # fmt: skip


def test_a_file_of_no_benchmark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"lines": [{"a": 1}]}')
    with pytest.raises(SystemExit, match="no lines of a benchmark"):
        results_table.main([str(path)])


def test_an_unknown_column_is_refused_with_those_that_are_there(written: Path) -> None:
    with pytest.raises(SystemExit, match=r"--columns speed: deberta has lengths, rows, tier"):
        results_table.main([str(written), "--columns", "speed"])
