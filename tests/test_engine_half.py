"""Rows that half precision cannot hold: read again in float32, where a float32 copy would compute in float32."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from infer.engine import Engine
from models.answer_tree import AnswerTree, build_tree

PROMPTS = [np.arange(40, 52), np.arange(60, 67)]


@pytest.fixture
def overflowing(tiny_causal: Any) -> Any:
    """A float16 Llama whose last norm gives numbers that its head cannot hold."""
    model = copy.deepcopy(tiny_causal("llama", 448))
    with torch.no_grad():
        model.model.norm.weight.fill_(6e4)
    return model.half()


def test_a_row_that_float16_cannot_hold_is_read_again_in_float32(overflowing: Any) -> None:
    assert np.isfinite(Engine(overflowing).read(PROMPTS, tree()).edges).all()


def test_under_autocast_no_copy_is_made_that_would_overflow_again(
    overflowing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("a copy was made")

    monkeypatch.setattr("infer.engine.copy.deepcopy", refuse)
    with pytest.raises(AssertionError, match="a copy was made"):
        Engine(overflowing).read(PROMPTS, tree())
    with torch.autocast("cpu", dtype=torch.float16):
        assert np.isnan(Engine(overflowing).read(PROMPTS, tree()).edges).all()


def tree() -> AnswerTree:
    return build_tree([(11,), (13,)])
