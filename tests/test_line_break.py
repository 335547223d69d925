"""The line break's row of the embedding trains where its neighbours are frozen, and alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compose, pair_rows, tiny_arguments, write_arena_csv
from safetensors.torch import load_file

from infer.encoder import EncoderClassifier
from models.added_row import EmbeddingWithRow
from models.encoder import load_encoder
from models.reader import load_tokenizer
from models.tasks.arena import LABELS
from train.encoder_learner import load_trainable
from train.loop import parameter_groups
from train.run import run as train
from train.seeds import fold_seed, seed_everything

TABLE = "bert.embeddings.word_embeddings.weight"
OPTIONS = [("model.frozen_layers=1", "model.adapters=false"), ("model.frozen_layers=0", "model.adapters=true")]
lever = pytest.mark.parametrize("options", OPTIONS, ids=["frozen", "adapters"])


def settings_of(folder: Path, encoder: str, *options: str):
    """A run of one fold on rows of which every other has line breaks."""
    rows = [
        replace(row, response_a=(row.response_a[0].replace(" ", "\n", 2),)) if at % 2 else row
        for at, row in enumerate(pair_rows(48))
    ]
    write_arena_csv(folder / "train.csv", rows)
    write_arena_csv(folder / "test.csv", pair_rows(7, seed=5), labelled=False)
    return compose(*tiny_arguments(folder, encoder), "folds.only=[0]", "trainer.keep=last", *options)


@lever
def test_after_some_steps_the_row_has_changed_and_every_other_is_bit_equal(
    options: tuple[str, ...], tiny_encoder: str, tmp_path: Path
) -> None:
    """In the checkpoint too, which is an ordinary one."""
    settings = settings_of(tmp_path, tiny_encoder, *options)
    train(settings)
    checkpoint = tmp_path / "run" / "fold0" / "checkpoint"
    tokenizer = load_tokenizer(tiny_encoder)
    seed_everything(fold_seed(settings.seed, 0, 0))  # rows that are added are drawn
    before = load_encoder(tiny_encoder, labels=LABELS, vocab_size=len(tokenizer)).state_dict()
    after = load_file(checkpoint / "model.safetensors")
    assert after.keys() == before.keys(), "no trace of the row beside the table"
    token = tokenizer.convert_tokens_to_ids("\n")
    moved = (after[TABLE] != before[TABLE]).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == [token]
    read = EncoderClassifier.load(checkpoint).model.encoder
    assert torch.equal(read.get_input_embeddings().weight[token], after[TABLE][token])


@lever
def test_only_the_row_gets_a_gradient_and_a_place_in_the_optimizer(
    options: tuple[str, ...], tiny_encoder: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_encoder)
    encoder = load_trainable(settings_of(tmp_path, tiny_encoder, *options), tokenizer, LABELS)
    table = encoder.get_input_embeddings()
    assert isinstance(table, EmbeddingWithRow) and table.token == tokenizer.convert_tokens_to_ids("\n")
    ids = torch.tensor([[2, table.token, 5, table.token]])
    plain = torch.nn.functional.embedding(ids, table.weight)
    assert torch.equal(table(ids), plain), "it begins as what the table has there"
    encoder(input_ids=ids).logits[0, 0].backward()
    assert table.weight.grad is None and bool(table.row.grad.abs().max() > 0)
    encoder(input_ids=torch.tensor([[2, 5]])).logits.sum().backward()  # no line break: DDP waits for its gradient
    groups = parameter_groups(encoder, decayed=set(), learning_rate=1.0, weight_decay=0.1, layer_decay=1.0)
    held = [one for group in groups for one in group["params"]]
    assert any(one is table.row for one in held) and not any(one is table.weight for one in held)


@pytest.mark.parametrize("options", [("model.frozen_layers=0",), ("model.frozen_layers=2",)], ids=["all", "layers"])
def test_where_the_table_trains_or_layers_below_are_frozen_there_is_no_such_row(
    options: tuple[str, ...], tiny_encoder: str, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, tiny_encoder, *options)
    encoder = load_trainable(settings, load_tokenizer(tiny_encoder), LABELS)
    assert not isinstance(encoder.get_input_embeddings(), EmbeddingWithRow)


def test_a_run_that_goes_on_ends_with_the_same_row(warm, tiny_encoder: str, tmp_path: Path) -> None:
    settings_of(tmp_path, tiny_encoder)
    command = [
        "train", *tiny_arguments(tmp_path, tiny_encoder), "folds.only=[0]", "trainer.keep=last", "report=false",
        "track.wandb=disabled",
    ]  # fmt: skip
    launches = [("whole", []), ("cut", ["time_budget_minutes=0.001"]), ("cut", [])]
    for run, more in launches:
        code, _ = warm.run(*command, f"run_dir={tmp_path / run}", *more, log=tmp_path / "log")
        assert code == 0, (tmp_path / "log").read_text()[-3000:]
    assert "fold 0: cut short before, trained on" in (tmp_path / "log").read_text()
    whole, cut = ((tmp_path / run / "fold0/checkpoint/model.safetensors").read_bytes() for run in ("whole", "cut"))
    assert whole == cut
