"""A finished file appears in one step, and a failure leaves the older one."""

import json
from pathlib import Path

import pandas as pd
import pytest

from infer.files import read_frame, write_frame, write_json
from models.tasks.files import write_atomically


def test_a_failure_leaves_the_older_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("older")
    with pytest.raises(RuntimeError, match="disk full"), write_atomically(path) as temporary:
        temporary.write_text("half of the new o")
        raise RuntimeError("disk full")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_the_older_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new_folder" / "scores.csv"
    with write_atomically(path) as temporary:
        temporary.write_text("first")
    with write_atomically(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_in_the_way_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name} is a folder"), write_atomically(tmp_path):
        pass


def test_json_that_cannot_be_written_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"log_loss": 1.0986, "name": "Prüfung"})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"log_loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"log_loss": 1.0986, "name": "Prüfung"}


def test_the_same_table_gives_the_same_compressed_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["007", "NA"], "fold": [0, 1]})
    write_frame(frame, tmp_path / "first.csv.gz")
    write_frame(frame, tmp_path / "second.csv.gz")
    assert (tmp_path / "first.csv.gz").read_bytes() == (tmp_path / "second.csv.gz").read_bytes()
    assert read_frame(tmp_path / "first.csv.gz", text=["id"])["id"].tolist() == ["007", "NA"]


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table\.xlsx ends in none of"):
        write_frame(pd.DataFrame({"id": ["1"]}), tmp_path / "table.xlsx")
    assert list(tmp_path.iterdir()) == []
