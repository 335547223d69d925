"""arena_judge with a network of two layers: both orders averaged, the arena's own road to submission.csv, resumable."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose, pair_rows, write_arena_csv
from warm_commands import WarmCommands

from infer import stopping
from infer.arena import judge
from infer.arena.judge import row_fields
from infer.arena.submission import check_submission
from infer.predictions import Predictions
from infer.run import run
from models.tasks.arena import LABELS, ArenaRow

WINNERS = [f"winner_{label}" for label in LABELS]
FORM = "Question: {prompt}\n\nA: {response_a}\n\nB: {response_b}\n\nThe better answer (A, B or tie):"
# The plainest question: no options, so no rotations but that of the two answers.
PLAIN = ("question.prompt=" + FORM.replace("\n", "\\n"), "question.answers=text",
         'question.labels={model_a:" A",model_b:" B",tie:" tie"}')  # fmt: skip


def arguments(folder: Path, model: str, *overrides: str, test: str = "test.csv", out: str = "out") -> list[str]:
    return [
        "+experiment=arena_judge", f"model.name={model}", f"task.test_csv={folder / test}", f"run_dir={folder / out}",
        "engine.chunk_rows=4", "engine.max_tokens=400", *overrides,
    ]  # fmt: skip


def judged(folder: Path, model: str, *overrides: str, **names: str) -> Predictions:
    found = run(compose(*arguments(folder, model, *overrides, **names)))
    assert isinstance(found, Predictions)
    return found


def exchanged(rows: list[ArenaRow]) -> list[ArenaRow]:
    return [replace(row, response_a=row.response_b, response_b=row.response_a) for row in rows]


@pytest.fixture
def rows(tmp_path: Path) -> list[ArenaRow]:
    """Ten rows, written as test.csv."""
    found = pair_rows(10, seed=4)
    write_arena_csv(tmp_path / "test.csv", found, labelled=False)
    return found


def test_the_submission_is_valid_and_holds_the_judges_probabilities(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = judged(tmp_path, tiny_language_model)
    ids = np.array([row.id for row in rows], dtype=object)
    assert predictions.ids.tolist() == ids.tolist() and predictions.labels == LABELS
    check_submission(tmp_path / "out" / "submission.csv", ids, ["id", *WINNERS])
    submission = pd.read_csv(tmp_path / "out" / "submission.csv")
    np.testing.assert_allclose(submission[WINNERS], predictions.probs, atol=1e-5)
    assert Predictions.read(tmp_path / "out" / "predictions.csv").ids.tolist() == ids.tolist()
    table = pd.read_parquet(tmp_path / "out" / "judge.parquet")
    np.testing.assert_array_equal(table[[f"p_{label}" for label in LABELS]], predictions.probs)
    assert table["swap_gap"].between(0, 2).all() and (table["swap_gap"] > 0.01).any()
    said = capsys.readouterr().out
    assert f"the two orders of a row disagree by {table['swap_gap'].mean():.3f}" in said
    assert "warning: most of the probability is not on the labels" in said and "valid" in said


def test_the_answer_is_the_mean_of_both_orders_read_plainly(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from infer.reference import reference_log_probs

    model = AutoModelForCausalLM.from_pretrained(tiny_language_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
    shares = []
    for swapped in (False, True):
        prompts = [FORM.format(**row_fields(row, swapped=swapped)) for row in rows[:3]]
        mass = np.exp(reference_log_probs(model, tokenizer, prompts, [" A", " B", " tie"]))
        shares.append(mass / mass.sum(axis=1, keepdims=True))
    predictions = judged(tmp_path, tiny_language_model, *PLAIN)
    np.testing.assert_allclose(predictions.probs[:3], (shares[0] + shares[1][:, [1, 0, 2]]) / 2, atol=1e-5)
    once = judged(tmp_path, tiny_language_model, *PLAIN, "question.permutations=none", out="once")
    np.testing.assert_allclose(once.probs[:3], shares[0], atol=1e-5)
    written = pd.read_parquet(tmp_path / "once" / "judge.parquet")
    assert "swap_gap" not in written and "spread" not in written


def test_answers_exchanged_in_the_file_exchange_their_probabilities(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str
) -> None:
    """Also of answers far too long, which are cut alike in both orders, and of one long and one short answer."""
    long = "the good film was dull " * 200
    rows = [*rows, replace(rows[0], id="1", response_a=(long,), response_b=("which is better",))]
    rows += [replace(rows[1], id="2", response_a=(long,), response_b=("bad plot and " * 300, "fine"))]
    for name, written in (("test.csv", rows), ("turned.csv", exchanged(rows))):
        write_arena_csv(tmp_path / name, written, labelled=False)
    given = judged(tmp_path, tiny_language_model)
    turned = judged(tmp_path, tiny_language_model, test="turned.csv", out="turned")
    np.testing.assert_allclose(given.probs, turned.probs[:, [1, 0, 2]], atol=1e-6)
    np.testing.assert_allclose(given.other, turned.other, atol=1e-6)
    cut = [pd.read_parquet(tmp_path / out / "judge.parquet")["cut_share"] for out in ("out", "turned")]
    np.testing.assert_array_equal(cut[0], cut[1])
    assert (cut[0][:-2] == 0).all() and (cut[0][-2:] > 0.3).all()


def test_a_judge_killed_in_the_middle_goes_on_to_the_same_bytes(
    warm: WarmCommands, tmp_path: Path, tiny_language_model: str
) -> None:
    write_arena_csv(tmp_path / "test.csv", pair_rows(60, seed=4), labelled=False)
    judged(tmp_path, tiny_language_model, out="whole")
    command, log = arguments(tmp_path, tiny_language_model, "report=false", out="killed"), tmp_path / "log"
    fifth = str(tmp_path / "killed" / "judge.parquet.parts" / "part-000004.*")
    assert warm.run("infer", *command, log=log, number=signal.SIGKILL, until=fifth)[0] == -signal.SIGKILL
    assert not (tmp_path / "killed" / "judge.parquet").exists()
    assert warm.run("infer", *command, log=log)[0] == 0, log.read_text()
    assert "20 rows were there already" in log.read_text()
    for name in ("judge.parquet", "judge.parquet.json", "predictions.csv", "submission.csv", "submission.csv.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_judge_reads_nothing_again(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judged(tmp_path, tiny_language_model)
    monkeypatch.setattr("models.causal.load_language_model", None)
    np.testing.assert_array_equal(judged(tmp_path, tiny_language_model).probs, first.probs)


def test_options_in_the_prompt_are_rotated_and_turn_with_the_answers(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str
) -> None:
    """Two answers of the same text then get the same probability: no side, no sign and no place is left to prefer."""
    same = [replace(row, response_b=row.response_a) for row in rows]
    write_arena_csv(tmp_path / "test.csv", same, labelled=False)
    predictions = judged(tmp_path, tiny_language_model, "question.answers=numbers")
    table = pd.read_parquet(tmp_path / "out" / "judge.parquet")
    assert table["spread"].between(0, 1).all() and (table["spread"] > 0.01).any()
    np.testing.assert_allclose(predictions.probs[:, 0], predictions.probs[:, 1], atol=1e-6)


def test_rows_that_cannot_be_computed_make_no_submission(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infer.forward.tree_log_probs import read_tree

    def broken(logits, *arguments, **settings):
        logits[len(logits) // 2 :] = float("nan")
        return read_tree(logits, *arguments, **settings)

    monkeypatch.setattr("infer.engine.read_tree", broken)
    with pytest.raises(ValueError, match=r"rows have no finite numbers, the first is id 100\d\d. Use engine.precision"):
        judged(tmp_path, tiny_language_model)
    assert not (tmp_path / "out" / "submission.csv").exists()
    assert not list(tmp_path.glob("out/judge.parquet*/part-*"))


def test_rows_read_in_one_order_for_lack_of_time_are_read_in_both_by_the_same_command(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Chunks of two: one in both orders, one in one, then the time is over; with time all is as unbroken."""
    small = "engine.chunk_rows=2"
    whole = judged(tmp_path, tiny_language_model, small, out="whole")
    orders, asked = judge._Judging.orders, []

    def hurried(self: judge._Judging) -> tuple[bool, ...]:
        asked.append(self)
        if len(asked) == 2:
            stopping.set_time_budget(-1e6)
        return orders(self)

    stopping.forget()
    stopping.set_time_budget(60)
    with monkeypatch.context() as patch:
        patch.setattr(judge._Judging, "orders", hurried)
        short = judged(tmp_path, tiny_language_model, small, "time_budget_minutes=60")
    stopping.forget()
    assert len(short) == 10 and len(asked) == 2 and not (tmp_path / "out" / "judge.parquet").exists()
    said = capsys.readouterr().out
    assert "is spent: 6 of 10 rows are not read and get the mean prediction, 2 are read in one order alone." in said
    assert counts_of(tmp_path) == ([("as given", 4), ("answers exchanged", 2)], 6)
    assert record_of(tmp_path)["filled"] == {"not read in time": [row.id for row in rows[4:]]}
    assert (
        Predictions.read(tmp_path / "out" / "predictions.csv").filled.tolist() == [None] * 4 + ["not read in time"] * 6
    )
    found = judged(tmp_path, tiny_language_model, small)
    np.testing.assert_array_equal(found.probs, whole.probs)
    assert counts_of(tmp_path) == ([("as given", 10), ("answers exchanged", 10)], 0)
    for name in ("judge.parquet", "predictions.csv", "submission.csv", "submission.csv.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('question.labels={model_a:" A",tie:" tie",model_b:" B"}', "arena has model_a, model_b, tie, in this order"),
        ("question.prompt=Which is better? {response_a} {options}", "both answers must be shown"),
        ("calibration.fit=contextual", "calibration.fit=contextual does nothing in an arena judge"),
        ("task.test_csv=nowhere.csv", "nowhere.csv does not exist"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    tmp_path: Path,
    rows: list[ArenaRow],
    tiny_language_model: str,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    said: str,
) -> None:
    monkeypatch.setattr("models.causal.load_language_model", None)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        judged(tmp_path, tiny_language_model, override)


def record_of(folder: Path) -> dict:
    return json.loads((folder / "out" / "submission.csv.json").read_text())


def counts_of(folder: Path) -> tuple[list[tuple[str, int]], int]:
    """([(order, rows read in it), ...], rows not read), by the record beside the submission."""
    record = record_of(folder)
    return [(one["order"], one["rows"]) for one in record["passes"]], record["rows_not_read"]


def test_the_submissions_record_is_that_of_trained_runs(
    tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str
) -> None:
    """Also of rows that could not be read, which get the mean and are named."""
    path = tmp_path / "test.csv"
    path.write_text(path.read_text() + '77,"[""unclosed","[""x""]","[""y""]"\n')
    judged(tmp_path, tiny_language_model, "task.on_bad_row=skip", "question.permutations=none")
    record = record_of(tmp_path)
    assert list(record) == [
        "identity", "temperature", "rows", "rows_not_read", "passes", "filled", "output", "predictions"
    ]  # fmt: skip
    assert record["passes"] == [{"model": tiny_language_model, "order": "as given", "rows": 10}]
    assert record["rows"] == 10 and record["filled"] == {"bad row": ["77"]} and record["temperature"] is None
    made = json.loads((tmp_path / "out" / "judge.parquet.json").read_text())
    assert record["identity"] == made["identity"]


def test_the_record_says_how_the_table_was_made(tmp_path: Path, rows: list[ArenaRow], tiny_language_model: str) -> None:
    judged(tmp_path, tiny_language_model)
    record = json.loads((tmp_path / "out" / "judge.parquet.json").read_text())
    assert record["rows"] == 10 and record["labels"] == list(LABELS) and record["cut_rows"] == 0
    assert record["identity"]["input"]["input"] == "test.csv" and "prompt_sha256" in record["reader"]
