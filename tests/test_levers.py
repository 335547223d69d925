"""The levers: adapters inside an encoder, fewer activations kept, other optimisers, compiled lengths; same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import compose, tiny_run
from transformers import TrainingArguments

from infer.classifiers import load_classifier
from infer.predictions import Predictions
from models.adapters import checkpoint_activations
from models.encoder import HEAD_DEPTH, depth, freeze_lowest, load_encoder
from models.encoder_adapters import add_adapters, merged_state, save_encoder
from models.method_settings import AdapterSettings
from models.text_encoder import TextEncoding
from train import levers
from train.levers import check_levers, trainer_switches
from train.loop import trained
from train.run import run as train

LABELS = ("positive", "negative")


@pytest.fixture(autouse=True)
def no_sentence_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.text_embeddings.installed", lambda: False)


def adapters(targets: str = "all-linear") -> AdapterSettings:
    return AdapterSettings(head="label", rank=4, alpha=8, dropout=0.0, targets=targets, use="auto")


def tiny_deberta(folder: Path) -> str:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        relative_attention=True, position_biased_input=False, pos_att_type=["c2p", "p2c"], position_buckets=8,
        share_att_key=True, norm_rel_ebd="layer_norm", num_labels=3,
    )  # fmt: skip
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def stirred(network):
    """With adapters that do something: theirs begin at zero."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    return network.eval()


def inputs(rows: int = 3, tokens: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, 5:] = 0
    return {"input_ids": torch.randint(5, 50, (rows, tokens)), "attention_mask": mask}


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_adapters_merged_into_a_checkpoint_give_the_very_same_logits(
    kind: str, tiny_encoder: str, tmp_path: Path
) -> None:
    source = tiny_encoder if kind == "bert" else tiny_deberta(tmp_path / "base")
    before = load_encoder(source).eval()
    network = stirred(add_adapters(load_encoder(source), adapters()))
    save_encoder(network, tmp_path / "saved")
    saved = load_encoder(str(tmp_path / "saved"), whole=True).eval()
    assert saved.state_dict().keys() == before.state_dict().keys()
    with torch.no_grad():
        given = network(**inputs()).logits
        torch.testing.assert_close(saved(**inputs()).logits, given, atol=1e-5, rtol=1e-5)  # float32 sums, other order
        assert (before(**inputs()).logits - given).abs().max() > 1e-2
    # The encoder goes on with its own weights beside the adapters: nothing was merged into it.
    torch.testing.assert_close(network(**inputs()).logits, given)
    base = {name.replace(".base_layer.", "."): one for name, one in network.state_dict().items() if "lora" not in name}
    body = [name for name in before.state_dict() if depth(name) != HEAD_DEPTH]
    assert all(torch.equal(base[name], before.state_dict()[name]) for name in body)


def test_only_adapters_and_head_train_and_frozen_layers_take_theirs(tiny_encoder: str) -> None:
    network = add_adapters(load_encoder(tiny_encoder), adapters("query,value"))
    trains = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or depth(name) == HEAD_DEPTH for name in trains)
    assert sum("lora_A" in name for name in trains) == 4, "two layers of query and value"
    freeze_lowest(network, 2)
    left = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {depth(name) for name in left} == {2, HEAD_DEPTH}
    assert not any("lora" in name for name in merged_state(network))


def test_targets_that_name_no_layer_are_refused_with_those_there_are(tiny_encoder: str) -> None:
    with pytest.raises(ValueError, match=r"adapter\.targets=q_proj names no layer.*query, key, value, dense"):
        add_adapters(load_encoder(tiny_encoder), adapters("q_proj"))


def reviews(folder: Path, encoder: str, *overrides: str):
    texts = [f"the {('good', 'bad')[n % 2]} film {n}" for n in range(32)]
    table = pd.DataFrame({"id": range(32), "text": texts, "label": [LABELS[n % 2] for n in range(32)]})
    table.to_csv(folder / "in.csv", index=False)
    return compose(
        "+experiment=reviews_encoder", f"task.input_csv={folder / 'in.csv'}", f"run_dir={folder / 'run'}",
        f"model.name={encoder}", "model.frozen_layers=0", "trainer.epochs=2", "trainer.batch_rows=8",
        "trainer.learning_rate=5e-3", "folds.only=[0]", *overrides,
    )  # fmt: skip


def test_texts_are_learnt_by_adapters_into_an_ordinary_checkpoint(tiny_encoder: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    train(reviews(tmp_path, tiny_encoder, "model.adapters=true", "trainer.keep=last", "trainer.epochs=3"))
    checkpoint = tmp_path / "run" / "fold0" / "checkpoint"
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = set(file.keys())
        moved = file.get_tensor("bert.encoder.layer.0.attention.self.query.weight")
        still = file.get_tensor("bert.embeddings.word_embeddings.weight")
    before = load_encoder(tiny_encoder).state_dict()
    assert names == set(before), "no trace of the adapters"
    assert torch.equal(still, before["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(moved, before["bert.encoder.layer.0.attention.self.query.weight"])
    assert Predictions.read(tmp_path / "run" / "heldout.csv").log_loss() < 0.69
    assert load_classifier(checkpoint).predict_proba([]).shape == (0, 2)


def test_pairs_are_learnt_by_adapters(tiny_encoder: str, tmp_path: Path) -> None:
    metrics = train(tiny_run(tmp_path, tiny_encoder, "model.adapters=true", "folds.only=[0]", "model.frozen_layers=0"))
    assert metrics is not None and metrics["rows"] == 24


def test_recomputed_activations_change_no_gradient(tiny_encoder: str) -> None:
    def gradients(every: int | None) -> list[torch.Tensor]:
        network = load_encoder(tiny_encoder, dropout=0.0).train()
        if every:
            checkpoint_activations(network, every)
            layers = [layer.gradient_checkpointing for layer in network.bert.encoder.layer]
            assert layers == ([True, True] if every == 1 else [True, False])
        network(**inputs()).logits.square().sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    for every in (1, 2):
        for one, plain in zip(gradients(every), gradients(None), strict=True):
            torch.testing.assert_close(one, plain)


@pytest.mark.parametrize("every", [1, 2])
def test_frozen_layers_have_no_backward_pass_though_activations_are_recomputed(tiny_encoder: str, every: int) -> None:
    network = load_encoder(tiny_encoder, dropout=0.0).train()
    freeze_lowest(network, 2)
    checkpoint_activations(network, every)
    backward = []
    for number, layer in enumerate(network.bert.encoder.layer):
        layer.output.dense.register_full_backward_hook(lambda *_, number=number: backward.append(number))
    network(**inputs()).logits.square().sum().backward()
    assert backward == [1], "layer 0 and the embeddings are frozen"


def test_every_optimiser_trains_and_one_that_is_not_installed_is_refused(
    tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    settings = reviews(tmp_path, tiny_encoder, "trainer.optimizer=adamw_8bit")
    seen = []
    from train.loop import FoldTrainer

    create = FoldTrainer.create_optimizer
    monkeypatch.setattr(FoldTrainer, "create_optimizer", lambda self, *given: seen.append(create(self, *given)))
    train(settings)
    assert type(seen[0]).__module__.startswith("bitsandbytes") and seen[0].args.optim_bits == 8
    find = importlib.util.find_spec
    monkeypatch.setattr(levers.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ValueError, match=r"pip install bitsandbytes, or trainer\.optimizer=adamw"):
        check_levers(settings)
    with pytest.raises(ValueError, match=r"trainer\.optimizer='sgd'"):
        compose("+experiment=reviews_encoder", "trainer.optimizer=sgd")


def test_embeddings_keep_their_optimisers_state_in_32_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    from train.loop import FoldTrainer

    shape = {"vocab_size": 600, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    loop = FoldTrainer.__new__(FoldTrainer)
    loop.args = TrainingArguments(output_dir=str(tmp_path), optim="adamw_8bit", use_cpu=True, report_to=[])
    loop.layer_decay, loop.head_rate = 0.9, 1.0
    for frozen in (0, 1):  # the second network has other parameters at the first one's places
        network = DebertaV2ForSequenceClassification(DebertaV2Config(**shape, intermediate_size=256))
        freeze_lowest(network, frozen)
        loop.optimizer = None
        optimizer = loop.create_optimizer(network)
        for weight in trained(network).values():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        states = {name: optimizer.state[weight]["state1"].dtype for name, weight in trained(network).items()}
        table = states.get("deberta.embeddings.word_embeddings.weight")
        assert table == (None if frozen else torch.float32)
        assert states["deberta.encoder.layer.0.intermediate.dense.weight"] == torch.uint8


def test_the_default_optimiser_is_the_fused_one() -> None:
    assert trainer_switches(compose("+experiment=reviews_encoder").trainer) == {"optim": "adamw_torch_fused"}


def test_compiling_is_refused_where_there_is_no_triton_and_for_language_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "compile_lack", lambda: "this GPU is sm_60")
    with pytest.raises(ValueError, match=r"trainer\.compile=true needs Triton.*this GPU is sm_60"):
        check_levers(compose("+experiment=reviews_encoder", "trainer.compile=true"))
    with pytest.raises(ValueError, match="compiles encoders, not method=adapter"):
        check_levers(compose("+experiment=skills_quickstart", "trainer.compile=true"))


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_on_lengths_of_multiples_of_64(
    tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's front alone: what its back-end makes of a graph is for a GPU to show."""
    monkeypatch.setattr(levers, "compile_lack", lambda: None)
    monkeypatch.setattr(levers, "COMPILE_BACKEND", "eager")
    lengths = set()
    batch = TextEncoding.batch

    def watched(self, ids):
        found = batch(self, ids)
        lengths.add(found["input_ids"].shape[1])
        return found

    monkeypatch.setattr(TextEncoding, "batch", watched)
    tables = []
    for compiled in ("true", "false"):
        folder = tmp_path / compiled
        folder.mkdir()
        lengths.clear()
        train(reviews(folder, tiny_encoder, f"trainer.compile={compiled}", "model.dropout=0.0", "trainer.epochs=1"))
        assert (64 in lengths) is (compiled == "true")
        tables.append(Predictions.read(folder / "run" / "heldout.csv").probs)
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-3)  # the same steps but for the order of sums


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_a_compiled_step_runs_on_the_gpu(tiny_encoder: str, tmp_path: Path) -> None:
    train(reviews(tmp_path, tiny_encoder, "trainer.compile=true"))
    assert np.isfinite(Predictions.read(tmp_path / "run" / "heldout.csv").log_loss())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_a_paged_8_bit_optimizer_runs_on_the_gpu(tiny_encoder: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    train(reviews(tmp_path, tiny_encoder, "trainer.optimizer=paged_adamw_8bit"))
    assert np.isfinite(Predictions.read(tmp_path / "run" / "heldout.csv").log_loss())
