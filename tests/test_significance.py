"""The two tests of paired rows: by hand, against scipy, and on rows that differ by chance alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from infer.significance import mcnemar, paired_bootstrap


def test_mcnemar_is_the_binomial_of_the_rows_that_one_alone_has_right() -> None:
    right = np.array([True] * 8 + [False] * 2 + [True] * 50)
    other = np.array([False] * 8 + [True] * 2 + [True] * 50)
    assert mcnemar(right, other) == pytest.approx(2 * (1 + 10 + 45) / 2**10), "at most 2 of 10 heads, either side"
    assert mcnemar(other, right) == mcnemar(right, other)


def test_ways_that_are_right_on_the_same_rows_do_not_differ() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right) == 1.0 and paired_bootstrap(right * 1.0, right * 1.0) == 1.0


def test_the_bootstrap_agrees_with_the_t_test_where_that_holds() -> None:
    random = np.random.default_rng(0)
    for shift in (0.0, 0.1, 0.2):
        mine = random.normal(size=300)
        theirs = mine + random.normal(loc=shift, size=300)
        assert paired_bootstrap(mine, theirs) == pytest.approx(ttest_rel(mine, theirs).pvalue, abs=0.03), shift


def test_a_way_that_is_better_on_every_row_has_the_least_p_value_that_the_draws_allow() -> None:
    losses = np.linspace(0.1, 1, 40)
    assert paired_bootstrap(losses, losses + 0.5, draws=999) == pytest.approx(2 / 1000)


def test_rows_that_say_the_same_twice_prove_nothing_more() -> None:
    random = np.random.default_rng(1)
    mine, theirs = random.random(60), random.random(60)
    twice = paired_bootstrap(np.repeat(mine, 2), np.repeat(theirs, 2), np.repeat(np.arange(60), 2))
    assert twice == paired_bootstrap(mine, theirs)


def test_gaps_in_the_group_numbers_change_nothing() -> None:
    random = np.random.default_rng(3)
    mine, theirs, groups = random.random(12), random.random(12) + 0.1, np.repeat(np.arange(6), 2)
    assert paired_bootstrap(mine, theirs, groups * 50 + 7) == paired_bootstrap(mine, theirs, groups)


def test_the_same_seed_gives_the_same_p_value() -> None:
    random = np.random.default_rng(2)
    mine, theirs = random.random(50), random.random(50)
    assert paired_bootstrap(mine, theirs, seed=3) == paired_bootstrap(mine, theirs, seed=3)


def test_no_rows_have_no_p_value() -> None:
    with pytest.raises(ValueError, match="not 0"):
        paired_bootstrap(np.zeros(0), np.zeros(0))
