"""DeBERTa's attention on a CUDA GPU: python -m pytest -m gpu tests/test_deberta_attention_gpu.py"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_deberta_attention import KINDS, assert_alike, network, padding, read

from models.deberta_attention import set_tier
from train.levers import compile_lack

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]
WIDE: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2, "position_buckets": 256}
HAS_FLEX = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
TIERS = ["sdpa", pytest.param("flex", marks=pytest.mark.skipif(not HAS_FLEX, reason="flex needs sm_80"))]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_bias_gives_the_outputs_and_gradients_of_transformers(kind: str) -> None:
    """In float64, in which torch takes its plain kernel: what is tested is the bias and its gradient."""
    model, mask = network(kind).cuda(), padding(70, 33, 1).cuda()
    assert_alike(read(model, "sdpa", mask), read(model, "eager", mask), 1e-9)


@pytest.mark.parametrize("tier", TIERS)
def test_the_fused_kernel_agrees_in_float32(tier: str) -> None:
    """Sums of 600 products in another order, through two layers: 1e-5 of an output, 1e-4 of a gradient."""
    model = network(dtype=torch.float32, initializer_range=0.05, **WIDE).cuda()
    mask = padding(600, 64, 513).cuda()
    ours, theirs = read(model, tier, mask), read(model, "eager", mask)
    assert float((ours[0] - theirs[0]).abs().max()) < 1e-5 * float(theirs[0].abs().max())
    assert_alike(ours, theirs, 1e-4)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_near_to_float32_as_transformers_own(tier: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 is emulated below sm_80")
    model = network(dtype=torch.float32, initializer_range=0.05, **WIDE).cuda()
    mask = padding(300, 64).cuda()
    exact = read(model, "eager", mask)[0]
    errors = {}
    for name in ("eager", tier):
        with torch.autocast("cuda", dtype=dtype):
            errors[name] = float((read(model, name, mask)[0].float() - exact).abs().mean())
    assert 0 < errors[tier] < 1.5 * errors["eager"]


def test_dropout_is_drawn_again_in_the_backward_pass_and_leaves_the_generator_alone() -> None:
    model = network(attention_probs_dropout_prob=0.2, **WIDE).cuda()
    mask, found = padding(90, 40).cuda(), []
    for checkpointed in (False, True):
        if checkpointed:
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        torch.manual_seed(3)
        before = torch.cuda.get_rng_state()
        found.append(read(model, "sdpa", mask))
        assert torch.equal(torch.cuda.get_rng_state(), before)
    assert_alike(found[0], found[1], 1e-9)


@pytest.mark.skipif(compile_lack() is not None, reason="nothing can be compiled here")
def test_a_compiled_network_gives_the_same_logits_and_gradients() -> None:
    """Of two lengths, the second of which the compiler reads as one of many: the bias road, forward and backward."""
    model = network(dtype=torch.float32, initializer_range=0.05, **WIDE).cuda()
    set_tier(model.deberta.encoder, "sdpa")
    compiled = torch.compile(model)
    for mask in (padding(128, 64).cuda(), padding(192, 190, 5).cuda()):
        ids, found = torch.arange(mask.numel(), device="cuda").view(mask.shape) % 47 + 1, []
        for one in (model, compiled):
            model.zero_grad()
            logits = one(ids, attention_mask=mask).logits
            logits.square().sum().backward()
            gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            found.append((logits.detach(), gradients))
        assert_alike(found[1], found[0], 1e-4)


def test_training_keeps_nothing_of_the_size_of_the_scores() -> None:
    """2,048 tokens of eight heads: eager keeps several times 8 x 2048 x 2048 x 4 bytes a layer."""
    model = network(dtype=torch.float32, hidden_size=512, num_attention_heads=8, num_hidden_layers=4).cuda()
    mask = torch.ones(1, 2048, dtype=torch.long, device="cuda")
    peaks = {}
    for tier in ("eager", "sdpa"):
        read(model, tier, mask)
        torch.cuda.reset_peak_memory_stats()
        read(model, tier, mask)
        peaks[tier] = torch.cuda.max_memory_allocated()
    assert peaks["sdpa"] < peaks["eager"] / 2
