"""The gradients of DeBERTa's chunked attention with dropout, against differences of its outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import deberta_bias, deberta_rows
from models.deberta_bias import Masked, attend_bias
from models.deberta_distances import Span
from models.deberta_rows import Texts, attend_rows, group_texts


def leaves(tokens: int, rows: int, *shape: int) -> list[Tensor]:
    torch.manual_seed(1)
    sizes = [(*shape, tokens, 2, 3)] * 3 + [(rows, 2, 3)] * 2
    return [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("kept", [0, 512])
def test_gradients_of_rows_hold_with_dropout(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences of the outputs: the backward pass drops what the forward pass dropped."""
    for name, value in {"BLOCK_KEYS": 3, "CHUNK_BLOCKS": 2, "GROUP_SCORES": 40, "KEPT_TOKENS": kept}.items():
        monkeypatch.setattr(deberta_rows, name, value)
    texts = Texts(group_texts(((0, 8), (8, 3)), 2), Span(4, 8, 4), 2.0, dropout=0.3)

    def attend(*given: Tensor) -> Tensor:
        torch.manual_seed(5)
        return attend_rows(*given, texts)

    assert torch.autograd.gradcheck(attend, leaves(11, 8), fast_mode=True)


def test_gradients_of_the_bias_hold_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deberta_bias, "ALIGNED", 4)
    monkeypatch.setattr(deberta_bias, "CHUNK_BYTES", 1)
    how = Masked(torch.arange(9) < torch.tensor([9, 4])[:, None, None], Span(4, 8, 4), 2.0, dropout=0.3)

    def attend(*given: Tensor) -> Tensor:
        torch.manual_seed(5)
        return attend_bias(*given, how)

    assert torch.autograd.gradcheck(attend, leaves(9, 8, 2), fast_mode=True)


@pytest.mark.parametrize("way", ["rows", "bias"])
def test_dropout_drops_its_share_and_keeps_the_mean(way: str) -> None:
    """Values of one: a context is the sum of what is left of the probabilities, over the share that is kept."""
    q, k, v, pos_k, pos_q = (one.detach() for one in leaves(200, 8))
    torch.manual_seed(0)
    if way == "rows":
        texts = Texts(group_texts(((0, 200),), 2), Span(4, 8, 4), 40.0, 0.25)
        found = attend_rows(q, k, torch.ones_like(v), pos_k, pos_q, texts)
    else:
        how = Masked(torch.ones(1, 1, 200, dtype=torch.bool), Span(4, 8, 4), 40.0, 0.25)
        found = attend_bias(q[None], k[None], torch.ones_like(v)[None], pos_k, pos_q, how)
    # 200 nearly equal probabilities, a quarter of them dropped: 1 +- sqrt(0.25 / 0.75 / 200) = 0.041 a context.
    assert abs(float(found.mean()) - 1) < 0.01
    assert 0.03 < float(found[..., 0].std()) < 0.055
