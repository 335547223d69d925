"""The engine gives what plain, unpadded, uncached passes give, for every model, batch and idea switched off."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_causal, tiny_t5

from infer.engine import Engine
from infer.forward.passes import ChainPass, SharedPrefix, TreePass
from infer.reference import reference_ids
from models.answer_tree import build_tree, distinct_answers

VOCABULARY, ROWS = 50, 64  # the head has 14 rows that are no tokens
ANSWERS = [(5,), (7, 8), (7, 9, 10), (7, 8, 11), (12, 13)]  # one begins another, two share a beginning
ENDS = np.array([1, 8, 20, 21, 22])
NATS = 1e-4  # the tolerance; float32 sums of two layers differ by 1e-5


def prompts_of(count: int, *, prefix: int = 15, longest: int = 25, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    start = random.integers(3, VOCABULARY, prefix)
    lengths = random.integers(1, longest, count)
    return [np.concatenate([start, random.integers(3, VOCABULARY, length)]) for length in lengths]


def plain(model, prompts, *, ends: bool = False) -> np.ndarray:
    """(N, A) from the oracle; the tokens that end an answer are not those that lead on to another."""
    table = np.empty((len(prompts), len(ANSWERS)))
    for row, prompt in enumerate(prompts):
        for column, answer in enumerate(ANSWERS):
            leads_on = {other[len(answer)] for other in ANSWERS if other[: len(answer)] == answer and other != answer}
            end_ids = [one for one in ENDS.tolist() if one not in leads_on] if ends else None
            table[row, column] = reference_ids(model, prompt, answer, vocab_size=VOCABULARY, end_ids=end_ids)
    return table


def read(model, prompts, *, ends: bool = False, **switches) -> np.ndarray:
    tree = build_tree(ANSWERS, end_ids=ENDS if ends else None)
    return tree.log_probs(Engine(model, vocab_size=VOCABULARY, **switches).read(prompts, tree))


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_family_agrees_with_the_oracle(kind: str, ends: bool) -> None:
    model = tiny_causal(kind, ROWS)
    model.train()  # a hostile state: dropout on
    prompts = prompts_of(7)
    found = read(model, [*prompts, prompts[2]], ends=ends, budget_tokens=150)
    assert model.training
    assert np.abs(found[:-1] - plain(model, prompts, ends=ends)).max() < NATS
    assert np.array_equal(found[-1], found[2])


@pytest.mark.parametrize("tied", [True, False])
def test_encoder_decoders_agree_with_the_oracle(tied: bool) -> None:
    model = tiny_t5(ROWS, tied=tied)
    prompts = prompts_of(5)
    for ends in (False, True):
        assert np.abs(read(model, prompts, ends=ends) - plain(model, prompts, ends=ends)).max() < NATS


@pytest.mark.parametrize("window", [8, 16, 24])
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_prefix_longer_than_the_window_changes_nothing(kind: str, window: int) -> None:
    model = tiny_causal(kind, ROWS, sliding_window=window)
    prompts = prompts_of(5, prefix=20)
    assert np.abs(read(model, prompts) - plain(model, prompts)).max() < NATS


@pytest.mark.parametrize(
    "switches",
    [
        {"prefix": False},
        {"sort": False},
        {"tree": False},
        {"head": False},
        {"budget_tokens": 1},
        {"budget_tokens": 9999},
    ],
)
def test_each_idea_changes_the_cost_and_not_the_result(switches: dict) -> None:
    model, prompts = tiny_causal("llama", ROWS), prompts_of(9)
    assert np.abs(read(model, prompts, **switches) - read(model, prompts)).max() < NATS


def test_a_model_that_takes_no_mask_or_cache_is_found_out_and_still_read_right() -> None:
    model, prompts = tiny_causal("llama", ROWS), prompts_of(4)
    expected = plain(model, prompts)
    forward = model.forward

    def no_masks(*arguments, **inputs):
        assert getattr(inputs.get("attention_mask"), "ndim", 2) == 2, "this model builds its own masks"
        return forward(*arguments, **inputs)

    model.forward = no_masks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(read(model, prompts) - expected).max() < NATS

    def neither(*arguments, **inputs):
        if inputs.get("past_key_values") is not None:
            raise TypeError("this model keeps no keys and values")
        return no_masks(*arguments, **inputs)

    model = tiny_causal("llama", ROWS)
    forward, model.forward = model.forward, neither
    assert np.abs(read(model, prompts) - expected).max() < NATS


def test_a_wrong_mask_would_be_seen_by_the_check() -> None:
    """The check must be able to fail: a pass that hides nothing from the nodes is not taken for the right one."""
    from infer.forward.plans import agree

    model, tree = tiny_causal("llama", ROWS), build_tree([(5, 6, 7), (5, 8, 7), (9,)])
    prompts = prompts_of(2)
    with torch.no_grad():
        right = torch.cat([ChainPass(model, tree).logits([prompt]) for prompt in prompts])
    way = TreePass(model, tree)
    with torch.no_grad():
        assert agree(way.logits(prompts), right, torch.float32)
        way.ancestors = torch.ones_like(way.ancestors)
        assert not agree(way.logits(prompts), right, torch.float32)


def test_the_head_runs_on_what_is_read_only() -> None:
    model, prompts = tiny_causal("llama", ROWS), prompts_of(6)
    shapes = []
    model.lm_head.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape)))
    read(model, prompts, budget_tokens=10_000)
    assert shapes[-1] == (6, 5, ROWS)  # the root and four nodes, for six prompts
    assert max(shape[1] for shape in shapes) == 5, "neither the check nor the prefix sees more of the head"


def test_the_prefix_is_computed_once_and_equal_prompts_are_read_once() -> None:
    model, prompts = tiny_causal("llama", ROWS), prompts_of(6)
    read(model, prompts)  # the check of the model is done
    tokens = []
    model.model.embed_tokens.register_forward_hook(lambda module, given, out: tokens.append(given[0].numel()))
    read(model, [*prompts, *prompts], budget_tokens=10_000)
    longest = max(len(prompt) - 15 for prompt in prompts)
    assert tokens == [15, 6 * (longest + 4)]


def test_the_prefix_is_not_copied_into_the_cache() -> None:
    prefix = SharedPrefix(tiny_causal("llama", ROWS), np.arange(3, 23))
    cache = prefix.cache()
    keys, _ = cache.update(torch.zeros(4, 1, 2, 16), torch.zeros(4, 1, 2, 16), 0)
    assert keys.shape == (4, 1, 22, 16)
    assert cache.layers[0].keys.data_ptr() == prefix.layers[0][0].data_ptr()
    assert cache.get_seq_length() == 20


class Full:
    """A memory that holds so many tokens at a time."""

    def __init__(self, model, tokens: int) -> None:
        self.failures = 0
        forward = model.forward

        def limited(*arguments, **inputs):
            if inputs["input_ids"].numel() > tokens:
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(*arguments, **inputs)

        model.forward = limited


def test_out_of_memory_halves_the_budget_and_goes_on_from_the_failed_batch() -> None:
    model, prompts = tiny_causal("llama", ROWS), prompts_of(20)
    expected = read(model, prompts)
    rows = []
    model.model.embed_tokens.register_forward_hook(lambda module, given, out: rows.append(given[0].shape[0]))
    memory = Full(model, 100)
    engine = Engine(model, vocab_size=VOCABULARY, budget_tokens=700)
    tree = build_tree(ANSWERS)
    assert np.abs(tree.log_probs(engine.read(prompts, tree)) - expected).max() < NATS
    assert 1 <= memory.failures <= 4
    assert engine.budget_tokens <= 100, "the next call starts with what was enough"
    assert sum(rows) - 1 == 20, "no row was computed twice (one row is the prefix)"


def test_a_prompt_that_does_not_fit_alone_is_named() -> None:
    model = tiny_causal("llama", ROWS)
    prompts = [*prompts_of(3, prefix=0, longest=5), np.arange(3, 48)]
    read(model, prompts)
    Full(model, 30)
    tree = build_tree(ANSWERS)
    with pytest.raises(MemoryError, match=r"file.csv, row 4 alone \(49 tokens\)"):
        Engine(model, vocab_size=VOCABULARY).read(prompts, tree, name=lambda row: f"file.csv, row {row + 1}")


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    model, prompts = tiny_causal("llama", ROWS), prompts_of(3)
    read(model, prompts)

    def broken(*arguments, **inputs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.forward = broken
    with pytest.raises(RuntimeError, match="shapes"):
        read(model, prompts)


def test_the_order_of_rows_and_their_company_change_nothing() -> None:
    model, prompts = tiny_causal("gpt2", ROWS), prompts_of(10)
    together = read(model, prompts)
    assert np.abs(read(model, prompts[::-1])[::-1] - together).max() < NATS
    alone = np.concatenate([read(model, [prompt]) for prompt in prompts])
    assert np.abs(alone - together).max() < NATS


def test_a_tree_shares_beginnings() -> None:
    tree = build_tree([(1, 2, 3), (1, 2, 4), (1, 5), (6,)])
    assert tree.fed == 2  # 1 and 1-2: the last tokens are only read
    assert tree.chains() == [[1, 2]]
    assert build_tree([(1,), (2,)]).fed == 0
    assert build_tree([(1,), (2,)], end_ids=np.array([9])).fed == 2  # the ends are read behind the answers


def test_repeated_and_contained_answers_count_once() -> None:
    assert distinct_answers([(1,), (2,), (1,), (1, 3)], ended=False) == [0, 1]
    assert distinct_answers([(1,), (2,), (1,), (1, 3)], ended=True) == [0, 1, 3]


def test_peft_models_are_read_through_their_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_causal("llama", ROWS)
    prompts = prompts_of(4)
    before = read(model, prompts)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4))
    found = read(adapted, prompts)
    assert np.abs(found - before).max() > 0.01
    assert np.abs(found - plain(adapted, prompts)).max() < NATS


def test_new_weights_are_read_anew_by_the_same_engine() -> None:
    model, prompts, tree = tiny_causal("llama", ROWS), prompts_of(4), build_tree(ANSWERS)
    engine = Engine(model, vocab_size=VOCABULARY)
    before = tree.log_probs(engine.read(prompts, tree))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    after = tree.log_probs(engine.read(prompts, tree))
    assert np.abs(after - before).max() > 0.01
    assert np.abs(after - plain(model, prompts)).max() < NATS


def test_adapters_of_transformers_itself_are_read_and_learnt_prompts_are_refused() -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model, prompts = tiny_causal("llama", ROWS), prompts_of(4)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=4))
    assert np.abs(read(model, prompts) - plain(model, prompts)).max() < NATS
    prompted = get_peft_model(
        tiny_causal("llama", ROWS), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        read(prompted, prompts)


def test_a_prompt_that_ends_in_the_last_row_of_the_embedding_or_repeats_one_token_is_read() -> None:
    for prompt in (np.array([5, 6, VOCABULARY - 1, 7]), np.full(20, 5)):
        model = tiny_causal("mistral", VOCABULARY, sliding_window=8)
        assert np.abs(read(model, [prompt, prompt[:-1]]) - plain(model, [prompt, prompt[:-1]])).max() < NATS
        later = prompts_of(4)
        assert np.abs(read(model, later) - plain(model, later)).max() < NATS


def test_the_check_does_not_run_on_one_token_repeated() -> None:
    from infer.forward.plans import probe_prompts
    from models.mask_checks import PROBE_LENGTHS

    prompts, answers = probe_prompts(tiny_causal("llama", ROWS), np.full(20, 5), PROBE_LENGTHS)
    assert min(len(set(prompt.tolist())) for prompt in prompts) >= min(PROBE_LENGTHS)
    assert len(set(answers)) == 4


def test_rotary_angles_that_depend_on_the_length_are_those_of_the_prompt_alone() -> None:
    def fresh():
        rotary = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        return tiny_causal("llama", ROWS, max_position_embeddings=20, rope_parameters=rotary)

    prompts = [*prompts_of(5), *prompts_of(3, prefix=2, longest=9)]

    def alone(prompt, answer) -> float:
        """Each token behind what stands before it, by a model that has read nothing else."""
        total = 0.0
        for at, token in enumerate(answer):
            logits = fresh()(torch.tensor([[*prompt, *answer[:at]]])).logits[0, -1, :VOCABULARY]
            total += float(logits.double().log_softmax(-1)[token].detach())
        return total

    assert max(map(len, prompts)) > 30, "well past the 20 that the model was made for"
    expected = [[alone(prompt, answer) for answer in ANSWERS] for prompt in prompts]
    assert np.abs(read(fresh(), prompts) - expected).max() < NATS


def test_layers_that_scale_by_the_place_in_the_row_get_no_tree() -> None:
    settings = {
        "attention_chunk_size": 16, "floor_scale": 8, "attn_scale": 0.5, "no_rope_layers": [1, 0],
        "attn_temperature_tuning": True, "head_dim": 16, "intermediate_size_mlp": 64, "num_local_experts": 2,
    }  # fmt: skip
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=ROWS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, max_position_embeddings=512, pad_token_id=2, **settings,
    )  # fmt: skip
    model = Llama4ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for prompts in (prompts_of(5, prefix=2, longest=6), prompts_of(5)):
        assert np.abs(read(model, prompts) - plain(model, prompts)).max() < NATS


def test_a_network_that_looks_at_later_tokens_is_refused() -> None:
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(0)
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=ROWS, d_model=32, n_layer=2, n_head=2, d_inner=64)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(ValueError, match=r"XLNetLMHeadModel .* expected a causal language model"):
        read(model, prompts_of(3))
