"""models.tasks.tables: every way a table file comes, its line numbers, and the files that are refused."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks.files import write_atomically
from models.tasks.tables import read_table, require_columns

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug

CSV = 'id,text\n007,"one\ntwo"\n\nNA,"say ""hi"""\n'
CELLS = [["007", "one\ntwo"], ["NA", 'say "hi"']]


def cells(path: Path) -> list[list[str]]:
    return read_table(path).frame[["id", "text"]].to_numpy().tolist()


def zipped(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_cells_are_kept_as_written_however_the_csv_is_packed(tmp_path: Path, start: str) -> None:
    content = (start + CSV).encode()
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    zipped(tmp_path / "a.zip", {"a.csv": start + CSV})
    for name in ("a.csv", "a.csv.gz", "a.zip", "a.zip/a.csv"):
        assert cells(tmp_path / name) == CELLS, name


def test_windows_line_ends_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\r\n1,a\r\n2,b\r\n")
    assert cells(tmp_path / "a.csv") == [["1", "a"], ["2", "b"]]


def test_a_row_knows_the_line_where_it_starts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    table = read_table(tmp_path / "a.csv")
    # line 1 the header, the first row fills 2 and 3, line 4 is blank
    assert table.lines is not None and table.lines.tolist() == [2, 5]
    assert table.place(1) == f"{tmp_path / 'a.csv'}, row 2 (line 5)"


@given(st.lists(st.tuples(st.text("ab\n\",'", min_size=1), st.text("xy\n")), min_size=1))
def test_the_line_of_a_row_holds_its_first_cell(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.csv"
    pd.DataFrame([("row" + a, b) for a, b in rows], columns=["id", "text"]).to_csv(path, index=False)
    table, lines = read_table(path), path.read_text().split("\n")
    assert table.lines is not None
    assert [lines[line - 1].strip('"').startswith("row") for line in table.lines] == [True] * len(rows)
    assert table.frame["id"].tolist() == ["row" + a for a, _ in rows]


def test_parquet_keeps_64_bit_ids_beside_a_missing_value_and_native_lists(tmp_path: Path) -> None:
    big = 2**63 - 1
    table = pa.table({"id": pa.array([big, None], pa.int64()), "turns": [["a", None], ["b"]], "won": [True, False]})
    pq.write_table(table, tmp_path / "a.parquet")
    read = read_table(tmp_path / "a.parquet")
    assert read.frame["id"].tolist() == [str(big), None]
    assert read.frame["turns"].tolist() == [["a", None], ["b"]]
    assert read.frame["won"].tolist() == ["True", "False"]
    assert read.line(0) is None and read.place(0) == f"{tmp_path / 'a.parquet'}, row 1"


def test_a_cell_longer_than_the_csv_module_allows_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1," + "x" * 200_000 + "\n")
    assert len(cells(tmp_path / "a.csv")[0][1]) == 200_000


def test_half_a_surrogate_pair_written_raw_reaches_the_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,\xed\xa0\xbd\n")
    assert cells(tmp_path / "a.csv") == [["1", "\ud83d"]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", b"", r"a\.tsv: read are \.csv, \.csv\.gz, \.zip .* Save it as one of these"),
        ("a.csv", b"", "is empty: it needs a first line with the column names"),
        ("a.csv", b"id,id\n1,2\n", "has column 'id' more than once. Keep one of them"),
        ("a.csv", b"id,text\n1,a\n2\n", r"row 2 \(line 3\) has 1 cells, the header has 2. Check its commas and quotes"),
        ("a.csv", b'id,text\n1,"cut off\n', "is not a whole CSV file: unexpected end of data"),
        ("a.csv", b"id,text\n1,caf\xe9\n", r"is not UTF-8 \(byte 0xe9, .*\). Save it as CSV UTF-8"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 99)[:-20], "cannot be unpacked .* damaged or cut off"),
        ("a.csv.gz", b"plain", "cannot be unpacked .* damaged or cut off"),
        ("a.zip", b"PK", "cannot be unpacked .* damaged or cut off"),
        ("a.parquet", b"PAR1", "is not a Parquet file"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as refusal:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv")


def test_a_zip_with_several_tables_asks_for_one_by_name(tmp_path: Path) -> None:
    path = zipped(tmp_path / "kaggle.zip", dict.fromkeys(["train.csv", "test.csv", "__MACOSX/._train.csv"], CSV))
    with pytest.raises(ValueError, match=r"must hold one CSV, it holds: train.csv, test.csv. Name it, as in"):
        read_table(path)
    assert cells(path / "test.csv") == CELLS
    with pytest.raises(ValueError, match=r"holds no 'tests.csv'; the CSV files in it: train.csv, test.csv"):
        read_table(path / "tests.csv")


def test_a_missing_column_is_named_with_the_closest_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,promt,text\n")
    said = r"has no column 'prompt' \(closest: 'promt'\), 'zzz'. It has: id, promt, text. Look again."
    with pytest.raises(ValueError, match=said):
        require_columns(read_table(tmp_path / "a.csv"), ["id", "prompt", "zzz"], "Look again.")


def test_a_writer_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    with write_atomically(path) as unfinished:
        unfinished.write_text("old")
    with pytest.raises(RuntimeError), write_atomically(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("a.csv", "old")]
