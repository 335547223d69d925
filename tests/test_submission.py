"""The submission has the sample's ids, columns and order, and nothing that fails reaches the file that is sent."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.arena.submission import check_submission, write_submission
from infer.predictions import Predictions

LABELS = ("model_a", "model_b", "tie")
COLUMNS = ["id", "winner_model_a", "winner_model_b", "winner_tie"]
KAGGLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "arena_kaggle_sample"


def table(ids: list[str], probs: Any = None) -> Predictions:
    probs = [[0.2, 0.3, 0.5]] * len(ids) if probs is None else probs
    return Predictions(ids=np.array(ids, dtype=object), labels=LABELS, probs=probs, other=np.zeros(len(ids)))


def write_sample(path: Path, ids: list[str], columns: list[str] = COLUMNS) -> Path:
    third = {name: [1 / 3] * len(ids) for name in columns}
    pd.DataFrame({**third, "id": ids})[columns].to_csv(path, index=False)
    return path


def read_as_text(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_the_sample_rules_order_and_columns_and_ids_stay_as_written(tmp_path: Path) -> None:
    ids = ["007", "18446744073709551615", "NA", "a,b", "7"]
    shuffled_columns = ["winner_tie", "id", "winner_model_b", "winner_model_a"]
    sample = write_sample(tmp_path / "sample.csv", ids, shuffled_columns)
    rows = [[0.1 * i, 0.2, 0.8 - 0.1 * i] for i in range(1, 6)]
    write_submission(table(ids, rows).take([3, 0, 4, 2, 1]), sample, tmp_path / "submission.csv")
    written = read_as_text(tmp_path / "submission.csv")
    assert list(written.columns) == shuffled_columns
    assert written["id"].tolist() == ids
    np.testing.assert_allclose(written["winner_model_a"].astype(float), [row[0] for row in rows], atol=1e-7)  # float32
    np.testing.assert_allclose(written["winner_tie"].astype(float), [row[2] for row in rows], atol=1e-7)


def test_without_a_sample_the_order_is_the_predictions_and_one_row_is_enough(tmp_path: Path) -> None:
    write_submission(table(["b", "a"]), None, tmp_path / "submission.csv")
    assert read_as_text(tmp_path / "submission.csv")["id"].tolist() == ["b", "a"]
    write_submission(table(["only"]), None, tmp_path / "submission.csv")
    assert read_as_text(tmp_path / "submission.csv")["id"].tolist() == ["only"]
    assert list(read_as_text(tmp_path / "submission.csv").columns) == COLUMNS
    with pytest.raises(ValueError, match="0 rows"):
        write_submission(table([], np.empty((0, 3))), None, tmp_path / "submission.csv")


def test_the_real_test_file_gets_its_rows(tmp_path: Path) -> None:
    if not KAGGLE.is_dir():
        pytest.skip("shared/data/arena_kaggle_sample is not beside the project")
    ids = read_as_text(KAGGLE / "test.csv")["id"].tolist()
    sample = write_sample(tmp_path / "sample_submission.csv", ids)
    write_submission(table(ids[::-1]), sample, tmp_path / "submission.csv")
    assert read_as_text(tmp_path / "submission.csv")["id"].tolist() == ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-6), min_size=1))
def test_every_row_written_sums_to_one_and_avoids_zero_and_one(
    tmp_path_factory: pytest.TempPathFactory, weights: list[list[float]]
) -> None:
    path = tmp_path_factory.mktemp("submission") / "submission.csv"
    probs = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    write_submission(table([str(i) for i in range(len(probs))], probs), None, path)
    written = pd.read_csv(path)[COLUMNS[1:]].to_numpy()
    np.testing.assert_allclose(written.sum(axis=1), 1, atol=1e-9)
    assert written.min() >= 0.99e-6 and written.max() < 1
    np.testing.assert_allclose(written, probs, atol=3e-6)  # the floor moves a row by at most its three floors


def test_a_certain_row_is_floored_by_hand(tmp_path: Path) -> None:
    write_submission(table(["1"], [[1.0, 0.0, 0.0]]), None, tmp_path / "submission.csv", floor=0.01)
    written = pd.read_csv(tmp_path / "submission.csv").iloc[0, 1:].tolist()
    np.testing.assert_allclose(written, [1 / 1.02, 0.01 / 1.02, 0.01 / 1.02], rtol=1e-12)
    for floor in (0.0, -1e-6, 0.34):
        with pytest.raises(ValueError, match=f"floor is {floor}"):
            write_submission(table(["1"]), None, tmp_path / "submission.csv", floor=floor)


@pytest.mark.parametrize(
    ("sample_ids", "message"),
    [
        (["1", "2", "3"], r"1 missing from the predictions \('3'\)"),
        (["1"], r"1 not in the sample \('2'\)"),
        (["1", "4", "5", "6", "7"], r"4 missing from the predictions \('4', '5', '6'\); 1 not in the sample \('2'\)"),
        (["1", "2", "2"], r"1 repeated in the sample \('2'\)"),
        (["01", "2"], r"1 missing from the predictions \('01'\); 1 not in the sample \('1'\)"),
    ],
)
def test_other_ids_are_named_and_the_older_file_stays(sample_ids: list[str], message: str, tmp_path: Path) -> None:
    older = tmp_path / "submission.csv"
    older.write_text("older")
    with pytest.raises(ValueError, match=message):
        write_submission(table(["1", "2"]), write_sample(tmp_path / "sample.csv", sample_ids), older)
    assert older.read_text() == "older"


@pytest.mark.parametrize(
    "columns", [["id", "winner_model_a", "winner_model_b"], ["key", *COLUMNS[1:]], ["id", *LABELS]]
)
def test_a_sample_of_another_task_is_refused_with_both_lists(columns: list[str], tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample.csv", ["1"], columns)
    with pytest.raises(ValueError, match=r"sample.csv has columns .*, the predictions give \['id', 'winner_model_a'"):
        write_submission(table(["1"]), sample, tmp_path / "submission.csv")


def test_a_prefix_makes_the_columns_of_another_competition(tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample.csv", ["1"], ["id", *LABELS])
    write_submission(table(["1"]), sample, tmp_path / "submission.csv", prefix="")
    assert list(read_as_text(tmp_path / "submission.csv").columns) == ["id", *LABELS]


@pytest.mark.parametrize("damage", ["cut off", "no file"])
def test_a_file_damaged_on_its_way_to_disk_never_replaces_the_older(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "submission.csv"
    write_submission(table(["1", "2"]), None, older)
    before = older.read_bytes()
    intact = pd.DataFrame.to_csv

    def damaged(frame: pd.DataFrame, path: Path, **options: Any) -> None:
        if damage == "no file":
            raise OSError("No space left on device")
        intact(frame, path, **options)
        path.write_bytes(path.read_bytes()[:-12])

    monkeypatch.setattr(pd.DataFrame, "to_csv", damaged)
    with pytest.raises((ValueError, OSError), match=r"file read back|No space left"):
        write_submission(table(["1", "2"], [[0.6, 0.3, 0.1]] * 2), None, older)
    assert older.read_bytes() == before
    assert list(tmp_path.iterdir()) == [older]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,winner_model_a,winner_tie,winner_model_b\n1,0.2,0.3,0.5\n", "read back has columns"),
        ("id,winner_model_a,winner_model_b,winner_tie\n2,0.2,0.3,0.5\n", "other ids"),
        ("id,winner_model_a,winner_model_b,winner_tie\n1,0.2,0.3,0.5\n1,0.2,0.3,0.5\n", "other ids"),
        ("id,winner_model_a,winner_model_b,winner_tie\n1,0.2,0.3,0.500002\n", "sum to one"),
        ("id,winner_model_a,winner_model_b,winner_tie\n1,1.0,0.0,0.0\n", "id '1' .*between 0 and 1"),
        ("id,winner_model_a,winner_model_b,winner_tie\n1,nan,0.5,0.5\n", "id '1' .*nan"),
    ],
)
def test_the_check_on_disk_refuses(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        check_submission(path, np.array(["1"], dtype=object), COLUMNS)


def test_another_ending_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"submission\.parquet, expected a name that ends in \.csv"):
        write_submission(table(["1"]), None, tmp_path / "submission.parquet")
