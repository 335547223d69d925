"""models.tasks.text: the template's fields, and the rows of a table as texts, ids and labels, or refused by place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tasks.seen import SeenTexts
from models.tasks.templates import template_fields, template_pieces
from models.tasks.text import RowSource, Survey, TextRow, open_rows

LABELS = ("positive", "negative")


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def source(path: Path, **changes: Any) -> RowSource:
    settings: dict[str, Any] = {"fields": ("text",), "text_column": "text", "labels": LABELS, "chunk_rows": 2}
    return open_rows(path, **settings | changes)


def rows(path: Path, **changes: Any) -> list[TextRow]:
    return [row for _, chunk in source(path, **changes).chunks() for row in chunk]


def test_a_template_is_its_literal_text_and_its_fields_in_order() -> None:
    pieces = [(False, "A: "), (True, "model a"), (False, " {x} B: "), (True, "b.c"), (True, "text")]
    assert template_pieces("A: {model a} {{x}} B: {b.c}{text}") == pieces
    assert template_fields("{text} {b} {text}") == ("text", "b")
    assert template_fields("{{{text}}}") == ("text",)
    assert template_pieces("{{text}}") == [(False, "{text}")]
    assert template_pieces("") == []


@given(st.text("ab{} "))
def test_a_text_with_its_braces_doubled_is_all_literal(text: str) -> None:
    pieces = template_pieces(text.replace("{", "{{").replace("}", "}}"))
    assert pieces == ([(False, text)] if text else [])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("Rate {}", r"has '\{\}' at character 6, which names no column. Write its name"),
        ("Rate { }", "which names no column"),
        ("Rate {0}", "fields have names, not numbers"),
        ("Rate {text!r}", r"without a format. Write \{text\}, or rename"),
        ("Rate {text:>9}", r"without a format. Write \{text\}, or rename"),
        (
            '{"label": {text}}',
            r"has '\{' at character 1 without its partner. Write \{\{ and \}\} for braces that are text",
        ),
        ("Rate {text}}", r"has '\}' at character 12 without its partner"),
        ("Rate {text", r"has '\{' at character 6 without its partner"),
    ],
)
def test_a_template_with_other_braces_is_refused(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        template_pieces(template)


def test_rows_carry_texts_label_kept_cells_and_their_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv", '\ufeffid,review,label,stars\n007,"so\ngood",positive,4.50\nNA,,,\nb,dull,negative,1\n'
    )
    read = rows(path, text_column="review", id_column="id", label_column="label", keep_columns=["stars"])
    assert read == [
        TextRow("007", {"text": "so\ngood"}, "positive", {"stars": "4.50"}, f"{path}, row 1 (line 2)"),
        TextRow("NA", {"text": ""}, None, {"stars": ""}, f"{path}, row 2 (line 4)"),
        TextRow("b", {"text": "dull"}, "negative", {"stars": "1"}, f"{path}, row 3 (line 5)"),
    ]


def test_chunks_are_numbered_and_the_rows_too_where_there_is_no_id(tmp_path: Path) -> None:
    opened = source(write(tmp_path / "a.csv", "text\na\nb\nc\n"))
    first = [(number, [row.id for row in chunk]) for number, chunk in opened.chunks()]
    assert first == [(0, ["0", "1"]), (1, ["2"])]
    again = [(number, [row.id for row in chunk]) for number, chunk in opened.chunks()]
    assert again == first


def test_a_field_other_than_text_is_the_column_of_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "prompt,response a,text,body\np,r,t,b\n")
    [row] = rows(path, fields=("prompt", "response a", "text"), text_column="body")
    assert row.fields == {"prompt": "p", "response a": "r", "text": "b"}


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["1", "2", "3"], "text": ["a", "", "c;d"], "label": ["positive", None, "negative"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "semicolon.csv", index=False, sep=";")
    frame.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in frame.astype(object).to_dict("records")))
    for name in ("a.csv", "semicolon.csv", "a.parquet", "a.jsonl"):
        read = rows(tmp_path / name, id_column="id", label_column="label")
        found = [(row.id, row.fields["text"], row.label) for row in read]
        assert found == [("1", "a", "positive"), ("2", "", None), ("3", "c;d", "negative")], name


def test_the_survey_counts_what_every_row_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, '{"text": "\\ud83d!", "label": "positive"}\n{"text": ""}\n{"text": "c", "label": ""}\n')
    assert source(path, label_column="label").survey() == Survey(rows=3, empty=1, unlabelled=2, mended=1)


def test_half_an_emoji_becomes_what_files_and_tokenizers_take(tmp_path: Path) -> None:
    line = {"id": "\ud83d", "text": "a\ud83d\ude00 \ud83d b", "kept": "é\ude00"}
    path = write(tmp_path / "a.jsonl", json.dumps(line) + "\n")
    [row] = rows(path, id_column="id", keep_columns=["kept"])
    assert (row.id, row.fields["text"], row.kept["kept"]) == ("\ufffd", "a\U0001f600 \ufffd b", "é\ufffd")
    assert row.mended


def test_kept_cells_that_are_no_text_are_written_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "tags": ["x", 1.5], "more": {"k": "é"}, "n": 3, "none": null}\n')
    [row] = rows(path, keep_columns=["tags", "more", "n", "none"])
    assert row.kept == {"tags": '["x", 1.5]', "more": '{"k": "é"}', "n": "3", "none": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": ()}, r"question.prompt is a template without \{text\}: every row would get the same answer"),
        (
            {"text_column": "Txt"},
            r"has no column 'Txt' \(closest: 'text'\). It has: id, text, label. Mend task.text_col",
        ),
        ({"fields": ("text", "lable")}, r"has no column 'lable' \(closest: 'label'\). .* Mend question.prompt"),
        ({"id_column": "ID"}, r"has no column 'ID' \(closest: 'id'\). .* Mend task.id_column, or set it to null"),
        ({"label_column": "truth"}, "has no column 'truth'. It has: id, text, label. Mend task.label_column"),
        ({"keep_columns": ["txet"]}, r"has no column 'txet' \(closest: 'text'\). .* Mend task.keep_columns"),
        ({"keep_columns": ["id"]}, "task.keep_columns names 'id', which the output has anyway"),
        ({"keep_columns": ["label"], "label_column": "label"}, "names 'label', which the output has anyway"),
        ({"keep_columns": ["text", "text"]}, "task.keep_columns names 'text' twice"),
        (
            {"written_columns": ["p_other", "label"]},
            "already has a column label, which the output would write. Rename it",
        ),
    ],
)
def test_names_that_do_not_fit_the_head_are_refused_before_a_row_is_read(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "a.csv", "id,text,label\n1,a,wrong\n")
    with pytest.raises(ValueError, match=said):
        source(path, **changes)


def test_a_kept_column_may_be_called_label_where_none_is_written(tmp_path: Path) -> None:
    [row] = rows(write(tmp_path / "a.csv", "text,label\na,x\n"), keep_columns=["label"])
    assert row.kept == {"label": "x"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\n", "has no rows to read: nothing below the header"),
        ("a.csv", b"text\n\n\n", "has no rows to read: nothing below the header"),
        ("a.csv", b"text\ncaf\xe9\n", "line 2 is not UTF-8"),
        ("a.txt", b"text\na\n", "Save it as one of these"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_when_opened(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        source(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        source(tmp_path / "none.csv")


def test_an_id_column_of_floats_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"id": [1.0, None], "text": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", '{"id": 1.0, "text": "a"}\n')
    for name in ("a.parquet", "a.jsonl"):
        with pytest.raises(ValueError, match=r"'id' holds numbers with a decimal point.*task.id_column=null"):
            source(tmp_path / name, id_column="id")
    pd.DataFrame({"id": pd.Series([], dtype=float), "text": pd.Series([], dtype=str)}).to_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(ValueError, match="has no rows to read"):
        source(tmp_path / "a.parquet", id_column="id")


def test_a_wrong_label_can_be_left_out_with_its_column_and_the_refusal_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\nfine,1\n")
    with pytest.raises(ValueError, match=r"label is '1', .* set task.label_column=null"):
        list(source(tmp_path / "a.csv", label_column="label").chunks())


@pytest.mark.parametrize(("good", "advised"), [(1, False), (2, False), (3, True)])
def test_leaving_bad_rows_out_is_advised_where_it_is_allowed(tmp_path: Path, good: int, advised: bool) -> None:
    write(tmp_path / "a.csv", "text\n" + "fine\n" * good + "a\0b\n" * 2)
    with pytest.raises(ValueError, match=r"2 of . rows are bad") as told:
        source(tmp_path / "a.csv", on_bad_row="skip_damaged").survey()
    assert ("task.on_bad_row=skip" in str(told.value)) == advised
    skipping = source(tmp_path / "a.csv", on_bad_row="skip")
    if advised:
        assert skipping.survey().rows == good
    else:
        with pytest.raises(ValueError, match=r"2 of . rows are bad"):
            skipping.survey()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "2"}', r"a\.jsonl, row 2 \(line 2\): text is missing. Fill the cell .* or drop the row"),
        ('{"id": "2", "text": null}', "text is missing"),
        ('{"id": "2", "text": NaN}', "text is missing"),
        ('{"id": "2", "text": ["a"]}', r"text is \"\['a'\]\", expected text. Name a column of texts"),
        ('{"id": "2", "text": {"a": 1}}', "expected text. Name a column of texts"),
        ('{"text": "b"}', "id is empty. Give the row one, or let rows be numbered: task.id_column=null"),
        ('{"id": "", "text": "b"}', "id is empty"),
        (
            '{"id": "2", "text": "b", "label": "Positive"}',
            r"label is 'Positive', .* \(closest: 'positive'\). Mend the cell",
        ),
        (
            '{"id": "2", "text": "b", "label": "negativ "}',
            r"expected one of positive, negative \(closest: 'negative'\)",
        ),
        (
            '{"id": "1", "text": "b"}',
            r"row 2 \(line 2\): id '1' stands already in .*row 1 \(line 1\). Give each row its",
        ),
    ],
)
def test_a_row_that_cannot_be_answered_is_refused_by_its_place(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "text": "a", "label": "positive"}\n' + line + "\n")
    opened = source(path, id_column="id", label_column="label")
    with pytest.raises(ValueError, match=said):
        opened.survey()


def test_an_id_repeated_in_a_later_chunk_is_refused_naming_both_places(tmp_path: Path) -> None:
    lines = [f"r{number % 999},a" for number in range(1000)]
    path = write(tmp_path / "a.csv", "\n".join(["id,text", *lines]) + "\n")
    with pytest.raises(ValueError, match=r"row 1000 \(line 1001\): id 'r0' stands already in .*row 1 \(line 2\)"):
        source(path, id_column="id", chunk_rows=7).survey()


def test_equal_digests_of_different_ids_are_no_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.tasks.seen.hash", lambda text: len(text), raising=False)
    path = write(tmp_path / "a.csv", "id,text\naa,1\nbb,2\nccc,3\ndd,4\n")
    assert [row.id for row in rows(path, id_column="id")] == ["aa", "bb", "ccc", "dd"]


@given(st.lists(st.lists(st.text("ab", max_size=3), min_size=1)))
def test_a_text_is_seen_exactly_when_it_stood_before(calls: list[list[str]]) -> None:
    seen, before = SeenTexts(), set()
    for texts in calls:
        expected = []
        for at, text in enumerate(texts):
            expected += [at] * (text in before)
            before.add(text)
        assert seen.add(texts) == expected


def test_seen_texts_take_eight_bytes_each() -> None:
    seen = SeenTexts()
    for start in range(0, 50_000, 1000):
        assert seen.add([str(number) for number in range(start, start + 1000)]) == []
    assert sum(run.nbytes for run in seen._runs) == 8 * 50_000
    assert len(seen._runs) <= np.log2(50) + 1


def test_real_reviews_are_read_as_they_stand(real_data: Path) -> None:
    path = real_data / "rotten_tomatoes" / "reviews.csv"
    whole = pd.read_csv(path, dtype=str, keep_default_na=False)
    texts = [row.fields["text"] for row in rows(path, chunk_rows=1000)]
    assert texts == whole["text"].tolist()


def test_a_parquet_text_column_of_integers_is_read_as_their_digits(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([2**53 + 1, 7])}), tmp_path / "a.parquet")
    assert [row.fields["text"] for row in rows(tmp_path / "a.parquet")] == ["9007199254740993", "7"]
