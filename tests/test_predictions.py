"""The table of predictions: what it refuses, how it travels through files, how tables are joined and averaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.predictions import Predictions, average, join, swap_average

LABELS = ("model_a", "model_b", "tie")
SWAP = (1, 0, 2)


def table(probs: Any, ids: list[str] | None = None, **columns: Any) -> Predictions:
    columns = {"labels": LABELS, "other": np.zeros(len(probs)), **columns}
    return Predictions(ids=np.array(ids or [str(i) for i in range(len(probs))], dtype=object), probs=probs, **columns)


# ---- what is refused


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"probs": [[0.5, 0.4, 0.2]]}, "id '0' has .* sum to one"),
        ({"probs": [[1.5, -0.5, 0.0]]}, "non-negative"),
        ({"probs": [[np.nan, 0.5, 0.5]]}, "finite"),
        ({"probs": [[np.inf, 0.0, 0.0]]}, "finite"),
        ({"probs": [[0.5, 0.5]]}, r"probs has shape \(1, 2\), expected \(1, 3\)"),
        ({"probs": [[1, 0, 0], [0, 1, 0]], "ids": ["7", "7"]}, "1 ids stand twice: '7'"),
        ({"probs": [[1, 0, 0]], "ids": [7]}, "id 7 is int, expected text"),
        ({"probs": [[1, 0, 0]], "other": [1.2]}, "other is 1.2"),
        ({"probs": [[1, 0, 0]], "other": [np.nan]}, "other is nan"),
        ({"probs": [[1, 0, 0]], "truth": ["draw"]}, "true label of id '0' is 'draw'"),
        ({"probs": [[1, 0, 0]], "truth": ["tie", "tie"]}, r"truth has shape \(2,\)"),
        ({"probs": [[1, 0, 0]], "fold": [0.5]}, "fold holds .0.5., expected whole numbers"),
        ({"probs": [[1, 0, 0]], "labels": ("a", "b", "a")}, "different, non-empty names"),
        ({"probs": [[0.5, 0.5]], "labels": ("good", "other")}, "label is named 'other'"),
    ],
)
def test_a_table_that_is_not_one_is_refused_by_the_value_at_fault(columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**columns)


def test_sums_off_by_float16_rounding_are_taken_and_a_forgotten_softmax_is_not() -> None:
    assert len(table([[0.33333, 0.33333, 0.33331]])) == 1  # 3e-5 short
    with pytest.raises(ValueError, match="softmax"):
        table([[0.3333, 0.3333, 0.3332]])  # 2e-4 short


def test_a_built_table_cannot_be_changed_and_leaves_the_callers_array_alone() -> None:
    probs = np.array([[0.2, 0.3, 0.5]], dtype=np.float32)
    built = table(probs)
    with pytest.raises(ValueError, match="read-only"):
        built.probs[0, 0] = 1.0
    probs.sort()  # the caller's own array is still writable


def test_the_true_labels_column_is_found_by_name_and_an_unknown_truth_is_refused() -> None:
    probs = [[0.2, 0.3, 0.5]] * 3
    assert table(probs, truth=["tie", "model_a", "model_b"]).label_index().tolist() == [2, 0, 1]
    for truth in (["tie", None, "tie"], [None, None, None]):
        with pytest.raises(ValueError, match=r"true label of ids .*'1'.* is unknown"):
            table(probs, truth=truth).label_index()
    with pytest.raises(ValueError, match="no true labels"):
        table(probs).label_index()


def test_log_loss_is_the_mean_of_minus_log_of_the_true_probability() -> None:
    scored = table([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], truth=["model_a", "tie"])
    assert scored.log_loss() == pytest.approx((np.log(2) + np.log(4)) / 2, abs=1e-12)
    certain_and_wrong = table([[1.0, 0.0, 0.0]], truth=["tie"])
    assert certain_and_wrong.log_loss() == pytest.approx(-np.log(1e-7))  # the floor, not infinity


# ---- files


def assert_same(left: Predictions, right: Predictions) -> None:
    assert left.labels == right.labels
    for name in ("ids", "probs", "other", "truth", "fold"):
        first, second = getattr(left, name), getattr(right, name)
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(first, second, err_msg=name)
            assert first.dtype == second.dtype, name


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_a_table_comes_back_from_disk_as_it_was(ending: str, tmp_path: Path) -> None:
    ids = ["007", "9223372036854775807", "NA", 'a "quoted", id', " spaced ", "", "1e5", "null"]
    probs = np.random.default_rng(0).dirichlet([0.3] * 3, size=8).astype(np.float32)
    truth = ["NA", None, "3", "good, or so", "NA", None, "3", "3"]
    other = np.linspace(0, 1, 8)
    written = table(probs, ids, labels=("NA", "3", "good, or so"), truth=truth, fold=list(range(8)), other=other)
    for columns in (written, table(probs, ids)):
        columns.write(tmp_path / f"table.{ending}")
        assert_same(Predictions.read(tmp_path / f"table.{ending}"), columns)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
def test_every_float32_survives_a_csv(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    other = np.array(values, dtype=np.float32)  # any float32 of 0 to 1 may stand here; probs only in sums of one
    table([[1.0, 0.0, 0.0]] * len(values), other=other).write(path)
    assert Predictions.read(path).other.tobytes() == other.tobytes()


def test_the_file_has_the_documented_columns_in_order(tmp_path: Path) -> None:
    table([[0.25, 0.25, 0.5]], ["9"], truth=["model_a"], fold=[3]).write(tmp_path / "heldout.csv")
    assert (tmp_path / "heldout.csv").read_text() == (
        "id,fold,label,p_model_a,p_model_b,p_tie,p_other,predicted,confidence\n9,3,model_a,0.25,0.25,0.5,0,tie,0.5\n"
    )


def test_a_file_that_is_no_table_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("id,winner_model_a\n1,0.5\n")
    with pytest.raises(
        ValueError, match=r"submission.csv has columns \['id', 'winner_model_a'\], expected id and one p_"
    ):
        Predictions.read(path)
    path.write_text("id,p_a,p_b\n1,0.5,0.9\n")
    with pytest.raises(ValueError, match=r"submission.csv .*sum to one"):
        Predictions.read(path)


def test_a_foreign_table_without_p_other_has_nothing_outside_its_labels(tmp_path: Path) -> None:
    (tmp_path / "foreign.csv").write_text("id,p_a,p_b\n1,0.5,0.5\n2,1,0\n")
    read = Predictions.read(tmp_path / "foreign.csv")
    assert read.labels == ("a", "b")
    assert read.other.tolist() == [0.0, 0.0]
    assert read.truth is None


# ---- rows by id


def test_align_goes_by_id_and_carries_every_column() -> None:
    rows = [[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]
    whole = table(rows, ["a", "b", "c"], truth=["tie", None, "model_b"], fold=[0, 1, 2], other=[0.1, 0.2, 0.3])
    turned = whole.align(["c", "a"])
    assert_same(turned, table([rows[2], rows[0]], ["c", "a"], truth=["model_b", "tie"], fold=[2, 0], other=[0.3, 0.1]))
    assert_same(whole.align(["c", "a", "b"]).align(whole.ids), whole)


def test_align_names_the_ids_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 ids have no prediction: 'x', 'y'"):
        table([[1, 0, 0]], ["a"]).align(["x", "a", "y"])


def test_joined_folds_hold_every_row_once() -> None:
    first = table([[0.1, 0.2, 0.7]], ["b"], truth=["tie"], fold=[0])
    second = table([[0.6, 0.3, 0.1]], ["a"], truth=["model_a"], fold=[1])
    both = table([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], ["b", "a"], truth=["tie", "model_a"], fold=[0, 1])
    assert_same(join([first, second]), both)


def test_join_refuses_overlap_and_parts_of_different_kinds() -> None:
    part = table([[0.1, 0.2, 0.7]], ["b"], truth=["tie"])
    with pytest.raises(ValueError, match="1 ids stand twice: 'b'"):
        join([part, part])
    with pytest.raises(ValueError, match=r"part 1 has labels .*expected .*in this order"):
        join([part, table([[0.1, 0.2, 0.7]], ["c"], truth=["tie"], labels=("model_b", "model_a", "tie"))])
    with pytest.raises(ValueError, match="Only one of parts 0 and 1 has 'truth'"):
        join([part, table([[0.1, 0.2, 0.7]], ["c"])])
    with pytest.raises(ValueError, match="no tables to join"):
        join([])


def test_an_average_joins_models_by_id() -> None:
    first = table([[0.2, 0.2, 0.6], [1.0, 0.0, 0.0]], ["a", "b"], other=[0.0, 0.4], truth=["tie", "tie"], fold=[0, 1])
    second = table([[0.0, 1.0, 0.0], [0.4, 0.4, 0.2]], ["b", "a"], other=[0.2, 0.2], truth=["tie", "tie"], fold=[1, 0])
    expected = table(
        [[0.3, 0.3, 0.4], [0.5, 0.5, 0.0]], ["a", "b"], other=[0.1, 0.3], truth=["tie", "tie"], fold=[0, 1]
    )
    mean = average([first, second])
    np.testing.assert_allclose(mean.probs, expected.probs, atol=1e-7)  # float32 in, float32 out
    np.testing.assert_allclose(mean.other, expected.other, atol=1e-7)
    assert mean.ids.tolist() == ["a", "b"]
    assert mean.fold is not None and mean.fold.tolist() == [0, 1]


def test_an_average_over_different_splits_belongs_to_no_fold() -> None:
    rows = [[0.2, 0.2, 0.6], [1.0, 0.0, 0.0]]
    assert average([table(rows, fold=[0, 1]), table(rows, fold=[1, 0])]).fold is None
    assert average([table(rows, fold=[0, 1]), table(rows)]).fold is None


def test_weights_move_an_average_between_its_tables() -> None:
    first, second = table([[1.0, 0.0, 0.0]]), table([[0.0, 0.0, 1.0]])
    assert average([first, second], [0.25, 0.75]).probs.tolist() == [[0.25, 0.0, 0.75]]
    assert_same(average([first, second], [1.0, 0.0]), first)
    for weights in ([0.5, 0.4], [1.5, -0.5], [1.0]):
        with pytest.raises(ValueError, match="2 non-negative numbers that sum to one"):
            average([first, second], weights)


def test_an_average_refuses_models_of_other_rows_or_another_truth() -> None:
    first = table([[1.0, 0.0, 0.0]], ["a"], truth=["tie"])
    with pytest.raises(ValueError, match="have no prediction: 'a'"):
        average([first, table([[1.0, 0.0, 0.0]], ["b"])])
    with pytest.raises(ValueError, match="table 1 has 2 rows, expected 1; only there: 'b'"):
        average([first, table([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], ["a", "b"])])
    with pytest.raises(ValueError, match="table 1 has true label 'model_a' for id 'a', but the first table says 'tie'"):
        average([first, table([[1.0, 0.0, 0.0]], ["a"], truth=["model_a"])])


# ---- swapped rows


def test_swap_average_brings_the_second_order_back_before_the_mean() -> None:
    straight = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    # Row 0 exchanged: an answer of 0.3 for the first place is 0.3 for model_b. Row 1 is judged the same both ways.
    exchanged = np.array([[0.3, 0.4, 0.3], [0.6, 0.1, 0.3]])
    mean, disagreement = swap_average(straight, exchanged, SWAP)
    np.testing.assert_allclose(mean, [[0.45, 0.25, 0.3], [0.1, 0.6, 0.3]])
    np.testing.assert_allclose(disagreement, [0.2, 0.0], atol=1e-15)
    for permutation in ((1, 2, 0), (0, 0, 2), (1, 0)):
        with pytest.raises(ValueError, match="undo themselves"):
            swap_average(straight, exchanged, permutation)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_swap_average_does_not_care_which_order_came_first(weights: list[list[float]]) -> None:
    straight = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    exchanged = np.roll(straight, 1, axis=0)
    mean, _ = swap_average(straight, exchanged, SWAP)
    other_way, _ = swap_average(exchanged, straight, SWAP)
    np.testing.assert_allclose(other_way[:, SWAP], mean)


def test_filled_rows_are_named_and_survive_the_file_a_join_and_a_mean(tmp_path: Path) -> None:
    probs = np.array([[0.2, 0.8], [0.5, 0.5]])
    two = {"labels": ("x", "y")}
    own = table(probs, ids=["1", "2"], **two)
    filled = table(probs, ids=["3", "4"], filled=np.array(["bad row", None], dtype=object), **two)
    assert "filled" not in own.to_frame() and own.take([0]).filled is None
    both = join([own, filled])
    assert both.filled.tolist() == [None, None, "bad row", None]
    for name in ("a.csv", "a.parquet"):
        both.write(tmp_path / name)
        assert Predictions.read(tmp_path / name).align(["3", "1"]).filled.tolist() == ["bad row", None]
    late = table(probs, ids=["4", "3"], filled=np.array(["not read in time"] * 2, dtype=object), **two)
    assert average([filled, late]).filled.tolist() == ["bad row", None], (
        "a row that one table read is no mean of others"
    )
    assert average([filled, late], [0, 1]).filled.tolist() == ["not read in time"] * 2
    assert average([filled, table(probs, ids=["3", "4"], **two)]).filled is None
