"""A row that the file has broken is reported with its place, and every other row is read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
from conftest import compose, pair_rows, write_arena_csv
from text_runs import read, record_of

from models.tasks import damaged_rows
from models.tasks.arena import read_rows
from models.tasks.tables import read_table
from models.tasks.text import open_rows

ROWS = 400
MIDDLE = 200  # the damaged row's number, from 0; its line is MIDDLE + 2


def lines(quoted: bool = False) -> list[bytes]:
    wrap = '"' if quoted else ""
    return [b"id,text", *(f"r{number},{wrap}a fine film {number}{wrap}".encode() for number in range(ROWS))]


def damaged(path: Path, broken: bytes, *, quoted: bool = False, more: dict[int, bytes] | None = None) -> Path:
    """A table of ROWS rows whose row MIDDLE is these bytes. more: other rows by their number."""
    content = lines(quoted)
    for number, row in {MIDDLE: broken, **(more or {})}.items():
        content[number + 1] = row
    whole = b"\n".join(content) + b"\n"
    path.write_bytes(gzip.compress(whole) if path.suffix == ".gz" else whole)
    return path


BROKEN = {
    "a cell too many": (b"r200,a film, too long", "it has 3 cells, the header has 2"),
    "a cell too few": (b"r200", "it has 1 cells, the header has 2"),
    "bytes that are no UTF-8": (b"r200,caf\xe9", "bytes that are not UTF-8"),
    "a NUL": (b"r200,a\0b", "it holds a NUL byte"),
    "a quote left open": (b'r200,"a film', "no whole row of a CSV|a quote is not closed"),
    "a quote closed too early": (b'r200,"a film" or two', "no whole row of a CSV"),
}


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz"])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_damaged_row_is_reported_and_the_others_are_read(
    tmp_path: Path, broken: tuple[bytes, str], name: str, quoted: bool
) -> None:
    table = read_table(damaged(tmp_path / name, broken[0], quoted=quoted), mark_damage=True)
    [(number, line, damage)] = table.damaged
    assert (number, line) == (MIDDLE, MIDDLE + 2)
    assert pd.Series(damage.reason).str.contains(broken[1]).all(), damage.reason
    assert damage.cells[:1] == ("r200",)
    assert table.frame["id"].tolist() == [f"r{number}" for number in range(ROWS) if number != MIDDLE]
    assert table.numbers.tolist() == [number for number in range(ROWS) if number != MIDDLE]


def test_an_open_quote_that_another_one_closes_swallows_no_rows(tmp_path: Path) -> None:
    """As a CSV the lines between are one cell, and the row has as many cells as the header: nothing else would tell."""
    path = damaged(tmp_path / "in.csv", b'r200,"a film', more={300: b'r300,a film"'})
    table = read_table(path, mark_damage=True)
    assert [(number, line) for number, line, _ in table.damaged] == [(200, 202)]
    assert "99 lines that are rows by themselves" in table.damaged[0][2].reason
    assert len(table.frame) == ROWS - 1 and table.frame["text"][299] == 'a film"'


def test_a_quote_that_nothing_closes_is_given_up_after_some_characters(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(damaged_rows, "RECORD_CHARACTERS", 1000)
    table = read_table(damaged(tmp_path / "in.csv", b'r200,"a film'), mark_damage=True)
    assert [line for _, line, _ in table.damaged] == [202]
    assert "not closed within 1000 characters" in table.damaged[0][2].reason and len(table.frame) == ROWS - 1


def test_a_text_of_many_lines_is_no_damage(tmp_path: Path) -> None:
    prose = "\n".join(f"line {number}, of a poem, and so on" for number in range(100))
    pd.DataFrame({"id": ["a", "b"], "text": [prose, "fine"]}).to_csv(tmp_path / "in.csv", index=False)
    table = read_table(tmp_path / "in.csv", mark_damage=True)
    assert not table.damaged and table.frame["text"].tolist() == [prose, "fine"]
    assert table.place(1).endswith("row 2 (line 102)")


def test_a_broken_row_of_many_lines_is_one_damaged_row(tmp_path: Path) -> None:
    path = damaged(tmp_path / "in.csv", b'r200,"one line\nanother\na third",too much')
    table = read_table(path, mark_damage=True)
    assert [line for _, line, _ in table.damaged] == [202]
    assert table.frame["id"].tolist() == [f"r{number}" for number in range(ROWS) if number != MIDDLE]


@pytest.mark.parametrize("broken", [b'{"text": "b"', b'{"texts": "b"}', b'["b"]', b'{"text": "caf\xe9"}'])
def test_a_damaged_line_of_json_is_reported_and_the_others_are_read(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' + broken + b'\n{"text": "c"}\n')
    table = read_table(tmp_path / "in.jsonl", mark_damage=True)
    assert table.frame["text"].tolist() == ["a", "c"] and [line for _, line, _ in table.damaged] == [2]


@pytest.mark.parametrize("content", ["id,text\n1,a\n".encode("utf-16"), b"id,t\xe9xt\n1,a\n", b"id,te\0xt\n1,a\n"])
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"line 1 (is not UTF-8|holds a NUL)"):
        read_table(tmp_path / "in.csv", mark_damage=True)


def test_rows_keep_their_numbers_and_a_chunk_without_any_is_none(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"id,text\nr0,a\nr1\nr2,c\n")
    source = open_rows(
        tmp_path / "in.csv", fields=["text"], text_column="text", labels=["a", "b"], chunk_rows=1, on_bad_row="skip"
    )
    assert [(number, [row.id for row in chunk]) for number, chunk in source.chunks()] == [(0, ["0"]), (1, ["2"])]


def test_a_run_delivers_the_rest_and_lists_what_is_damaged(tmp_path: Path, tiny_language_model: str, capsys) -> None:
    damaged(tmp_path / "in.csv", b'r200,"a film')
    table = read(tmp_path, tiny_language_model, "engine.chunk_rows=64")
    assert table["id"].tolist() == [f"r{number}" for number in range(ROWS) if number != MIDDLE]
    assert "1 bad rows are left out and listed in" in capsys.readouterr().out
    listed = pd.read_csv(tmp_path / "out.bad_rows.csv")
    assert listed[["row", "line", "id"]].values.tolist() == [[201, 202, "r200"]]
    assert record_of(tmp_path / "out.csv")["bad_rows"] == 1


def test_refuse_names_the_damaged_row(tmp_path: Path, tiny_language_model: str) -> None:
    damaged(tmp_path / "in.csv", b"r200")
    with pytest.raises(ValueError, match=r"row 201 \(line 202\) has 1 cells"):
        read(tmp_path, tiny_language_model, "task.on_bad_row=refuse")


def test_a_file_with_many_damaged_rows_is_refused_unless_skip_is_asked_for(
    tmp_path: Path, tiny_language_model: str
) -> None:
    """A file in another encoding has a damaged row for every accent: not a row is damaged, the file is."""
    damaged(tmp_path / "in.csv", b"r200,caf\xe9", more={at: f"r{at},caf\xe9".encode("latin-1") for at in range(20)})
    with pytest.raises(ValueError, match=r"21 of 400 rows are bad. The first: .*line 2\): it holds bytes that are not"):
        read(tmp_path, tiny_language_model)
    assert len(read(tmp_path, tiny_language_model, "task.on_bad_row=skip", "engine.chunk_rows=64")) == ROWS - 21


def test_skip_leaves_out_wrong_cells_too(tmp_path: Path, tiny_language_model: str) -> None:
    (tmp_path / "in.csv").write_text(
        "id,text,label\n1,fine,positive\n1,dull,negative\n2,bad,Negative\n,x,\n3,good,positive\n4,a,\n5,b,\n6,c,\n"
    )
    assert len(read(tmp_path, tiny_language_model, "task.on_bad_row=skip")) == 5
    listed = pd.read_csv(tmp_path / "out.bad_rows.csv")
    assert listed["line"].tolist() == [3, 4, 5]


def test_a_damaged_test_row_of_the_arena_is_skipped_with_its_id(tmp_path: Path) -> None:
    path = write_arena_csv(tmp_path / "test.csv", pair_rows(6), labelled=False)
    content = path.read_text().splitlines()
    content[3] = content[3].partition(",")[0] + ',"[""a""]'
    path.write_text("\n".join(content) + "\n")
    with pytest.raises(ValueError, match="line 4"):
        read_rows(path, labelled=False)
    table = read_rows(path, labelled=False, on_bad_row="skip")
    assert len(table.rows) == 5 and [(bad.id, bad.line) for bad in table.bad_rows] == [(pair_rows(6)[2].id, 4)]


def test_the_default_is_to_skip_what_is_damaged() -> None:
    assert compose("+experiment=reviews_soft", "task.input_csv=a.csv").text.on_bad_row == "skip_damaged"
