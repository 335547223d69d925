"""What a command reads outlives it: no output, nor a file beside one, is put in the place of an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import compose, pair_rows, write_arena_csv
from text_runs import reviews

from infer.cli import _run as infer
from infer.compare.run import compare
from infer.cutoff_door import main as cutoffs
from infer.outputs import files_written, inputs_of, output_of, refuse_inputs_among
from infer.report.__main__ import main as report
from infer.report.run_folder import from_run
from infer.run import run
from infer.text_files import beside
from train.run import run as train


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


@pytest.mark.parametrize(
    ("output", "name"),
    [("run.v1.csv", "run.v1.labels.csv"), ("out.csv.gz", "out.labels.csv"), ("predictions.parquet", "labels.csv")],
)
def test_tables_whose_names_differ_after_a_dot_share_no_file(output: str, name: str) -> None:
    assert beside(Path(output), "labels.csv") == Path(name)


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


def test_a_comparison_replaces_its_own_table_and_nobody_elses(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("infer.compare.run.draw_rows", lambda *_: pytest.fail("work was begun"))
    (tmp_path / "out").mkdir()
    line = ["+experiment=reviews_compare", f"out_dir={tmp_path / 'out'}"]
    for name in ("fit.csv", "report.html", "comparison.csv"):
        (tmp_path / "out" / name).write_text("a person's")
        with pytest.raises(ValueError, match=f"{name} is there already"):
            compare(compose(*line), [])
        assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
        (tmp_path / "out" / name).unlink()
    for _ in range(2):  # with the record that the first leaves, they may be replaced
        with pytest.raises(pytest.fail.Exception):
            compare(compose(*line), [])
        (tmp_path / "out" / "fit.csv").write_text("drawn")
        (tmp_path / "out" / "comparison.csv").write_text("of an earlier comparison")
    (tmp_path / "mine.csv").write_text("a person's")
    with pytest.raises(ValueError, match=r"mine\.csv is there already"):
        compare(compose(*line, f"output={tmp_path / 'mine.csv'}"), [])


def test_a_blend_replaces_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.blend_runs._table", lambda *_: None)
    monkeypatch.setattr("infer.blend_runs.calibrated_heldout", lambda *_: None)
    (tmp_path / "heldout.csv").write_text("of a run")
    with pytest.raises(ValueError, match=r"heldout\.csv is there already"):
        run(compose("+experiment=arena_blend", "blend.runs=[a,b]", f"out_dir={tmp_path}"))
    assert [path.name for path in tmp_path.iterdir()] == ["heldout.csv"]


def test_the_default_table_follows_out_dir(tmp_path: Path) -> None:
    for experiment, name in (("reviews_soft", "predictions.parquet"), ("reviews_compare", "comparison.csv")):
        line = [f"+experiment={experiment}", f"out_dir={tmp_path}"]
        assert output_of(compose(*line)) == tmp_path / name
        assert output_of(compose(*line, "output=mine.csv")) == Path("mine.csv")


@pytest.mark.parametrize("key", ["doctor", "explore"])
@pytest.mark.parametrize("experiment", ["reviews_soft", "arena_length"])
def test_what_looks_before_training_is_refused_after_it(key: str, experiment: str) -> None:
    with pytest.raises(ValueError, match=rf"python -m train \+experiment={experiment} {key}=true"):
        infer(compose(f"+experiment={experiment}", f"{key}=true"))


def test_checkpoints_of_another_method_are_refused_and_a_page_names_no_network_that_was_not_used(
    tmp_path: Path,
) -> None:
    write_arena_csv(tmp_path / "train.csv", pair_rows(40))
    write_arena_csv(tmp_path / "test.csv", pair_rows(6), labelled=False)
    line = [f"run_dir={tmp_path / 'run'}", f"task.train_csv={tmp_path / 'train.csv'}", "folds.count=2",
            f"task.test_csv={tmp_path / 'test.csv'}"]  # fmt: skip
    train(compose("+experiment=arena_length", *line))
    assert "model" not in from_run(tmp_path / "run").about
    with pytest.raises(ValueError, match=r"checkpoint was made by method=length, not tfidf\. Take that"):
        run(compose("+experiment=arena_tfidf", *line))
    assert not (tmp_path / "run" / "submission.csv").exists()
    run(compose("+experiment=arena_length", *line))
    assert "model.name" not in (tmp_path / "run" / "submission.csv.json").read_text()


def test_the_commands_with_an_out_of_their_own_replace_no_table(tmp_path: Path, capsys) -> None:
    (tmp_path / "out.csv").write_text("id,label,p_a,p_b\n1,a,0.5,0.5\n")
    table = str(tmp_path / "out.csv")
    assert cutoffs([table, "--accuracy", "0.6", "-o", table]) == 2
    assert report([table, "--out", table]) == 2
    assert capsys.readouterr().err.count("which would replace") == 2
    (tmp_path / "mine.yaml").write_text("my: own\n")
    assert cutoffs([table, "--accuracy", "0.6", "-o", str(tmp_path / "mine.yaml")]) == 2
    assert "holds no cutoff" in capsys.readouterr().err and (tmp_path / "mine.yaml").read_text() == "my: own\n"
    assert (tmp_path / "out.csv").read_text().startswith("id,label")


@pytest.mark.parametrize("more", [["output=out.csv"], ["output=out.parquet"], ["output=out.csv", "spreadsheet=true"]])
def test_labels_that_are_gone_are_made_again_of_the_finished_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{word} {number}" for number in range(9) for word in ("=Python", "patience", "-tools")]
    rows = "".join(f"{name};{('Hard', 'Soft', 'Unknown')[at % 3]}\n" for at, name in enumerate(names))
    Path("in.csv").write_text(f"skill;label\n{rows}")
    line = ["+experiment=skills_tfidf", "task.input_csv=in.csv", "task.text_column=skill", "run_dir=run"]
    train(compose(*line, "folds.count=2"))
    run(compose(*line, "engine.chunk_rows=4", *more))
    before = Path("out.labels.csv").read_bytes()
    Path("out.labels.csv").unlink()
    monkeypatch.setattr("infer.text_reading.load_reader", lambda *_: pytest.fail("the rows were read again"))
    run(compose(*line, "engine.chunk_rows=4", *more))
    assert Path("out.labels.csv").read_bytes() == before and before.count(b"\n") == 28
