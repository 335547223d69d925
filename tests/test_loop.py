"""The training loop: the right gradient, the right parameters at the right rates, collapse seen, patience kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import compose, pair_rows
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, set_seed

from infer.encoder import build_model
from infer.ranks import world_size
from models.encoder import HEAD_DEPTH, depth, load_encoder
from models.reader import load_tokenizer, make_reader
from models.tasks.arena import LABELS
from models.tasks.tokens import tokenise_fields
from train.batches import StepSampler
from train.callbacks import CollapseGuard, Patience
from train.loop import FoldTrainer, class_weights, load_trained, parameter_groups, training_arguments
from train.micro_batches import token_budget
from train.pace import Pace

ROWS = pair_rows(16)


def trainer(
    folder: Path, encoder: str, *overrides: str, rows: list = ROWS, head: str = "joint", smoothing: float = 0.0,
    dropout: float = 0.0,
):  # fmt: skip
    settings = compose(
        "+experiment=arena_quickstart",
        "model.dropout=0.0",
        "trainer.epochs=1",
        "trainer.learning_rate=1e-3",
        *overrides,
    )
    set_seed(0)
    tokenizer = load_tokenizer(encoder)
    reader = make_reader(tokenizer, head=head, budget_tokens=64, prompt_share=0.25)
    fields = tokenise_fields(rows, tokenizer)
    model = build_model(load_encoder(encoder, dropout=dropout, vocab_size=len(tokenizer)), head, None)
    targets = np.array([row.target for row in rows], dtype=np.float32)

    def collate(items: list[int]) -> dict[str, torch.Tensor]:
        return reader.batch(fields, items) | {"targets": torch.from_numpy(targets[np.array(items) // 2])}

    steps = settings.trainer.batch_rows * settings.trainer.accumulation * world_size()
    arguments = training_arguments(
        settings, folder, items=len(rows), step_items=steps, seed=1, rate=settings.trainer.learning_rate,
        precision="fp32", report_to=[], quiet=True,
    )  # fmt: skip
    lengths = np.array([reader.tokens(one) for one in fields])
    return FoldTrainer(
        model, arguments, sampler=StepSampler(lengths, swap="none", step_items=steps, seed=1), collate=collate,
        budget_tokens=token_budget(settings.trainer, lengths), label_smoothing=smoothing,
        evaluate_heldout=lambda network: {"log_loss": 1.0, "accuracy": 0.5},
        layer_decay=settings.trainer.layer_decay, nan_steps=settings.trainer.nan_steps,
        names=lambda items: [rows[item // 2].id for item in items], name="fold 0",
        pace=Pace(heldout_steps=1.0, saved_bytes=0, budget_s=float("inf")), deliver=True,
    )  # fmt: skip


def first_norm(loop: FoldTrainer) -> tuple[float, float]:
    loop.train()
    entry = next(entry for entry in loop.state.log_history if "grad_norm" in entry)
    return entry["grad_norm"], entry["loss"]


@pytest.mark.parametrize("head", ["joint", "siamese"])
def test_accumulation_gives_the_gradient_of_one_large_batch(tiny_encoder: str, tmp_path: Path, head: str) -> None:
    """Environment trap T1: Trainer multiplies the loss by the accumulation steps unless told not to."""
    whole = first_norm(
        trainer(tmp_path / "a", tiny_encoder, "trainer.batch_rows=16", "trainer.max_grad_norm=1e9", head=head)
    )
    parts = first_norm(
        trainer(
            tmp_path / "b",
            tiny_encoder,
            "trainer.batch_rows=4",
            "trainer.accumulation=4",
            "trainer.max_grad_norm=1e9",
            head=head,
        )
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_the_loss_is_cross_entropy_against_soft_targets(tiny_encoder: str, tmp_path: Path) -> None:
    from dataclasses import replace

    soft = [replace(row, target=(0.5, 0.25, 0.25)) for row in ROWS]
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16", rows=soft)
    batch = loop.micro.collate([2 * at for at in range(16)])
    targets = batch["targets"].clone()
    with torch.no_grad():
        loss = loop.compute_loss(loop.model.eval(), dict(batch))
        batch.pop("targets")
        by_hand = -(targets * torch.log_softmax(loop.model(**batch), -1)).sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)


def test_the_targets_are_read_and_the_masked_tokens_are_not(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16")
    batch = loop.micro.collate([0, 2, 4])
    batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 3), value=5)
    for name in ("attention_mask", "token_type_ids"):
        batch[name] = torch.nn.functional.pad(batch[name], (0, 3))
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][:, -3:] = 7
    turned = {name: tensor.clone() for name, tensor in batch.items()}
    turned["targets"] = turned["targets"][:, [2, 0, 1]]
    loop.model.eval()
    with torch.no_grad():
        torch.nn.init.normal_(loop.model.encoder.classifier.weight)
        loss = loop.compute_loss(loop.model, dict(batch))
        assert torch.equal(loss, loop.compute_loss(loop.model, other))
        assert not torch.equal(loss, loop.compute_loss(loop.model, turned))


def test_label_smoothing_moves_the_targets_towards_uniform(tiny_encoder: str, tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", tiny_encoder, "trainer.batch_rows=16")
    smooth = trainer(tmp_path / "b", tiny_encoder, "trainer.batch_rows=16", smoothing=0.3)
    batch = plain.micro.collate([2 * at for at in range(16)])
    moved = dict(batch) | {"targets": 0.7 * batch["targets"] + 0.1}
    with torch.no_grad():
        torch.testing.assert_close(
            smooth.compute_loss(smooth.model.eval(), dict(batch)), plain.compute_loss(plain.model.eval(), moved)
        )


def test_every_trained_weight_is_float32(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16")
    assert {parameter.dtype for parameter in loop.model.parameters() if parameter.requires_grad} == {torch.float32}


def test_lower_layers_learn_at_lower_rates(tiny_encoder: str) -> None:
    model = build_model(load_encoder(tiny_encoder), "siamese", None)
    groups = parameter_groups(model, decayed=set(), learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    by_depth = {depth(name): rate[id(parameter)] for name, parameter in model.named_parameters()}
    assert by_depth == {HEAD_DEPTH: 1.0, 2: 0.5, 1: 0.25, 0: 0.125}


def test_the_head_may_learn_faster_than_the_network(tiny_encoder: str) -> None:
    model = build_model(load_encoder(tiny_encoder), "siamese", None)
    groups = parameter_groups(
        model, decayed=set(), learning_rate=1.0, weight_decay=0.0, layer_decay=1.0, head_rate=10.0
    )
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rate[id(model.siamese.mean.weight)] == 10.0
    assert rate[id(model.encoder.bert.embeddings.word_embeddings.weight)] == 1.0


def test_frozen_weights_are_in_no_group_and_weight_decay_spares_norms(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16")
    frozen = loop.model.encoder.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    loop.create_optimizer()
    groups = loop.optimizer.param_groups
    assert not any(parameter is frozen for group in groups for parameter in group["params"])
    norm = loop.model.encoder.bert.encoder.layer[0].output.LayerNorm.weight
    assert [group["weight_decay"] for group in groups if any(p is norm for p in group["params"])] == [0.0]


def test_the_best_metric_is_the_smallest_log_loss(tiny_encoder: str, tmp_path: Path) -> None:
    """Finetuning trap 37: the direction is guessed from the name's ending, and guessed wrongly for most."""
    arguments = trainer(tmp_path, tiny_encoder).args
    assert arguments.metric_for_best_model == "log_loss"
    assert arguments.greater_is_better is False


def test_the_best_checkpoint_is_what_remains(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=4", "trainer.epochs=3", "trainer.evals_per_epoch=1")
    weights, losses = [], iter([0.9, 0.5, 0.8])

    def evaluate(network) -> dict[str, float]:
        weights.append(network.encoder.classifier.weight.detach().clone())
        return {"log_loss": next(losses), "accuracy": 0.5}

    loop.evaluate_heldout = evaluate
    loop.train()
    assert len(weights) == 3
    assert torch.equal(loop.model.encoder.classifier.weight, weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_checkpoint_holds_what_was_trained_and_nothing_frozen(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path / "a", tiny_encoder, "trainer.batch_rows=8")
    loop.model.encoder.bert.requires_grad_(False)
    loop.train()
    saved = load_file(next((tmp_path / "a").glob("checkpoint-*")) / "trained.safetensors")
    assert set(saved) == {"encoder.classifier.weight", "encoder.classifier.bias"}
    again = trainer(tmp_path / "b", tiny_encoder).model
    again.encoder.bert.requires_grad_(False)
    load_trained(again, next((tmp_path / "a").glob("checkpoint-*")))
    assert torch.equal(again.encoder.classifier.weight, loop.model.encoder.classifier.weight)


def test_a_checkpoint_of_another_network_is_refused(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=8")
    loop.train()
    other = trainer(tmp_path, tiny_encoder, head="siamese").model
    with pytest.raises(ValueError, match="of another network"):
        load_trained(other, next(tmp_path.glob("checkpoint-*")))


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    columns = np.array([0] * 7 + [1] * 2 + [2])
    weights = class_weights("balanced", np.eye(3, dtype=np.float32)[columns], LABELS)
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=columns), rtol=1e-6)
    assert class_weights(None, np.eye(3), LABELS) is None
    assert class_weights([1, 2, 0.5], np.eye(3), LABELS).tolist() == [1, 2, 0.5]


@pytest.mark.parametrize(
    ("asked", "said"), [([1.0, 2.0], "expected one per label"), ("balanced", "no training row has the label tie")]
)
def test_weights_that_cannot_be_are_refused(asked: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        class_weights(asked, np.eye(3, dtype=np.float32)[[0, 1]], LABELS)


def test_a_class_weight_multiplies_its_rows_share_of_the_loss(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16")
    batch = loop.micro.collate([2 * at for at in range(16)])
    loop.weights = torch.tensor([3.0, 1.0, 1.0])
    loop.model.eval()
    with torch.no_grad():
        loss = loop.compute_loss(loop.model, dict(batch))
        targets = batch.pop("targets")
        by_row = -(targets * loop.weights * torch.log_softmax(loop.model(**batch), -1)).sum(-1)
    torch.testing.assert_close(loss, by_row.mean())


def test_a_cpu_run_says_so_to_trainer(tiny_encoder: str, tmp_path: Path) -> None:
    """Environment trap T5: without use_cpu two CPU ranks train alone."""
    assert trainer(tmp_path, tiny_encoder).args.use_cpu is not torch.cuda.is_available()


def state_with(heldout: list[float], train: float, step: int = 100) -> TrainerState:
    entries = [{"loss": train}] * 20 + [{"eval_log_loss": loss} for loss in heldout]
    return TrainerState(global_step=step, max_steps=200, log_history=entries)


ARGUMENTS = SimpleNamespace(get_warmup_steps=lambda steps: 10, eval_steps=50)


@pytest.mark.parametrize(
    ("heldout", "train", "step", "collapsed"),
    [
        ([1.097], 1.098, 100, True),
        ([1.20], 1.099, 100, True),
        ([1.097], 1.098, 10, False),  # still warming up
        ([1.097], 1.098, 18, False),  # warm, but hardly begun
        ([1.05], 1.098, 100, False),  # learns
        ([1.05, 1.11], 1.09, 100, False),  # has learnt before
        ([1.20], 0.60, 100, False),  # over-fits: another matter
    ],
)
def test_collapse_is_a_loss_at_the_prior_after_warm_up(
    heldout: list[float], train: float, step: int, collapsed: bool
) -> None:
    guard = CollapseGuard(1.0972, stop=True)
    control = TrainerControl()
    guard.on_evaluate(ARGUMENTS, state_with(heldout, train, step), control)
    assert control.should_training_stop is collapsed


@pytest.mark.parametrize(
    ("losses", "stops"), [([1.0, 0.9, 0.8], False), ([0.8, 0.9], False), ([0.8, 0.9, 0.9], True), ([0.8], False)]
)
def test_patience_ends_after_two_evaluations_without_a_better_one(losses: list[float], stops: bool) -> None:
    control = TrainerControl()
    Patience(2).on_evaluate(ARGUMENTS, state_with(losses, 0.5), control, metrics={})
    assert control.should_training_stop is stops


def test_labels_are_in_the_order_of_the_submission() -> None:
    assert LABELS == ("model_a", "model_b", "tie")
