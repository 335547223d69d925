"""A step in parts is the step at once: same gradients, same rows after a resume, also where memory runs out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair_rows
from test_loop import trainer

from train.checkpoints import last_whole_checkpoint
from train.loop import FoldTrainer
from train.step import exchanges

ROWS = pair_rows(44)  # 44 rows in steps of 16: the last step has 12


def gradients(loop: FoldTrainer, items: list[int]) -> tuple[dict[str, torch.Tensor], float]:
    """What one step's items leave in the parameters, without an optimiser, and the loss it reports."""
    loop.create_optimizer()
    loss = loop.training_step(loop.model, loop.micro(items))
    return {name: weight.grad.clone() for name, weight in loop.model.named_parameters()}, float(loss.detach())


def at_once(loop: FoldTrainer, items: list[int]) -> tuple[dict[str, torch.Tensor], float]:
    """The oracle: one plain batch of all items."""
    loop.model.train()
    loop.model.zero_grad()
    loss = loop.compute_loss(loop.model, loop.micro.collate(items))
    loss.backward()
    return {name: weight.grad.clone() for name, weight in loop.model.named_parameters()}, float(loss.detach())


@pytest.mark.parametrize("head", ["joint", "siamese"])
@pytest.mark.parametrize("budget", [1, 90, 200, 10_000])
def test_a_step_in_parts_has_the_gradient_of_the_step_at_once(
    tiny_encoder: str, tmp_path: Path, head: str, budget: int
) -> None:
    loop = trainer(
        tmp_path, tiny_encoder, "trainer.batch_rows=16", f"trainer.budget_tokens={budget}", rows=ROWS, head=head
    )
    loop.weights = torch.tensor([3.0, 1.0, 0.5])
    for items in list(loop.sampler)[1:]:  # of 16 rows and of 12
        parts = len(loop.micro.cuts(items)[0])
        assert parts == len(items) if budget == 1 else parts == 1 if budget == 10_000 else 1 < parts < len(items)
        expected, loss = at_once(loop, items)
        loop.model.zero_grad()
        found, reported = gradients(loop, items)
        for name, one in expected.items():
            size = max(1.0, float(one.abs().max()))  # a sum over all tokens is rounded as large numbers are
            torch.testing.assert_close(found[name], one, rtol=0, atol=1e-6 * size, msg=name)
        assert reported == pytest.approx(loss, abs=1e-6)


class Full(torch.nn.Module):
    """A network in a memory that takes so many tokens, and no more."""

    accepts_loss_kwargs = False

    def __init__(self, inner: torch.nn.Module, tokens: int) -> None:
        super().__init__()
        self.inner, self.tokens, self.sizes = inner, tokens, []

    def forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.inner(input_ids, **inputs)


def test_out_of_memory_halves_the_budget_and_the_step_is_the_same(
    tiny_encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("trainer.batch_rows=16", "trainer.max_grad_norm=1e9", "trainer.saves_per_eval=1")
    plain = trainer(tmp_path / "a", tiny_encoder, *options, rows=ROWS)
    plain.train()
    full = trainer(tmp_path / "b", tiny_encoder, *options, rows=ROWS)
    full.model_wrapped = full.model = Full(full.model, 300)
    with caplog.at_level(logging.WARNING, "tiebreak"):
        full.train()
    assert full.state.global_step == plain.state.global_step == 3
    assert full.micro.budget_tokens <= 300 < full.model.sizes[0]
    assert sum(size > 300 for size in full.model.sizes) <= 2, "what did not fit was tried again"
    assert "step 1: out of memory" in caplog.text and "A step keeps its 16 rows" in caplog.text
    for one, other in zip(plain.model.parameters(), full.model.parameters(), strict=True):
        # Adam divides by the gradient's size, so that a rounding error of 1e-8 shows where a gradient is nearly zero.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    told = [[entry["loss"] for entry in loop.state.log_history if "loss" in entry] for loop in (plain, full)]
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_a_row_that_does_not_fit_alone_is_refused_with_what_to_do(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16", rows=ROWS)
    loop.model_wrapped = loop.model = Full(loop.model, 10)
    with pytest.raises(MemoryError, match=r"trainer\.activation_checkpointing=true"):
        loop.train()


def test_memory_that_runs_out_in_the_optimizer_is_told_with_what_to_do(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16", rows=ROWS)
    budget, tried = loop.micro.budget_tokens, []

    class Large(torch.optim.SGD):
        def step(self, closure=None):
            tried.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 700.00 MiB")

    loop.optimizer = Large(loop.model.parameters(), lr=1e-3)
    asked = r"step 1 .*trainer\.optimizer=adamw_8bit.*model\.frozen_layers, model\.adapters"
    with pytest.raises(MemoryError, match=asked):
        loop.train()
    assert len(tried) == 1 and loop.micro.budget_tokens == budget, "smaller parts would not help"


def test_ddp_is_seen_inside_a_compiled_network() -> None:
    import torch.distributed as ranks

    ranks.init_process_group("gloo", store=ranks.HashStore(), rank=0, world_size=1)
    try:
        network = torch.nn.Linear(2, 2)
        together = torch.nn.parallel.DistributedDataParallel(network)
        assert exchanges(together) and exchanges(torch.compile(together, backend="eager"))
        assert not exchanges(network) and not exchanges(torch.compile(network, backend="eager"))
    finally:
        ranks.destroy_process_group()


def test_another_error_is_no_lack_of_memory(tiny_encoder: str, tmp_path: Path) -> None:
    loop = trainer(tmp_path, tiny_encoder, "trainer.batch_rows=16", rows=ROWS)
    loop.model.register_forward_pre_hook(lambda *given: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        loop.train()


class Cut(Exception):
    pass


def watched(loop: FoldTrainer, *, until: int | None = None) -> list[list[int]]:
    """Train, and note every step's items; cut off before step number `until` (from 0) of this run."""
    seen: list[list[int]] = []
    step = loop.training_step

    def note(model, inputs, number=None):
        if len(seen) == until:
            raise Cut
        seen.append(inputs["items"])
        return step(model, inputs, number)

    loop.training_step = note
    folder = last_whole_checkpoint(Path(loop.args.output_dir))
    try:
        loop.train(resume_from_checkpoint=str(folder) if folder else None)
    except Cut:
        assert until is not None
    return seen


@pytest.mark.parametrize("workers", [0, 1])
def test_cut_off_amid_an_epoch_it_goes_on_with_the_rows_of_an_unbroken_run(
    tiny_encoder: str, tmp_path: Path, workers: int
) -> None:
    options = (
        "trainer.batch_rows=4", "trainer.accumulation=2", "trainer.budget_tokens=150", "trainer.epochs=2",
        "trainer.evals_per_epoch=3", f"trainer.workers={workers}",
    )  # fmt: skip
    whole = trainer(tmp_path / "whole", tiny_encoder, *options, rows=ROWS)
    expected = watched(whole)
    assert len(expected) == 12 and expected[:6] != expected[6:]
    first = watched(trainer(tmp_path / "cut", tiny_encoder, *options, rows=ROWS), until=9)
    again = trainer(tmp_path / "cut", tiny_encoder, *options, rows=ROWS)
    rest = watched(again)
    saved = 12 - len(rest)
    assert 6 < saved <= 9, "the last save is amid the second epoch"
    assert first[:saved] + rest == expected
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_steps_are_the_same_whatever_the_budget(tiny_encoder: str, tmp_path: Path) -> None:
    seen = [
        watched(
            trainer(tmp_path / str(budget), tiny_encoder, "trainer.batch_rows=8", f"trainer.budget_tokens={budget}",
                    rows=ROWS)
        )
        for budget in (60, 6000)
    ]  # fmt: skip
    assert seen[0] == seen[1]
    assert np.unique([item // 2 for items in seen[0] for item in items]).size == 44


@pytest.mark.gpu
def test_a_full_gpu_makes_the_parts_smaller_and_the_step_stays(tiny_encoder: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    wide = str(tmp_path / "wide")  # activations of 200 MB beside weights of 15
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(wide)
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    config = BertConfig.from_pretrained(tiny_encoder, **shape)
    BertForSequenceClassification(config).save_pretrained(wide)
    options = ("trainer.batch_rows=64", "trainer.max_grad_norm=1e9")
    plain = trainer(tmp_path / "plain", wide, *options, rows=pair_rows(128))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    plain.train()
    most = torch.cuda.max_memory_reserved()
    full = trainer(tmp_path / "full", wide, *options, rows=pair_rows(128))
    torch.cuda.empty_cache()
    least = torch.cuda.memory_reserved()
    try:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((least + (most - least) / 2) / total)
        full.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert full.micro.budget_tokens < plain.micro.budget_tokens
    for one, other in zip(plain.model.parameters(), full.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # Adam's first steps are as large as the rate
