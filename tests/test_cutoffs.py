"""Cutoffs: what a row is given, targets and prices against a search of every threshold, refusals, and the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from infer.cutoff_fits import cheapest, for_accuracy, for_precision, for_recall
from infer.cutoffs import Cutoff, holds_cutoff, judge, read_cutoff, thresholds_between, write_cutoff
from infer.intervals import wilson_low
from infer.predictions import Predictions

LABELS = ("no", "yes")


def table(probs: np.ndarray, truth: list[str] | np.ndarray, labels: tuple[str, ...] = LABELS) -> Predictions:
    ids = np.array([f"row{i}" for i in range(len(probs))], dtype=object)
    return Predictions(ids, labels, probs, np.zeros(len(probs)), np.array(truth, dtype=object))


def drawn(rows: int = 400, labels: tuple[str, ...] = LABELS, seed: int = 0) -> Predictions:
    """Calibrated by construction: a label is true as often as its probability says."""
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.ones(len(labels)), size=rows)
    return table(
        probs, np.array(labels, dtype=object)[(probs.cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)], labels
    )


def test_a_row_gets_the_label_from_the_threshold_on_another_below_the_band_and_a_person_between() -> None:
    rows = table(np.array([[0.2, 0.8], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1]]), ["yes"] * 4)
    assert Cutoff(LABELS, "yes", 0.7, 0.5).decide(rows).tolist() == ["yes", None, None, "no"]
    assert Cutoff(LABELS, None, 0.75, 0.75).decide(rows).tolist() == ["yes", None, None, "no"]


def test_a_probability_of_just_the_threshold_is_high_enough_and_of_just_the_lower_one_is_a_persons() -> None:
    rows = table(np.array([[0.5, 0.5], [0.75, 0.25]]), ["yes"] * 2)
    assert Cutoff(LABELS, "yes", 0.5, 0.25).decide(rows).tolist() == ["yes", None]
    assert Cutoff(LABELS, None, 0.75, 0.75).decide(rows).tolist() == [None, "no"]


def test_below_the_threshold_the_likeliest_other_label_is_given() -> None:
    rows = table(np.array([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]]), ["a", "a"], ("a", "b", "c"))
    assert Cutoff(("a", "b", "c"), "a", 0.6, 0.6).decide(rows).tolist() == ["c", "c"]


def test_thresholds_cut_between_scores_and_have_few_digits() -> None:
    scores = np.array([0.7, 0.123456, 0.1234, 0.0, 1.0], dtype=np.float32).astype(np.float64)
    found = thresholds_between(scores)
    assert len(found) == 5
    for threshold, score in zip(found, np.sort(scores), strict=True):
        assert (scores >= threshold).sum() == (scores >= score).sum()
    assert found[[0, 3, 4]].tolist() == [0.0, 0.69, 1.0], "0.7 as float32 lies a hair below 0.7"


def test_the_figures_of_a_cutoff_are_scikit_learns() -> None:
    rows = drawn()
    cutoff = Cutoff(LABELS, "yes", 0.62, 0.62)
    said, true = rows.probs[:, 1] >= 0.62, rows.truth == "yes"
    found = judge(cutoff, rows)
    assert found["precision"] == pytest.approx(sklearn.metrics.precision_score(true, said))
    assert found["recall"] == pytest.approx(sklearn.metrics.recall_score(true, said))
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(true, said))
    assert found["confusion"] == sklearn.metrics.confusion_matrix(true, said).tolist()
    assert found["answered"] == 1.0


def test_without_a_label_the_figures_are_means_over_labels_of_the_answered_rows() -> None:
    labels = ("a", "b", "c")
    rows = drawn(labels=labels)
    sure = rows.probs.max(axis=1) >= 0.7
    expected = sklearn.metrics.precision_recall_fscore_support(
        rows.truth[sure].astype(str), rows.predicted[sure], average="macro", zero_division=0
    )
    found = judge(Cutoff(labels, None, 0.7, 0.7), rows)
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx(list(expected[:3]))
    assert found["answered"] == pytest.approx(sure.mean())


def test_a_cutoff_that_answers_nothing_has_no_accuracy() -> None:
    found = judge(Cutoff(LABELS, None, 1.0, 1.0), table(np.array([[0.4, 0.6]]), ["yes"]))
    assert found["accuracy"] is None and found["precision"] is None and found["answered"] == 0.0


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_precision_gets_the_lowest_threshold_that_reaches_it(confidence: float) -> None:
    rows = drawn()
    found = for_precision(rows, "yes", 0.8, confidence=confidence).at_least
    true, scores = rows.truth == "yes", rows.probs[:, 1].astype(float)
    reaches = []
    for threshold in np.unique(scores):
        said = scores >= threshold
        if wilson_low(np.array([(true & said).sum()]), np.array([said.sum()]), confidence)[0] >= 0.8:
            reaches.append(threshold)
    assert (scores >= found).sum() == (scores >= min(reaches)).sum()


def test_recall_gets_the_highest_threshold_that_keeps_it() -> None:
    rows = drawn()
    found = for_recall(rows, "yes", 0.9, confidence=0.5).at_least
    true, scores = rows.truth == "yes", rows.probs[:, 1].astype(float)
    recall = {t: (true & (scores >= t)).sum() / true.sum() for t in np.unique(scores)}
    assert (scores >= found).sum() == (scores >= max(t for t, r in recall.items() if r >= 0.9)).sum()


def test_accuracy_on_answered_rows_is_reached_on_rows_not_fitted_on() -> None:
    labels = ("a", "b", "c")
    cutoff = for_accuracy(drawn(4000, labels), 0.8)
    found = judge(cutoff, drawn(4000, labels, seed=1))
    # Three standard deviations of a share of 0.8 over some 1,500 rows.
    assert found["accuracy"] > 0.8 - 0.03 and found["answered"] > 0.2


def test_too_few_rows_are_refused_with_how_many_would_do() -> None:
    rows = table(np.array([[0.1, 0.9]] * 9 + [[0.9, 0.1]]), ["yes"] * 9 + ["no"])
    with pytest.raises(ValueError, match=r"about (\d+) labelled rows") as refusal:
        for_precision(rows, "yes", 0.9)
    wanted = int(str(refusal.value).split("about ")[1].split()[0])
    copies = -(-wanted // 10)
    enough = table(np.tile(rows.probs, (copies, 1)), np.tile(rows.truth, copies))
    assert judge(for_precision(enough, "yes", 0.9), enough)["low"] >= 0.9
    fewer = enough.take(np.arange(10 * (copies - 1)))
    with pytest.raises(ValueError, match="labelled rows"):
        for_precision(fewer, "yes", 0.9)


def test_a_target_above_anything_seen_is_refused_without_asking_for_rows() -> None:
    rows = table(np.array([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.8, 0.2]]), ["no", "no", "yes", "yes"])
    with pytest.raises(ValueError, match="More rows will not help"):
        for_accuracy(rows, 0.9)


@pytest.mark.parametrize("fit", [for_precision, for_recall])
def test_a_label_that_is_never_true_is_refused_with_what_would_help(fit: Callable[..., Cutoff]) -> None:
    rows = table(np.array([[0.1, 0.9], [0.2, 0.8]]), ["no", "no"])
    with pytest.raises(ValueError, match=r"on these 2 rows: no row is truly yes\. Label some that are\.$"):
        fit(rows, "yes", 0.9)
    with pytest.raises(ValueError, match="The table has 0 rows, expected at least one with its true label"):
        fit(rows.take([]), "yes", 0.9)


def test_no_rows_at_all_are_refused_for_what_they_are() -> None:
    with pytest.raises(ValueError, match="The table has 0 rows"):
        for_accuracy(drawn(20).take([]), 0.9)


@pytest.mark.parametrize("person", [None, 0.2, 0.0])
@pytest.mark.parametrize(("false_alarm", "miss"), [(1.0, 1.0), (5.0, 1.0), (1.0, 10.0)])
def test_the_cheapest_cutoff_is_that_of_all_pairs_tried(false_alarm: float, miss: float, person: float | None) -> None:
    rows = drawn(60)
    true, scores = rows.truth == "yes", rows.probs[:, 1].astype(float)

    def price(low: float, high: float) -> float:
        alarms, missed = (~true & (scores >= high)).sum(), (true & (scores < low)).sum()
        return false_alarm * alarms + miss * missed + (person or 0) * ((scores >= low) & (scores < high)).sum()

    places = [*np.unique(scores), 1.0]
    pairs = [(a, b) for a in places for b in places if (a == b if person is None else a <= b)]
    found = cheapest(rows, "yes", false_alarm=false_alarm, miss=miss, person=person)
    assert price(found.below, found.at_least) == pytest.approx(min(price(*pair) for pair in pairs))


def test_a_cutoff_comes_back_from_its_file(tmp_path: Path) -> None:
    labels = ("no", "on: off", "ja, 'nein'")
    cutoff = Cutoff(labels, "on: off", 0.123456789, 0.1)
    write_cutoff(tmp_path / "decision.yaml", cutoff, rows=10)
    assert holds_cutoff(tmp_path / "decision.yaml")
    assert read_cutoff(tmp_path / "decision.yaml", labels) == cutoff
    with pytest.raises(ValueError, match="not no, yes in this order"):
        read_cutoff(tmp_path / "decision.yaml", LABELS)


@pytest.mark.parametrize("text", ["", "rule: weights\nlabels: [no, yes]", "rule: cutoff\nlabels: [no, yes]", "a: [1"])
def test_a_file_without_a_cutoff_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "decision.yaml").write_text(text)
    with pytest.raises(ValueError, match="holds no cutoff"):
        read_cutoff(tmp_path / "decision.yaml", LABELS)


@pytest.mark.parametrize(("at_least", "below"), [(0.4, 0.5), (1.2, 0.5), (0.5, -0.1), (float("nan"), 0.1)])
def test_thresholds_that_cross_or_are_no_probabilities_are_refused(at_least: float, below: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= below <= at_least <= 1"):
        Cutoff(LABELS, "yes", at_least, below)


def test_what_no_cutoff_can_be_fitted_on_is_refused_by_name() -> None:
    rows = drawn(20)
    with pytest.raises(ValueError, match="label is 'maybe', expected one of no, yes"):
        cheapest(rows, "maybe", false_alarm=1, miss=1)
    with pytest.raises(ValueError, match="0 rows"):
        cheapest(rows.take([]), "yes", false_alarm=1, miss=1)
