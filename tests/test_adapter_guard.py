"""The guard after the clipping of an overflow under fp16: it neither cries nor goes to sleep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from train.adapter_guard import MOST_SILENT, GradientGuard, layers_without_gradient


class Adapted(nn.Module):
    """Two layers of adapters, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"lora_B": nn.Linear(3, 3, bias=False)}) for _ in range(2))

    def take(self, *gradients: torch.Tensor) -> None:
        """The gradients of a step, clipped as Trainer does before the guard looks."""
        for layer, gradient in zip(self.layers, gradients, strict=True):
            layer["lora_B"].weight.grad = gradient.clone()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


FINE = torch.ones(3, 3)
DEAD = torch.zeros(3, 3)


def overflow(value: float) -> torch.Tensor:
    gradient = torch.ones(3, 3)
    gradient[0, 0] = value
    return gradient


@pytest.mark.parametrize(
    "overflowed",
    [(FINE, overflow(math.inf)), (FINE, overflow(math.nan)), (1e30 * FINE, 1e30 * FINE)],
    ids=["infinite", "nan", "norm"],
)
def test_a_step_that_overflowed_is_not_judged_and_the_next_one_is(overflowed: tuple) -> None:
    model = Adapted()
    guard = GradientGuard(model)
    for _ in range(5):
        model.take(*overflowed)
        assert not (model.layers[0]["lora_B"].weight.grad.abs() > 0).any()  # what looked like a missing gradient
        guard.on_pre_optimizer_step()
    model.take(FINE, DEAD)
    with pytest.raises(RuntimeError, match=r"1 adapters got no gradient .*layers\.1\.lora_B"):
        guard.on_pre_optimizer_step()


def test_after_a_step_that_could_be_judged_the_guard_rests_until_the_next_evaluation() -> None:
    model = Adapted()
    guard = GradientGuard(model)
    model.take(FINE, FINE)
    guard.on_pre_optimizer_step()
    model.take(FINE, DEAD)
    guard.on_pre_optimizer_step()
    guard.on_evaluate()
    with pytest.raises(RuntimeError, match="no gradient"):
        guard.on_pre_optimizer_step()


def test_a_run_without_any_gradient_fails_after_all() -> None:
    model = Adapted()
    guard = GradientGuard(model)
    for _ in range(MOST_SILENT):
        model.take(DEAD, DEAD)
        guard.on_pre_optimizer_step()
    with pytest.raises(RuntimeError, match="2 adapters got no gradient"):
        guard.on_pre_optimizer_step()


def test_a_scaler_that_halves_its_scale_is_waited_for() -> None:
    """Trainer's order under fp16, with real gradients: unscale, clip, guard, step."""
    torch.manual_seed(0)
    network = nn.Sequential(*(_Layer() for _ in range(3)))
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=1e-6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    guard = GradientGuard(network)
    waited = 0
    while guard.due:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = network(torch.randn(16, 64)).float().square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        guard.on_pre_optimizer_step()
        scaler.step(optimizer)
        scaler.update()
        waited += guard.due
    assert 0 < waited < 20


def test_a_look_at_the_gradients_leaves_dropouts_generator_alone() -> None:
    """A resumed run looks after its first step, where the unbroken one may not."""
    network = nn.ModuleDict({"base_layer": nn.Linear(8, 8).requires_grad_(False), "lora_B": nn.Linear(8, 8)})
    network["lora_B"].weight.grad, network["lora_B"].bias.grad = torch.ones(8, 8), torch.ones(8)
    adapted = nn.Sequential(network)
    before = torch.get_rng_state()
    guard = GradientGuard(adapted)
    guard.on_pre_optimizer_step()
    assert not guard.due and layers_without_gradient(adapted) == []
    assert torch.equal(torch.get_rng_state(), before)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64, bias=False).requires_grad_(False)
        self.lora_B = nn.Linear(64, 64, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.base(states) * 4 + self.lora_B(states)
