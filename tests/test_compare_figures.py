"""The figures of a comparison, each by hand: what counts as wrong, what has no meaning, what is sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_report import page_data

from infer.chunked import LOG_P, P
from infer.compare import figures as compare_figures
from infer.compare.figures import (
    best_answering,
    calibrated,
    calibration_rows,
    differ_rows,
    hard_rows,
    most_accurate,
    ordered,
    p_values,
    sampled,
    score_way,
)
from infer.compare.report import beside, drawn_name, printed, shown, write_comparison_page
from infer.compare.table import WayTable, read_way_table

LABELS = ("yes", "no")
COSTS = ("rows_per_s", "fit_seconds", "peak_mib")


def way(probs: np.ndarray, truth: list[int], record: dict | None = None, *, hard: bool = False) -> WayTable:
    """probs: (N, 2), NaN where a row has no answer."""
    probs = np.asarray(probs, dtype=np.float64)
    count = len(probs)
    answered = np.isfinite(probs).all(axis=1)
    chosen = np.where(answered, np.nan_to_num(probs).argmax(axis=1), -1)
    with np.errstate(divide="ignore"):
        logs = np.log(probs)
    ids = np.array([f"r{at}" for at in range(count)], dtype=object)
    names = np.array(LABELS, dtype=object)[truth]
    return WayTable(LABELS, ids, names, np.arange(count), chosen, probs, logs, np.zeros(count), record or {}, hard)


def soft(count: int = 60, *, seed: int = 0, lean: float = 0.0) -> WayTable:
    """Rows whose truths are drawn by their own probabilities; lean: nats added to yes before they are read."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=1.5, size=count)
    truth = (random.random(count) > 1 / (1 + np.exp(-logits))).astype(int)
    yes = 1 / (1 + np.exp(-(logits + lean)))
    return way(np.stack([yes, 1 - yes], axis=1), truth.tolist(), {"content_free": [[np.log(1 / (1 + np.exp(-lean))),
               np.log(1 - 1 / (1 + np.exp(-lean)))]]})  # fmt: skip


def test_a_row_without_an_answer_is_wrong_and_counted() -> None:
    found = score_way(way([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1, 1]))
    assert (found["accuracy"], found["unanswered"], found["rows"]) == (0.5, 1, 4)
    # yes: one hit of two said and two true; no: one hit of one said and two true
    assert found["macro_f1"] == pytest.approx((2 * 1 / 4 + 2 * 1 / 3) / 2)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4]).mean()), "of the answered rows"


def test_a_label_without_probabilities_has_no_log_loss_and_no_area() -> None:
    found = score_way(way(np.eye(2)[[0, 1, 0, 1]], [0, 1, 1, 1], hard=True))
    assert found["accuracy"] == 0.75
    soft_figures = ("log_loss", "auc", "average_precision", "calibration_error", "log_loss_calibrated")
    assert all(found[name] is None for name in soft_figures)
    assert calibration_rows({"hard": way(np.eye(2)[[0, 1]], [0, 1], hard=True)}) == []
    assert hard_rows({"hard": way(np.eye(2)[[0, 1]], [0, 1], hard=True)}, seed=0) == []


def test_numbers_that_are_only_1_and_0_are_probabilities_all_the_same() -> None:
    found = score_way(way(np.eye(2)[[0, 1, 0, 1]], [0, 1, 1, 1]))
    assert found["log_loss"] == np.inf and found["auc"] is not None


def test_a_way_without_an_answer_is_wrong_everywhere_and_has_no_other_figure() -> None:
    found = score_way(way(np.full((4, 2), np.nan), [0, 1, 0, 1]))
    assert (found["accuracy"], found["unanswered"], found["log_loss"], found["auc"]) == (0.0, 4, None, None)


def test_three_labels_are_scored_by_their_columns() -> None:
    table = replace(soft(3), labels=("a", "b", "c"), truth=np.array(["c", "a", "b"], dtype=object), chosen=np.arange(3),
                    probs=np.array([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]))  # fmt: skip
    found = score_way(table)
    assert found["accuracy"] == 0 and found["log_loss"] == pytest.approx(-np.log([0.2, 0.2, 0.3]).mean())


def test_a_figure_of_some_rows_is_marked() -> None:
    table = way([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1, 1])
    scores = {"some": score_way(table)}
    entry = {**scores["some"], **p_values({"some": table}, scores, seed=0)["some"], "way": "some", "trouble": None,
             "labelled_rows": 0, "accuracy_low": 0, "accuracy_high": 1, **dict.fromkeys(COSTS)}  # fmt: skip
    found = shown(entry)
    assert found["log loss"].endswith("*") and found["AUC"].endswith("*") and not found["macro-F1"].endswith("*")
    assert found["AUC"].endswith("*") and not shown({**entry, "unanswered": 0})["AUC"].endswith("*")
    assert drawn_name("some", table) == "some (3 of 4 rows)" and drawn_name("all", soft(4)) == "all"


def test_a_temperature_is_fitted_once_for_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fits, table = [], soft(60)
    monkeypatch.setattr(
        compare_figures, "crossfit", lambda method, *given, **more: (fits.append(method), table.probs)[1]
    )
    score_way(table)
    calibration_rows({"way": table})
    calibrated(table, "temperature")
    assert fits.count("temperature") == 1


@pytest.mark.parametrize("given", ["all open", "nothing shared"])
def test_a_page_is_drawn_of_the_ways_that_answered(tmp_path: Path, given: str) -> None:
    whole = soft(30)
    probs = np.array(whole.probs)
    probs[0 if given == "all open" else 15 :] = np.nan
    some = np.array(whole.probs)
    some[:15] = np.nan
    tables = {"most": way(some, whole.index.tolist()), "odd": way(probs, whole.index.tolist())}
    assert _page(tmp_path / "report.html", tables)["curves"]


def test_a_page_of_hard_ways_alone_says_why_it_shows_which(tmp_path: Path) -> None:
    truth = soft(30).index
    tables = {"hard": way(np.eye(2)[truth], truth.tolist(), hard=True)}
    assert _page(tmp_path / "report.html", tables)["curves"]
    assert "the most accurate way: none gives probabilities" in (tmp_path / "report.html").read_text(encoding="utf-8")


def _page(path: Path, tables: dict[str, WayTable]) -> dict:
    scores = {name: score_way(table) for name, table in tables.items()}
    chances = p_values(tables, scores, seed=0)
    entries = [
        {**scores[name], **chances[name], "way": name, "trouble": None, "labelled_rows": 0, "accuracy_low": 0,
         "accuracy_high": 1, **dict.fromkeys(COSTS)} for name in tables
    ]  # fmt: skip
    settings = SimpleNamespace(name="n", seed=1, task=SimpleNamespace(name="text"), text=SimpleNamespace(input_csv="x"))
    rows = SimpleNamespace(fit_rows=3, ids=next(iter(tables.values())).ids, texts={})
    extra = {name: [] for name in ("calibration", "hard_and_soft", "differences")}
    return page_data(write_comparison_page(path, settings, rows, tables, entries, extra))  # type: ignore[arg-type]


def test_a_true_label_that_was_given_nothing_costs_infinitely_much() -> None:
    found = score_way(way([[1.0, 0.0], [0.6, 0.4], [0.3, 0.7]], [1, 0, 1]))
    assert found["log_loss"] == np.inf
    entry = {
        **dict.fromkeys(
            ("p_accuracy", "p_log_loss", "best_accuracy", "best_log_loss", "rows_per_s", "fit_seconds", "peak_mib")
        ),
        **found,
    }
    assert (
        shown({**entry, "way": "a", "trouble": None, "labelled_rows": 0, "accuracy_low": 0, "accuracy_high": 1})[
            "log loss"
        ]
        == "\N{INFINITY}"
    )


def test_the_interval_of_the_accuracy_is_wilsons() -> None:
    low, high = score_way(soft(40))["accuracy_interval"]
    right, z = score_way(soft(40))["accuracy"], 1.959963984540054
    middle = (right + z * z / 80) / (1 + z * z / 40)
    assert (low + high) / 2 == pytest.approx(middle)


def test_the_best_way_has_no_p_value_and_the_others_are_held_against_it() -> None:
    good, bad = soft(80), soft(80)
    bad = way(bad.probs[:, ::-1], bad.index.tolist())
    tables = {"good": good, "bad": bad, "hard": way(np.eye(2)[good.chosen], good.index.tolist(), hard=True)}
    found = p_values(tables, {name: score_way(table) for name, table in tables.items()}, seed=0)
    assert found["good"]["p_accuracy"] is None and found["good"]["p_log_loss"] is None
    assert {(one["best_accuracy"], one["best_log_loss"]) for one in found.values()} == {("good", "good")}
    assert found["bad"]["p_accuracy"] < 0.01 and found["bad"]["p_log_loss"] < 0.01
    assert found["hard"]["p_accuracy"] == 1.0 and found["hard"]["p_log_loss"] is None, "no probabilities"


def test_a_way_that_answers_few_rows_is_not_the_one_of_least_log_loss() -> None:
    whole, few = soft(60), np.full((60, 2), np.nan)
    few[:2] = np.where(np.eye(2)[whole.index[:2]] == 1, 0.99, 0.01)
    tables = {"whole": whole, "few": way(few, whole.index.tolist())}
    scores = {name: score_way(table) for name, table in tables.items()}
    assert scores["few"]["log_loss"] < 0.02 < scores["whole"]["log_loss"]
    assert best_answering(scores) == "whole"
    assert p_values(tables, scores, seed=0)["few"]["best_log_loss"] == "whole"


def test_ways_that_answer_no_row_in_common_show_a_dash_and_not_best() -> None:
    probs = np.tile([0.8, 0.2], (8, 1))
    one, other = probs.copy(), probs.copy()
    one[4:], other[:4] = np.nan, np.nan
    tables = {"one": way(one, [0] * 8), "other": way(other, [0] * 7 + [1])}
    scores = {name: score_way(table) for name, table in tables.items()}
    found = p_values(tables, scores, seed=0)["other"]
    assert found["p_log_loss"] is None and found["best_log_loss"] == "one"
    entry = {**scores["other"], **found, "way": "other", "trouble": None, "labelled_rows": 0, "accuracy_low": 0,
             "accuracy_high": 1, **dict.fromkeys(("rows_per_s", "fit_seconds", "peak_mib"))}  # fmt: skip
    assert shown(entry)["p loss"] == "\N{EN DASH}" and shown({**entry, "way": "one"})["p loss"] == "best"


def test_a_prompt_that_leans_is_set_right_by_its_answer_to_no_text() -> None:
    leaning = soft(400, lean=2.0)
    loss = {row["calibration"]: row["log loss"] for row in calibration_rows({"way": leaning})}
    assert loss["contextual"] < loss["as read"] - 0.1
    assert loss["vector"] < loss["as read"] - 0.1
    accuracy = beside(calibration_rows({"way": leaning}), "accuracy")
    assert accuracy[0]["contextual"] > accuracy[0]["as read"]


def test_a_way_without_answers_to_no_text_has_no_contextual_calibration() -> None:
    table = soft(100)
    bare = way(table.probs, table.index.tolist())
    assert calibrated(bare, "contextual") is None and calibrated(bare, "batch") is not None


def test_a_label_of_one_row_is_calibrated_like_any() -> None:
    table = way(np.tile([0.8, 0.2], (40, 1)) + np.linspace(0, 0.1, 40)[:, None] * [1, -1], [1] + [0] * 39)
    assert all(np.isfinite(row["log loss"]) for row in calibration_rows({"way": table}))


def test_calibration_never_sees_the_row_that_it_is_judged_on() -> None:
    table = soft(100)
    flipped = table.index.copy()
    flipped[7] = 1 - flipped[7]
    other = way(table.probs, flipped.tolist())
    mine, theirs = calibrated(table, "temperature"), calibrated(other, "temperature")
    assert mine is not None and theirs is not None
    assert (mine.probs[7] == theirs.probs[7]).all() and (mine.probs != theirs.probs).any()


def test_a_sampled_label_is_right_with_the_probability_of_the_true_one() -> None:
    table = way([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1])
    found = hard_rows({"way": table}, seed=0)[0]
    assert found["accuracy, likeliest"] == pytest.approx(2 / 3)
    assert found["accuracy, sampled (expected)"] == pytest.approx((0.9 + 0.4 + 0.7) / 3)
    assert found["differ (expected)"] == pytest.approx(1 - (0.9 + 0.6 + 0.7) / 3)


def test_samples_follow_the_probabilities_and_the_seed() -> None:
    probs = np.tile([0.2, 0.5, 0.3], (20_000, 1))
    drawn = sampled(probs, 1)
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    assert (drawn == sampled(probs, 1)).all() and (drawn != sampled(probs, 2)).any()
    assert (sampled(np.array([[0.0, 1.0], [1.0, 0.0]]), 5) == [1, 0]).all(), "what has nothing is never drawn"


def test_two_ways_differ_where_their_labels_do() -> None:
    one, other = way([[0.9, 0.1], [0.2, 0.8]], [0, 1]), way([[0.8, 0.2], [np.nan, np.nan]], [0, 1])
    assert differ_rows({"a": one, "b": other}) == [{"way": "a", "a": 0.0, "b": 0.5}, {"way": "b", "a": 0.5, "b": 0.0}]


def test_ways_are_ordered_by_accuracy_and_then_by_log_loss() -> None:
    scores = {"hard": {"accuracy": 0.8, "log_loss": None, "unanswered": 0},
              "sure": {"accuracy": 0.8, "log_loss": 0.5, "unanswered": 0},
              "best": {"accuracy": 0.9, "log_loss": 0.7, "unanswered": 0}}  # fmt: skip
    assert list(ordered(scores)) == ["best", "sure", "hard"]
    assert best_answering(scores) == "sure" and most_accurate(scores) == "best"
    assert best_answering({"hard": scores["hard"]}) is None


def test_a_printed_comparison_shows_dashes_and_names_what_failed() -> None:
    figures = score_way(way(np.eye(2)[[0, 1, 0, 1]], [0, 1, 1, 1], hard=True))
    entry = {
        **figures, "way": "hard", "trouble": None, "accuracy_low": 0.3, "accuracy_high": 0.95, "rows_per_s": 2.0,
        "fit_seconds": None, "peak_mib": 812.4, "labelled_rows": 2, "p_accuracy": None, "p_log_loss": None,
        "best_accuracy": "hard", "best_log_loss": None,
    }  # fmt: skip
    text = printed([entry, {"way": "gone", "trouble": "no such model"}])
    line = next(line for line in text.splitlines() if line.startswith("hard"))
    assert "0.750 (0.30 to 0.95)" in line and line.count("\N{EN DASH}") == 8 and "812" in line
    assert "gone failed: no such model" in text


def test_a_table_of_other_rows_is_refused(tmp_path: Path) -> None:
    import pandas as pd

    columns = {"id": ["r0", "rx"], "predicted": ["yes", "no"], "p_other": [0.0, 0.0]}
    columns |= {f"{prefix}{label}": [0.5, 0.5] for prefix in (P, LOG_P) for label in LABELS}
    pd.DataFrame(columns).to_parquet(tmp_path / "predictions.parquet")
    rows = SimpleNamespace(ids=np.array(["r0", "r1"], dtype=object), labels=LABELS, test=tmp_path / "test.csv")
    with pytest.raises(ValueError, match="not those of"):
        read_way_table(tmp_path / "predictions.parquet", rows)  # type: ignore[arg-type]
