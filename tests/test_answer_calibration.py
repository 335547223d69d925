"""What is fitted helps rows it has not seen or says that it does not, and too little evidence gets a sentence."""

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.calibration.answers import crossfit, fit_calibrator, judge, verdict
from infer.calibration.methods import FROM_TRUTH, METHODS
from infer.calibration.temperature import hashed_parts

LABELS = ("good", "bad")
PRIOR = [0.5, 0.5]
CONTENT_FREE = np.log([[0.2, 0.02], [0.3, 0.1]])


def fit(method: str, log_probs: Any, truth: Any = None, labels: tuple[str, ...] = LABELS, **more: Any) -> Any:
    return fit_calibrator(
        method, np.asarray(log_probs), truth, labels=labels, identity={},
        **{"content_free": CONTENT_FREE, "prior": PRIOR} | more,
    )  # fmt: skip


def biased(rows: int = 400, sharpness: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """log_probs of a model that prefers `good` by 20 to 1 and is too sure; and truths drawn from the honest shares."""
    random = np.random.default_rng(0)
    shares = random.dirichlet([1.5, 1.5], size=rows)
    truth = (random.random(rows) > shares[:, 0]).astype(int)
    stated = shares**sharpness * [20.0, 1.0]
    return np.log(stated / stated.sum(axis=1, keepdims=True) * random.uniform(0.1, 0.8, size=(rows, 1))), truth


@pytest.mark.parametrize("method", METHODS)
def test_every_method_helps_held_out_rows_of_a_biased_model(method: str) -> None:
    log_probs, truth = biased()
    calibrator = fit(method, log_probs, truth)
    assert calibrator.log_loss_after < calibrator.log_loss_before - 0.05
    assert verdict(calibrator.log_loss_before, calibrator.log_loss_after).startswith("Calibration helps")
    in_sample = -np.log(calibrator.apply(log_probs)[np.arange(400), truth]).mean()
    assert in_sample < calibrator.log_loss_after or method not in FROM_TRUTH  # what was seen flatters
    assert calibrator.rows == (2 if method in ("contextual", "pmi") else 400)


def test_both_losses_are_scikit_learns() -> None:
    log_probs, truth = biased()
    before, after = judge("batch", log_probs, truth)
    shares = np.exp(log_probs) / np.exp(log_probs).sum(axis=1, keepdims=True)
    assert before == pytest.approx(sklearn.metrics.log_loss(truth, shares), abs=1e-5)  # the floor under a probability
    assert after == pytest.approx(sklearn.metrics.log_loss(truth, crossfit("batch", log_probs)), abs=1e-12)


def test_a_rows_own_truth_and_number_do_not_touch_its_calibration() -> None:
    log_probs, truth = biased(60)
    ids = [f"row{number}" for number in range(60)]
    part = hashed_parts(ids) == 0
    for method in METHODS:
        evidence = {"content_free": CONTENT_FREE, "prior": PRIOR}
        first = crossfit(method, log_probs, truth, ids, **evidence)
        lying = crossfit(method, log_probs, np.where(part, 1 - truth, truth), ids, **evidence)
        np.testing.assert_array_equal(first[part], lying[part])
        backwards = crossfit(method, log_probs[::-1], truth[::-1], ids[::-1], **evidence)
        np.testing.assert_allclose(backwards[::-1], first, atol=1e-4)


def test_rows_are_held_out_by_a_calibrator_of_the_others() -> None:
    log_probs, truth = biased(50)
    ids = [str(number) for number in range(50)]
    part = hashed_parts(ids) == 3
    others = fit("vector", log_probs[~part], truth[~part])
    np.testing.assert_array_equal(crossfit("vector", log_probs, truth)[part], others.apply(log_probs[part]))


def test_a_calibration_that_harms_is_said_so_plainly() -> None:
    random = np.random.default_rng(1)
    honest = random.dirichlet([3.0, 1.0], size=500)  # three of four rows are good, and the model knows
    truth = (random.random(500) > honest[:, 0]).astype(int)
    harmed = fit("batch", np.log(honest), truth)  # takes the true share for a bias
    assert harmed.log_loss_after > harmed.log_loss_before
    assert verdict(harmed.log_loss_before, harmed.log_loss_after).startswith("Calibration makes it worse: held-out log")
    assert verdict(0.5, 0.50001) == "Calibration changes nothing: held-out log loss 0.5000 before, 0.5000 after."
    assert "0.6000 before, 0.5000 after" in verdict(0.6, 0.5)
    assert "not judged" in verdict(None, None)


def test_rows_without_truth_serve_the_methods_that_need_none() -> None:
    log_probs, truth = biased()
    unlabelled = fit("batch", log_probs)
    assert unlabelled.log_loss_before is None and unlabelled.log_loss_after is None
    some = fit("batch", log_probs, np.where(np.arange(400) < 100, truth, -1))
    assert some.parameters == unlabelled.parameters
    shares = np.exp(log_probs[:100]) / np.exp(log_probs[:100]).sum(axis=1, keepdims=True)
    assert some.log_loss_before == pytest.approx(sklearn.metrics.log_loss(truth[:100], shares), abs=1e-5)


@pytest.mark.parametrize("method", FROM_TRUTH)
def test_methods_that_learn_from_truth_refuse_rows_without(method: str) -> None:
    log_probs, truth = biased(20)
    with pytest.raises(ValueError, match=f"{method} has no true labels"):
        fit(method, log_probs)
    with pytest.raises(ValueError, match=f"{method} has 1 rows without a true label"):
        fit(method, log_probs, np.where(np.arange(20) == 7, -1, truth))
    with pytest.raises(ValueError, match=f"{method} has 20 rows, all of one true label"):
        fit(method, log_probs, np.zeros(20, dtype=int))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("contextual", "pmi")])
def test_few_rows_are_refused_and_content_free_prompts_need_none(method: str) -> None:
    log_probs, truth = biased(9)
    with pytest.raises(ValueError, match=f"{method} would be fitted on 9 rows, expected at least 10"):
        fit(method, log_probs, truth)
    assert fit("contextual", np.empty((0, 2))).apply(log_probs).shape == (9, 2)


def test_what_a_method_needs_is_named_where_it_lacks() -> None:
    log_probs, truth = biased(20)
    for method in ("contextual", "pmi"):
        with pytest.raises(ValueError, match=f"{method} has no prompts without content"):
            fit(method, log_probs, content_free=None)
    for prior in (None, [0.5], [0.0, 1.0], [0.3, 0.3], [np.nan, 1.0]):
        with pytest.raises(ValueError, match=r"calibration.prior is .*expected 2 shares above 0"):
            fit("prior", log_probs, prior=prior)
    with pytest.raises(ValueError, match="isotonic has 3 labels, expected two"):
        fit("isotonic", np.log(np.full((20, 3), 0.2)), np.arange(20) % 3, labels=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"calibration.fit is 'platt'"):
        fit("platt", log_probs)
    with pytest.raises(ValueError, match=r"shape \(20, 2\), expected \(rows, 3\)"):
        fit("batch", log_probs, labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="truth holds 0 to 2, expected columns 0 to 1"):
        fit("batch", log_probs, np.arange(20) % 3)
    with pytest.raises(ValueError, match=r"truth has shape \(3,\), expected \(20,\)"):
        fit("batch", log_probs, truth[:3])
    with pytest.raises(ValueError, match="2 ids for 20 rows"):
        fit("batch", log_probs, truth, ids=["a", "b"])


def test_a_bad_row_is_named_by_its_number_among_all_rows() -> None:
    log_probs, truth = biased(20)
    log_probs[13, 1] = np.nan
    for method in METHODS:
        with pytest.raises(ValueError, match="Row 13 of log_probs"):
            fit(method, log_probs, truth)
    with pytest.raises(ValueError, match="Row 0 of content_free"):
        fit("pmi", log_probs[:10], content_free=np.array([[-np.inf, -np.inf]]))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(-900, 0), st.floats(-900, -1e-3), st.integers(0, 1)), min_size=1, max_size=16),
    st.sampled_from(METHODS),
)
def test_any_small_table_is_calibrated_in_numbers_or_refused(rows: list[tuple], method: str) -> None:
    log_probs, truth = np.array([row[:2] for row in rows]), np.array([row[2] for row in rows])
    try:
        calibrator = fit(method, log_probs, truth)
    except ValueError as refused:
        assert "expected at least 10" in str(refused) or "all of one true label" in str(refused)
        return
    probs = calibrator.apply(log_probs)
    assert np.isfinite(probs).all() and np.isfinite([calibrator.log_loss_before, calibrator.log_loss_after]).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)
