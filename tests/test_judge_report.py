"""The figures of a judged sample, by hand: the notebook's 72 of 100, and whether the intervals cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infer.audit.report import judge_report, report_text
from infer.audit.sample import DrawnRow, Sample
from infer.intervals import wilson_interval


def sample_of(drawn: dict[str, int], population: dict[str, int], labels=("Hard", "Soft", "Unknown")) -> Sample:
    predicted = [label for label, count in drawn.items() for _ in range(count)]
    rows = tuple(DrawnRow(n, str(n), f"text {n}", label) for n, label in enumerate(predicted, 1))
    return Sample("labels.csv", labels, population, 0, True, rows)


def verdicts(sample: Sample, said: dict[str, list[tuple[str, int]]]) -> dict[int, str]:
    """said: predicted label -> (verdict, rows) in order; rows beyond them stay blank."""
    words = {label: iter([word for word, count in pairs for _ in range(count)]) for label, pairs in said.items()}
    found = {row.number: next(words.get(row.predicted, iter(())), None) for row in sample.rows}
    return {number: word for number, word in found.items() if word}


POPULATION = {"Hard": 611, "Soft": 99, "Unknown": 63}


@pytest.fixture
def notebook() -> tuple[Sample, dict[int, str]]:
    """49 of 50 Hard and 23 of 50 Soft right: 72 of 100, whatever the table's shares are."""
    sample = sample_of({"Hard": 50, "Soft": 50}, POPULATION)
    return sample, verdicts(sample, {"Hard": [("Hard", 49), ("Soft", 1)], "Soft": [("Soft", 23), ("Hard", 27)]})


def wilson_by_hand(right: int, count: int) -> tuple[float, float]:
    z, p = 1.959963984540054, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return middle - half, middle + half


@pytest.mark.parametrize(("right", "count"), [(0, 10), (23, 50), (49, 50), (50, 50), (1, 1)])
def test_the_wilson_interval_is_that_of_the_formula(right: int, count: int) -> None:
    assert wilson_interval(right, count) == pytest.approx(wilson_by_hand(right, count), abs=1e-9)


def test_each_label_has_its_precision_and_the_table_its_weighted_accuracy(notebook) -> None:
    report = judge_report(*notebook)
    hard, soft, unknown = report.labels
    assert (hard.precision, soft.precision, unknown.precision) == (0.98, 0.46, None)
    assert (soft.low, soft.high) == pytest.approx(wilson_by_hand(23, 50), abs=1e-9)
    assert report.sampled == pytest.approx(0.72)
    assert report.accuracy == pytest.approx((611 * 0.98 + 99 * 0.46) / 710)
    assert report.covered == pytest.approx(710 / 773)
    assert report.least == pytest.approx((611 * 0.98 + 99 * 0.46) / 773)
    assert report.most == pytest.approx((611 * 0.98 + 99 * 0.46 + 63) / 773)


def test_the_weighted_interval_puts_the_wilson_intervals_together(notebook) -> None:
    report = judge_report(*notebook)
    ends = [(611 / 710, 0.98, *wilson_by_hand(49, 50)), (99 / 710, 0.46, *wilson_by_hand(23, 50))]
    below = math.sqrt(sum((weight * (p - low)) ** 2 for weight, p, low, _ in ends))
    above = math.sqrt(sum((weight * (high - p)) ** 2 for weight, p, _, high in ends))
    assert (report.low, report.high) == pytest.approx((report.accuracy - below, report.accuracy + above), abs=1e-9)


@pytest.mark.parametrize("truth", [(0.98, 0.46), (0.7, 0.7), (0.9, 0.2)])
def test_the_weighted_interval_covers_the_truth_19_times_in_20(truth: tuple[float, float]) -> None:
    random, sample, covered = np.random.default_rng(0), sample_of({"Hard": 50, "Soft": 50}, POPULATION), 0
    true = (611 * truth[0] + 99 * truth[1]) / 710
    for right in random.binomial(50, truth, size=(400, 2)):
        pairs = {
            label: [(label, int(n)), ("Unknown", 50 - int(n))] for label, n in zip(POPULATION, right, strict=False)
        }
        report = judge_report(sample, verdicts(sample, pairs))
        covered += report.low <= true <= report.high
    assert 0.92 <= covered / 400 <= 0.99  # 95 % of 400 has a standard deviation of 1.1 %


def test_with_one_judged_label_the_accuracy_is_its_precision_with_its_interval() -> None:
    sample = sample_of({"Soft": 50}, POPULATION)
    report = judge_report(sample, verdicts(sample, {"Soft": [("Soft", 23), ("Hard", 27)]}))
    assert (report.accuracy, report.low, report.high) == pytest.approx((0.46, *wilson_by_hand(23, 50)), abs=1e-9)


def test_unsure_verdicts_are_left_out_and_bounded() -> None:
    sample = sample_of({"Soft": 50}, POPULATION)
    report = judge_report(sample, verdicts(sample, {"Soft": [("Soft", 20), ("Hard", 20), ("unsure", 10)]}))
    assert (report.judged, report.unsure, report.accuracy) == (40, 10, 0.5)
    assert (report.unsure_wrong, report.unsure_right) == pytest.approx((0.4, 0.6))
    assert "10 verdicts are unsure" in report_text(report, sample)


def test_right_and_wrong_count_like_labels() -> None:
    sample = sample_of({"Soft": 50}, POPULATION)
    report = judge_report(sample, verdicts(sample, {"Soft": [("right", 20), ("Soft", 3), ("wrong", 27)]}))
    assert report.labels[1].precision == 0.46


def test_blank_rows_are_counted_and_nothing_judged_says_so(notebook) -> None:
    sample, given = notebook
    part = judge_report(sample, {number: given[number] for number in list(given)[:30]})
    assert (part.judged, part.blank) == (30, 70) and "70 rows have no verdict" in report_text(part, sample)
    none = judge_report(sample, {})
    assert none.accuracy is None and "nothing can be said" in report_text(none, sample)


def test_the_report_says_it_in_plain_words(notebook) -> None:
    sample, given = notebook
    text = report_text(judge_report(sample, given), sample)
    assert "Soft (99 rows, 12.8%): 23 of 50 right, precision 46.0% (95 % interval 33.0% to 59.6%)" in text
    assert "the judge said Hard 27 instead" in text
    assert "Rows predicted as Hard or Soft: 90.7% are right" in text
    assert "Unweighted, 72.0%" in text
    assert "between 83.4% (were all of those wrong) and 91.5% (all right)" in text
