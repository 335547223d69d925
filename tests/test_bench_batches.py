"""`scripts/bench/batches.py`, batches_learning.py, pipeline.py, small: every way reads every row, every stage runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import pair_rows, write_arena_csv

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
bench = importlib.import_module("batches")
learning = importlib.import_module("batches_learning")
made = importlib.import_module("made_tokenizer")
pipeline = importlib.import_module("pipeline")

LENGTHS = np.random.default_rng(0).integers(20, 900, 205)


@pytest.mark.parametrize("way", bench.WAYS)
def test_every_way_reads_every_row_once_in_steps_of_as_many(way: str) -> None:
    steps = bench.cut(way, LENGTHS, step_rows=16, memory_rows=4)
    assert [sum(map(len, step)) for step in steps] == [16] * 12 + [13]
    assert sorted(row for step in steps for part in step for row in part) == list(range(205))
    assert all(sum(LENGTHS[part].max() * len(part) for part in step) <= 16 * LENGTHS.max() for step in steps)


def test_padding_is_counted_as_each_way_pads() -> None:
    lengths = np.array([10, 6, 4, 2])
    steps = [[[0, 3], [1, 2]]]
    assert bench.describe("fixed", steps, lengths).padding == pytest.approx(1 - 22 / 40)
    line = bench.describe("dynamic", steps, lengths)
    assert line.padding == pytest.approx(1 - 22 / 32) and line.most_tokens == 20 and line.parts == 2


def test_on_mixed_lengths_ours_pads_least_in_the_memory_of_the_others() -> None:
    lines = {
        way: bench.describe(way, bench.cut(way, LENGTHS, step_rows=16, memory_rows=4), LENGTHS) for way in bench.WAYS
    }
    shares = [lines[way].padding for way in ("fixed", "dynamic", "grouped", "tokens")]
    assert shares == sorted(shares, reverse=True) and shares[0] > 5 * shares[-1]
    assert lines["tokens"].most_tokens <= lines["fixed"].most_tokens


def run(script, monkeypatch: pytest.MonkeyPatch, folder: Path, encoder: str, *more: str) -> dict:
    source = write_arena_csv(folder / "train.csv", pair_rows(30))
    given = ["--source", str(source), "--tokenizer", encoder, "--budget", "64", "--hidden", "16", "--layers", "1"]
    given += ["--device", "cpu", "--step-rows", "8", "--memory-rows", "2", "--json", str(folder / "found.json"), *more]
    monkeypatch.setattr(sys, "argv", ["bench", *given])
    script.main()
    return json.loads((folder / "found.json").read_text())


def test_speeds_stand_beside_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(bench, monkeypatch, tmp_path, tiny_encoder, "--rows", "12", "--rounds", "1")
    by_way = {line["way"]: line for line in found["lines"]}
    assert list(by_way) == list(bench.WAYS) and by_way["dynamic"]["against_dynamic"] == 1
    for line in by_way.values():
        assert line["against_dynamic"] == pytest.approx(line["rows_per_s"] / by_way["dynamic"]["rows_per_s"])
    assert found["attention"] == "sdpa", "the default's"
    assert "| tokens |" in capsys.readouterr().out and {"hardware", "commit", "options"} <= set(found)
    assert found["command"].startswith("python scripts/bench/batches.py --source")


def test_a_tokenizer_made_of_the_rows_needs_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = run(bench, monkeypatch, tmp_path, "made", "--rows", "12", "--rounds", "1")
    assert all(line["rows_per_s"] > 0 for line in found["lines"])


def test_a_made_tokenizer_gives_every_text_back_in_fewer_tokens_than_bytes() -> None:
    rows = pair_rows(30)
    tokenizer = made.make_tokenizer(rows)
    text = rows[0].response_a[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) < len(text.encode())


def test_both_ways_learn_from_the_same_seeds_and_are_read_at_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_encoder: str
) -> None:
    found = run(learning, monkeypatch, tmp_path, tiny_encoder, "--seeds", "2", "--epochs", "1")
    dynamic, tokens = found["lines"]
    assert [point[0] for point in dynamic["points"]] == [point[0] for point in tokens["points"]]
    assert dynamic["points"][-1][0] == 24  # four fifths of 30 rows
    assert all(0.5 < loss < 2 for _, loss, _ in dynamic["points"] + tokens["points"])


def test_the_road_of_all_rows_is_timed_stage_by_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_arena_csv(tmp_path / "train.csv", pair_rows(30))
    given = ["--source", str(source), "--tokenizer", tiny_encoder, "--rows", "60", "--budget", "64", "--device", "cpu"]
    given += ["--train-rows", "16", "--predict-rows", "10", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["pipeline", *given])
    pipeline.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [stage["rows"] for stage in found["lines"]] == [60] * 6 + [120, 8, 16, 10, 60]
    assert [stage["name"] for stage in found["lines"] if not stage["whole"]] == [pipeline.TRAIN, pipeline.PREDICT]
    assert "15 steps an epoch" in capsys.readouterr().out


def test_what_a_run_does_once_is_not_multiplied_by_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_encoder: str
) -> None:
    """The network and the first kernels of either road cost ten seconds of this clock, and each look at it one."""
    now, network = [0.0], pipeline.make_network

    def clock(device: str) -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(pipeline, "clock", clock)
    read: set[str] = set()

    def slow(*given, **named):
        now[0] += 10
        return network(*given, **named)

    def first(work):
        def once(*given, **named):
            now[0] += 0.0 if work.__name__ in read else 10
            read.add(work.__name__)
            return work(*given, **named)

        return once

    monkeypatch.setattr(pipeline, "make_network", slow)
    monkeypatch.setattr(pipeline, "train_epoch", first(pipeline.train_epoch))
    monkeypatch.setattr(pipeline.EncoderClassifier, "probs_of", first(pipeline.EncoderClassifier.probs_of))
    source = write_arena_csv(tmp_path / "train.csv", pair_rows(30))
    given = ["--source", str(source), "--tokenizer", tiny_encoder, "--rows", "60", "--budget", "64", "--device", "cpu"]
    given += ["--train-rows", "16", "--predict-rows", "10", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["pipeline", *given])
    pipeline.main()
    seconds = {stage["name"]: stage["seconds"] for stage in json.loads((tmp_path / "found.json").read_text())["lines"]}
    assert (seconds[pipeline.START], seconds[pipeline.TRAIN], seconds[pipeline.PREDICT]) == (31, 1, 1)
