"""Reasoning that leaves the prompt no room is refused by its own name."""

from __future__ import annotations

from typing import Any

import pytest
from test_chain_of_thought import chain


def test_reasoning_that_takes_all_positions_is_named_as_the_cause(tiny_causal: Any, tiny_tokenizer: Any) -> None:
    model = tiny_causal("llama", 448)  # 512 positions
    chain(model, tiny_tokenizer, new=60).check()
    with pytest.raises(ValueError, match=r"generation\.max_new_tokens=500 leaves the prompt \d of 512 tokens"):
        chain(model, tiny_tokenizer, new=500).check()
    with pytest.raises(ValueError, match=r"generation\.max_new_tokens=600 leaves the prompt 0 of 512 tokens"):
        chain(model, tiny_tokenizer, new=600).check()


def test_a_prompt_that_is_too_long_without_reasoning_is_the_cause_itself(tiny_causal: Any, tiny_tokenizer: Any) -> None:
    reader = chain(tiny_causal("llama", 448), tiny_tokenizer, new=500, system="Judge. " * 300)
    with pytest.raises(ValueError, match="prompt around the row's text takes") as refusal:
        reader.check()
    assert "max_new_tokens" not in str(refusal.value)
