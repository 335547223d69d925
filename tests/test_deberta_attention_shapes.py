"""DeBERTa's attention on batches of any lengths: transformers' own outputs and gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_deberta_attention import EXACT, assert_alike, network, padding, read

from models import deberta_attention

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
