"""The doctor says what a run would read, cut and cost, and refuses what would ruin it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import pair_rows, tiny_run, write_arena_csv

from train.doctor import describe_rows, examine, repeats, tokens_cut


def test_the_doctor_reports_every_thing_once(tmp_path: Path, tiny_encoder: str) -> None:
    lines = examine(tiny_run(tmp_path, tiny_encoder))
    for word in ("repaired", "labels", "turns", "odd answers", "repeats", "prompt groups", "model", "tokens a row",
                 "unknown", "budget", "device", "steps"):  # fmt: skip
        assert sum(line.strip().startswith(word) for line in lines) == 1, word
    assert not (tmp_path / "run").exists(), "the doctor leaves nothing behind"


def test_a_tight_budget_is_reported_as_cut_rows(tmp_path: Path, tiny_encoder: str) -> None:
    long = [replace(row, response_a=("good film " * 30,)) for row in pair_rows(48)]
    write_arena_csv(tmp_path / "train.csv", long)

    def budget_line(tokens: int) -> str:
        lines = examine(tiny_run(tmp_path, tiny_encoder, f"task.budget_tokens={tokens}"))
        return next(line for line in lines if line.strip().startswith("budget"))

    assert "200 tokens: 0.0% of rows are cut, 0.0% of tokens left out" in budget_line(200)
    assert "64 tokens: 100.0% of rows are cut" in budget_line(64)


def test_what_no_reading_shows_is_counted_once() -> None:
    joint = SimpleNamespace(cut=(3, 10, 20))
    siamese = [SimpleNamespace(cut=(3, 10)), SimpleNamespace(cut=(5, 20))]
    assert tokens_cut([joint]) == 33
    assert tokens_cut(siamese) == 35


def test_repeats_are_found_in_either_order_and_conflicts_counted() -> None:
    row = pair_rows(4)[0]
    assert row.label_index != 2
    turned = replace(row.swapped(), id="turned")  # says the same
    contrary = replace(turned, id="contrary", label_index=2)
    assert repeats([row, turned]) == (1, 0)
    assert repeats([row, turned, contrary]) == (2, 1)
    assert repeats(pair_rows(4)[1:2]) == (0, 0)


def test_a_label_that_never_occurs_is_a_warning() -> None:
    rows = [row for row in pair_rows(40) if row.label != "tie"]
    assert any("WARNING" in line and "tie" in line for line in describe_rows(rows))


def test_a_tokenizer_stub_is_refused(tmp_path: Path, tiny_encoder: str) -> None:
    """Finetuning trap 13: without its vocabulary file a tokenizer loads all the same and knows seven tokens."""
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

    shape = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32}  # fmt: skip
    DebertaV2ForSequenceClassification(DebertaV2Config(**shape)).save_pretrained(tmp_path / "stub")
    (tmp_path / "stub" / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer"}')
    assert len(AutoTokenizer.from_pretrained(tmp_path / "stub")) < 20, "the trap is gone from transformers"
    with pytest.raises(ValueError, match="vocabulary"):
        examine(tiny_run(tmp_path, str(tmp_path / "stub")))


def test_a_budget_past_the_models_positions_is_refused(tmp_path: Path, tiny_encoder: str) -> None:
    with pytest.raises(ValueError, match=r"task\.budget_tokens=300.*256 positions"):
        examine(tiny_run(tmp_path, tiny_encoder, "task.budget_tokens=300"))


def test_a_missing_training_file_is_said_before_anything_else(tmp_path: Path, tiny_encoder: str) -> None:
    settings = tiny_run(tmp_path, tiny_encoder)
    shutil.move(settings.task.train_csv, tmp_path / "elsewhere.csv")
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        examine(settings)
