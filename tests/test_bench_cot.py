"""`scripts/bench/cot_against_soft.py` on a network of two layers: both ways on the same rows, in one table."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
bench = importlib.import_module("cot_against_soft")


def options(folder: Path, model: str, *more: str) -> object:
    skills = "".join(f"Skill {number};{('Hard', 'Soft')[number % 2]}\n" for number in range(9))
    (folder / "skills.csv").write_text("Skill;label\n" + skills)
    given = ["--model", model, "--input", str(folder / "skills.csv"), "--rows", "6", "--new-tokens", "5"]
    return bench.parse([*given, *more])


def test_both_ways_read_the_same_rows(tmp_path: Path, tiny_language_model: str) -> None:
    lines, figures = bench.compare(options(tmp_path, tiny_language_model))
    assert [one.way for one in lines] == [bench.SOFT, bench.CHAIN, bench.LAST_WORD]
    assert all(one.rows_per_s == pytest.approx(6 / one.seconds) for one in lines)
    assert lines[0].log_loss != lines[1].log_loss and lines[2].log_loss is None
    assert all(one.macro_f1 is not None for one in lines)
    assert figures["rows"] == 6 and 0 <= figures["agree"] <= 1


def test_the_table_says_how_many_times_as_fast() -> None:
    lines = [bench.Line(bench.SOFT, 1.0, 40.0, 0.5, 0.25, 1.0, 0.75), bench.Line(bench.CHAIN, 20.0, 2.0)]
    assert bench.table(lines)[2:] == [
        f"| {bench.SOFT} | 40.00 | 20.0 | 1.000 | 0.750 | 0.250 | 0.500 |",
        f"| {bench.CHAIN} | 2.00 | 1.0 | - | - | - | - |",
    ]


def test_the_sample_is_the_seeds(tmp_path: Path, tiny_language_model: str) -> None:
    settings = bench.settings_of(options(tmp_path, tiny_language_model), "skills")
    drawn = [[row.fields["text"] for row in bench.sample(settings, 6, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 6
