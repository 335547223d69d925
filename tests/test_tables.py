"""models.tasks.tables: every way a table file comes, its line numbers, and the files that are refused."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks.files import write_atomically
from models.tasks.table_rows import Nested
from models.tasks.tables import read_head, read_table, require_columns, stream_table, table_columns

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


def write_lines(path: Path, lines: list[str]) -> Path:
    content = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_as(path: Path, frame: pd.DataFrame) -> Path:
    """The frame in the form that the path's ending says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=4)
    elif ".csv" in path.name:
        frame.to_csv(path, index=False)
    elif path.suffix == ".zip":
        zipped(path, {"a.csv": frame.to_csv(index=False)})
    else:
        write_lines(path, [json.dumps(row) for row in frame.to_dict("records")])
    return path


FORMS = ["a.csv", "a.csv.gz", "a.zip", "a.parquet", "a.jsonl", "a.jsonl.gz", "a.ndjson"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("chunk_rows", [1, 3, 10, 11])
def test_chunks_are_the_rows_of_the_whole_file_in_any_form(tmp_path: Path, name: str, chunk_rows: int) -> None:
    path = write_as(tmp_path / name, pd.DataFrame({"id": [f"{n:02}" for n in range(10)], "text": list("abcdefghij")}))
    whole, chunks = read_table(path), list(stream_table(path, chunk_rows))
    sizes = [len(chunk.frame) for chunk in chunks]
    assert sizes[:-1] == [chunk_rows] * (len(sizes) - 1) and sum(sizes) == 10
    assert pd.concat([chunk.frame for chunk in chunks], ignore_index=True).equals(whole.frame)
    places = [chunk.place(row) for chunk in chunks for row in range(len(chunk.frame))]
    assert places == [whole.place(row) for row in range(10)]
    assert places[9].startswith(f"{path}, row 10")


@pytest.mark.parametrize("name", FORMS)
def test_only_the_columns_asked_for_are_read_in_the_order_asked(tmp_path: Path, name: str) -> None:
    path = write_as(tmp_path / name, pd.DataFrame({"id": ["1"], "a.b": ["x"], "text": ["t"]}))
    [chunk] = stream_table(path, 5, ["text", "a.b"])
    assert chunk.frame.columns.tolist() == ["text", "a.b"] and chunk.frame.to_numpy().tolist() == [["t", "x"]]
    assert table_columns(path) == ("id", "a.b", "text")


def test_a_header_without_rows_streams_no_chunk_and_still_has_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n")
    assert list(stream_table(tmp_path / "a.csv", 2)) == []
    assert table_columns(tmp_path / "a.csv") == ("id", "text")
    assert read_table(tmp_path / "a.csv").frame.columns.tolist() == ["id", "text"]


def test_a_chunk_of_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk_rows is 0, expected 1 or more"):
        list(stream_table(tmp_path / "a.csv", 0))


def test_the_columns_are_known_though_a_later_row_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n" + b"1,a\n" * 9999 + b"1,caf\xe9\n")
    assert table_columns(tmp_path / "a.csv") == ("id", "text")
    with pytest.raises(ValueError, match=r"a\.csv, line 10001 is not UTF-8 \(byte 0xe9, .*\)\. Save it as CSV UTF-8"):
        list(stream_table(tmp_path / "a.csv", 100))


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("Skill;label\nA, B;Hard\n", ["A, B", "Hard"]),
        ("Skill\tlabel\nA; B\tHard\n", ["A; B", "Hard"]),
        ('"Skill, name";label\nA;Hard\n', ["A", "Hard"]),
        ("Skill,a;b\nA,Hard\n", ["A", "Hard"]),
        ("Skill\nA; B\n", ["A; B"]),
    ],
)
def test_the_header_says_which_sign_parts_the_cells(tmp_path: Path, content: str, read: list[str]) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert read_table(tmp_path / "a.csv").frame.to_numpy().tolist() == [read]


def test_a_row_with_a_semicolon_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Skill;label\nA;B;Hard\n")
    with pytest.raises(ValueError, match=r"row 1 \(line 2\) has 3 cells, the header has 2. Check its semicolons"):
        read_table(tmp_path / "a.csv")


def test_json_cells_are_text_none_or_lists_and_objects_are_told_from_text(tmp_path: Path) -> None:
    first = '{"id": 12345678901234567890, "text": "a\\nb", "turns": ["x", null], "more": {"k": 1.5}, "won": null}'
    path = write_lines(tmp_path / "a.jsonl", ["\ufeff" + first, "", '{"text": "\\ud83d", "won": NaN}'])
    table = read_table(path)
    assert table.frame.iloc[0].tolist() == ["12345678901234567890", "a\nb", ["x", None], '{"k": 1.5}', None]
    assert type(table.frame["more"][0]) is Nested and type(table.frame["text"][0]) is str
    assert table.frame.iloc[1].tolist() == [None, "\ud83d", None, None, None]
    assert table.lines is not None and table.lines.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"text": "b", "lable": "x"}', "line 2 has the key 'lable', the first object has: text, label. Mend the key"),
        ('{"text": "b"', r"line 2 is no JSON \(Expecting ',' delimiter at character 13\). Write one whole object"),
        ('["b"]', "line 2 is a list, expected one object on each line"),
        ('{"text": "b", "text": "c"}', "line 2 cannot be read as JSON: key 'text' stands twice"),
        ('{"text": ' + "[" * 100_000, "line 2 cannot be read as JSON: maximum recursion"),
        ('{"text": "b\0"}', "line 2 holds a NUL byte"),
    ],
)
def test_a_broken_line_of_json_is_refused_by_its_number(tmp_path: Path, second: str, said: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", ['{"text": "a", "label": "x"}', second])
    with pytest.raises(ValueError, match=said):
        read_table(path)


def test_text_of_another_encoding_in_parquet_is_refused_by_file(tmp_path: Path) -> None:
    """pyarrow writes and reads it, and fails only where the cell becomes a text."""
    text = pa.array([b"Gr\xfc\xdfe"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file, or is damaged"):
        read_table(tmp_path / "a.parquet")


def test_a_missing_cell_is_none_and_unmarked_text_is_text_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([b"caf\xc3\xa9", b"\xff"], pa.binary()), "score": [float("nan"), 0.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    frame = read_table(tmp_path / "a.parquet").frame
    assert frame["text"].tolist() == ["café", "b'\\xff'"] and type(frame["text"][1]) is Nested
    assert frame["score"].tolist() == [None, "0.5"]
    assert read_head(tmp_path / "a.parquet").float_columns == {"score"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"id,text\n1,a\0b\n", "line 2 holds a NUL byte"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16-le"), "line 1 holds a NUL byte: .* or is UTF-16"),
        ("a.jsonl", b"\n\n", "is empty: it needs an object on each line"),
        ("a.jsonl", b"{}\n", "is empty: it needs an object on each line"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', r"line 1 is not UTF-8 \(byte 0xe9, .*\). Save it as UTF-8"),
        ("a.jsonl.gz", b"plain", "cannot be unpacked"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_table(tmp_path / name)


def test_a_parquet_file_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.parquet", pd.DataFrame({"text": [f"row {n}" * 20 for n in range(99)]}))
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\xff" * 500 + content[508:])
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file, or is damaged"):
        list(stream_table(path, 10))


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ValueError, match=r"a\.csv is a folder, expected a table file"):
        read_table(tmp_path / "a.csv")


def test_two_files_with_long_cells_are_read_side_by_side(tmp_path: Path) -> None:
    """The csv module's limit on a cell is global: the first file to end must not put it back for the other."""
    (tmp_path / "a.csv").write_text("text\na\n" + "x" * 200_000 + "\n")
    (tmp_path / "b.csv").write_text("text\nb\n")
    first = stream_table(tmp_path / "a.csv", 1)
    next(first)
    read_table(tmp_path / "b.csv")
    assert len(next(first).frame["text"][0]) == 200_000


STREAM = """
import re, sys
from models.tasks.tables import stream_table
rows = sum(len(chunk.frame) for chunk in stream_table(sys.argv[1], 1000))
print(rows, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""  # not ru_maxrss: a child starts with its parent's


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_rows(tmp_path: Path, name: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    peaks_kib = []
    for rows in (30_000, 120_000):  # the decoders' own buffers are full by the first
        texts = [f"{n} a short review of some sixty characters, all of them different" for n in range(rows)]
        path, frame = tmp_path / name, pd.DataFrame({"text": texts})
        if name == "a.parquet":
            pq.write_table(pa.Table.from_pandas(frame), path)  # one row group, as pandas writes it
        elif name == "a.jsonl":
            write_lines(path, [f'{{"text": "{text}"}}' for text in texts])
        else:
            write_lines(path, ["text", *(f'"{text}"' for text in texts)])
        done = subprocess.run(
            [sys.executable, "-c", STREAM, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found, peak_kib = map(int, done.stdout.split())
        assert found == rows
        peaks_kib.append(peak_kib)
    # 90,000 more texts of 120 bytes each would be 10 MiB, and their rows as much again
    assert peaks_kib[1] - peaks_kib[0] < 6 * 1024, peaks_kib
