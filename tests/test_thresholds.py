"""Decision weights: the best macro-F1 on held-out rows, judged on rows they were not fitted on, kept in a file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from infer.predictions import Predictions
from infer.thresholds import (
    Decision,
    _smoothed_loss,
    crossfit_choice,
    fit_weights,
    measure,
    read_decision,
    settle_decision,
    write_decision,
)

LABELS = ("Hard", "Soft", "Unknown")


def table(probs: np.ndarray, truth: np.ndarray, *, fold: np.ndarray | None = None) -> Predictions:
    return Predictions(
        ids=np.array([str(number) for number in range(len(probs))], dtype=object),
        labels=LABELS[: probs.shape[1]],
        probs=probs.astype(np.float32),
        other=np.zeros(len(probs), dtype=np.float32),
        truth=np.array(LABELS, dtype=object)[truth],
        fold=fold,
    )


def rare_labels(count: int, *, seed: int = 0) -> Predictions:
    """Calibrated probabilities of rare labels: the largest is nearly always the first."""
    random = np.random.default_rng(seed)
    probs = random.dirichlet([8.0, 1.0, 0.6], count)
    truth = np.array([random.choice(3, p=one) for one in probs])
    return table(probs, truth, fold=np.arange(count) % 5)


def test_weights_raise_the_macro_f1_of_rows_they_were_not_fitted_on() -> None:
    fitted = fit_weights(rare_labels(2000))
    fresh = rare_labels(2000, seed=1)
    truth, probs = fresh.label_index(), fresh.probs64()
    assert fitted.max() == 1 and fitted[0] < fitted[1:].min()
    plain = f1_score(truth, probs.argmax(axis=1), average="macro")
    assert f1_score(truth, (probs * fitted).argmax(axis=1), average="macro") > plain + 0.05


def test_the_weights_are_nearly_the_best_of_a_grid() -> None:
    rows = rare_labels(1500)
    truth, probs = rows.label_index(), rows.probs64()
    grid = np.exp(np.linspace(-0.5, 4, 25))
    best = max(measure(truth, (probs * (1, *pair)).argmax(1), 3, "macro_f1") for pair in itertools.product(grid, grid))
    found = measure(truth, (probs * fit_weights(rows)).argmax(axis=1), 3, "macro_f1")
    assert found > best - 0.02


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "accuracy"])
def test_a_label_that_is_never_true_gets_the_mean_weight_of_the_others(metric: str) -> None:
    rows = rare_labels(800)
    known = rows.take(rows.label_index() < 2)
    weights = fit_weights(known, metric=metric)
    assert np.log(weights[2]) == pytest.approx(np.log(weights[:2]).mean())
    only = fit_weights(known.take(known.label_index() == 1), metric=metric)
    assert only.tolist() == [1, 1, 1], "one label alone says nothing of its weight"


def test_a_folds_rows_are_decided_by_the_other_folds_alone() -> None:
    rows = rare_labels(600)
    chosen = crossfit_choice(rows)
    held_out = rows.fold == 2
    lied = np.where(held_out, 0, rows.label_index())  # what that fold's truth is has no say in its own decisions
    np.testing.assert_array_equal(
        crossfit_choice(table(rows.probs64(), lied, fold=rows.fold))[held_out], chosen[held_out]
    )


def test_weights_that_do_not_help_are_not_used() -> None:
    """Random probabilities: what fits on some rows is chance on the others."""
    random = np.random.default_rng(5)
    truth = random.integers(0, 3, 300)
    sure = np.eye(3)[truth] * 0.9 + 0.1 / 3
    decision = settle_decision(table(sure, truth, fold=np.arange(300) % 5))
    assert decision.weights.tolist() == [1, 1, 1] and decision.plain == decision.decided == 1


def test_what_is_settled_is_the_crossfitted_figure() -> None:
    rows = rare_labels(800)
    decision = settle_decision(rows)
    assert decision.plain == pytest.approx(f1_score(rows.label_index(), rows.probs64().argmax(1), average="macro"))
    assert decision.decided == pytest.approx(f1_score(rows.label_index(), crossfit_choice(rows), average="macro"))
    assert decision.rows == 800 and decision.decided > decision.plain
    np.testing.assert_array_equal(decision.weights, fit_weights(rows))


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "accuracy"])
def test_the_metric_is_scikit_learns_and_its_gradient_is_right(metric: str) -> None:
    rows = rare_labels(200)
    truth, chosen = rows.label_index(), np.random.default_rng(1).integers(0, 3, 200)
    expected = {
        "macro_f1": f1_score(truth, chosen, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(truth, chosen),
        "accuracy": float((truth == chosen).mean()),
    }[metric]
    assert measure(truth, chosen, 3, metric) == pytest.approx(expected)

    at, step = np.array([0.1, 0.8, -0.3]), 1e-6
    given = (np.log(rows.probs64()), np.eye(3)[truth], metric)
    slope = _smoothed_loss(at, *given)[1]
    for column in range(3):
        moved = np.eye(3)[column] * step
        numeric = (_smoothed_loss(at + moved, *given)[0] - _smoothed_loss(at - moved, *given)[0]) / (2 * step)
        assert slope[column] == pytest.approx(numeric, abs=1e-7)


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'f2', expected one of macro_f1, balanced_accuracy, accuracy"):
        fit_weights(rare_labels(50), metric="f2")


def test_a_decision_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    decision = settle_decision(rare_labels(300))
    write_decision(path, decision)
    found = read_decision(path, LABELS)
    np.testing.assert_array_equal(found.weights, decision.weights)
    assert (found.labels, found.metric, found.rows) == (LABELS, "macro_f1", 300)
    assert (found.plain, found.decided) == (decision.plain, decision.decided)
    probs = rare_labels(40).probs64()
    np.testing.assert_array_equal(found.choose(probs), (probs * decision.weights).argmax(axis=1))


def test_a_decision_of_other_labels_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    write_decision(path, Decision(LABELS, np.ones(3), "macro_f1", 9, 0.5, 0.6))
    with pytest.raises(ValueError, match="labels Hard, Soft, Unknown, not Soft, Hard, Unknown in this order"):
        read_decision(path, ("Soft", "Hard", "Unknown"))
    with pytest.raises(FileNotFoundError, match="expected a decision"):
        read_decision(tmp_path / "none.json", LABELS)
    for content in ("{", '{"format": 1}', "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="holds no decision weights"):
            read_decision(path, LABELS)
    for weights in ([1.0, 0.0, 1.0], [1.0, 1.0]):
        write_decision(path, Decision(LABELS, np.array(weights), "macro_f1", 9, 0.5, 0.6))
        with pytest.raises(ValueError, match="expected one above 0 for each label"):
            read_decision(path, LABELS)
