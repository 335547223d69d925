"""Each method undoes a distortion made by the inverse of its formula, and none ever gives NaN."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from infer.calibration.methods import (
    METHODS,
    apply_parameters,
    fit_parameters,
    log_odds,
    log_shares,
    shrunk_targets,
)

IDENTITY = {"weight": [1.0, 1.0, 1.0], "bias": [0.0, 0.0, 0.0]}


def honest(rows: int = 60) -> np.ndarray:
    """(N, 3) probabilities in percent steps, so that 100 copies of a row can hold exactly its labels."""
    random = np.random.default_rng(0)
    counts = 1 + random.multinomial(97, random.dirichlet([1.0, 2.0, 3.0], size=rows))
    return counts / 100


def raw(probs: np.ndarray) -> np.ndarray:
    """Log probabilities of a model that gives the label set as a whole another mass in every row."""
    mass = np.random.default_rng(1).uniform(0.01, 0.9, size=(len(probs), 1))
    return np.log(probs / probs.sum(axis=1, keepdims=True) * mass)


def exactly_labelled(probs: np.ndarray, copies: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """(row of each of about `copies` copies of every row, truth): the labels occur as often as the row says."""
    counts = np.rint(probs * copies).astype(int)
    truth = np.concatenate([np.repeat(np.arange(probs.shape[1]), row) for row in counts])
    return np.repeat(np.arange(len(probs)), counts.sum(axis=1)), truth


def test_contextual_and_pmi_take_out_a_factor_that_the_content_free_prompt_shows() -> None:
    factor = np.array([0.7, 0.2, 0.1])
    distorted = raw(honest() * factor)
    content_free = np.log(0.03 * factor)[None, :]  # without content an honest model says one third each
    for method in ("contextual", "pmi"):
        restored = apply_parameters(fit_parameters(method, content_free), distorted)
        np.testing.assert_allclose(restored, honest(), atol=1e-5)  # the floor under a probability of 0.01


def test_a_content_free_prompt_calibrated_by_itself_is_uniform() -> None:
    prompt = np.log([[0.02, 0.3, 0.001]])
    for method in ("contextual", "pmi"):
        np.testing.assert_allclose(apply_parameters(fit_parameters(method, prompt), prompt), 1 / 3, atol=1e-12)


def test_contextual_and_pmi_differ_only_by_the_mass_of_several_prompts() -> None:
    shares = np.array([[0.8, 0.2], [0.4, 0.6]])
    rows = np.log([[0.1, 0.3], [0.2, 0.01]])
    equal_mass, unequal_mass = np.log(shares * 0.5), np.log(shares * [[0.9], [0.1]])

    def calibrated(method: str, prompts: np.ndarray) -> np.ndarray:
        return apply_parameters(fit_parameters(method, prompts), rows)

    for prompts in (equal_mass, equal_mass[:1], unequal_mass[:1]):
        np.testing.assert_allclose(calibrated("contextual", prompts), calibrated("pmi", prompts), atol=1e-12)
    # Contextual: the mean share (0.6, 0.4). PMI: 0.9 and 0.1 of the two rows, (0.76, 0.24).
    np.testing.assert_allclose(calibrated("contextual", unequal_mass)[0], [1 / 5.5, 4.5 / 5.5], atol=1e-6)
    np.testing.assert_allclose(calibrated("pmi", unequal_mass)[0], [6 / 63, 57 / 63], atol=1e-6)


def test_batch_divides_by_the_mean_share_and_keeps_it_for_single_rows() -> None:
    rows = np.log([[0.6, 0.4], [0.09, 0.01]])  # shares (0.6, 0.4) and (0.9, 0.1), mean (0.75, 0.25)
    fitted = fit_parameters("batch", rows)
    expected = [[1 / 3, 2 / 3], [0.75, 0.25]]
    np.testing.assert_allclose(apply_parameters(fitted, rows), expected, atol=1e-6)
    np.testing.assert_allclose(apply_parameters(fitted, rows[:1]), expected[:1], atol=1e-6)


def test_prior_takes_out_any_factor_where_the_true_shares_are_known() -> None:
    distorted = raw(honest() * [0.9, 0.09, 0.01])
    fitted = fit_parameters("prior", distorted, prior=honest().mean(axis=0))
    np.testing.assert_allclose(apply_parameters(fitted, distorted), honest(), atol=1e-5)


def test_prior_gives_the_rows_the_mean_wanted_even_where_they_are_sure() -> None:
    shares = np.random.default_rng(2).normal(size=(50, 4)) * 60  # tens of nats apart: nearly all zeros and ones
    wanted = np.array([0.4, 0.3, 0.2, 0.1])
    fitted = fit_parameters("prior", shares - shares.max(), prior=wanted)
    np.testing.assert_allclose(apply_parameters(fitted, shares - shares.max()).mean(axis=0), wanted, atol=2e-6)


@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_temperature_is_the_power_that_the_rows_were_raised_to(sharpness: float) -> None:
    copies, truth = exactly_labelled(honest())
    distorted = raw(honest() ** sharpness)
    fitted = fit_parameters("temperature", distorted[copies], truth=truth)
    # 6000 rows: the doubt added to the targets is one row's
    np.testing.assert_allclose(fitted["weight"], 1 / sharpness, rtol=0.01)
    np.testing.assert_allclose(apply_parameters(fitted, distorted), honest(), atol=0.003)


def test_two_labels_temperature_is_logistic_regression_without_intercept() -> None:
    random = np.random.default_rng(3)
    rows = np.log(random.dirichlet([1.0, 1.0], size=80))
    truth = random.integers(0, 2, size=80)
    second = shrunk_targets(truth, 2)[:, 1]
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
        np.tile(log_odds(rows), 2)[:, None], np.repeat([1, 0], 80), np.concatenate([second, 1 - second])
    )
    slope = max(float(regression.coef_[0, 0]), 1 / 20)  # a temperature does not reverse the rows
    assert fit_parameters("temperature", rows, truth=truth)["weight"] == pytest.approx([slope] * 2, rel=1e-3)


def test_vector_scaling_finds_a_weight_and_a_bias_for_each_label() -> None:
    weight, bias = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.0, -1.0])
    stated = np.log(np.random.default_rng(5).dirichlet([2.0, 2.0, 2.0], size=60))
    right = softmax(weight * stated + bias, axis=1)
    copies, truth = exactly_labelled(right, copies=1000)
    fitted = fit_parameters("vector", stated[copies], truth=truth)
    # Loose by the penalty, against 60,000 rows, and by rounding to thousandths.
    np.testing.assert_allclose(apply_parameters(fitted, stated), right, atol=0.002)
    np.testing.assert_allclose(fitted["weight"], weight, atol=0.02)
    np.testing.assert_allclose(np.subtract(fitted["bias"], fitted["bias"][1]), bias, atol=0.02)


def test_vector_scaling_of_ten_rows_without_an_error_stays_near_the_model() -> None:
    rows = np.log([[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5)
    fitted = fit_parameters("vector", rows, truth=np.repeat([0, 1], 5))
    assert np.abs(np.array(fitted["weight"]) - 1).max() < 1 and np.abs(fitted["bias"]).max() < 0.1


def test_isotonic_says_how_often_rows_of_a_score_were_right() -> None:
    stated = np.array([0.9, 0.6, 0.3])
    rows = np.repeat(np.log(np.stack([1 - stated, stated], axis=1)), 1000, axis=0)
    truth = np.concatenate([np.arange(1000) < count for count in (700, 500, 100)]).astype(int)
    calibrated = apply_parameters(fit_parameters("isotonic", rows, truth=truth), rows[::1000])
    np.testing.assert_allclose(calibrated[:, 1], [0.7, 0.5, 0.1], atol=1e-3)  # one row more in 1000


def test_isotonic_is_scikit_learns_where_steps_hold_many_rows() -> None:
    random = np.random.default_rng(4)
    tenths = random.integers(1, 10, size=9000) / 10  # nine scores, each of about a thousand rows
    rows = np.log(np.stack([1 - tenths, tenths], axis=1))
    truth = (random.random(9000) < 0.5 + (tenths - 0.5) ** 3).astype(int)  # hardly rises in the middle: pooled there
    curve = IsotonicRegression(out_of_bounds="clip").fit(log_odds(rows), truth)
    new = np.log(random.dirichlet([0.2, 0.2], size=50) + 1e-9)
    calibrated = apply_parameters(fit_parameters("isotonic", rows, truth=truth), new)
    np.testing.assert_allclose(calibrated[:, 1], curve.predict(log_odds(new)), atol=1e-3)  # one row more in 900


def test_isotonic_draws_small_steps_is_straight_between_them_and_flat_beyond() -> None:
    rows = np.array([[0.0, -1.0]] * 10 + [[-1.0, 0.0]] * 10)  # log odds -1 and 1
    truth = np.concatenate([np.arange(10) < 2, np.arange(10) < 10]).astype(int)
    fitted = fit_parameters("isotonic", rows, truth=truth)
    low, high = (2 + 12.5 / 21) / 11, (10 + 12.5 / 21) / 11  # of 20 rows 12 are the second label, of one more half
    odds = np.array([-50.0, -1.0, 0.0, 0.5, 1.0, 50.0])
    calibrated = apply_parameters(fitted, np.stack([np.zeros(6), odds], axis=1) - 60)
    middle = low + np.array([0.5, 0.75]) * (high - low)
    np.testing.assert_allclose(calibrated[:, 1], [low, low, *middle, high, high], atol=1e-6)


def test_isotonic_never_falls_though_small_steps_are_drawn_more_than_large_ones() -> None:
    # Steps of 1000, 200, 5 and 200 rows, 0, 0.75, 0.8 and 0.995 of them true. A fourth of all are, so that one row
    # more draws the third to (4 + 0.25) / 6, below the second.
    sizes, trues = (1000, 200, 5, 200), (0, 150, 4, 199)
    odds = np.repeat([-2.0, -1.0, 0.0, 1.0], sizes)
    truth = np.concatenate([np.arange(size) < true for size, true in zip(sizes, trues, strict=True)]).astype(int)
    fitted = fit_parameters("isotonic", np.stack([np.zeros(len(odds)), odds], axis=1) - 9, truth=truth)
    second, third = np.interp([-1.0, 0.0], fitted["log_odds"], fitted["probs"])
    assert (np.diff(fitted["probs"]) >= 0).all() and second == third


def test_weight_one_and_bias_zero_leave_the_shares_alone() -> None:
    np.testing.assert_allclose(apply_parameters(IDENTITY, raw(honest())), honest(), atol=1e-6)


def test_the_mass_of_the_label_set_does_not_matter() -> None:
    copies, truth = exactly_labelled(honest(10))
    rows, other = np.log(honest(10))[copies], raw(honest(10)[copies])
    for method in set(METHODS) - {"pmi", "isotonic"}:
        first = apply_parameters(fit_parameters(method, rows, truth=truth, prior=np.full(3, 1 / 3)), rows)
        second = apply_parameters(fit_parameters(method, other, truth=truth, prior=np.full(3, 1 / 3)), rows)
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_label_without_mass_has_the_least_probability_and_no_nan() -> None:
    calibrated = apply_parameters(IDENTITY, np.array([[-1.0, -np.inf, -2.0]]))
    np.testing.assert_allclose(calibrated[0], [1 / (1 + np.exp(-1)), 0, 1 / (1 + np.exp(1))], atol=1e-6)
    assert 1e-7 <= calibrated[0, 1] < 1e-6
    never = fit_parameters("contextual", np.array([[-1.0, -np.inf]]))
    assert np.isfinite(never["bias"]).all()


@pytest.mark.parametrize("bad", [[np.nan, -1.0], [-np.inf, -np.inf], [np.inf, -1.0]])
def test_a_row_without_an_answer_is_refused_by_number(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"Row 2 of log_probs is .*Leave such rows out"):
        log_shares(np.array([[-1.0, -2.0], [-1.0, -np.inf], bad]))


def test_probabilities_given_as_log_probs_and_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"all at or above 0 \(row 0: \[0.3, 0.7\]\).*np.log"):
        log_shares(np.array([[0.3, 0.7]]))
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        log_shares(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="'platt', expected one of contextual, pmi"):
        fit_parameters("platt", np.log([[0.3, 0.7]]))


@st.composite
def tables(draw: Any, lowest: float, infinite: bool) -> tuple[np.ndarray, np.ndarray]:
    """(N, L) log_probs of few rows with all that a model may give, and any truths."""
    labels, rows = draw(st.integers(2, 4)), draw(st.integers(1, 14))
    value = st.floats(lowest, -1e-6)
    value = st.one_of(value, st.sampled_from([-np.inf, -1.0, -1e-6])) if infinite else value
    row = st.lists(value, min_size=labels, max_size=labels).filter(lambda numbers: max(numbers) > -np.inf)
    truth = st.lists(st.integers(0, labels - 1), min_size=rows, max_size=rows)
    return np.array(draw(st.lists(row, min_size=rows, max_size=rows))), np.array(draw(truth))


@settings(deadline=None, max_examples=60)
@given(tables(lowest=-5000, infinite=True), st.data())
def test_no_table_however_small_or_odd_gives_nan(table: tuple[np.ndarray, np.ndarray], data: Any) -> None:
    log_probs, truth = table
    labels = log_probs.shape[1]
    wanted = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=labels, max_size=labels)))
    for method in METHODS if labels == 2 else METHODS[:-1]:
        fitted = fit_parameters(method, log_probs, truth=truth, prior=wanted / wanted.sum())
        assert all(np.isfinite(numbers).all() for numbers in fitted.values()), method
        probs = apply_parameters(fitted, log_probs)
        assert np.isfinite(probs).all() and (probs >= 1e-7).all(), method
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(tables(lowest=-20, infinite=False), st.randoms(use_true_random=False))
def test_labels_in_another_order_are_calibrated_the_same(table: tuple[np.ndarray, np.ndarray], random: Any) -> None:
    log_probs, truth = table
    labels = log_probs.shape[1]
    order = np.array(random.sample(range(labels), labels))
    prior = np.arange(1, labels + 1) / np.arange(1, labels + 1).sum()
    for method in METHODS if labels == 2 else METHODS[:-1]:
        first = apply_parameters(fit_parameters(method, log_probs, truth=truth, prior=prior), log_probs)
        turned = log_probs[:, order]
        second = fit_parameters(method, turned, truth=np.argsort(order)[truth], prior=prior[order])
        # Searches end within 1e-6 of their minimum, not on it.
        np.testing.assert_allclose(apply_parameters(second, turned), first[:, order], atol=1e-3, err_msg=method)


def test_the_order_of_rows_does_not_matter() -> None:
    log_probs = raw(honest())
    truth, backwards = np.arange(60) % 3, np.arange(60)[::-1]
    for method in set(METHODS) - {"isotonic"}:
        first = fit_parameters(method, log_probs, truth=truth, prior=softmax([1.0, 2.0, 3.0]))
        second = fit_parameters(method, log_probs[::-1], truth=truth[backwards], prior=softmax([1.0, 2.0, 3.0]))
        for name in first:
            np.testing.assert_allclose(first[name], second[name], atol=1e-4)
