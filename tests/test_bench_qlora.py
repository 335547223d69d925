"""`scripts/bench/qlora.py` on Llamas of two layers: the arithmetic, the model, the roads, and a run from end to end."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.causal import keep_unpacked

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
arithmetic = importlib.import_module("qlora_arithmetic")
bench = importlib.import_module("qlora")
models = importlib.import_module("qlora_model")
roads = importlib.import_module("qlora_roads")
table = importlib.import_module("qlora_table")
workers = importlib.import_module("qlora_worker")

GIB = 2**30
LLAMA_8B = models.SHAPES["8b"]
TOY = models.SHAPES["toy"]
ROADS = list(arithmetic.ROADS)
has_nf4 = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="4-bit weights need bitsandbytes: pip install bitsandbytes"
)


def test_a_shape_is_a_name_or_six_numbers() -> None:
    assert models.parse_shape("8b") is LLAMA_8B
    assert models.parse_shape("128256,4096,32,32,8,14336") == LLAMA_8B


@pytest.mark.parametrize(
    ("text", "said"),
    [("9b", "expected one of toy"), ("1,2,3", "six numbers"), ("100,30,1,4,2,64", r"heads \(4\) must divide")],
)
def test_a_shape_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.parse_shape(text)


@has_nf4
def test_a_made_model_is_what_transformers_loads_in_four_bits(tmp_path: Path) -> None:
    """The same kinds of modules and formats, and marks that peft and Trainer ask for."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = models.build(TOY, device="cpu", precision="fp32", quantization="none")
    plain.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
    )
    made = models.build(TOY, device="cpu", precision="fp32")
    expected = {name: type(module).__name__ for name, module in loaded.named_modules()}
    assert {name: type(module).__name__ for name, module in made.named_modules()} == expected
    assert [(name, one.dtype, one.shape) for name, one in made.named_parameters()] == [
        (name, one.dtype, one.shape) for name, one in loaded.named_parameters()
    ]
    for mark in ("is_quantized", "is_loaded_in_4bit", "quantization_method"):
        assert getattr(made, mark) == getattr(loaded, mark)
    keep_unpacked(loaded)  # a CPU with bfloat16 instructions would re-pack its layers, and fails at this size (trap T3)
    # The same seed drew both, so that what is between them is the rounding to four bits.
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = plain(input_ids=ids).logits
        apart = (made(input_ids=ids).logits - wanted).std() / wanted.std()
        same = (made(input_ids=ids).logits - loaded(input_ids=ids).logits).abs().max()
    assert 0.01 < float(apart) < 1.0  # of two networks without anything in common: 1.4
    assert float(same) < 1e-5


@has_nf4
def test_four_bits_take_what_the_arithmetic_says() -> None:
    shape = dataclasses.replace(TOY, hidden=256, heads=4, intermediate=1024, layers=1)
    layer = models.build(shape, device="cpu", precision="fp32").model.layers[0]
    matrices = [module for module in layer.modules() if type(module).__name__ == "Linear4bit"]
    assert len(matrices) == 7
    # Each brings tables and means of a few bytes: 2 x (256 + 16) float32 at most, and one mean.
    beside = models.stored_bytes(layer) - 2 * 4 * shape.hidden - arithmetic.linear_bytes(shape)
    assert 0 <= beside <= 7 * (4 * 2 * 272 + 4)


@has_nf4
@pytest.mark.slow
def test_a_layer_of_the_8b_shape_takes_a_32nd_of_3_35_gib() -> None:
    shape = dataclasses.replace(LLAMA_8B, layers=1, vocab=256)
    layer = models.build(shape, device="cpu", precision="fp16").model.layers[0]
    assert 32 * models.stored_bytes(layer) / GIB == pytest.approx(3.353, abs=2e-3)


def make(road: str, quantization: str = "none") -> Any:
    model = models.build(TOY, device="cpu", precision="fp32", quantization=quantization)
    return roads.prepare(road, model, precision="fp32", rank=4)


def test_a_batch_s_longest_row_has_the_length_asked_for_and_every_answer_is_a_label() -> None:
    batch = roads.make_batch(5, 24, TOY.vocab)
    plain, labels = batch.for_plain(), batch.for_labels()
    assert plain["input_ids"].shape == (5, 24) and labels["input_ids"].shape == (5, 23)
    assert int(batch.lengths.max()) == 23 and int(batch.lengths.min()) >= 18
    assert plain["attention_mask"].sum(1).tolist() == (batch.lengths + 1).tolist()
    assert [row[row != roads.IGNORED].tolist() for row in plain["labels"]] == [
        [roads.LABELS[label]] for label in batch.label
    ]
    assert labels["targets"].argmax(1).equal(batch.label)


def test_ours_and_the_plain_road_give_an_answer_the_same_loss() -> None:
    """The model's own loss is -log P(answer), which our network returns for every label."""
    batch = roads.make_batch(6, 24, TOY.vocab)
    with torch.no_grad():
        plain = make("plain").network.eval()(**batch.for_plain()).loss
        full = make("ours, full logits").network.eval()(**batch.for_plain()).loss
        inputs = batch.for_labels()
        targets = inputs.pop("targets")
        own = -(make("ours").network.eval()(**inputs) * targets).sum(1).mean()
    assert float(own) == pytest.approx(float(plain), abs=1e-5)  # float32 arithmetic
    assert float(full) == pytest.approx(float(plain), abs=1e-5)


def test_our_loss_is_the_full_logits_restricted_to_the_labels() -> None:
    batch = roads.make_batch(6, 24, TOY.vocab)
    inputs = batch.for_labels()
    targets = inputs.pop("targets")
    prepared = make("ours")
    with torch.no_grad():
        logits = make("plain").network.eval()(input_ids=batch.input_ids).logits
        at_answers = logits[torch.arange(6), batch.lengths - 1][:, list(roads.LABELS)]
        expected = torch.nn.functional.cross_entropy(at_answers, targets)
        found = torch.nn.functional.cross_entropy(prepared.network.eval()(**inputs), targets)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("quantization", ["none", pytest.param("nf4", marks=has_nf4)])
def test_every_road_trains_and_can_go_on(road: str, quantization: str) -> None:
    prepared = make(road, quantization)
    batch = roads.make_batch(3, 16, TOY.vocab)
    first = roads.train(prepared, batch, precision="fp32", steps=2, synchronise=lambda: None)
    again = roads.train(prepared, batch, precision="fp32", steps=2, synchronise=lambda: None)
    assert len(first.seconds) == len(again.seconds) == 2
    assert again.losses[-1] < first.losses[0]


def test_no_autocast_is_left_around_a_network_that_was_trained() -> None:
    """Each run would put another one around the last."""
    model = models.build(TOY, device="cpu", precision="bf16", quantization="none")
    prepared = roads.prepare("ours", model, precision="bf16", rank=4)
    before = prepared.network.forward
    for _ in range(2):
        roads.train(prepared, roads.make_batch(2, 8, TOY.vocab), precision="bf16", steps=1, synchronise=lambda: None)
        assert prepared.network.forward == before


def in_use() -> set[int]:
    """The optimizers that hold moments, by id."""
    gc.collect()
    return {id(one) for one in gc.get_objects() if type(one) is torch.optim.AdamW and one.state}


def test_a_run_that_fails_leaves_no_optimizer_behind() -> None:
    """Its moments would be counted to the next size, which might then not fit."""
    prepared, before = make("ours"), in_use()
    head = prepared.network.plain.get_output_embeddings()
    calls: list[int] = []

    def run_out(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # behind a whole step
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    handle = head.register_forward_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        roads.train(prepared, roads.make_batch(2, 8, TOY.vocab), precision="fp32", steps=5, synchronise=lambda: None)
    handle.remove()
    assert in_use() <= before


def test_only_the_adapters_are_trained_and_there_are_as_many_as_the_arithmetic_says() -> None:
    for road in ROADS:
        trained = sum(one.numel() for one in make(road).network.parameters() if one.requires_grad)
        assert trained == arithmetic.adapter_weights(TOY, 4)


def setup(**changes: Any) -> Any:
    settings = {
        "shape": TOY, "device": "cpu", "precision": "fp32", "quantization": "none", "rank": 4, "steps": 1,
        "memory_gib": None, "threads": 1, "label_rows": 4, "new_tokens": 3,
    }  # fmt: skip
    return workers.Setup(**settings | changes)


def test_a_size_that_runs_out_of_memory_says_so_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    train = roads.train

    def full(prepared: Any, batch: Any, **others: Any) -> Any:
        if len(batch.label) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return train(prepared, batch, **others)

    monkeypatch.setattr(roads, "train", full)
    standing, *cells = workers.measure_road(setup(), "ours", [[8, 1], [8, 2], [8, 3]])
    assert standing.trained_weights == arithmetic.adapter_weights(TOY, 4)
    assert [cell.cannot for cell in cells] == [None, "out of memory", None]
    assert all(cell.rows_per_s > 0 and cell.peak_gib > 0 for cell in (cells[0], cells[2]))


def test_a_worker_that_dies_is_started_again_behind_the_size_it_died_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(setup_file: Path, setup: Any, road: str, sizes: list) -> Any:
        yield {"kind": "Standing", "road": road}
        for length, rows in sizes:
            if rows == 2:
                yield {"kind": "Ended", "cannot": "its process ended with -9"}
                return
            yield {"kind": "Cell", "length": length, "rows": rows, "peak_gib": 1.0, "rows_per_s": 1.0}

    monkeypatch.setattr(bench, "lines_of", lines)
    standing, *cells = bench.run_road(Path("setup.json"), setup(), "ours", [[8, 1], [8, 2], [8, 4]])
    assert standing["kind"] == "Standing"
    assert [(cell["rows"], cell.get("cannot")) for cell in cells] == [
        (1, None), (2, "its process ended with -9"), (4, None),
    ]  # fmt: skip


def test_a_worker_that_never_starts_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "lines_of", lambda *_: iter([{"kind": "Ended", "cannot": "its process ended with 1"}]))
    cells = list(bench.run_road(Path("setup.json"), setup(), "ours", [[8, 1], [8, 2]]))
    assert [(cell["rows"], cell["cannot"]) for cell in cells] == [
        (1, "its process ended with 1"), (2, "its process ended with 1"),
    ]  # fmt: skip


def test_a_run_that_is_ended_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second size of the second road never comes back: as where the time of a stage ends."""

    def lines(setup_file: Path, setup: Any, road: str, sizes: list) -> Any:
        yield {
            "kind": "Standing", "road": road, "layer_bytes": 1, "other_bytes": 1, "trained_weights": 1,
            "build_peak_gib": 1.0, "memory_is": "made up",
        }  # fmt: skip
        for length, rows in sizes:
            if (road, rows) == ("plain", 2):
                raise KeyboardInterrupt
            yield {
                "kind": "Cell", "road": road, "length": length, "rows": rows, "peak_gib": 1.0, "rows_per_s": 1.0,
                "step_s": 1.0,
            }  # fmt: skip

    monkeypatch.setattr(bench, "lines_of", lines)
    with pytest.raises(KeyboardInterrupt):
        bench.main([
            "--shape", "toy", "--device", "cpu", "--quantization", "none", "--lengths", "8", "--rows", "1,2",
            "--roads", "ours,plain", "--json", str(tmp_path / "found.json"), "--table", str(tmp_path / "table.md"),
        ])  # fmt: skip
    cells = json.loads((tmp_path / "found.json").read_text())["cells"]
    assert [(cell["road"], cell["rows"]) for cell in cells] == [("ours", 1), ("ours", 2), ("plain", 1)]
    assert (tmp_path / "table.md").read_text().count("not measured") == 1


def test_what_lies_outside_the_allocator_counts_against_the_card() -> None:
    cell = {"peak_gib": 12.0, "reserved_gib": 13.9, "outside_gib": 0.6}
    assert bench.fits(cell, 14.56) and not bench.fits(cell | {"outside_gib": 0.7}, 14.56)
    assert bench.fits({"peak_gib": 1.0}, 1.0) and not bench.fits({"cannot": "out of memory"}, 1.0)
    assert bench.fits(cell, None) is None


def test_a_way_of_labelling_that_fails_is_a_line_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import qlora_label

    def broken(*_: Any) -> Any:
        def think(prompts: Any) -> Any:
            raise RuntimeError("no kernel image is available")

        return think

    monkeypatch.setattr(qlora_label, "chain", broken)
    engine, alone, chain = qlora_label.measure_label(setup())
    assert engine.rows_per_s > 0 and alone.rows_per_s > 0
    assert chain.cannot == "RuntimeError: no kernel image is available"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--roads", "theirs"], r"--roads theirs: expected some of ours, full, plain"),
        (["--shape", "9b"], "expected one of toy"),
        (["--device", "cpu", "--precision", "fp16"], "fp16 needs a CUDA GPU"),
        (["--lengths", "1"], "2 at least"),
        (["--rows", "0"], None),
    ],
)
def test_what_no_worker_could_do_is_refused(arguments: list[str], said: str | None) -> None:
    with pytest.raises(SystemExit, match=said):
        bench.parse(arguments)


@has_nf4
@pytest.mark.slow
def test_a_run_from_end_to_end_writes_every_figure(tmp_path: Path) -> None:
    bench.main([
        "--shape", "toy", "--device", "cpu", "--lengths", "8,16", "--rows", "1,2", "--steps", "1", "--memory-gib", "1",
        "--threads", "1", "--roads", "ours,plain", "--label", "--label-rows", "3", "--new-tokens", "2",
        "--json", str(tmp_path / "found.json"), "--table", str(tmp_path / "table.md"),
    ])  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(cell["road"], cell["length"], cell["rows"]) for cell in found["cells"]] == [
        (road, length, rows) for road in ("ours", "plain") for length in (8, 16) for rows in (1, 2)
    ]
    assert all(cell["rows_per_s"] > 0 and cell["fits"] for cell in found["cells"])
    assert [road["memory_is"] for road in found["roads"]] == ["resident set (RSS)"] * 2
    assert [line["way"] for line in found["label"]] == [
        "engine", "engine without the shared prefix", "chain of thought",
    ]  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    assert "| T | B | ours: peak GiB (arithmetic) | rows/s | plain: peak GiB (arithmetic) | rows/s |" in text
    assert "| chain of thought (2 tokens) |" in text
