"""What is said of a submission is what stands in it: a row without an answer of its own is named for what it got."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose, pair_rows, write_arena_csv

from infer.arena.answer import SUBMISSION, ArenaReading, answer_all, read_test_rows
from infer.checkpoints import say_missing_folds
from infer.logs import open_log
from infer.predictions import Predictions
from models.tasks.arena import LABELS


def answered(folder: Path, *, read: int, more: str = "") -> pd.DataFrame:
    """The submission of six rows, and those of `more`, of which the first `read` were read."""
    path = write_arena_csv(folder / "test.csv", pair_rows(6), labelled=False)
    path.write_text(path.read_text() + more)
    settings = compose("+experiment=arena_length", f"task.test_csv={path}", f"run_dir={folder}", "task.on_bad_row=skip")
    open_log(None, main=True)
    table = read_test_rows(settings.arena)
    ids = np.array([row.id for row in table.rows[:read]], dtype=object)
    probs = np.tile([0.5, 0.3, 0.2], (read, 1)).reshape(read, 3)
    answer_all(ArenaReading(Predictions(ids, LABELS, probs, np.zeros(read)), {}, []), table, settings, folder)
    return pd.read_csv(folder / SUBMISSION, dtype={"id": str})


@pytest.mark.parametrize("heldout", [False, True])
def test_where_no_row_was_read_the_log_says_that_the_submission_answers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], heldout: bool
) -> None:
    if heldout:
        ids = np.array(["1", "2"], dtype=object)
        Predictions(ids, LABELS, np.array([[0.6, 0.2, 0.2]] * 2), np.zeros(2)).write(tmp_path / "heldout.csv")
    table = answered(tmp_path, read=0)
    assert np.allclose(table.iloc[:, 1:], [0.6, 0.2, 0.2] if heldout else 1 / 3)
    said = capsys.readouterr().out
    assert "no row was read, so the submission below is valid and answers nothing" in said
    assert (f"the mean of {tmp_path / 'heldout.csv'}" if heldout else "1/3 for each label") in said
    answered(tmp_path, read=6)
    assert "answers nothing" not in capsys.readouterr().out


def test_a_repeated_id_is_not_said_to_get_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pair_rows(6)
    again, damaged = f'{rows[0].id},"[""x""]","[""y""]","[""z""]"\n', '77,"[""unclosed","[""x""]","[""y""]"\n'
    table = answered(tmp_path, read=6, more=again)
    assert len(table) == 6
    said = capsys.readouterr().out
    assert "1 bad rows repeat an id, which keeps its first row's answer; listed in" in said and "mean" not in said
    assert len(answered(tmp_path, read=6, more=again + damaged)) == 7
    assert "1 bad rows get the mean prediction, 1 bad rows repeat an id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("finished", "only", "missing"),
    [([0], None, "1, 2"), ([0, 2], None, "1"), ([0], [0], None), ([0, 1, 2], None, None)],
)
def test_folds_that_are_not_finished_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: list[int], only: list[int] | None, missing: str | None
) -> None:
    pd.DataFrame({"id": range(4), "fold": [0, 1, 2, -1]}).to_csv(tmp_path / "folds.csv", index=False)
    for fold in finished:
        (tmp_path / f"fold{fold}").mkdir()
        (tmp_path / f"fold{fold}" / "done.json").write_text("{}")
    open_log(None, main=True)
    say_missing_folds(tmp_path, only)
    said = capsys.readouterr().out
    assert (f"fold {missing} of {tmp_path} is not finished" in said) if missing else not said
