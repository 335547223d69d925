"""The intervals against the central limit theorem, a formula from the literature and scikit-learn draw by draw."""

import numpy as np
import pytest
import sklearn.metrics

from infer.intervals import auc_interval, bootstrap_interval, wilson_interval, wilson_low


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(1).exponential(size=(2000, 1))
    low, high = bootstrap_interval(values, draws=4000)
    deviation = values.std() / np.sqrt(2000)
    # 5 %: a quantile of 4000 draws has itself a spread of about 4 % of the half-width
    assert (values.mean() - low[0]) / deviation == pytest.approx(1.96, rel=0.05)
    assert (high[0] - values.mean()) / deviation == pytest.approx(1.96, rel=0.05)


def test_rows_copied_within_a_group_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(2).normal(size=(200, 1))
    single = bootstrap_interval(values, seed=3)
    copied = bootstrap_interval(np.repeat(values, 4, axis=0), np.repeat(np.arange(200), 4), seed=3)
    np.testing.assert_allclose(copied, single, atol=1e-12)
    narrower = bootstrap_interval(np.repeat(values, 4, axis=0), seed=3)
    assert narrower[1] - narrower[0] < 0.6 * (single[1] - single[0])  # half as wide in theory: four times the rows


def test_a_mean_over_groups_of_many_sizes_weighs_rows_not_draws() -> None:
    constant = np.ones((10, 1))  # any mean of ones is one, however many rows a draw of groups brings
    low, high = bootstrap_interval(constant, np.array([0] * 7 + [1, 2, 2]))
    assert (low[0], high[0]) == (1.0, 1.0)


def test_many_rows_are_drawn_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=(50, 2))
    whole = bootstrap_interval(values, draws=101)
    monkeypatch.setattr("infer.intervals.DRAWS_AT_ONCE", 150)  # three draws at a time, two at last
    np.testing.assert_array_equal(bootstrap_interval(values, draws=101), whole)


def test_huge_tables_are_drawn_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=(50, 1))
    hundred = bootstrap_interval(values, draws=100)
    monkeypatch.setattr("infer.intervals.DRAWN_AT_MOST", 50 * 60)  # 60 draws would fit; 100 are the fewest
    np.testing.assert_array_equal(bootstrap_interval(values, draws=1000), hundred)


def drawn_aucs(truth: np.ndarray, probs: np.ndarray, units: np.ndarray, draws: int) -> np.ndarray:
    """scikit-learn's macro AUC of the rows that each draw of units holds, one by one: slow and plain."""
    random = np.random.default_rng(0)
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    aucs = []
    for _ in range(draws):
        chosen = np.concatenate([members[unit] for unit in random.integers(len(members), size=len(members))])
        aucs.append(sklearn.metrics.roc_auc_score(truth[chosen], probs[chosen], multi_class="ovr"))
    return np.array(aucs)


def test_the_interval_of_the_auc_is_that_of_scikit_learn_on_every_draw() -> None:
    random = np.random.default_rng(6)
    probs = random.dirichlet([1.0, 2.0, 3.0], size=90)
    truth = (probs.cumsum(axis=1) < random.random((90, 1))).sum(axis=1)
    probs = np.maximum(probs.round(1), 0.1)  # tenths: many equal scores
    probs, units = probs / probs.sum(axis=1, keepdims=True), np.arange(90) // 3
    expected = np.percentile(drawn_aucs(truth, probs, units, draws=60), (2.5, 97.5))
    interval = auc_interval(truth[:, None] == np.arange(3), probs, units, draws=60)
    assert interval == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_the_auc_spreads_as_hanley_and_mcneil_say() -> None:
    # Hanley and McNeil 1982, equation 2, for exponential scores: exact for these, with AUC = 2 / 3.
    random = np.random.default_rng(0)
    rows = 1000
    scores = np.concatenate([random.exponential(2.0, size=rows), random.exponential(1.0, size=rows)])
    truth = np.arange(2 * rows) < rows
    auc = 2 / 3
    among = (rows - 1) * (auc / (2 - auc) - auc**2) + (rows - 1) * (2 * auc**2 / (1 + auc) - auc**2)
    deviation = np.sqrt((auc * (1 - auc) + among) / rows**2)
    interval = auc_interval(truth[:, None], scores[:, None], draws=2000)
    assert interval is not None
    # 8 %: the quantiles of 2000 draws, and the sample's own spread in place of the population's
    assert (interval[1] - interval[0]) / (2 * 1.96 * deviation) == pytest.approx(1, rel=0.08)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (23, 50), (50, 50)])
def test_the_two_sided_share_interval_is_two_one_sided_ones(right: int, count: int) -> None:
    low, high = wilson_interval(right, count)
    sides = wilson_low(np.array([right, count - right]), np.array([count] * 2), 0.975)
    assert (low, high) == (sides[0], 1 - sides[1]) and 0 <= low <= right / count <= high <= 1


def test_a_share_of_no_rows_may_be_anything() -> None:
    assert wilson_interval(0, 0) == (0, 1)
