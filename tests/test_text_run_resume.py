"""`python -m infer` on tables of texts, killed, started again, and on two processes: the bytes of an unbroken run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, compose, free_port
from text_runs import arguments, both_files, read, reviews, settings_of
from warm_commands import WarmCommands

from infer.run import run
from infer.text_run import reading_identity


def test_a_run_that_is_told_to_stop_twice_ends_in_the_same_bytes(
    warm: WarmCommands, tmp_path: Path, tiny_language_model: str
) -> None:
    """By a spot machine's SIGTERM, then by Ctrl-C. Kills at any moment: tests/test_infer_kills.py."""
    reviews(800).to_csv(tmp_path / "in.csv", index=False)
    command, log = arguments(tmp_path, tiny_language_model, output="stopped.csv"), tmp_path / "log"
    parts = tmp_path / "stopped.csv.parts"
    for number, code, enough in ((signal.SIGTERM, 143, 10), (signal.SIGINT, 130, 20)):
        until = str(parts / f"part-{enough - 1:06d}.*")
        assert warm.run("infer", *command, log=log, number=number, until=until)[0] == code, log.read_text()
        there = len(list(parts.glob("part-*")))
        assert there == enough
        said = f"Stopped by {number.name}: {there * 8} of 800 rows are read and kept in {parts}. The same"
        assert said in log.read_text()
    log.unlink()
    whole, stopped = tmp_path / "whole.csv", tmp_path / "stopped.csv"
    for output in (whole, stopped):
        run(settings_of(tmp_path, tiny_language_model, output=output.name))
    assert both_files(stopped) == both_files(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.csv", "stopped.csv", "stopped.csv.json", "whole.csv", "whole.csv.json"
    ]  # fmt: skip


def test_a_finished_run_is_not_read_again(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(10).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model))
    first, said = both_files(tmp_path / "out.csv"), capsys.readouterr().out.splitlines()
    monkeypatch.setattr("models.causal.load_language_model", None)
    run(settings_of(tmp_path, tiny_language_model, "engine.budget_tokens=64"))  # how fast, not what
    again = capsys.readouterr().out.splitlines()
    assert again[0] == f"{tmp_path / 'out.csv'} is finished already"
    read = next(number for number, line in enumerate(said) if " rows read in " in line)
    assert again[1:] == said[read + 1 :]  # the same report, without the lines of reading
    assert both_files(tmp_path / "out.csv") == first


def test_an_output_made_otherwise_is_not_overwritten(tmp_path: Path, tiny_language_model: str, monkeypatch) -> None:
    reviews(10).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model))
    monkeypatch.setattr("models.causal.load_language_model", None)
    with pytest.raises(ValueError, match=r"question\.prompt \(\"Review: \{text\}.*Delete it, or name another output"):
        read(tmp_path, tiny_language_model, "question.prompt=Film: {text}\\nSentiment:")
    reviews(11).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match=r"input\.input_bytes"):
        read(tmp_path, tiny_language_model)


def test_a_refused_question_does_not_stand_in_the_way_of_its_mended_form(
    tmp_path: Path, tiny_language_model: str
) -> None:
    reviews(10).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match="one is the beginning of the other"):
        read(tmp_path, tiny_language_model, 'question.labels={positive:" positive film",negative:" positive"}')
    assert len(read(tmp_path, tiny_language_model)) == 10


def test_two_processes_give_the_bytes_of_one(warm: WarmCommands, tmp_path: Path, tiny_language_model: str) -> None:
    """And started again on a finished output they read nothing and leave nothing behind."""
    reviews(59).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, output="one.parquet"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "infer"]
    command = arguments(tmp_path, tiny_language_model, output="two.parquet")
    environment = os.environ | {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    for expected in ("rows read in", "two.parquet is finished already"):
        if expected == "rows read in":
            done = subprocess.run(
                [*launcher, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment
            )
            assert done.returncode == 0, done.stderr[-3000:]
            said = done.stdout
        else:
            said = warm.ranks("infer", *command, log=tmp_path / "log")
        assert expected in said and said.count("median mass on the labels") == 1
        assert both_files(tmp_path / "two.parquet") == both_files(tmp_path / "one.parquet")
        assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.parquet", "two.parquet.json"]


def test_a_chunk_is_as_long_for_every_method_as_when_the_parts_were_made(minilm: str) -> None:
    """Else a run that goes on with another engine.chunk_rows would join parts that overlap or leave rows out."""
    given = ["+experiment=reviews_descriptions"]
    of_rows = [reading_identity(compose(*given, f"engine.chunk_rows={rows}")) for rows in (8, 9)]
    assert of_rows[0] != of_rows[1]
