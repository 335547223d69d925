"""forward.tree_log_probs: a float64 softmax by hand gives the same edges, masses and strays, however rows are split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infer.forward.tree_log_probs import read_tree
from models.answer_tree import build_tree

VOCABULARY, ROWS = 12, 15  # three rows of the head are no tokens
TREE = build_tree([(3,), (4, 5), (4, 6)], end_ids=np.array([1, 2, 5]))


def logits_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1 + TREE.fed, ROWS, generator=torch.Generator().manual_seed(seed)) * 3


def by_hand(logits: torch.Tensor) -> np.ndarray:
    """(B, 1 + n, V) log-probabilities over the tokens."""
    values = logits[:, :, :VOCABULARY].double().numpy()
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("work_bytes", [1, 1000, 1 << 20])
def test_edges_and_masses_are_those_of_a_softmax_over_the_tokens(
    work_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.forward.tree_log_probs.WORK_BYTES", {"cpu": work_bytes})
    logits = logits_of(7)
    found, log_probs = read_tree(logits, TREE, vocab_size=VOCABULARY), by_hand(logits)
    assert found.edges.shape == (7, len(TREE.edge_ids)) and found.edges.dtype == np.float32
    np.testing.assert_allclose(found.edges, log_probs[:, TREE.edge_nodes, TREE.edge_ids], atol=1e-5)
    for at, (node, ids) in enumerate(zip(TREE.mass_nodes, TREE.mass_ids, strict=True)):
        np.testing.assert_allclose(found.masses[:, at], np.log(np.exp(log_probs[:, node, ids]).sum(axis=1)), atol=1e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_with_a_number_that_is_not_finite_is_all_nan_and_the_others_are_not(broken: float) -> None:
    logits = logits_of(5)
    whole = read_tree(logits, TREE)
    logits[2, -1, 0] = broken
    strays: dict[int, float] = {}
    found = read_tree(logits, TREE, strays=strays)
    assert np.isnan(found.edges[2]).all() and np.isnan(found.masses[2]).all()
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(found.edges[others], whole.edges[others])
    assert np.isfinite(list(strays.values())).all()


def test_a_token_that_the_model_rules_out_has_no_mass() -> None:
    logits = logits_of(2)
    logits[0, 0, 3] = -torch.inf
    found = read_tree(logits, TREE)
    assert found.edges[0, 0] == -np.inf and np.isfinite(found.edges[:, 1:]).all()


def test_strays_are_the_heaviest_tokens_of_rows_that_left_the_answers_less_than_half() -> None:
    logits = torch.full((3, 1 + TREE.fed, ROWS), -9.0)
    logits[0, 0, [3, 7]] = torch.tensor([2.0, 1.0])  # the answers keep more than half
    logits[1, 0, [7, 8, 9, 10]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    logits[2, 0, 7] = 5.0
    logits[:, 0, VOCABULARY:] = 8.0  # no tokens: they take nothing
    strays: dict[int, float] = {}
    read_tree(logits, TREE, vocab_size=VOCABULARY, strays=strays, counts=[1, 2, 5])
    probs = np.exp(by_hand(logits)[:, 0])
    assert set(strays) >= {7, 8, 9} and 10 not in strays
    assert strays[7] == pytest.approx(2 * probs[1, 7] + 5 * probs[2, 7], abs=1e-5)
    assert strays[8] == pytest.approx(2 * probs[1, 8] + 5 * probs[2, 8], abs=1e-5)


def test_half_precision_is_read_in_float32() -> None:
    logits = logits_of(4).half()
    np.testing.assert_array_equal(read_tree(logits, TREE).edges, read_tree(logits.float(), TREE).edges)
