"""Attention looks at a shared prefix once for all rows: the same numbers, the model as it was, and no copy of keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_last_block import NATS, ROWS, SEVERAL, SINGLE, gap, prompts_of
from tiny_models import KINDS, tiny_causal
from torch.nn.functional import scaled_dot_product_attention

from infer.engine import Engine
from infer.forward.plans import causal_plan
from infer.forward.prefix_attention import _attention, attending_apart
from models.answer_tree import build_tree


def plan_of(model, *, tree: bool = True, apart: bool = True):
    with torch.inference_mode():
        return causal_plan(model, prompts_of(4)[0], 0, tree=tree, prefix=True, apart=apart)


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_both_parts_joined_are_attention_over_all_keys(heads: int, shared: int, masked: bool) -> None:
    torch.manual_seed(0)
    rows, tokens, before, size = 3, 7, 11, 16
    query = torch.randn(rows, tokens, heads, size).transpose(1, 2)  # as a projection leaves it
    keys, values = torch.randn(2, rows, shared, tokens, size)
    far_keys, far_values = torch.randn(2, 1, shared, before, size)
    seen = torch.ones(rows, tokens, tokens, dtype=torch.bool).tril()
    seen[1, 4] = torch.tensor([1, 0, 1, 0, 1, 0, 0], dtype=torch.bool) if masked else seen[1, 4]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    module = type("Layer", (), {"layer_idx": 0})()
    with attending_apart(tiny_causal("llama", ROWS), [(far_keys, far_values)]):
        found, _ = _attention(module, query, keys, values, mask if masked else None, scaling=0.3)
    whole = [
        torch.cat([far.expand(rows, -1, -1, -1), own], -2) for far, own in ((far_keys, keys), (far_values, values))
    ]
    everything = torch.cat([torch.ones(rows, tokens, before, dtype=torch.bool), seen], -1)[:, None]
    expected = scaled_dot_product_attention(query, *whole, attn_mask=everything, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("switches", [{}, {"apart": False}, {"trim": False}, {"tree": False}])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "bloom", "phi", "mistral"])
def test_the_oracle_agrees_with_and_without(kind: str, switches: dict) -> None:
    model = tiny_causal(kind, ROWS)
    before = model.config._attn_implementation
    assert gap(model, SINGLE, **switches) < NATS
    assert gap(model, SEVERAL, **switches) < NATS
    assert model.config._attn_implementation == before


def test_llamas_take_it_and_models_that_do_more_to_their_scores_do_not() -> None:
    assert plan_of(tiny_causal("llama", ROWS)).apart
    assert plan_of(tiny_causal("llama", ROWS), tree=False).apart
    assert not plan_of(tiny_causal("llama", ROWS), apart=False).apart
    assert not plan_of(tiny_causal("gemma2", ROWS)).apart  # its softcap
    assert {"llama", "gemma2", "gpt2", "bloom", "phi", "mistral"} <= set(KINDS)


def test_attention_written_by_hand_is_left_alone() -> None:
    model = tiny_causal("llama", ROWS)
    model.set_attn_implementation("eager")
    assert not plan_of(model).apart


def test_an_error_in_the_pass_leaves_the_model_as_it_was() -> None:
    model = tiny_causal("llama", ROWS)
    with pytest.raises(KeyError, match="in the middle"), attending_apart(model, []):
        raise KeyError("in the middle")
    assert model.config._attn_implementation == "sdpa"


def test_no_layer_but_the_last_puts_the_prefix_beside_every_rows_keys() -> None:
    model, prompts, tree = tiny_causal("llama", ROWS), prompts_of(4), build_tree(SEVERAL)

    def joined(*, apart: bool) -> int:
        engine, calls, cat = Engine(model, apart=apart), [], torch.cat
        engine.read(prompts, tree)  # the checks are done

        def counted(tensors, *arguments, **keywords):
            calls.append(max(tensor.dim() for tensor in tensors))
            return cat(tensors, *arguments, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "cat", counted)
            engine.read(prompts, tree)
        return calls.count(4)

    # Keys and values of each layer; the rotary embeddings' joined halves are in both counts.
    assert joined(apart=False) - joined(apart=True) == 2 * (model.config.num_hidden_layers - 1)


def test_many_rows_of_half_precision_agree_with_float32() -> None:
    prompts, tree = prompts_of(20), build_tree(SEVERAL)
    wide = tiny_causal("llama", ROWS)
    expected = tree.log_probs(Engine(wide).read(prompts, tree))
    narrow = tiny_causal("llama", ROWS).bfloat16()
    assert plan_of(narrow).apart
    ways = [tree.log_probs(Engine(narrow, apart=apart).read(prompts, tree)) for apart in (True, False)]
    errors = [float(np.abs(way - expected).mean()) for way in ways]
    assert errors[0] < 2 * errors[1]  # bfloat16's own error is what remains
