"""The last block runs on what is read only: every model says the same with and without, and is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_causal
from torch import nn

from infer.engine import Engine
from infer.forward import last_block
from infer.forward.last_block import LastBlock, only_read
from infer.forward.last_block_search import find_last_block
from infer.forward.plans import causal_plan
from infer.reference import reference_ids
from models.answer_tree import build_tree

ROWS = 64
NATS = 1e-4  # float32 sums of two layers differ by 1e-5
PREFIX = 10
# Two share a beginning, so that some rows are read at several places and others at one.
SEVERAL, SINGLE = [(5,), (7, 8), (7, 9, 10)], [(5,), (7,)]


def prompts_of(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    start = random.integers(3, ROWS, PREFIX)
    return [np.concatenate([start, random.integers(3, ROWS, length)]) for length in random.integers(1, 20, count)]


def gap(model, answers, **switches) -> float:
    """Largest difference in nats between the engine and the oracle over four prompts."""
    prompts, tree = prompts_of(4), build_tree(answers)
    found = tree.log_probs(Engine(model, **switches).read(prompts, tree))
    expected = [[reference_ids(model, prompt, answer, vocab_size=ROWS) for answer in answers] for prompt in prompts]
    return float(np.abs(found - expected).max())


def last_of(model, *, tree: bool = False, prefix: bool = True) -> LastBlock | None:
    with torch.inference_mode():
        return causal_plan(model, prompts_of(4)[0], 0, tree=tree, prefix=prefix).last


def hooks_of(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("switches", [{}, {"tree": False}, {"prefix": False}, {"head": False}, {"trim": False}])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "bloom", "phi"])
def test_whatever_else_is_switched_the_oracle_agrees(kind: str, switches: dict) -> None:
    model = tiny_causal(kind, ROWS)
    assert gap(model, SINGLE, **switches) < NATS
    assert gap(model, SEVERAL, **switches) < NATS
    assert hooks_of(model) == 0


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_family_has_a_last_block_that_need_not_run_everywhere(kind: str, tree: bool, prefix: bool) -> None:
    last = last_of(tiny_causal(kind, ROWS), tree=tree, prefix=prefix)
    assert last is not None and last.modules


def test_of_a_llama_all_but_keys_values_and_what_leads_to_them_is_found() -> None:
    last = last_of(tiny_causal("llama", ROWS))
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp", "post_attention_layernorm")
    assert last == LastBlock("model.layers.1", parts, queries=True)


def test_queries_keys_and_values_that_are_made_together_are_made_for_every_token() -> None:
    last = last_of(tiny_causal("gpt2", ROWS))
    assert last == LastBlock("transformer.h.1", ("attn.c_proj", "ln_2", "mlp"), queries=True)


def test_mixtures_of_experts_are_read_right() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=ROWS, intermediate_size=64, num_local_experts=4, pad_token_id=2, **shape)
    model = MixtralForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    last = last_of(model)
    assert last is not None and "mlp" in last.modules
    assert gap(model, SEVERAL) < NATS


def test_the_mlp_and_the_attention_see_only_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, tree = tiny_causal("llama", ROWS), prompts_of(6), build_tree(SEVERAL)
    engine = Engine(model, budget_tokens=10_000)
    engine.read(prompts, tree)  # the check of the model is done
    rows, queries = [], []
    model.model.layers[-1].mlp.up_proj.register_forward_hook(lambda _, given, out: rows.append(out[..., 0].numel()))
    attend = last_block._ReadQueries._attend

    def watched(self, *given, **named):
        queries.append(self.columns.numel())
        return attend(self, *given, **named)

    monkeypatch.setattr(last_block._ReadQueries, "_attend", watched)
    engine.read(prompts, tree)
    # The prefix, of which one row stands for none; then the root and one node of six prompts.
    assert rows == queries == [1, 6 * (1 + tree.fed)]


def test_a_model_that_raises_is_left_without_hooks_and_with_its_own_attention() -> None:
    model = tiny_causal("llama", ROWS)
    last = last_of(model)
    ids, rows, columns = torch.full((1, 5), 7), torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), 4)
    expected = model(ids).logits

    def broken(*_):
        raise RuntimeError("a layer that breaks")

    handle = model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="breaks"), only_read(model, last, rows, columns, (1, 5)):
        model(ids)
    handle.remove()
    assert hooks_of(model) == 0
    assert torch.equal(model(ids).logits, expected)


def test_a_block_that_runs_twice_is_not_trimmed() -> None:
    model = tiny_causal("llama", ROWS)
    model.model.layers[1] = model.model.layers[0]
    assert last_of(model, prefix=False) is None
    assert gap(model, SEVERAL) < NATS


class RunningLinear(nn.Linear):
    """A layer that calls itself linear, and looks at every position up to its own."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.cumsum(dim=1))


def test_a_layer_that_mixes_positions_is_not_trimmed_whatever_it_is_called() -> None:
    model = tiny_causal("llama", ROWS)
    mlp = model.model.layers[-1].mlp
    mlp.gate_proj = RunningLinear(32, 64, bias=False)
    last = last_of(model, prefix=False)
    assert last is not None and "mlp.down_proj" in last.modules
    assert not {"mlp", "mlp.gate_proj"} & set(last.modules)
    assert gap(model, SEVERAL, prefix=False, tree=False) < NATS


def test_a_model_in_which_a_part_refuses_fewer_rows_is_read_all_the_same() -> None:
    model = tiny_causal("llama", ROWS)
    forward = model.model.layers[-1].mlp.forward

    def choosy(hidden: torch.Tensor) -> torch.Tensor:
        assert not torch.isnan(hidden).any() and hidden.shape[1] > 2, "this MLP wants whole rows"
        return forward(hidden)

    model.model.layers[-1].mlp.forward = choosy
    assert last_of(model) is None
    assert gap(model, SINGLE, prefix=False) < NATS


@pytest.mark.parametrize("settled_first", [False, True])
def test_adapters_in_the_last_block_are_read(settled_first: bool) -> None:
    from peft import LoraConfig

    model = tiny_causal("llama", ROWS)
    if settled_first:
        assert gap(model, SEVERAL) < NATS
    model.add_adapter(LoraConfig(target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False, r=4))
    assert gap(model, SEVERAL) < NATS
    last = last_of(model)
    assert last is not None and "mlp" in last.modules


BATCH = (torch.full((2, 6), 7), torch.tensor([[0], [1]]), torch.full((2, 1), 5))  # ids, rows, columns


def test_a_compiled_network_is_left_alone() -> None:
    whole, inside = torch.compile(tiny_causal("llama", ROWS), backend="eager"), tiny_causal("llama", ROWS)
    inside.model.layers[0].compile(backend="eager")
    assert find_last_block(whole, *BATCH) is None
    assert find_last_block(inside, *BATCH) is None


def test_a_network_of_no_blocks_has_no_last_one() -> None:
    class Bag(nn.Module):
        def get_output_embeddings(self):
            return None

        def forward(self, input_ids, use_cache):
            return input_ids

    assert find_last_block(Bag(), *BATCH) is None
