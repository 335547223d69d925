"""The cut of a step: nothing lost, nothing over the budget, weights that make one mean of all parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import compose
from hypothesis import given
from hypothesis import strategies as some

from train.batches import RowItems, StepSampler
from train.micro_batches import MicroBatches, token_budget

LENGTHS = np.random.default_rng(0).integers(5, 500, 137)


def micro(lengths: np.ndarray = LENGTHS, **settings: int) -> MicroBatches:
    return MicroBatches(lambda items: {"items": items}, lengths, **({"budget_tokens": 1000} | settings))


@given(
    some.lists(some.integers(1, 400), min_size=1, max_size=40), some.integers(1, 2000), some.integers(1, 5), some.data()
)
def test_a_step_is_cut_without_loss_within_the_budget(lengths, budget, processes, data) -> None:
    items = [2 * row + data.draw(some.integers(0, 1)) for row in range(len(lengths))]
    cut = micro(np.array(lengths), budget_tokens=budget, processes=processes)
    shares = cut.cuts(items)
    assert len(shares) == processes and all(shares)
    idle = max(0, processes - len(items))
    assert sorted(item for mine in shares[: processes - idle] for part in mine for item in part) == sorted(items)
    for part in (part for mine in shares for part in mine):
        assert len(part) == 1 or cut.size(part)[0] <= budget
    # One row apiece, dealt from the longest down: nobody reads more than the next one and one longest row.
    rows = [sum(len(part) for part in mine) for mine in shares[: processes - idle]]
    assert max(rows) - min(rows) <= 1


@given(some.integers(1, 30), some.integers(1, 6), some.integers(1, 300))
def test_the_mean_over_processes_of_weighted_means_is_the_mean_over_the_rows(count, processes, budget) -> None:
    items = [2 * row for row in range(count)]
    losses = np.random.default_rng(count).normal(size=2 * count)
    total = 0.0
    for process in range(processes):
        cut = micro(LENGTHS[:count], budget_tokens=budget, processes=processes, process=process)
        for part in cut.cuts(items)[process]:
            total += cut.weight(part, items) * losses[part].mean()
    assert total / processes == pytest.approx(losses[items].mean(), abs=1e-12)


def test_the_longest_rows_come_first() -> None:
    parts = micro().cuts([2 * row for row in range(32)])[0]
    longest = [max(LENGTHS[np.array(part) // 2]) for part in parts]
    assert len(parts) > 3 and longest == sorted(longest, reverse=True)


def test_without_a_budget_no_part_takes_more_than_batch_rows_of_the_longest_row() -> None:
    trainer = compose("+experiment=arena_quickstart", "trainer.batch_rows=4", "trainer.accumulation=8").trainer
    cut = micro(budget_tokens=token_budget(trainer, LENGTHS))
    steps = StepSampler(LENGTHS, swap="none", step_items=32, seed=0)
    parts = [part for items in steps for part in cut.cuts(items)[0]]
    assert max(cut.size(part)[0] for part in parts) <= 4 * LENGTHS.max()
    assert min(map(len, parts[:-1])) <= 4 and max(map(len, parts)) > 12  # of the short rows more go at once
    asked = compose("+experiment=arena_quickstart", "trainer.budget_tokens=4096").trainer
    assert token_budget(asked, LENGTHS) == 4096


def test_padding_is_the_share_of_tokens_that_stand_for_nothing() -> None:
    cut = micro(np.array([10, 8, 4, 2]), budget_tokens=20)
    assert cut.cuts([0, 2, 4, 6]) == [[[0, 2], [4, 6]]]  # 20 tokens for 18, 8 for 6
    assert cut.padding([[0, 2, 4, 6]]) == pytest.approx(4 / 28)


def test_a_smaller_budget_is_half_of_what_failed() -> None:
    cut = micro(np.array([10, 8, 4, 2]), budget_tokens=1000)
    assert cut.smaller([0, 2, 4]) == 15
    assert cut.smaller([0]) == 0


def test_proven_is_what_every_process_has_been_through_in_tokens_and_in_attention() -> None:
    cut = micro(np.array([100, 100, 50, 50, 10]), processes=2)
    assert not cut.proven([[[4]], [[4]]])
    cut.prove([[[4, 5], [0, 2]], [[4, 6]]])
    assert cut.proven([[[0, 1]], [[4, 7]]])
    assert cut.proven([[[0], [8]], [[8], [8]]])
    assert not cut.proven([[[0, 1, 2]], [[4]]])  # more tokens
    assert not cut.proven([[[0]], [[0]]])  # for the second, as many tokens in a longer row


def test_a_budget_that_shrinks_is_seen_by_the_workers_of_a_loader() -> None:
    cut = micro(budget_tokens=4000)
    steps = [[2 * row for row in range(8)]] * 6
    loader = torch.utils.data.DataLoader(
        RowItems(len(LENGTHS)), batch_sampler=steps, collate_fn=cut, num_workers=1, prefetch_factor=1
    )
    budgets = []
    for step in loader:
        budgets.append(step["cut_for"])
        assert [batch["items"] for batch in step["batches"]] == micro(budget_tokens=budgets[-1]).cuts(step["items"])[0]
        cut.budget_tokens = 2000
    assert budgets[0] == 4000 and budgets[-1] == 2000
