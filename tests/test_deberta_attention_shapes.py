"""DeBERTa's attention on batches of any lengths: transformers' own outputs and gradients."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_deberta_attention import EXACT, assert_alike, network, padding, read, states
from torch.utils._python_dispatch import TorchDispatchMode

from models import deberta_attention, deberta_bias
from models.deberta_attention import set_tier

# Few lengths and many texts: a batch then has groups of several texts, worked on in the same memory one after another.
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=3).flatmap(
    lambda pool: st.lists(st.sampled_from(pool), min_size=1, max_size=8)
)


@cache
def tiny(buckets: int) -> Any:
    return network(position_buckets=buckets, max_relative_positions=-1)


@pytest.mark.parametrize("way", ["rows", "bias"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=LENGTHS, buckets=st.sampled_from([8, 256]))
@example(lengths=[80, 80, 80, 60, 60], buckets=256)  # 3 x 2 blocks of 40 keys, then 2 x 1 of 60: as many rows
@example(lengths=[120, 120, 90, 90, 90, 40], buckets=8)
def test_a_batch_of_any_lengths_has_the_outputs_and_gradients_of_transformers(
    way: str, lengths: list[int], buckets: int
) -> None:
    mask, model = padding(*lengths), tiny(buckets)
    with pytest.MonkeyPatch.context() as patch:
        if way == "bias":  # which a CPU takes for masks with gaps alone
            patch.setattr(deberta_attention, "padded_pieces", lambda _: None)
        found = read(model, "sdpa", mask)
    assert_alike(found, read(model, "eager", mask), EXACT)


@pytest.mark.parametrize("chunk_bytes", [deberta_bias.CHUNK_BYTES, 1])
def test_a_query_that_may_read_nothing_has_the_gradients_of_transformers(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads all keys alike, which says nothing of its scores. In small chunks 41 tokens do not fill the last one."""
    monkeypatch.setattr(deberta_bias, "CHUNK_BYTES", chunk_bytes)
    model, found = network(), []
    mask = torch.zeros(2, 41, 41, dtype=torch.long)
    mask[:, :15, :15] = mask[:, 20:, 20:] = 1
    for tier in ("sdpa", "eager"):
        set_tier(model.deberta.encoder, tier)
        model.zero_grad()
        hidden = torch.sin(torch.arange(2 * 41 * 24, dtype=torch.float64)).view(2, 41, 24).requires_grad_()
        outputs = model.deberta.encoder(hidden, mask).last_hidden_state
        (outputs * hidden.detach().flip(1)).sum().backward()
        grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        found.append((outputs.detach(), grads | {"hidden": hidden.grad}))
    assert_alike(*found, EXACT)


def test_the_attention_asked_for_reaches_a_network_that_predicts(tmp_path: Path) -> None:
    from models.text_encoder import load_text_network

    network(dtype=torch.float32).save_pretrained(tmp_path)
    found = {asked: load_text_network(str(tmp_path), attention=asked).encoder.deberta for asked in ("auto", "eager")}
    assert type(found["auto"].encoder) is not type(found["eager"].encoder)
    assert type(found["eager"].encoder).__name__ == "DebertaV2Encoder"


class Paddings(TorchDispatchMode):
    """Counts the copies that put padding back."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.index_copy
        return func(*args, **(kwargs or {}))


def test_padding_comes_back_for_the_layers_that_are_read_alone() -> None:
    """DebertaV2Model asks its encoder for every layer's hidden states, whatever its own caller wants."""
    model, mask = network(num_hidden_layers=4), padding(70, 20)
    set_tier(model.deberta.encoder, "sdpa")
    with Paddings() as copies:
        outputs = model(mask, attention_mask=mask, output_hidden_states=True)
        assert copies.count == 1
        assert [one.shape for one in outputs.hidden_states[1:3]] == [(2, 70, 24)] * 2
    assert copies.count == 3 and len(outputs.hidden_states) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
@pytest.mark.parametrize("way", ["rows", "bias"])
def test_a_compiled_network_reads_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler's front alone, which breaks its graph at what it cannot follow."""
    model, mask = network(num_hidden_layers=1).eval(), padding(70, 33, 1)
    if way == "bias":
        monkeypatch.setattr(deberta_attention, "padded_pieces", lambda _: None)
    expected = states(model, "sdpa", mask)
    compiled = torch.compile(model, backend="eager")
    ids = torch.arange(mask.numel()).view(mask.shape) % 47 + 1
    found = compiled(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1][mask.bool()]
    assert torch.allclose(found, expected, atol=EXACT)
    torch.compiler.reset()
