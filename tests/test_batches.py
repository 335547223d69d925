"""The sampler: every row in every epoch, orders as asked, the same again for the same seed and epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from train.batches import RowSampler

LENGTHS = np.random.default_rng(0).integers(5, 500, 137)


def sampler(swap: str, batch_items: int = 8, seed: int = 3) -> RowSampler:
    return RowSampler(LENGTHS, swap=swap, batch_items=batch_items, seed=seed)


def test_both_orders_of_a_row_stand_side_by_side_in_one_batch() -> None:
    items = list(sampler("both"))
    assert Counter(items) == Counter(range(2 * len(LENGTHS)))
    for start in range(0, len(items), 8):
        rows = Counter(item // 2 for item in items[start : start + 8])
        assert set(rows.values()) == {2}


def test_random_shows_each_row_once_in_about_half_the_orders() -> None:
    items = list(sampler("random"))
    assert sorted(item // 2 for item in items) == list(range(len(LENGTHS)))
    assert 0.3 < np.mean(np.array(items) % 2) < 0.7


def test_a_coin_is_thrown_again_each_epoch() -> None:
    one = sampler("random")
    first = dict((item // 2, item % 2) for item in one)
    one.set_epoch(1)
    second = dict((item // 2, item % 2) for item in one)
    assert first != second


def test_none_shows_each_row_once_as_written() -> None:
    assert sorted(sampler("none")) == list(range(0, 2 * len(LENGTHS), 2))


@pytest.mark.parametrize("swap", ["both", "random", "none"])
def test_the_same_seed_and_epoch_give_the_same_items(swap: str) -> None:
    first, again = sampler(swap), sampler(swap)
    first.set_epoch(2)
    list(first)
    again.set_epoch(2)
    assert list(first) == list(again)
    assert len(first) == len(list(first))


def test_another_epoch_is_another_order() -> None:
    one = sampler("none")
    first = list(one)
    one.set_epoch(1)
    assert first != list(one)


def test_rows_of_similar_length_share_a_batch() -> None:
    def spread(items: list[int]) -> float:
        lengths = LENGTHS[np.array(items) // 2]
        return float(np.mean([np.ptp(lengths[at : at + 8]) for at in range(0, len(items) - 8, 8)]))

    shuffled = np.random.default_rng(1).permutation(len(LENGTHS)) * 2
    assert spread(list(sampler("none"))) < 0.2 * spread(shuffled.tolist())
