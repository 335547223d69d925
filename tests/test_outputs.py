"""What a command reads outlives it: no output, nor a file beside one, is put in the place of an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import compose, pair_rows, write_arena_csv
from text_runs import reviews

from infer.compare.run import compare
from infer.cutoff_door import main as cutoffs
from infer.outputs import files_written, inputs_of, refuse_inputs_among
from infer.report.__main__ import main as report
from infer.run import run


def skills(folder: Path, name: str) -> Path:
    """A table of labelled skills: a person's work."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("skill;label\nPython;Hard\npatience;Soft\n")
    return path


def refused(settings, *paths: Path) -> str:
    """What the refusal says; the files are as they were, and no other is there."""
    before = {path: path.read_bytes() for path in paths}
    beside = set(paths[0].parent.iterdir())
    with pytest.raises(ValueError, match="which would replace") as told:
        run(settings)
    assert {path: path.read_bytes() for path in paths} == before and set(paths[0].parent.iterdir()) == beside
    return str(told.value)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("labels.csv", "predictions.csv"), ("out.labels.csv", "out.csv"), ("out.csv", "out.csv"),
        ("bad_rows.csv", "predictions.parquet"), ("out.csv.json", "out.csv"), ("o[1].csv", "o[1].csv"),
        ("out.csv.parts/in.csv", "out.csv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["task.input_csv", "task.train_csv", "calibration.use", "decision"])
def test_a_table_or_a_file_beside_it_is_never_an_input(tmp_path: Path, name: str, output: str, key: str) -> None:
    mine = skills(tmp_path, name)
    settings = compose("+experiment=skills_tfidf", f"{key}={mine}", f"output={tmp_path / output}")
    assert f"{key}={mine} is read" in refused(settings, mine)


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("linked", ["the input", "the output"])
def test_links_of_either_kind_are_seen_through(tmp_path: Path, link, linked: str) -> None:
    names = ("elsewhere/in.csv", "labels.csv")
    mine, other = names if linked == "the output" else names[::-1]
    real = skills(tmp_path, mine)
    (tmp_path / other).parent.mkdir(exist_ok=True)
    link(real, tmp_path / other)
    given = tmp_path / "elsewhere" / "in.csv"
    settings = compose("+experiment=skills_tfidf", f"task.input_csv={given}", f"output={tmp_path / 'predictions.csv'}")
    refused(settings, real)


def test_another_folder_of_the_same_name_is_nobodys_input(tmp_path: Path) -> None:
    mine = skills(tmp_path, "in/labels.csv")
    settings = compose("+experiment=skills_tfidf", f"task.input_csv={mine}", f"output={tmp_path / 'predictions.csv'}")
    refuse_inputs_among(inputs_of(settings), files_written(settings), "output=...")


@pytest.mark.parametrize("name", ["predictions.csv", "submission.csv", "bad_test_rows.csv", "infer.log"])
@pytest.mark.parametrize("key", ["task.test_csv", "task.sample_csv", "task.train_csv"])
def test_an_answer_for_the_arena_replaces_no_input(tmp_path: Path, name: str, key: str) -> None:
    write_arena_csv(tmp_path / name, pair_rows(6), labelled=False)
    out = f"out_dir={tmp_path}"
    refused(compose("+experiment=arena_length", f"{key}={tmp_path / name}", out), tmp_path / name)
    assert "Set another out_dir=..." in refused(
        compose("+experiment=arena_judge", f"{key}={tmp_path / name}", out), tmp_path / name
    )


def test_a_blend_does_not_replace_a_run_that_it_blends(tmp_path: Path) -> None:
    heldout = tmp_path / "a" / "heldout.csv"
    heldout.parent.mkdir()
    heldout.write_text("id\n")
    runs = f"blend.runs=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    refused(compose("+experiment=arena_blend", runs, f"out_dir={tmp_path / 'a'}"), heldout)


@pytest.mark.parametrize("name", ["test.csv", "fit.csv", "ways/tfidf/predictions.csv", "comparison.csv"])
def test_a_comparison_draws_its_rows_into_no_input(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    reviews(12).to_csv(tmp_path / name, index=False)
    before = (tmp_path / name).read_bytes()
    line = ["+experiment=reviews_compare", f"task.input_csv={tmp_path / name}", f"out_dir={tmp_path}",
            f"output={tmp_path / 'comparison.csv'}"]  # fmt: skip
    with pytest.raises(ValueError, match="which would replace"):
        compare(compose(*line), [])
    assert (tmp_path / name).read_bytes() == before


def test_the_commands_with_an_out_of_their_own_replace_no_table(tmp_path: Path, capsys) -> None:
    (tmp_path / "out.csv").write_text("id,label,p_a,p_b\n1,a,0.5,0.5\n")
    table = str(tmp_path / "out.csv")
    assert cutoffs([table, "--accuracy", "0.6", "-o", table]) == 2
    assert report([table, "--out", table]) == 2
    assert capsys.readouterr().err.count("which would replace") == 2
    assert (tmp_path / "out.csv").read_text().startswith("id,label")
