"""How often predicted labels are right, from a judge's verdicts on a sample: per label, and of the whole table.

Knows a sample, verdicts and figures; never files. A sample takes as many rows of a rare label as of a common one, so
the share of its rows that are right says nothing of the table: each label counts by its share of the table's rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from infer.audit.sample import Sample
from infer.audit.verdicts import RIGHT, UNSURE, WRONG
from infer.intervals import wilson_interval

FEW = 30  # judged rows of a label below which its figure is called rough


@dataclass(frozen=True)
class LabelPrecision:
    """Of the rows predicted as `label`: how many there are, were drawn and judged, and the share that is right.

    judged: rows with a verdict other than unsure. precision, low, high: None where none is judged; the latter two are
    the 95 % Wilson interval. said: verdict -> rows, unsure among them.
    """

    label: str
    population: int
    drawn: int
    judged: int
    right: int
    unsure: int
    precision: float | None
    low: float | None
    high: float | None
    said: Mapping[str, int]


@dataclass(frozen=True)
class JudgeReport:
    """Every label's precision, and the accuracy they imply for the rows predicted as one of the judged labels.

    accuracy, low, high: each label weighted by its rows in the table; None where nothing is judged. covered: share of
    the table's rows of which they speak. least, most: the whole table's accuracy if all the others were wrong, right.
    sampled: share right of the judged rows themselves, which is not the table's. unsure_wrong, unsure_right: the
    accuracy if each unsure verdict were the one or the other.
    """

    rows: int
    drawn: int
    judged: int
    blank: int
    unsure: int
    sampled: float | None
    accuracy: float | None
    low: float | None
    high: float | None
    covered: float
    least: float | None
    most: float | None
    unsure_wrong: float | None
    unsure_right: float | None
    labels: tuple[LabelPrecision, ...]


def judge_report(sample: Sample, given: Mapping[int, str]) -> JudgeReport:
    """The figures of the verdicts given (number -> verdict); rows without one are left out.

    The interval of the weighted sum puts the labels' Wilson intervals together. Source: Zou, Huang and Zhang 2009,
    Computational Statistics and Data Analysis 53, the interval of a linear function of binomial proportions.
    """
    labels = tuple(_precision(sample, label, given) for label in sample.labels)
    judged = [one for one in labels if one.judged]
    rows, covered = sum(sample.population.values()), sum(one.population for one in judged)
    unsure = sum(one.unsure for one in labels)
    answered = sum(one.judged for one in labels)
    blank = len(sample.rows) - answered - unsure
    if not judged:
        none = (None,) * 4
        return JudgeReport(rows, len(sample.rows), 0, blank, unsure, *none, 0.0, *none, labels)
    weights = [one.population / covered for one in judged]
    weighted = list(zip(weights, judged, strict=True))
    accuracy = sum(weight * (one.precision or 0.0) for weight, one in weighted)
    below = math.hypot(*(weight * ((one.precision or 0.0) - (one.low or 0.0)) for weight, one in weighted))
    above = math.hypot(*(weight * ((one.high or 0.0) - (one.precision or 0.0)) for weight, one in weighted))
    return JudgeReport(
        rows=rows,
        drawn=len(sample.rows),
        judged=answered,
        blank=blank,
        unsure=unsure,
        sampled=sum(one.right for one in judged) / answered,
        accuracy=accuracy,
        low=max(0.0, accuracy - below),
        high=min(1.0, accuracy + above),
        covered=covered / rows,
        least=accuracy * covered / rows,
        most=1 - (1 - accuracy) * covered / rows,
        unsure_wrong=sum(weight * one.right / (one.judged + one.unsure) for weight, one in weighted),
        unsure_right=sum(weight * (one.right + one.unsure) / (one.judged + one.unsure) for weight, one in weighted),
        labels=labels,
    )


def report_text(report: JudgeReport, sample: Sample) -> str:
    """The figures in plain sentences, one a line."""
    lines = [f"{report.judged} of {report.drawn} rows drawn from the {report.rows} of {sample.table} are judged."]
    lines += [_label_line(one, report.rows) for one in report.labels]
    if report.accuracy is None:
        return "\n".join([*lines, "No row is judged yet, so nothing can be said of the table."])
    judged = [one.label for one in report.labels if one.judged]
    shares = " and ".join(f"{one.population / report.rows:.1%} {one.label}" for one in report.labels if one.judged)
    lines.append(
        f"Rows predicted as {' or '.join(judged)}: {report.accuracy:.1%} are right (95 % interval {report.low:.1%} to "
        f"{report.high:.1%}), each label weighted by its share of the table ({shares})."
    )
    lines.append(
        f"Unweighted, {report.sampled:.1%} of the judged rows are right: a figure of the sample, not of the table."
    )
    if report.covered < 1:
        lines.append(
            f"The other {1 - report.covered:.1%} of the table are not judged: of all {report.rows} rows between "
            f"{report.least:.1%} (were all of those wrong) and {report.most:.1%} (all right)."
        )
    if report.unsure:
        lines.append(
            f"{report.unsure} verdicts are unsure and left out; counted as wrong {report.unsure_wrong:.1%}, as right "
            f"{report.unsure_right:.1%}."
        )
    if report.blank:
        lines.append(
            f"{report.blank} rows have no verdict. The rows stand in random order, so a sample judged from the top "
            "down is fair as far as it goes; one judged here and there is not."
        )
    return "\n".join(lines)


def _precision(sample: Sample, label: str, given: Mapping[int, str]) -> LabelPrecision:
    drawn = [row.number for row in sample.rows if row.predicted == label]
    said = Counter(given[number] for number in drawn if number in given)
    right = said[label] + (said[RIGHT] if RIGHT not in sample.labels else 0)
    unsure = said[UNSURE] if UNSURE not in sample.labels else 0
    judged = sum(said.values()) - unsure
    low, high = wilson_interval(right, judged) if judged else (None, None)
    share = right / judged if judged else None
    population = sample.population[label]
    return LabelPrecision(label, population, len(drawn), judged, right, unsure, share, low, high, dict(said))


def _label_line(one: LabelPrecision, rows: int) -> str:
    head = f"{one.label} ({one.population} rows, {one.population / rows:.1%})"
    if not one.judged:
        return f"{head}: {'not drawn' if not one.drawn else 'no verdict yet'}."
    others = {verdict: count for verdict, count in one.said.items() if verdict not in (one.label, RIGHT, WRONG, UNSURE)}
    instead = ", ".join(f"{verdict} {count}" for verdict, count in sorted(others.items(), key=lambda pair: -pair[1]))
    return (
        f"{head}: {one.right} of {one.judged} right, precision {one.precision:.1%} (95 % interval {one.low:.1%} to "
        f"{one.high:.1%})"
        + (f"; the judge said {instead} instead" if instead else "")
        + (f"; fewer than {FEW} rows, rough" if one.judged < FEW else "")
        + "."
    )
