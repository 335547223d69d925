"""The sampler: every row in every epoch, orders as asked, the same again for the same seed and epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from train.batches import StepSampler

LENGTHS = np.random.default_rng(0).integers(5, 500, 137)


def sampler(swap: str, step_items: int = 8, seed: int = 3) -> StepSampler:
    return StepSampler(LENGTHS, swap=swap, step_items=step_items, seed=seed)


def items_of(steps: StepSampler) -> list[int]:
    return [item for items in steps for item in items]


def test_both_orders_of_a_row_stand_side_by_side_in_one_step() -> None:
    steps = list(sampler("both"))
    assert Counter(item for items in steps for item in items) == Counter(range(2 * len(LENGTHS)))
    for items in steps:
        assert set(Counter(item // 2 for item in items).values()) == {2}


def test_random_shows_each_row_once_in_about_half_the_orders() -> None:
    items = items_of(sampler("random"))
    assert sorted(item // 2 for item in items) == list(range(len(LENGTHS)))
    assert 0.3 < np.mean(np.array(items) % 2) < 0.7


def test_a_coin_is_thrown_again_each_epoch() -> None:
    one = sampler("random")
    first = dict((item // 2, item % 2) for item in items_of(one))
    one.set_epoch(1)
    second = dict((item // 2, item % 2) for item in items_of(one))
    assert first != second


def test_none_shows_each_row_once_as_written() -> None:
    assert sorted(items_of(sampler("none"))) == list(range(0, 2 * len(LENGTHS), 2))


@pytest.mark.parametrize("swap", ["both", "random", "none"])
@pytest.mark.parametrize("step_items", [1, 3, 8, 1000])
def test_the_same_seed_and_epoch_give_the_same_steps(swap: str, step_items: int) -> None:
    first, again = sampler(swap, step_items), sampler(swap, step_items)
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


def test_every_step_but_the_last_has_as_many_rows_as_asked() -> None:
    assert [len(items) for items in sampler("none")] == [8] * 17 + [1]


def test_rows_of_similar_length_share_a_step() -> None:
    def spread(steps: list[list[int]]) -> float:
        return float(np.mean([np.ptp(LENGTHS[np.array(items) // 2]) for items in steps]))

    shuffled = np.random.default_rng(1).permutation(len(LENGTHS))[:136].reshape(-1, 8) * 2
    assert spread(list(sampler("none"))) < 0.2 * spread(shuffled.tolist())
