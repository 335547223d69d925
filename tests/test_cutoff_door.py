"""`python -m infer.cutoffs`: the file it writes is the cutoff asked for, judged on other rows; what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_cutoffs import LABELS, drawn

from infer.cutoff_door import main
from infer.cutoff_fits import cheapest, for_accuracy, for_precision, for_recall
from infer.cutoffs import Cutoff, judge, read_cutoff, write_cutoff
from infer.predictions import Predictions


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """(400 labelled rows, 400 others)."""
    paths = tmp_path / "fit.parquet", tmp_path / "others.csv"
    for seed, path in enumerate(paths):
        drawn(seed=seed).write(path)
    return paths


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("--label yes --precision 0.8", lambda rows: for_precision(rows, "yes", 0.8)),
        ("--label yes --precision 0.9 --confidence 0.5", lambda rows: for_precision(rows, "yes", 0.9, confidence=0.5)),
        ("--label yes --recall 0.9", lambda rows: for_recall(rows, "yes", 0.9)),
        ("--accuracy 0.8", lambda rows: for_accuracy(rows, 0.8)),
        ("--label yes --false-alarm 1 --miss 5", lambda rows: cheapest(rows, "yes", false_alarm=1, miss=5)),
        (
            "--label yes --false-alarm 1 --miss 5 --person 0.3",
            lambda rows: cheapest(rows, "yes", false_alarm=1, miss=5, person=0.3),
        ),
    ],
)
def test_what_is_asked_for_is_written_and_judged_on_both_tables(
    asked: str, expected, tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, others = tables
    assert main([str(fit), *asked.split(), "-o", str(tmp_path / "decision.yaml"), "--judge", str(others)]) == 0
    cutoff = read_cutoff(tmp_path / "decision.yaml", LABELS)
    assert cutoff == expected(Predictions.read(fit))
    lines = capsys.readouterr().out.splitlines()
    for line, path in ((lines[1], fit), (lines[2], others)):
        found = judge(cutoff, Predictions.read(path))
        assert line.startswith(str(path)) and f"400 rows, {found['answered']:.1%} answered" in line
        assert f"precision {found['precision']:.3f}, recall {found['recall']:.3f}, f1 {found['f1']:.3f}" in line
    assert "chosen on" in lines[1] and "chosen on" not in lines[2]


def test_a_cutoff_of_the_report_is_judged_without_a_new_one(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cutoff(tmp_path / "decision.yaml", Cutoff(LABELS, "yes", 0.75, 0.25), rows=7)
    before = (tmp_path / "decision.yaml").read_bytes()
    assert main([str(tables[1]), "--decision", str(tmp_path / "decision.yaml")]) == 0
    assert "yes where its probability is 0.75 or more, the likeliest other label below 0.25" in capsys.readouterr().out
    assert (tmp_path / "decision.yaml").read_bytes() == before


def test_rows_without_a_label_or_an_answer_are_left_out(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = Predictions.read(tables[0]).to_frame()
    frame.loc[:9, "label"] = None
    frame.loc[10:14, [f"p_{label}" for label in LABELS]] = np.nan
    frame.to_parquet(tmp_path / "some.parquet")
    assert main([str(tmp_path / "some.parquet"), "--accuracy", "0.8"]) == 0
    assert ": 385 rows" in capsys.readouterr().out.replace(" (those it was chosen on)", "")


def test_a_finished_runs_rows_are_taken_at_its_temperature(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The temperature that python -m infer applies before it decides: half of each log-probability here."""
    rows = drawn()
    flat = rows.probs64() ** 0.5
    run = tmp_path / "run"
    run.mkdir()
    table = replace(rows, probs=(flat / flat.sum(axis=1, keepdims=True)).astype(np.float32), fold=np.arange(400) % 5)
    table.write(run / "heldout.csv")
    (run / "metrics.json").write_text(json.dumps({"temperature": 0.5}))
    (run / "config.yaml").write_text("task: {name: text}")
    assert main([str(run), "--label", "yes", "--precision", "0.8", "-o", str(tmp_path / "run.yaml")]) == 0
    calibrated = for_precision(rows, "yes", 0.8).at_least
    assert read_cutoff(tmp_path / "run.yaml", LABELS).at_least == pytest.approx(calibrated, abs=0.02)
    assert for_precision(table, "yes", 0.8).at_least < calibrated - 0.05, "what the raw rows would have said"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "Nothing asked for, expected one of --precision"),
        ("--label yes --precision 0.8 --recall 0.8", "--precision and --recall asked for"),
        ("--precision 0.8", "--precision takes a label: --label NAME"),
        ("--label yes --accuracy 0.8", "--accuracy takes no --label"),
        ("--label yes --miss 3", "Give both"),
        ("--label maybe --precision 0.8", "label is 'maybe', expected one of no, yes"),
        ("--label yes --precision 0.9999", "labelled rows would show it"),
        ("--accuracy 0.8 --judge none.csv", "none.csv"),
    ],
)
def test_what_cannot_be_found_is_refused_in_a_line_and_nothing_is_written(
    asked: str, said: str, tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tables[0]), *asked.split(), "-o", str(tmp_path / "decision.yaml")]) == 2
    told = capsys.readouterr()
    assert said in told.err and not told.out and not (tmp_path / "decision.yaml").exists()


def test_a_table_without_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace(drawn(20), truth=None).write(tmp_path / "unlabelled.csv")
    assert main([str(tmp_path / "unlabelled.csv"), "--accuracy", "0.8"]) == 2
    assert "has no row with a true label" in capsys.readouterr().err


def test_the_door_opens_from_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "infer.cutoffs", "--help"], capture_output=True, text=True, check=True)
    assert "--label positive --precision 0.95 -o decision.yaml" in done.stdout and not done.stderr


def test_a_runs_table_from_before_its_temperature_is_refused_for_its_folder(tmp_path: Path) -> None:
    from infer.cutoff_door import read_labelled

    (tmp_path / "calibration.json").write_text('{"method": "temperature", "temperature": 0.75}')
    (tmp_path / "heldout.csv").write_text("id,p_no,p_yes,p_other,label\na,0.4,0.6,0,yes\n")
    with pytest.raises(ValueError, match="before the run's temperature"):
        read_labelled(tmp_path / "heldout.csv")
    (tmp_path / "calibration.json").write_text('{"method": "temperature", "temperature": 1.0}')
    assert len(read_labelled(tmp_path / "heldout.csv")) == 1
