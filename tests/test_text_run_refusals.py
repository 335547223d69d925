"""Bad input of `python -m infer` on tables of texts gets a sentence, before the model is loaded or before it is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from text_runs import read, reviews, settings_of


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error from here on."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("models.causal.load_language_model", refuse)


@pytest.fixture
def no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running a model is an error from here on; loading it is none."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("infer.engine.Engine.read", refuse)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("question.labels={}", "question.labels is empty: expected two labels or more"),
        ('question.labels={positive:" positive"}', r"has one label \('positive'\): its share would always be 1"),
        ('question.labels={a:" yes",b:" yes"}', "'a' and 'b' share the answer ' yes'"),
        ('question.labels={a:" ",b:" yes"}', "expected more than white space, which encodes to nothing"),
        ("question.prompt=Is it good?", r"has no field, so every row would get the same answer. Write \{text\}"),
        ("question.prompt=Review: {text} {label}", "it holds the true label, which is what is asked"),
        ("question.prompt=Review: {text}\\n{options}", r"lists \{options\}, but question.answers=text"),
        ("question.prompt=Review: {text!r}", "a text is put in as it is, without a format"),
        ("output=out.xlsx", r"expected a file that ends in \.parquet, \.csv, \.csv\.gz"),
        ("output=null", "output=null: expected a file"),
    ],
)
def test_a_question_without_sense_is_refused_at_the_door(
    tmp_path: Path, tiny_language_model: str, override: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        settings_of(tmp_path, tiny_language_model, "question.examples=[]", override)


BAD_FILES = {
    "a template with an unknown field": (
        "text\nfine\n", ("question.prompt=Review: {texts}",), r"no column 'texts' \(closest: 'text'\).*Mend question"
    ),
    "a missing text column": (
        "Text,id\nfine,1\n", (), r"no column 'text' \(closest: 'Text'\). It has: Text, id. Mend task.text_column"
    ),
    "a missing label column": (
        "text\nfine\n", ("task.label_column=labl",), r"no column 'labl'. It has: text. Mend task.label_column, or"
    ),
    "a missing column to keep": (
        "text,stars\nfine,1\n", ("task.keep_columns=[star]",), r"no column 'star' \(closest: 'stars'\)"
    ),
    "the true label in the prompt": (
        "text,gold\nfine,positive\n", ("task.label_column=gold", "question.prompt=Review: {text} {gold}"),
        r"question.prompt shows \{gold\}, which is the column 'gold' of the true labels. Take it out",
    ),
    "an unknown label": (
        "text,label\nfine,Positive\n", (), r"row 1 \(line 2\): label is 'Positive', expected one of positive, negative"
    ),
    "a probability column": ("text,p_positive\nfine,0.5\n", (), "already has a column p_positive, which the output"),
    "another probability column to keep": (
        "text,p_value\nfine,0.5\n", ("task.keep_columns=[p_value]",), "begins with p_ is a label's probability"
    ),
    "ids that stand twice": ("id,text\n7,fine\n7,dull\n", (), r"row 2 \(line 3\): id '7' stands already in"),
    "no rows": ("id,text\n", (), "has no rows to read"),
    "an empty file": ("", (), "is empty: it needs a first line with the column names"),
    "bytes that are not UTF-8": (b"text\nfine\ncaf\xe9\n", (), r"1 of 2 rows are bad.*\(line 3\): .* not UTF-8"),
    "a quote left open": ('text\n"fine\n', (), r"\(line 2\): it is no whole row of a CSV \(unexpected end of data"),
    "a row with a cell too many": ("text\nfine, but long\n", (), r"row 1 \(line 2\): it has 2 cells, the header has 1"),
    "a device that is not there": ("text\nfine\n", ("engine.precision=fp16",), "precision=fp16 needs a CUDA GPU"),
    "a calibrator that is not there": ("text\nfine\n", ("calibration.use=no.json",), "no.json does not exist"),
    "too few labelled rows to fit on": (
        "text,label\nfine,positive\ndull,\n", ("calibration.fit=temperature",),
        "calibration.fit=temperature needs 10 labelled rows or more, and .* has 1",
    ),
    "too few rows to fit on": ("text\nfine\n", ("calibration.fit=batch",), "needs 10 rows or more, and .* has 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_is_refused_with_a_sentence_before_the_model_is_loaded(
    tmp_path: Path, tiny_language_model: str, no_model: None, case: str
) -> None:
    content, overrides, said = BAD_FILES[case]
    (tmp_path / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read(tmp_path, tiny_language_model, "question.examples=[]", *overrides)
    assert not (tmp_path / "out.csv").exists()


def test_missing_cells_are_refused_by_their_row(tmp_path: Path, tiny_language_model: str, no_model: None) -> None:
    pd.DataFrame({"text": ["fine", None, "dull"]}).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"in\.parquet, row 2: text is missing"):
        read(tmp_path, tiny_language_model, source="in.parquet")
    (tmp_path / "in.jsonl").write_text('{"text": "fine"}\n{"text": NaN}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, row 2 \(line 2\): text is missing"):
        read(tmp_path, tiny_language_model, source="in.jsonl")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, tiny_language_model: str, no_model: None) -> None:
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out\.csv cannot be written: .*Give a file in a folder that you can"):
        read(tmp_path, tiny_language_model, output="file/out.csv")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist"):
        read(tmp_path, tiny_language_model, source="nowhere.csv")


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises((ValueError, OSError), match="nothing"):
        read(tmp_path, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ('{positive:" positive",negative:" Positive"}',
         r"' positive' and ' Positive' of labels positive and negative become the same tokens \(\[\d+\]\) with this"),
        ('{positive:" positive",negative:"\u200b"}', r"The answer '\\u200b' encodes to nothing"),
    ],
)  # fmt: skip
def test_answers_that_the_tokenizer_does_not_tell_apart_are_refused_before_the_model_is_run(
    tmp_path: Path, tiny_language_model: str, no_forward: None, labels: str, said: str
) -> None:
    from tiny_models import make_tokenizer
    from tokenizers import normalizers

    shutil.copytree(tiny_language_model, tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("\u200b", "")]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match=said):
        read(tmp_path, str(tmp_path / "model"), f"question.labels={labels}", "question.examples=[]")


def test_an_instruction_that_leaves_no_room_for_the_text_is_refused_before_any_row_is_read(
    tmp_path: Path, tiny_language_model: str, no_forward: None
) -> None:
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match=r"Shorten the instruction or the examples, or raise max_tokens"):
        read(tmp_path, tiny_language_model, f"question.system={'the good film ' * 300}")
