"""A run folder takes nothing that is not its own: no file of a person's, no input, no trace of a refused command."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import compose, pair_rows, write_arena_csv

from train.record import PROCESSES, RUN_FILES
from train.run import run as train


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_arena_csv(tmp_path / "train.csv", pair_rows(40))
    return tmp_path / "train.csv"


def settings_of(run: Path, rows: Path, *overrides: str):
    return compose("+experiment=arena_length", f"run_dir={run}", f"task.train_csv={rows}", "folds.count=2", *overrides)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", sorted({*RUN_FILES, "fold0"} - {PROCESSES}))
def test_a_file_that_no_run_made_is_not_replaced(tmp_path: Path, rows: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    mine = tmp_path / "run" / name
    mine.write_text("my: work\n")
    with pytest.raises(ValueError, match=f"{name} is (there already and was made otherwise|in the way: it is no run)"):
        train(settings_of(tmp_path / "run", rows))
    assert set(names(tmp_path / "run")) - {name} <= ({"lock"} if name == "config.yaml" else set())
    assert mine.read_text() == "my: work\n"


@pytest.mark.parametrize("name", ["heldout.csv", "metrics.json", "fold0/checkpoint/model.csv", "bad_rows.csv"])
def test_a_run_is_not_trained_over_its_rows(tmp_path: Path, rows: Path, name: str) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    rows.rename(place)
    before = place.read_bytes()
    with pytest.raises(ValueError, match="Set another run_dir="):
        train(settings_of(tmp_path / "run", place))
    assert place.read_bytes() == before


def test_a_command_with_wrong_rows_leaves_nothing_in_the_way_of_the_right_one(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(FileNotFoundError):
        train(settings_of(tmp_path / "runs" / "one", tmp_path / "nope.csv"))
    assert names(tmp_path) == ["train.csv"]
    (tmp_path / "kept").mkdir()
    with pytest.raises(FileNotFoundError):
        train(settings_of(tmp_path / "kept", tmp_path / "nope.csv"))
    assert names(tmp_path / "kept") == []
    train(settings_of(tmp_path / "runs" / "one", rows))
    said = (tmp_path / "runs" / "one" / "train.log").read_text()
    assert f"40 rows from {rows}" in said


def test_a_run_that_came_to_nothing_gives_way_and_one_with_a_fold_does_not(tmp_path: Path, rows: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "folds.csv"
    other.write_text("id,fold\n")
    with pytest.raises(ValueError, match=r"folds\.csv"):
        train(settings_of(run, rows, f"folds.file={other}", "seed=1"))
    assert (run / "config.yaml").is_file()
    train(settings_of(run, rows, "seed=2"))
    with pytest.raises(ValueError, match=r"holds a run with other settings: seed \(2 there, 3 now\)"):
        train(settings_of(run, rows, "seed=3"))
