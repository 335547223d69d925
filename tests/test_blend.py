"""Blend weights: the best on the simplex, found even in corners, judged on folds they were not fitted on."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.blend import apply, fit_weights, simplex_weights
from infer.predictions import Predictions

LABELS = ("model_a", "model_b", "tie")


def run(seed: int, rows: int = 120, folds: int = 4, skill: float = 1.0) -> Predictions:
    """A run whose probabilities lean towards the truth by `skill`; truth and folds are the same for every seed."""
    truth = np.arange(rows) % 3
    logits = np.random.default_rng(seed).normal(size=(rows, 3)) + skill * np.eye(3)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return table(probs, [LABELS[t] for t in truth], np.arange(rows) // 3 % folds)


def table(probs: Any, truth: Any, fold: Any = None, ids: Any = None) -> Predictions:
    ids = np.array(ids or [f"row{i}" for i in range(len(probs))], dtype=object)
    return Predictions(ids=ids, labels=LABELS, probs=probs, other=np.zeros(len(probs)), truth=truth, fold=fold)


def test_no_point_of_a_grid_over_the_simplex_beats_the_fitted_weights() -> None:
    runs = [run(1), run(2, skill=1.3), run(3, skill=0.7)]
    truth_probs = np.stack([table.truth_probs() for table in runs], axis=1)
    blend = fit_weights(dict(zip("abc", runs, strict=True)))
    grid = [(i / 50, j / 50, (50 - i - j) / 50) for i, j in product(range(51), repeat=2) if i + j <= 50]
    losses = {weights: -np.log(truth_probs @ np.array(weights)).mean() for weights in grid}
    best = min(losses, key=losses.__getitem__)
    assert blend.in_sample <= losses[best] + 1e-9
    assert min(best) > 0  # inside the simplex, where a wrong gradient would show
    np.testing.assert_allclose(list(blend.weights.values()), best, atol=0.02)  # one step of the grid


def test_two_runs_have_the_weights_found_by_hand() -> None:
    # The truth's probability is (0.6, 0.2) on two rows in three and (0.1, 0.4) on the third. With weight w the loss is
    # -(2 log(0.2 + 0.4 w) + log(0.4 - 0.3 w)) / 3, flat where 0.8 (0.4 - 0.3 w) = 0.3 (0.2 + 0.4 w): w = 13/18.
    weights = simplex_weights(np.array([[0.6, 0.2], [0.6, 0.2], [0.1, 0.4]]))
    np.testing.assert_allclose(weights, [13 / 18, 5 / 18], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda runs: st.lists(st.lists(st.floats(1e-7, 1), min_size=runs, max_size=runs), min_size=1, max_size=12)
    )
)
def test_weights_lie_on_the_simplex_and_lose_to_no_single_run(truth_probs: list[list[float]]) -> None:
    table = np.array(truth_probs)
    weights = simplex_weights(table)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=1e-12)
    assert -np.log(table @ weights).mean() <= -np.log(table).mean(axis=0).min() + 1e-5  # the certified gap


def test_the_cross_fitted_estimate_uses_the_other_folds_weights() -> None:
    runs = {"a": run(1, folds=2), "b": run(2, folds=2)}
    truth_probs = np.stack([table.truth_probs() for table in runs.values()], axis=1)
    first = runs["a"].fold == 0
    by_hand = np.concatenate(
        [
            -np.log(truth_probs[first] @ simplex_weights(truth_probs[~first])),
            -np.log(truth_probs[~first] @ simplex_weights(truth_probs[first])),
        ]
    ).mean()
    blend = fit_weights(runs)
    assert blend.cross_fitted == pytest.approx(by_hand, abs=1e-12)
    assert blend.in_sample < min(blend.alone.values())
    assert blend.alone == {name: table.log_loss() for name, table in runs.items()}


def test_in_sample_flatters_runs_of_pure_noise() -> None:
    noise = {str(seed): run(seed, rows=45, skill=0.0) for seed in range(8)}
    blend = fit_weights(noise)
    assert blend.in_sample < blend.cross_fitted


def test_a_single_run_has_all_the_weight_and_its_own_loss() -> None:
    only = run(1)
    blend = fit_weights({"only": only})
    assert blend.weights == {"only": 1.0}
    assert blend.in_sample == blend.cross_fitted == pytest.approx(only.log_loss(), abs=1e-12)


def test_identical_runs_share_the_weight() -> None:
    blend = fit_weights({"a": run(1), "b": run(1), "c": run(1)})
    np.testing.assert_allclose(list(blend.weights.values()), [1 / 3] * 3, atol=1e-6)
    assert blend.cross_fitted == pytest.approx(blend.alone["a"], abs=1e-9)


def test_a_perfect_run_takes_all_the_weight_beside_one_that_is_always_wrong() -> None:
    poor = run(1)
    index = poor.label_index()
    perfect, wrong = table(np.eye(3)[index], poor.truth, poor.fold), table(np.eye(3)[index - 1], poor.truth, poor.fold)
    blend = fit_weights({"poor": poor, "perfect": perfect, "wrong": wrong})
    assert blend.weights["perfect"] == pytest.approx(1, abs=1e-4)
    assert blend.cross_fitted < 1e-4


def test_one_row_or_no_folds_can_be_blended() -> None:
    one = table([[0.2, 0.3, 0.5]], ["tie"])
    assert fit_weights({"a": one, "b": one}).cross_fitted == pytest.approx(np.log(2), abs=1e-6)
    first, second = run(1), run(2)
    without = {"a": table(first.probs, first.truth), "b": table(second.probs, second.truth)}
    assert fit_weights(without).weights == fit_weights({"a": first, "b": second}).weights


def test_the_order_of_rows_in_a_run_does_not_matter() -> None:
    straight, mixed = run(2), run(2).take(np.random.default_rng(0).permutation(120))
    assert fit_weights({"a": run(1), "b": mixed}) == fit_weights({"a": run(1), "b": straight})


def test_runs_of_another_split_or_other_rows_are_refused_by_name() -> None:
    good = run(1)
    moved = table(good.probs, good.truth, np.where(np.arange(120) == 5, 3, np.asarray(good.fold)))
    with pytest.raises(ValueError, match="Run 'b' has id 'row5' in fold 3, but run 'a' in fold 1"):
        fit_weights({"a": good, "b": moved})
    with pytest.raises(ValueError, match="Only one of runs 'a' and 'b' has folds"):
        fit_weights({"a": good, "b": table(good.probs, good.truth)})
    with pytest.raises(ValueError, match="1 of 120 ids have no prediction: 'row7'"):
        fit_weights({"a": good, "b": good.take(np.arange(120) != 7)})
    with pytest.raises(ValueError, match="run 'b' has 120 rows, expected 119; only there: 'row7'"):
        fit_weights({"a": good.take(np.arange(120) != 7), "b": good})
    with pytest.raises(
        ValueError, match="run 'b' has true label 'tie' for id 'row0', but the first table says 'model_a'"
    ):
        fit_weights({"a": good, "b": table(good.probs, ["tie", *np.asarray(good.truth)[1:]], good.fold)})
    with pytest.raises(ValueError, match="no true labels"):
        fit_weights({"a": table([[0.2, 0.3, 0.5]], None)})
    with pytest.raises(ValueError, match="no runs to blend"):
        fit_weights({})


def test_weights_are_applied_to_test_tables_by_name_and_id() -> None:
    first = table([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], None, ids=["x", "y"])
    second = table([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]], None, ids=["y", "x"])
    mixed = apply({"b": 0.25, "a": 0.75}, {"a": first, "b": second})
    assert mixed.ids.tolist() == ["x", "y"]
    assert mixed.probs.tolist() == [[0.875, 0.125, 0.0], [0.0, 0.75, 0.25]]
    with pytest.raises(ValueError, match=r"weights are of runs \['a', 'b'\], the tables of \['a'\]"):
        apply({"a": 0.75, "b": 0.25}, {"a": first})
