"""scripts/merge_adapter.py: an ordinary model comes out, and what merging changed is said truly."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_adapter_runs import finish, skills, taught, text_data

from infer.adapter import AdapterClassifier
from infer.metrics import score
from infer.predictions import Predictions
from infer.readers.by_method import load_label_reader
from models import adapter_base
from train.folds import write_folds


@pytest.fixture(autouse=True)
def no_base_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_base, "_base", None)


def merge_script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import merge_adapter
    finally:
        sys.path.pop(0)
    return merge_adapter


def write_rows(path: Path, rows, text_column: str = "Skill") -> str:
    lines = [f"{row.id};{row.fields['text']};{row.label}\n" for row in rows]
    path.write_text(f"id;{text_column};label\n" + "".join(lines))
    return str(path)


def test_merging_writes_an_ordinary_model_and_says_what_changed(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture
) -> None:
    settings, data = skills(tmp_path, tiny_language_model), text_data()
    folders = [str(finish(tmp_path, fold, taught(settings, data, steps=2 + fold))) for fold in (0, 1)]
    main = merge_script().main
    table = write_rows(tmp_path / "rows.csv", data.rows.rows)
    given = ["--rows", table, "--text-column", "Skill", "--precision", "fp32"]
    assert main([folders[0], str(tmp_path / "merged"), *given]) == 0
    said = capsys.readouterr().out
    assert "12 labelled rows" in said and "a probability moved by 0.0000 on average" in said
    merged = load_label_reader(skills(tmp_path, str(tmp_path / "merged"))).read([row.fields for row in data.rows.rows])
    reader = AdapterClassifier.load(Path(folders[0]))
    probs = reader.predict_proba(data.rows.rows)
    np.testing.assert_allclose(merged.probs(), probs, atol=1e-5)
    figures = score(Predictions(data.rows.ids, data.rows.labels, probs, np.zeros(12), data.rows.truth), bootstrap=0)
    told = re.search(r"log loss +(\S+) +(\S+)", said)
    assert told is not None and [float(one) for one in told.groups()] == pytest.approx(
        [figures["log_loss"]] * 2, abs=1e-4
    )
    assert main([*folders, str(tmp_path / "mean"), "--average", *given]) == 0
    assert (tmp_path / "mean" / "model.safetensors").is_file()


def test_a_table_whose_text_column_is_not_clear_is_refused_by_its_columns(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture
) -> None:
    settings, data = skills(tmp_path, tiny_language_model), text_data()
    folder = str(finish(tmp_path, 0, taught(settings, data, steps=2)))
    table = write_rows(tmp_path / "rows.csv", data.rows.rows, "Job")
    main = merge_script().main
    assert main([folder, str(tmp_path / "merged"), "--rows", table]) == 2
    assert "has the columns id, Job, label: it is not clear" in capsys.readouterr().err
    assert main([folder, str(tmp_path / "merged"), "--rows", table, "--text-column", "job"]) == 2
    assert "has no column 'job'" in capsys.readouterr().err


@pytest.mark.parametrize("known", ["texts", "ids", "nothing"])
def test_rows_that_were_trained_on_are_counted_where_the_run_tells(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture, known: str
) -> None:
    """12 rows in two folds; the table has the 12: fold 0 has learnt the 6 of fold 1, and the mean all of them."""
    settings, data = skills(tmp_path, tiny_language_model), text_data()
    folders = [finish(tmp_path, fold, taught(settings, data, steps=2)) for fold in (0, 1)]
    data.rows.ids[:] = [f"s{row}" for row in data.rows.ids]
    run = tmp_path / "run"
    if known != "nothing":
        write_folds(run / "folds.csv", data.rows, data.folds)
    if known == "texts":
        written = write_rows(tmp_path / "trained.csv", [_renamed(row) for row in data.rows.rows])
        task = {"name": "skills", "input_csv": written, "train_csv": None, "id_column": "auto", "text_column": "Skill",
                "label_column": "auto", "keep_columns": [], "target_columns": None, "only_column": "Kind",
                "only_value": "x"}  # fmt: skip
        (run / "config.yaml").write_text(yaml.safe_dump({"task": task}))
        rows = [*data.rows.rows]  # other ids, the same texts
    else:
        rows = [_renamed(row) for row in data.rows.rows]
    table = write_rows(tmp_path / "rows.csv", rows)
    main, given = merge_script().main, ["--rows", table, "--text-column", "Skill", "--precision", "fp32"]
    for arguments, count in (([folders[0]], 6), (["--average", *folders], 12)):
        assert main([*map(str, arguments), str(tmp_path / f"merged{count}"), *given]) == 0
        said = capsys.readouterr().err
        if known == "nothing":
            assert "does not tell which rows" in said
        else:
            assert f"warning: {count} of the 12 labelled rows" in said


def test_held_out_rows_of_a_fold_bring_no_warning(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture
) -> None:
    settings, data = skills(tmp_path, tiny_language_model), text_data()
    folder = finish(tmp_path, 0, taught(settings, data, steps=2))
    data.rows.ids[:] = [f"s{row}" for row in data.rows.ids]
    write_folds(tmp_path / "run" / "folds.csv", data.rows, data.folds)
    held_out = [_renamed(row) for row, fold in zip(data.rows.rows, data.folds, strict=True) if fold == 0]
    table = write_rows(tmp_path / "rows.csv", held_out)
    assert merge_script().main([str(folder), str(tmp_path / "m"), "--rows", table, "--text-column", "Skill"]) == 0
    said = capsys.readouterr()
    assert "6 labelled rows" in said.out and "warning" not in said.err and "note" not in said.err


def _renamed(row):
    from dataclasses import replace

    return replace(row, id=f"s{row.id}")


def test_the_trained_model_is_gone_before_the_one_to_merge_is_loaded(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings, data = skills(tmp_path, tiny_language_model), text_data()
    folder = finish(tmp_path, 0, taught(settings, data, steps=2))  # in fp32
    monkeypatch.setattr(adapter_base, "_base", None)
    gc.collect()
    load, seen, alive = adapter_base.load_language_model, [], []

    def counted(*given, **how):
        alive.append(sum(one() is not None for one, _ in seen))
        loaded = load(*given, **how)
        seen.append((weakref.ref(loaded.model), how["precision"]))
        return loaded

    monkeypatch.setattr(adapter_base, "load_language_model", counted)
    table = write_rows(tmp_path / "rows.csv", data.rows.rows)
    given = ["--rows", table, "--text-column", "Skill", "--precision", "bf16"]
    assert merge_script().main([str(folder), str(tmp_path / "merged"), *given]) == 0
    assert [precision for _, precision in seen] == ["fp32", "bf16"] and alive == [0, 0]
    assert "as trained (none, fp32)   merged (bf16)" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [True, False])
def test_a_base_that_is_stored_in_4_bits_is_not_merged_into(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: bool
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[gpu]'")
    from tiny_models import make_tokenizer, tiny_causal

    from models.causal import load_language_model

    plain, stored = tmp_path / "plain", tmp_path / "stored"
    tiny_causal("llama", 448, hidden_size=64, intermediate_size=128).save_pretrained(plain)
    make_tokenizer().save_pretrained(plain)
    load_language_model(str(plain), precision="fp32", quantization="nf4").model.save_pretrained(stored)
    make_tokenizer().save_pretrained(stored)
    settings, data = skills(tmp_path, str(stored)), text_data()
    folder = finish(tmp_path, 0, taught(settings, data, steps=2))
    given = ["--precision", "fp32"]
    if rows:
        given += ["--rows", write_rows(tmp_path / "rows.csv", data.rows.rows), "--text-column", "Skill"]
    assert merge_script().main([str(folder), str(tmp_path / "merged"), *given]) == 2
    assert "is stored in 4 bits: merging there rounds the sum to 4 bits again" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["c", "d", "out"], "add --average"),
        (["c", "d", "out", "--average"], "--average needs --rows"),
        (["c", "out"], "is no Tiebreak checkpoint"),
    ],
)
def test_a_wrong_merge_is_refused_with_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert merge_script().main(arguments) == 2
    assert said in capsys.readouterr().err
