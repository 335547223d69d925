"""The network: a swap swaps the prediction, padding changes nothing, a checkpoint is whole and ordinary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair_rows

from infer.classifiers import load_classifier
from infer.encoder import EncoderClassifier, build_model
from models.encoder import HEAD_DEPTH, SiameseHead, depth, freeze_lowest, load_encoder
from models.reader import FeatureScale, load_tokenizer, make_reader
from models.tasks.arena import LABELS
from models.tasks.arena_features import antisymmetric_columns, features

ROWS = pair_rows(11)


def classifier(folder: str, head: str, *, with_features: bool = False, tta: bool = True) -> EncoderClassifier:
    """An untrained network whose weights were stirred, so that texts matter and nothing is zero by accident."""
    torch.manual_seed(1)
    tokenizer = load_tokenizer(folder)
    scale = FeatureScale.fit(features(ROWS)) if with_features else None
    model = build_model(load_encoder(folder, vocab_size=len(tokenizer)), head, scale)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    reader = make_reader(tokenizer, head=head, budget_tokens=64, prompt_share=0.25)
    return EncoderClassifier(model.train(), tokenizer, reader, scale, tta=tta)


@pytest.mark.parametrize("with_features", [False, True])
def test_siamese_swaps_exactly_without_a_second_reading(tiny_encoder: str, with_features: bool) -> None:
    one = classifier(tiny_encoder, "siamese", with_features=with_features)
    straight = one.predict_proba(ROWS)
    swapped = one.predict_proba([row.swapped() for row in ROWS])
    # Exact in exact arithmetic; float32 sums of another batch order differ in the last digits.
    np.testing.assert_allclose(swapped[:, [1, 0, 2]], straight, atol=2e-6)
    assert np.ptp(straight[:, 0]) > 1e-3


def test_joint_swaps_exactly_when_both_orders_are_averaged(tiny_encoder: str) -> None:
    one = classifier(tiny_encoder, "joint")
    straight = one.predict_proba(ROWS)
    swapped = one.predict_proba([row.swapped() for row in ROWS])
    np.testing.assert_allclose(swapped[:, [1, 0, 2]], straight, atol=2e-6)


def test_joint_read_once_depends_on_the_order(tiny_encoder: str) -> None:
    one = classifier(tiny_encoder, "joint", tta=False)
    straight = one.predict_proba(ROWS)
    swapped = one.predict_proba([row.swapped() for row in ROWS])
    assert np.abs(swapped[:, [1, 0, 2]] - straight).max() > 1e-4


def test_identical_answers_win_equally_often(tiny_encoder: str) -> None:
    from dataclasses import replace

    same = [replace(row, response_b=row.response_a) for row in ROWS]
    probs = classifier(tiny_encoder, "siamese").predict_proba(same)
    np.testing.assert_allclose(probs[:, 0], probs[:, 1], atol=1e-6)


@pytest.mark.parametrize("head", ["joint", "siamese"])
def test_padding_and_batch_size_do_not_change_the_answer(tiny_encoder: str, head: str) -> None:
    one = classifier(tiny_encoder, head)
    np.testing.assert_allclose(one.predict_proba(ROWS, batch_rows=11), one.predict_proba(ROWS, batch_rows=1), atol=2e-6)


def test_prediction_reads_the_longest_first_and_halves_the_batch_where_memory_runs_out(tiny_encoder: str) -> None:
    one = classifier(tiny_encoder, "joint")
    expected = one.predict_proba(ROWS, batch_rows=11)
    sizes: list[int] = []

    def refuse(module: torch.nn.Module, given: tuple, inputs: dict) -> None:
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    one.model.register_forward_pre_hook(refuse, with_kwargs=True)
    np.testing.assert_allclose(one.predict_proba(ROWS, batch_rows=11), expected, atol=2e-6)
    assert sizes[0] > 200 and sum(size > 200 for size in sizes) <= 2
    with pytest.raises(MemoryError, match="row 3 alone"):
        one.model.register_forward_pre_hook(lambda *given: (_ for _ in ()).throw(MemoryError()))
        one.predict_proba([*ROWS[:3], longer(ROWS[3]), *ROWS[4:]])


def longer(row):
    from dataclasses import replace

    return replace(row, response_a=(row.response_a[0] + " good film" * 5,))


def test_a_tie_falls_as_the_scores_part() -> None:
    head = SiameseHead(hidden_size=4)
    scores = torch.tensor([0.0, 1.0, 3.0])
    readings = torch.zeros(6, 3)
    readings[0::2, 0] = scores  # answer A's evidence grows, B's stays
    logits = head(readings, torch.zeros(6, 2, 4), torch.ones(6, 2))
    probs = torch.softmax(logits, -1)
    assert probs[0, 2] > probs[1, 2] > probs[2, 2]
    assert torch.equal(logits[:, 0], -logits[:, 1])


def test_the_siamese_mean_reads_the_answers_tokens_and_no_others() -> None:
    head = SiameseHead(hidden_size=4)
    hidden, mask = torch.randn(2, 5, 4), torch.tensor([[0, 0, 1, 1, 0]] * 2)
    elsewhere, inside = hidden.clone(), hidden.clone()
    elsewhere[:, [0, 1, 4]] += 1.0
    inside[0, 2] += 1.0
    logits = head(torch.zeros(2, 3), hidden, mask)
    assert torch.equal(head(torch.zeros(2, 3), elsewhere, mask), logits)
    assert not torch.allclose(head(torch.zeros(2, 3), inside, mask), logits)


@pytest.mark.parametrize("head", ["joint", "siamese"])
@pytest.mark.parametrize("with_features", [False, True])
def test_a_checkpoint_in_another_place_predicts_the_same(
    tiny_encoder: str, tmp_path: Path, head: str, with_features: bool
) -> None:
    if with_features and head == "joint":
        pytest.skip("the joint head reads text only")
    one = classifier(tiny_encoder, head, with_features=with_features)
    one.save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    again = load_classifier(tmp_path / "moved")
    np.testing.assert_array_equal(again.predict_proba(ROWS), one.predict_proba(ROWS))


@pytest.mark.parametrize("head", ["joint", "siamese"])
def test_transformers_opens_the_checkpoint_with_our_label_names(tiny_encoder: str, tmp_path: Path, head: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    one = classifier(tiny_encoder, head)
    one.save(tmp_path)
    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert [plain.config.id2label[at] for at in range(3)] == list(LABELS)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(tmp_path)("which film is good", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(**ids).logits, one.model.encoder.eval()(**ids).logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ["tie", "model_a", "model_b"]}, "in this order"),
        ({"task": "skills"}, "trained for the task 'skills'"),
        ({"format": 99}, "Update tiebreak"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tiny_encoder: str, tmp_path: Path, change: dict, said: str) -> None:
    import json

    classifier(tiny_encoder, "joint").save(tmp_path)
    path = tmp_path / "tiebreak.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_classifier(tmp_path, task="arena")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiebreak\.json"):
        load_classifier(tmp_path)


def test_an_fp16_file_loads_in_float32(tiny_encoder: str, tmp_path: Path) -> None:
    """Finetuning trap 9: transformers keeps the file's dtype, and fp16 weights cannot be trained."""
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny_encoder, dtype=torch.float16).save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_weights_of_another_architecture_are_refused_and_not_made_up(tiny_encoder: str, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_encoder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({f"wrong.{name}": tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="random"):
        load_encoder(str(tmp_path / "model"))


def test_a_head_is_made_for_a_network_that_has_none_but_not_for_a_checkpoint_of_ours(
    tiny_encoder: str, tmp_path: Path
) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="classifier"):
        load_encoder(str(tmp_path), whole=True)


def test_the_embedding_grows_for_new_tokens_and_never_shrinks(tiny_encoder: str) -> None:
    rows = load_encoder(tiny_encoder).get_input_embeddings().weight.shape[0]
    assert load_encoder(tiny_encoder, vocab_size=rows + 1).get_input_embeddings().weight.shape[0] > rows
    assert load_encoder(tiny_encoder, vocab_size=rows - 9).get_input_embeddings().weight.shape[0] == rows


def test_newlines_reach_the_network(tiny_encoder: str) -> None:
    """Finetuning trap 14: word-piece and SentencePiece normalisers drop them."""
    tokenizer = load_tokenizer(tiny_encoder)
    ids = tokenizer("good\nbad", add_special_tokens=False)["input_ids"]
    assert "\n" in tokenizer.convert_ids_to_tokens(ids)


def test_dropout_is_overridden_everywhere(tiny_encoder: str) -> None:
    model = load_encoder(tiny_encoder, dropout=0.0)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_depth_orders_embeddings_layers_and_head() -> None:
    names = {
        "bert.embeddings.word_embeddings.weight": 0,
        "deberta.encoder.rel_embeddings.weight": 0,
        "encoder.deberta.encoder.LayerNorm.weight": 0,
        "bert.encoder.layer.0.output.dense.weight": 1,
        "encoder.deberta.encoder.layer.11.output.dense.weight": 12,
        "model.layers.3.attn.Wqkv.weight": 4,
        "encoder.bert.pooler.dense.weight": HEAD_DEPTH,
        "encoder.classifier.bias": HEAD_DEPTH,
        "siamese.slope": HEAD_DEPTH,
    }
    assert {name: depth(name) for name in names} == names


def test_freezing_stops_the_embeddings_and_the_lowest_layers(tiny_encoder: str) -> None:
    model = load_encoder(tiny_encoder)
    freeze_lowest(model, 2)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {depth(name) for name in trained} == {2, HEAD_DEPTH}


def test_pair_features_split_into_what_a_swap_negates_and_what_it_leaves() -> None:
    matrix = features(ROWS)
    scale = FeatureScale.fit(matrix)
    straight = scale.apply(matrix)
    swapped = scale.apply(features([row.swapped() for row in ROWS]))
    np.testing.assert_array_equal(swapped.odd, -straight.odd)
    np.testing.assert_array_equal(swapped.even, straight.even)
    assert straight.odd.shape[1] == antisymmetric_columns().sum()


@pytest.mark.parametrize("kind", ["DebertaV2", "Longformer"])
def test_other_encoders_read_pairs_too(kind: str, tiny_encoder: str, tmp_path: Path) -> None:
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
             "vocab_size": 120, "max_position_embeddings": 256}  # fmt: skip
    if kind == "DebertaV2":  # the v3 layout
        shape |= {"relative_attention": True, "position_buckets": 32, "norm_rel_ebd": "layer_norm",
                  "share_att_key": True, "pos_att_type": "p2c|c2p", "type_vocab_size": 0,
                  "position_biased_input": False, "max_relative_positions": -1}  # fmt: skip
    else:
        shape |= {"attention_window": 16, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**shape)
    network = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    network.save_pretrained(tmp_path)
    load_tokenizer(tiny_encoder).save_pretrained(tmp_path)
    for head in ("joint", "siamese"):
        probs = classifier(str(tmp_path), head).predict_proba(ROWS)
        assert np.isfinite(probs).all()
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("head", ["joint", "siamese"])
def test_activation_checkpointing_changes_no_gradient(tiny_encoder: str, head: str) -> None:
    def gradient(checkpointing: bool) -> torch.Tensor:
        one = classifier(tiny_encoder, head)
        for module in one.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            one.model.encoder.activation_checkpointing_enable()
        from models.tasks.tokens import tokenise_fields

        batch = one.reader.batch(tokenise_fields(ROWS, one.tokenizer), [0, 2, 5])
        one.model.train()(**batch).square().sum().backward()
        grad = one.model.encoder.bert.encoder.layer[0].output.dense.weight.grad
        assert grad is not None and grad.abs().sum() > 0
        return grad

    torch.testing.assert_close(gradient(True), gradient(False))
