"""The road of a table whatever reads it: the reader by method, notes, labels.csv, decisions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from conftest import compose
from text_rows import LABELS, skill_rows

from infer.classifiers import make_classifier, save_classifier
from infer.files import write_json
from infer.readers.by_method import identify, reader_kind
from infer.readers.label import LabelReading
from infer.run import run
from infer.thresholds import Decision, write_decision
from models.settings import MethodSettings


def skills_settings(folder: Path, *overrides: str, source: str = "in.csv", output: str = "out.csv") -> Any:
    return compose(
        "+experiment=skills_soft", f"task.input_csv={folder / source}", f"output={folder / output}",
        f"run_dir={folder / 'run'}", "engine.chunk_rows=4", *overrides,
    )  # fmt: skip


def write_skills(folder: Path, count: int = 10) -> pd.DataFrame:
    rows, index = skill_rows(count)
    texts = [f"{row.fields['text']} {at}" for at, row in enumerate(rows)]
    table = pd.DataFrame({"Skill": texts, "label": np.array(LABELS, dtype=object)[index]})
    table.to_csv(folder / "in.csv", sep=";", index=False)
    return table


def trained_run(folder: Path, *, method: str = "tfidf", folds: int = 2, temperature: float | None = None) -> list[Any]:
    """A run folder as training leaves it, with a classifier for each fold."""
    rows, index = skill_rows(60)
    made = []
    for fold in range(folds):
        part = np.arange(60) % 3 != fold
        classifier = make_classifier(MethodSettings(name=method, embeddings="no"), seed=fold, labels=LABELS)
        classifier.fit([row for row, keep in zip(rows, part, strict=True) if keep], index[part])
        save_classifier(classifier, folder / "run" / f"fold{fold}" / "checkpoint", task="skills", method=method)
        (folder / "run" / f"fold{fold}" / "done.json").write_text("{}")
        made.append(classifier)
    if temperature is not None:
        content = {"method": "temperature", "temperature": temperature, "labels": LABELS, "rows": 60}
        write_json(folder / "run" / "calibration.json", content)
    return made


class FixedReader:
    """Says of each skill what its number asks for, and notes it."""

    labels = LABELS
    identity: ClassVar[dict] = {"name": "fixed"}
    loads = 0

    def read(self, rows, *, names=(), progress=False) -> LabelReading:
        numbers = [int(row["text"].split()[-1]) for row in rows]
        probs = np.array([[0.6, 0.3, 0.1] if number % 2 else [0.2, 0.3, 0.5] for number in numbers]) * 0.9
        notes = [{"reasoning": f"Schritt {number} für", "cut": bool(number % 2)} for number in numbers]
        return LabelReading(np.log(probs), np.zeros(len(rows)), notes=notes)


@pytest.fixture
def fixed_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    FixedReader.loads = 0

    def load(settings) -> FixedReader:
        FixedReader.loads += 1
        return FixedReader()

    monkeypatch.setattr("infer.text_reading.load_reader", load)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ((), "label"),
        (("method=chain_of_thought",), "reasoning"),
        (("method=adapter",), "label"),
        (("method=adapter", "adapter.use=run"), "adapter"),
        (("method=adapter", "adapter.use=none"), "label"),
        (("method=tfidf",), "fitted"),
        (("method=embedding_logistic",), "fitted"),
    ],
)
def test_the_method_says_what_reads(tmp_path: Path, overrides: tuple[str, ...], kind: str) -> None:
    assert reader_kind(skills_settings(tmp_path, *overrides)) == kind


def test_an_adapter_is_used_as_soon_as_a_fold_is_finished(tmp_path: Path) -> None:
    trained_run(tmp_path, method="prior", folds=1)
    assert reader_kind(skills_settings(tmp_path, "method=adapter")) == "adapter"
    assert reader_kind(skills_settings(tmp_path, "method=adapter", "adapter.use=none")) == "label"


def test_fitted_classifiers_read_a_table_by_their_mean_and_temperature(tmp_path: Path) -> None:
    from infer.calibration.temperature import floored_softmax

    written = write_skills(tmp_path)
    classifiers = trained_run(tmp_path, temperature=2.0)
    run(skills_settings(tmp_path, "method=tfidf"))
    table = pd.read_csv(tmp_path / "out.csv")
    rows, _ = skill_rows(10)
    texts = [type(row)(row.id, {"text": text}, None, {}, "") for row, text in zip(rows, written["Skill"], strict=True)]
    mean = np.mean([one.predict_proba(texts) for one in classifiers], axis=0)
    expected = floored_softmax(np.log(mean) / 2)
    np.testing.assert_allclose(table[["p_Hard", "p_Soft", "p_Unknown"]], expected, atol=1e-6)
    assert table["label"].tolist() == written["label"].tolist() and table["p_other"].abs().max() < 1e-6


def test_a_table_of_other_checkpoints_is_another_table(tmp_path: Path) -> None:
    write_skills(tmp_path)
    trained_run(tmp_path)
    settings = skills_settings(tmp_path, "method=tfidf")
    first = identify(settings)
    run(settings)
    assert identify(settings) == first
    write_json(tmp_path / "run" / "calibration.json",
               {"method": "temperature", "temperature": 2.0, "labels": LABELS, "rows": 60})  # fmt: skip
    with pytest.raises(ValueError, match=r"made otherwise: they differ in temperature"):
        run(settings)
    trained_run(tmp_path, method="prior")
    assert identify(settings)["checkpoints"] != first["checkpoints"]
    with pytest.raises(ValueError, match="was made by method=prior, not tfidf"):
        run(skills_settings(tmp_path, "method=tfidf", output="other.csv"))


def test_checkpoints_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    write_skills(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no finished fold. Train first"):
        run(skills_settings(tmp_path, "method=tfidf"))
    with pytest.raises(ValueError, match=r"calibration.fit=pmi asks the model about texts without content"):
        run(skills_settings(tmp_path, "method=tfidf", "calibration.fit=pmi"))


def test_skills_get_their_labels_in_a_file_and_the_counts_are_said(
    tmp_path: Path, fixed_reader: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repeat is left out and said so; chunks and their rows stay in order."""
    written = write_skills(tmp_path)
    with (tmp_path / "in.csv").open("a") as stream:
        stream.write(f"{written['Skill'][3].upper()};Soft\n")
    run(skills_settings(tmp_path))
    labels = pd.read_csv(tmp_path / "out.labels.csv")
    assert list(labels.columns) == ["skill", "label", "p_Hard", "p_Soft", "p_Unknown", "p_other"]
    assert labels["skill"].tolist() == written["Skill"].tolist()
    assert labels["label"].tolist() == ["Unknown", "Hard"] * 5
    np.testing.assert_allclose(labels[["p_Hard", "p_Soft", "p_Unknown"]].iloc[1], [0.6, 0.3, 0.1], atol=1e-6)
    np.testing.assert_allclose(labels["p_other"], 0.1, atol=1e-6)
    said = capsys.readouterr().out
    assert "labels chosen: Hard 5, Soft 0, Unknown 5" in said and "10 rows from" in said
    assert "1 rows left out: repeats an earlier skill with another label" in said
    assert json.loads((tmp_path / "out.csv.json").read_text())["predicted"] == {"Hard": 5, "Soft": 0, "Unknown": 5}


def test_notes_come_out_as_one_line_a_row_also_after_a_kill(
    tmp_path: Path, fixed_reader: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_skills(tmp_path)
    read = FixedReader.read

    def killed(self, rows, **names) -> LabelReading:
        if any(row["text"].endswith(" 9") for row in rows):
            raise KeyboardInterrupt
        return read(self, rows, **names)

    monkeypatch.setattr(FixedReader, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        run(skills_settings(tmp_path))
    assert not (tmp_path / "out.reasoning.jsonl").exists()
    monkeypatch.setattr(FixedReader, "read", read)
    run(skills_settings(tmp_path))
    notes = [json.loads(line) for line in (tmp_path / "out.reasoning.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [note["text"] for note in notes] == written["Skill"].tolist()
    assert notes[3] == {"id": "3", "text": written["Skill"][3], "reasoning": "Schritt 3 für", "cut": True}
    assert "notes" not in json.loads((tmp_path / "out.csv.json").read_text()) and FixedReader.loads == 2


def test_a_decision_chooses_the_label_and_leaves_the_probabilities(
    tmp_path: Path, fixed_reader: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_skills(tmp_path)
    run(skills_settings(tmp_path, output="plain.csv"))
    write_decision(tmp_path / "d.json", Decision(LABELS, np.array([0.2, 1.0, 0.2]), "macro_f1", 9, 0.4, 0.5))
    capsys.readouterr()
    run(skills_settings(tmp_path, f"decision={tmp_path / 'd.json'}"))
    plain, decided = pd.read_csv(tmp_path / "plain.csv"), pd.read_csv(tmp_path / "out.csv")
    columns = ["id", "p_Hard", "p_Soft", "p_Unknown", "logp_Soft"]
    pd.testing.assert_frame_equal(plain[columns], decided[columns])
    assert plain["predicted"].unique().tolist() == ["Unknown", "Hard"]
    assert decided["predicted"].unique().tolist() == ["Soft"]
    np.testing.assert_allclose(decided["confidence"], decided["p_Soft"], atol=1e-7)
    assert "macro-F1 of the labels chosen" in capsys.readouterr().out
    write_decision(tmp_path / "d.json", Decision(LABELS, np.array([1.0, 0.1, 0.2]), "macro_f1", 9, 0.4, 0.5))
    with pytest.raises(ValueError, match=r"they differ in decision.input_sha256"):
        run(skills_settings(tmp_path, f"decision={tmp_path / 'd.json'}"))


def test_two_tables_of_one_folder_have_files_of_their_own(tmp_path: Path) -> None:
    from infer.text_files import beside

    assert beside(tmp_path / "predictions.csv.gz", "labels.csv") == tmp_path / "labels.csv"
    assert beside(tmp_path / "a.csv", "labels.csv") == tmp_path / "a.labels.csv"
    assert beside(tmp_path / "labels.csv", "labels.csv") == tmp_path / "labels.labels.csv"


def test_a_tiny_model_reads_skills(tmp_path: Path, tiny_language_model: str) -> None:
    written = write_skills(tmp_path, 6)
    run(skills_settings(tmp_path, f"model.name={tiny_language_model}", "question.examples=[]"))
    labels = pd.read_csv(tmp_path / "out.labels.csv")
    assert labels["skill"].tolist() == written["Skill"].tolist()
    assert labels[["p_Hard", "p_Soft", "p_Unknown"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    assert not (tmp_path / "out.reasoning.jsonl").exists()
