"""Every figure against scikit-learn or a value by hand, and rows that lack a label or all but one of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from infer.metrics import PRIOR, baseline_lines, calibration_error, metric_lines, pair_aucs, reliability, score
from infer.predictions import Predictions
from train.metrics import log_loss_metric

LABELS = ("tie", "model_b", "model_a")  # not alphabetical: scikit-learn sorts, a table does not


def table(probs: Any, truth: Any, labels: tuple[str, ...] = LABELS) -> Predictions:
    ids = np.array([f"row{i}" for i in range(len(probs))], dtype=object)
    return Predictions(ids=ids, labels=labels, probs=probs, other=np.zeros(len(probs)), truth=truth)


def drawn(rows: int = 300) -> Predictions:
    random = np.random.default_rng(0)
    probs = random.dirichlet([1.0, 2.0, 3.0], size=rows)
    return table(probs, np.array(LABELS, dtype=object)[(probs.cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)])


def test_the_figures_are_scikit_learns() -> None:
    rows = drawn()
    truth, probs = rows.label_index(), rows.probs64()
    predicted = probs.argmax(axis=1)
    result = score(rows)
    assert result["rows"] == 300
    assert result["log_loss"] == pytest.approx(sklearn.metrics.log_loss(truth, probs, labels=[0, 1, 2]), abs=1e-12)
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted), abs=1e-12)
    assert result["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"), abs=1e-12)
    aucs = [result["per_class"][label]["auc"] for label in LABELS]
    macro_auc = sklearn.metrics.roc_auc_score(truth, probs, multi_class="ovr", average="macro")
    assert np.mean(aucs) == pytest.approx(macro_auc, abs=1e-12) and result["auc"] == np.mean(aucs)
    macro_precision = sklearn.metrics.average_precision_score(np.eye(3)[truth], probs, average="macro")
    assert result["average_precision"] == pytest.approx(macro_precision, abs=1e-12)


def test_the_figures_of_four_rows_are_those_by_hand() -> None:
    rows = table(
        [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]],
        ["tie", "model_b", "model_b", "tie"],
    )
    result = score(rows)
    assert result["log_loss"] == pytest.approx(1.5 * np.log(2), abs=1e-12)  # halves and quarters, two of each
    assert result["accuracy"] == 0.5
    assert result["brier"] == pytest.approx((2 * 0.375 + 2 * 0.875) / 4, abs=1e-12)
    assert result["confidence"] == 0.5
    assert result["calibration_error"] == 0.0  # half sure, half right
    # AUC: of the four pairs (true, not true), the share ranked rightly; a draw counts half.
    # tie: said twice, right once, true twice. model_b: said once, rightly, true twice. model_a: said once, never true.
    # Average precision: precision where recall rises, times the rise. tie: 1/2 of the two 0.5, then 2/4 of all rows,
    # half each; model_b: 1/1, then 2/4.
    names = ("count", "precision", "recall", "f1", "auc", "average_precision")
    expected = {
        "tie": (2, 0.5, 0.5, 0.5, 0.5, 0.5),
        "model_b": (2, 1.0, 0.5, pytest.approx(2 / 3), 0.75, 0.75),
        "model_a": (0, 0.0, 0.0, 0.0, None, None),
    }
    assert result["per_class"] == {label: dict(zip(names, row, strict=True)) for label, row in expected.items()}
    assert list(result["per_class"]) == list(LABELS)
    # The label that never occurs is left out of the means.
    assert (result["auc"], result["average_precision"]) == (0.625, 0.625)


def test_another_column_order_gives_the_same_score() -> None:
    rows = drawn()
    order = [2, 0, 1]
    turned = table(rows.probs[:, order], rows.truth, labels=tuple(LABELS[column] for column in order))
    first, second = score(rows), score(turned)
    assert first["per_class"] == second["per_class"]
    assert first["log_loss"] == pytest.approx(second["log_loss"], abs=1e-7)  # float32 rows are summed in another order


def test_the_score_is_plain_json(tmp_path: Path) -> None:
    result = score(drawn(20), bootstrap=10)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_rows_without_truth_and_an_empty_table_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'row1' is unknown"):
        score(table([[0.2, 0.3, 0.5]] * 2, ["tie", None]))
    with pytest.raises(ValueError, match="0 rows"):
        score(table(np.empty((0, 3)), []))


def test_calibration_error_weighs_each_bin_by_its_rows() -> None:
    # Three rows 0.8 sure and all right, one row 0.6 sure and wrong: (3 * 0.2 + 1 * 0.6) / 4.
    rows = table([[0.8, 0.1, 0.1]] * 3 + [[0.6, 0.2, 0.2]], ["tie", "tie", "tie", "model_a"])
    assert calibration_error(rows) == pytest.approx(0.3, abs=1e-7)  # float32 probabilities
    parts = reliability(rows)
    assert [(part["rows"], part["accuracy"]) for part in parts] == [(1, 0.0), (3, 1.0)]
    assert calibration_error(rows, bins=1) == pytest.approx(abs(0.75 - 0.75), abs=1e-7)  # one bin hides both errors


def test_a_bins_upper_edge_belongs_to_it() -> None:
    rows = table([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], ["good", "bad", "good"], labels=("good", "bad"))
    assert [part["confidence"] for part in reliability(rows, bins=4)] == [0.5, 0.75, 1.0]
    assert [part["rows"] for part in reliability(rows, bins=2)] == [1, 2]


def test_groups_are_found_by_id_and_seeds_repeat_the_interval() -> None:
    rows = drawn(60)
    groups = {row_id: int(row_id[3:]) // 3 for row_id in rows.ids}
    grouped = score(rows, groups=groups)
    assert grouped["log_loss_interval"] == score(rows, groups=dict(reversed(groups.items())))["log_loss_interval"]
    assert grouped["log_loss_interval"] != score(rows)["log_loss_interval"]
    assert grouped["log_loss_interval"][0] < grouped["log_loss"] < grouped["log_loss_interval"][1]
    assert "log_loss_interval" not in score(rows, bootstrap=0)
    with pytest.raises(ValueError, match="59 ids have no group, first 'row1'"):
        score(rows, groups={"row0": 0})


def test_auc_and_its_interval_hold_for_either_of_two_labels() -> None:
    two = drawn(80).probs64()[:, :2]
    two /= two.sum(axis=1, keepdims=True)
    truth = np.where(np.random.default_rng(3).random(80) < two[:, 0], "good", "bad").astype(object)
    rows = table(two, truth, labels=("good", "bad"))
    turned = table(two[:, ::-1], truth, labels=("bad", "good"))
    result, mirrored = score(rows), score(turned)
    assert result["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth == "good", two[:, 0]), abs=1e-6)
    assert result["auc_interval"][0] < result["auc"] < result["auc_interval"][1]
    for name in ("auc", "auc_interval", "average_precision"):
        assert mirrored[name] == pytest.approx(result[name], abs=1e-12)


def test_rows_of_one_label_have_no_auc_and_say_so() -> None:
    result = score(table([[0.5, 0.3, 0.2]] * 4, ["tie"] * 4))
    assert result["auc"] is None and result["auc_interval"] is None and result["average_precision"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lines = metric_lines(result).splitlines()
    assert lines[0] == "4 labelled rows, none of them model_b or model_a"
    assert lines[3] == "  AUC                   none: the rows have but one true label"


def test_draws_without_the_one_rare_row_are_left_out() -> None:
    probs = [[0.6, 0.2, 0.2]] * 9 + [[0.2, 0.6, 0.2]]
    result = score(table(probs, ["tie"] * 9 + ["model_b"]), bootstrap=200)  # a third of the draws lack model_b
    assert result["auc"] == 1.0 and result["auc_interval"] == [1.0, 1.0]


def test_the_lines_at_the_end_of_a_file_are_one_figure_each() -> None:
    result = {
        "rows": 1000,
        "log_loss": 0.4312,
        "log_loss_interval": [0.4, 0.46],
        "accuracy": 0.812,
        "accuracy_interval": [0.79, 0.83],
        "auc": 0.8913,
        "auc_interval": [0.87, 0.91],
        "average_precision": 0.885,
        "calibration_error": 0.0423,
        "per_class": {
            "good": {"count": 500, "average_precision": 0.9},
            "bad": {"count": 500, "average_precision": 0.87},
        },
    }
    assert metric_lines(result) == (
        "1000 labelled rows\n"
        "  log loss            0.4312   95 % interval 0.4000 to 0.4600\n"
        "  accuracy            0.8120   95 % interval 0.7900 to 0.8300\n"
        "  AUC                 0.8913   95 % interval 0.8700 to 0.9100\n"
        "  average precision   0.8850   good 0.9000, bad 0.8700\n"
        "  calibration error   0.0423"
    )


def test_the_trainers_metric_is_scikit_learns_log_loss_without_a_hub() -> None:
    rows = drawn(40)
    metric = log_loss_metric()
    result = metric.compute(predictions=rows.probs64(), references=rows.label_index())
    assert result["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(rows.label_index(), rows.probs64(), labels=[0, 1, 2]), abs=1e-12
    )
    for half in (slice(0, 25), slice(25, 40)):  # batch by batch, as an evaluation loop adds them
        metric.add_batch(predictions=rows.probs64()[half], references=rows.label_index()[half])
    assert metric.compute() == pytest.approx(result)


def test_importing_the_metrics_imports_neither_evaluate_nor_scikit_learn() -> None:
    heavy = "{'evaluate', 'datasets', 'sklearn', 'scipy', 'torch', 'transformers'}"
    command = (
        f"import sys, infer.metrics, train.metrics, infer.arena.submission; sys.exit(str({heavy} & set(sys.modules)))"
    )
    project = Path(__file__).resolve().parents[1]
    ended = subprocess.run([sys.executable, "-c", command], cwd=project, capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == "set()"


def test_a_run_stands_among_its_baselines_best_first() -> None:
    lines = baseline_lines(
        {"rows": 100, "log_loss": 1.0312, "log_loss_interval": [1.021, 1.0411], "accuracy": 0.487},
        {"length only": 1.066, PRIOR: 1.0799, "uniform": 1.09861},
    )
    assert lines == (
        "log loss, 100 rows, lower is better\n"
        "  this run      1.0312   95 % interval 1.0210 to 1.0411   accuracy 0.4870\n"
        "  length only   1.0660\n"
        "  class prior   1.0799\n"
        "  uniform       1.0986"
    )


def test_a_run_worse_than_the_prior_is_told_so_in_words() -> None:
    result = {"rows": 3, "log_loss": 1.2, "accuracy": 0.3}
    assert (
        baseline_lines(result, {PRIOR: 1.08})
        .splitlines()[-1]
        .startswith("This run is worse than the class prior (1.2000 against 1.0800)")
    )
    assert "worse" not in baseline_lines(result | {"log_loss": 1.07}, {PRIOR: 1.08})


def test_a_pairs_auc_is_that_of_its_two_labels_alone() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    probs = random.dirichlet([2.0, 1.0, 1.0], size=200).astype(np.float32)
    truth = np.array(["Hard", "Soft", "Unknown"], dtype=object)[random.integers(0, 3, 200)]
    table = Predictions(np.arange(200).astype(str), ("Hard", "Soft", "Unknown"), probs, np.zeros(200), truth)
    pairs = pair_aucs(table)
    rows = truth != "Unknown"
    expected = roc_auc_score(truth[rows] == "Soft", probs[rows, 1] / (probs[rows, 0] + probs[rows, 1]))
    assert pairs["Hard/Soft"] == pytest.approx(expected)
    assert set(pairs) == {"Hard/Soft", "Hard/Unknown", "Soft/Unknown"}
    assert set(pair_aucs(table.take(rows))) == {"Hard/Soft"}
