"""Curves of few points keep the area of all points, and thresholds of a page count what scikit-learn counts."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from test_cutoffs import drawn

from infer.predictions import Predictions
from infer.report.curves import POINTS, precision_recall_points, roc_points
from infer.report.cutoff_counts import THRESHOLDS, cutoff_counts


def scored(rows: int, gap: float = 1.0, ties: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(rows)
    truth = random.random(rows) < 0.3
    truth[:2] = [True, False]
    scores = random.normal(gap * truth)
    return truth, scores if ties is None else np.round(scores, ties)


@pytest.mark.parametrize("rows", [2, 30, 5_000, 60_000])
@pytest.mark.parametrize("gap", [-1.0, 0.0, 1.0, 20.0])
@pytest.mark.parametrize("ties", [None, 1])
def test_a_thinned_roc_curve_keeps_its_area_and_rises(rows: int, gap: float, ties: int | None) -> None:
    truth, scores = scored(rows, gap, ties)
    x, y = roc_points(truth, scores)
    assert len(x) <= POINTS + 2
    # Sums of some ten thousand float64 terms.
    assert np.trapezoid(y, x) == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores), abs=1e-9)
    assert (np.diff(x) >= -1e-12).all() and (np.diff(y) >= -1e-12).all()
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("rows", [2, 30, 5_000, 60_000])
@pytest.mark.parametrize("gap", [-1.0, 0.0, 1.0, 20.0])
@pytest.mark.parametrize("ties", [None, 1])
def test_a_thinned_precision_recall_curve_keeps_the_average_precision(rows: int, gap: float, ties: int | None) -> None:
    truth, scores = scored(rows, gap, ties)
    recall, precision = precision_recall_points(truth, scores)
    assert len(recall) <= POINTS + 2
    steps = (np.diff(recall) * precision[1:]).sum()
    assert steps == pytest.approx(sklearn.metrics.average_precision_score(truth, scores), abs=1e-9)
    assert (np.diff(recall) >= 0).all() and recall[0] == 0 and recall[-1] == pytest.approx(1)


def test_a_thinned_curve_stays_close_to_the_full_one() -> None:
    truth, scores = scored(60_000)
    x, y = roc_points(truth, scores)
    full_x, full_y, _ = sklearn.metrics.roc_curve(truth, scores)
    assert np.abs(np.interp(full_x, x, y) - full_y).max() < 0.01  # a point is 1/200 of the way from the next


@pytest.mark.parametrize("rows", [40, 5_000])
def test_counts_of_a_page_give_scikit_learns_confusion_at_every_threshold(rows: int) -> None:
    labels = ("a", "b", "c")
    predictions = drawn(rows, labels)
    truth = predictions.label_index()
    for mode in cutoff_counts(predictions):
        thresholds, triples = np.array(mode["thresholds"]), np.array(mode["counts"]).reshape(-1, 3)
        assert (np.diff(thresholds) > 0).all() and thresholds[0] == 0 and len(thresholds) <= THRESHOLDS
        assert triples[:, 2].sum() == rows
        for at in range(0, len(thresholds), 97):
            under = np.zeros(9, dtype=int)
            np.add.at(under, triples[triples[:, 0] < at, 1], triples[triples[:, 0] < at, 2])
            over = np.zeros(9, dtype=int)
            np.add.at(over, triples[triples[:, 0] >= at, 1], triples[triples[:, 0] >= at, 2])
            if mode["label"] is None:
                sure = predictions.probs.max(axis=1) >= thresholds[at]
                expected = np.zeros((3, 3), dtype=int)
                np.add.at(expected, (truth[sure], predictions.probs.argmax(axis=1)[sure]), 1)
                assert over.reshape(3, 3).tolist() == expected.tolist()
            else:
                column = labels.index(mode["label"])
                said = predictions.probs[:, column] >= thresholds[at]
                found = [over.reshape(3, 3)[column].sum(), over.sum(), under.reshape(3, 3)[column].sum()]
                assert found == [(said & (truth == column)).sum(), said.sum(), (~said & (truth == column)).sum()]


def test_every_place_between_few_rows_is_a_threshold() -> None:
    predictions = drawn(200)
    mode = cutoff_counts(predictions)[2]
    counts = {int((predictions.probs[:, 1] >= t).sum()) for t in mode["thresholds"]}
    assert counts == set(range(201))


def test_rows_without_labels_are_counted_under_the_first_true_column() -> None:
    rows = drawn(50)
    triples = np.array(cutoff_counts(Predictions(rows.ids, rows.labels, rows.probs, rows.other))[1]["counts"])
    assert triples.reshape(-1, 3)[:, 2].sum() == 50
    assert (triples.reshape(-1, 3)[:, 1] < 2).all()
