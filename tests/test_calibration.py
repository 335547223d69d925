"""One temperature: the right one is found, no order of labels changes, and no fold is judged by its own truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.calibration.temperature import (
    apply_temperature,
    bounded_temperature,
    crossfit_parts,
    crossfit_temperature,
    fit_temperature,
    read_calibration,
    settle_temperature,
    write_calibration,
)
from infer.predictions import Predictions

LABELS = ("model_a", "model_b", "tie")


def table(probs: Any, truth: Any = None, labels: tuple[str, ...] = LABELS, fold: Any = None) -> Predictions:
    ids = np.array([f"row{i}" for i in range(len(probs))], dtype=object)
    return Predictions(ids=ids, labels=labels, probs=probs, other=np.zeros(len(probs)), truth=truth, fold=fold)


def overconfident(rows: int, sharpness: float, fold: Any = None) -> Predictions:
    """Truths drawn from p, stated as p^sharpness: the right temperature is `sharpness`."""
    random = np.random.default_rng(0)
    honest = random.dirichlet([2.0] * 3, size=rows)
    truth = np.array(LABELS, dtype=object)[(honest.cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)]
    stated = honest**sharpness
    return table(stated / stated.sum(axis=1, keepdims=True), truth, fold=fold)


def test_temperature_two_turns_four_to_one_into_two_to_one() -> None:
    softened = apply_temperature(table([[0.8, 0.2], [0.2, 0.8]], labels=("good", "bad")), 2.0)
    np.testing.assert_allclose(softened.probs, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], atol=1e-6)


@pytest.mark.parametrize(("stated", "wins", "losses", "expected"), [(0.8, 2, 1, 2.0), (2 / 3, 4, 1, 0.5)])
def test_the_fit_makes_the_stated_share_the_observed_one(
    stated: float, wins: int, losses: int, expected: float
) -> None:
    rows = table([[stated, 1 - stated]] * (wins + losses), ["good"] * wins + ["bad"] * losses, labels=("good", "bad"))
    assert fit_temperature(rows) == pytest.approx(expected, abs=1e-3)  # the valley is flat: 1e-6 nats for 1e-3


def test_no_temperature_of_a_fine_grid_beats_the_fit() -> None:
    rows = overconfident(500, sharpness=3.0)
    fitted = apply_temperature(rows, fit_temperature(rows)).log_loss()
    grid = [apply_temperature(rows, float(t)).log_loss() for t in np.geomspace(0.1, 10, 200)]
    assert fitted <= min(grid) + 1e-6  # probabilities are kept as float32
    assert fitted < rows.log_loss() - 0.05


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any), min_size=1, max_size=5),
    st.floats(0.05, 20),
)
def test_no_temperature_reorders_labels_or_makes_a_zero(weights: list[list[float]], temperature: float) -> None:
    rows = table(np.array(weights) / np.sum(weights, axis=1, keepdims=True))
    after = apply_temperature(rows, temperature).probs
    assert (after >= 1e-7).all()
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-6)
    for before_row, after_row in zip(rows.probs, after, strict=True):
        assert (np.diff(after_row[np.argsort(before_row, kind="stable")]) >= 0).all()


def test_temperature_one_changes_nothing() -> None:
    rows = overconfident(50, sharpness=1.0)
    np.testing.assert_allclose(apply_temperature(rows, 1.0).probs, rows.probs, atol=1e-6)


def test_rows_that_say_nothing_are_left_alone_and_perfect_rows_stay_finite() -> None:
    assert fit_temperature(table([[1 / 3] * 3] * 4, ["tie", "tie", "model_a", "model_b"])) == 1.0
    perfect = table(np.eye(3), ["model_a", "model_b", "tie"])
    sharpened = apply_temperature(perfect, fit_temperature(perfect))
    assert sharpened.log_loss() < 1e-5
    assert fit_temperature(table([[0.9, 0.05, 0.05]], ["tie"])) == pytest.approx(20.0, rel=1e-3)  # its bound


def test_an_impossible_temperature_and_unlabelled_rows_are_refused() -> None:
    rows = table([[0.2, 0.3, 0.5]])
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature is {temperature}"):
            apply_temperature(rows, temperature)
    with pytest.raises(ValueError, match="no true labels"):
        fit_temperature(rows)
    with pytest.raises(ValueError, match="0 rows"):
        fit_temperature(table(np.empty((0, 3)), []))
    with pytest.raises(ValueError, match="1 rows, expected two or more"):
        crossfit_temperature(table([[0.2, 0.3, 0.5]], ["tie"]))


def test_a_folds_own_truth_does_not_touch_its_calibration() -> None:
    fold = np.arange(90) % 3
    rows = overconfident(90, sharpness=3.0, fold=fold)
    lying = table(rows.probs, np.where(fold == 0, "tie", np.asarray(rows.truth)), fold=fold)
    before, after = crossfit_temperature(rows), crossfit_temperature(lying)
    np.testing.assert_array_equal(before.probs[fold == 0], after.probs[fold == 0])
    assert (before.probs[fold == 1] != after.probs[fold == 1]).any()


def test_each_fold_gets_the_temperature_of_the_others() -> None:
    fold = np.arange(60) % 2
    rows = overconfident(60, sharpness=2.0, fold=fold)
    expected = apply_temperature(rows.take(fold == 1), fit_temperature(rows.take(fold == 0)))
    np.testing.assert_array_equal(crossfit_temperature(rows).probs[fold == 1], expected.probs)


def test_hashed_parts_go_with_the_id_and_are_even() -> None:
    rows = overconfident(103, sharpness=2.0)
    parts = crossfit_parts(rows)
    backwards = np.arange(103)[::-1]
    np.testing.assert_array_equal(crossfit_parts(rows.take(backwards)), parts[backwards])
    assert np.bincount(parts).tolist() == [21, 21, 21, 20, 20]
    assert sorted(crossfit_parts(rows.take([0, 1]))) == [0, 1]
    np.testing.assert_array_equal(crossfit_parts(rows, np.zeros(103)), parts)  # one fold cannot be left out


def test_a_calibration_comes_back_for_its_labels_only(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, 1.25, overconfident(7, sharpness=1.0))
    assert read_calibration(path, LABELS) == 1.25
    with pytest.raises(ValueError, match=r"calibration.json holds .*'model_a'.*expected a temperature for \['Hard'"):
        read_calibration(path, ("Hard", "Soft", "Unknown"))


def test_a_temperature_is_used_only_where_it_helps_rows_it_was_not_fitted_on() -> None:
    helped, crossfitted = settle_temperature(overconfident(3000, 2.0))
    assert helped == pytest.approx(2.0, abs=0.2) and crossfitted < overconfident(3000, 2.0).log_loss()
    # Three rows, all right: two of them ask for the sharpest temperature, and the third, less sure, pays for it.
    few = table([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.3, 0.5, 0.2]], ["model_a"] * 3, fold=[0, 1, 2])
    kept, crossfitted = settle_temperature(few)
    assert crossfitted > few.log_loss() and kept == 1.0


@pytest.mark.parametrize("rows", [12, 8])
def test_a_few_rows_that_are_all_right_make_nothing_certain(rows: int) -> None:
    """The likeliest temperature of 12 such rows is 0.07, by which a new row would be given p = 0.9999999."""
    probs = np.array([[0.93, 0.07], [0.07, 0.93]] * (rows // 2))
    right = table(probs, ["good", "bad"] * (rows // 2), labels=("good", "bad"))
    assert fit_temperature(right) < 0.1
    assert settle_temperature(right) == (1.0, pytest.approx(right.log_loss(), abs=1e-6))


def test_the_bound_of_a_temperature_goes_as_rows_come() -> None:
    bounds = []
    for rows in (12, 120, 1200):
        right = table(
            [[0.8, 0.2]] * rows, ["good"] * (rows * 11 // 12) + ["bad"] * (rows // 12), labels=("good", "bad")
        )
        fitted = fit_temperature(right)
        bounds.append(bounded_temperature(right) - fitted)
        assert fitted <= bounded_temperature(right) < 1
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < 0.003
    unsure = overconfident(60, sharpness=2.0)
    assert bounded_temperature(unsure) == fit_temperature(unsure) > 1


def test_fewer_than_ten_rows_get_no_temperature_however_well_it_does() -> None:
    few = table([[0.99, 0.01]] * 9, ["good"] * 5 + ["bad"] * 4, labels=("good", "bad"))
    assert settle_temperature(few)[1] < few.log_loss() and settle_temperature(few)[0] == 1.0
