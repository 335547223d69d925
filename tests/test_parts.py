"""infer.parts: a run killed anywhere and started again gives the bytes of an unbroken one; what is not ours is kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from infer.identity import input_identity, mark_of
from infer.logs import open_log
from infer.parts import Parts, finished
from models.tasks.tables import read_table

IDENTITY = {"settings": {"prompt": "Review: {text}", "labels": ("a", "b")}, "input_sha256": "0f"}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("stars", pa.int64()),
        ("p_a", pa.float32()),
        ("logp_a", pa.float32()),
    ]
)
FORMS = ["out.csv", "out.csv.gz", "out.parquet"]
RECORD = {"rows": 9, "log_loss": 0.5}


def frame(number: int, rows: int = 3) -> pd.DataFrame:
    """Rows as a model gives them: float64 numbers, no label at all in an even chunk, now and then a row without any."""
    random = np.random.default_rng(number)
    p_a = random.random(rows)
    p_a[0] = np.nan if number % 3 == 1 else 0.1
    return pd.DataFrame(
        {
            "logp_a": np.log(p_a),
            "id": [f'r{number}, {at} "é"' for at in range(rows)],
            "label": [None] * rows if number % 2 == 0 else ["a\rb", None, "c\nd"] + ["b"] * (rows - 3),
            "stars": pd.array([None, *range(1, rows)], dtype="Int64"),
            "p_a": p_a,
        }
    )


def run(output: Path, numbers: Iterator[int] | range = range(3), count: int = 3) -> None:
    with Parts(output, IDENTITY, SCHEMA) as parts:
        for number in numbers:
            if parts.todo(number):
                parts.write(number, frame(number), {"number": number})
        parts.merge(count, RECORD)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cells(path: Path) -> dict[str, list]:
    """The columns as an independent reader finds them, blanks as None, probabilities as float32."""
    found = read_table(path).frame.replace({"": None})
    as_float = {name: found[name].astype(float).to_numpy(np.float32).tolist() for name in ("p_a", "logp_a")}
    return {str(name): as_float.get(str(name), found[name].tolist()) for name in found.columns}


@pytest.mark.parametrize("name", FORMS)
def test_the_output_is_the_chunks_in_order_and_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    run(tmp_path / "new" / name, iter([2, 0, 1]))
    assert names(tmp_path / "new") == [name, name + ".json"]
    read, whole = cells(tmp_path / "new" / name), pd.concat([frame(number) for number in range(3)])
    assert list(read) == SCHEMA.names
    assert read["id"] == whole["id"].tolist()
    assert read["label"] == [None, None, None, "a\rb", None, "c\nd", None, None, None]
    assert read["stars"] == [None, "1", "2"] * 3
    for column in ("p_a", "logp_a"):
        np.testing.assert_array_equal(read[column], whole[column].to_numpy(np.float32))


def test_a_parquet_output_has_the_schema_and_a_row_group_for_each_chunk(tmp_path: Path) -> None:
    run(tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").equals(SCHEMA, check_metadata=True)
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3


def test_the_record_holds_the_identity_and_what_was_handed_in(tmp_path: Path) -> None:
    run(tmp_path / "out.csv")
    record = json.loads((tmp_path / "out.csv.json").read_text())
    assert record == {
        "identity": {**IDENTITY, "settings": {"prompt": "Review: {text}", "labels": ["a", "b"]}},
        **RECORD,
        "output": mark_of(tmp_path / "out.csv"),
    }
    assert finished(tmp_path / "out.csv", IDENTITY)
    assert not finished(tmp_path / "out.csv", {**IDENTITY, "input_sha256": "10"})
    (tmp_path / "out.csv").unlink()
    assert not finished(tmp_path / "out.csv", IDENTITY)


def test_extras_and_frames_come_back_in_the_order_of_the_chunks(tmp_path: Path) -> None:
    with Parts(tmp_path / "out.csv", IDENTITY, SCHEMA) as parts:
        for number in (1, 0):
            parts.write(number, frame(number), {"taken": {"é": number}})
        assert parts.extras(2) == [{"taken": {"é": 0}}, {"taken": {"é": 1}}]
        assert [chunk["id"].tolist() for chunk in parts.frames(2, ["id"])] == [
            frame(0)["id"].tolist(),
            frame(1)["id"].tolist(),
        ]


def test_a_merge_that_lacks_a_part_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks 2 of 5 parts, part-000001\.parquet first: a process stopped early"):
        run(tmp_path / "out.csv", iter([0, 2, 4]), count=5)
    assert names(tmp_path) == ["out.csv.parts"]
    run(tmp_path / "out.csv", range(5), count=5)
    assert names(tmp_path) == ["out.csv", "out.csv.json"]


@pytest.mark.parametrize(
    "tear",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:40] + bytes(99) + content[139:],
    ],
    ids=["empty", "half", "one byte short", "damaged in the middle"],
)
def test_a_torn_part_is_made_again(tmp_path: Path, tear: Callable[[bytes], bytes]) -> None:
    run(tmp_path / "whole.csv")
    with Parts(tmp_path / "out.csv", IDENTITY, SCHEMA) as parts:
        for number in range(2):
            parts.write(number, frame(number))
        path = parts.folder / "part-000001.parquet"
        path.write_bytes(tear(path.read_bytes()))
        assert [parts.done(number) for number in range(3)] == [True, False, False]
    run(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_part_with_other_columns_is_made_again(tmp_path: Path) -> None:
    with Parts(tmp_path / "out.csv", IDENTITY, SCHEMA) as parts:
        parts.write(0, frame(0))
    fewer = pa.schema(list(SCHEMA)[:-1])
    with Parts(tmp_path / "out.csv", IDENTITY, fewer) as parts:
        assert not parts.done(0)


def test_parts_of_another_identity_are_refused_with_what_differs(tmp_path: Path) -> None:
    with Parts(tmp_path / "out.csv", IDENTITY, SCHEMA) as parts:
        parts.write(0, frame(0))
    other = {"settings": {"prompt": "Text: {text}", "labels": ("a", "b")}, "input_sha256": "0f", "chunk_rows": 8}
    said = (
        r"out\.csv\.parts holds the unfinished output of another run; they differ in settings\.prompt "
        r"\(\"Review: \{text\}\" there, \"Text: \{text\}\" now\), chunk_rows \(none there, 8 now\)\. Run that one again"
    )
    with pytest.raises(ValueError, match=said):
        Parts(tmp_path / "out.csv", other, SCHEMA)
    run(tmp_path / "out.csv")  # the refusal let go of the lock and took nothing away


def test_parts_that_nothing_is_known_of_are_refused(tmp_path: Path) -> None:
    with Parts(tmp_path / "out.csv", IDENTITY, SCHEMA) as parts:
        parts.write(0, frame(0))
        (parts.folder / "identity.json").write_text("")
    with pytest.raises(ValueError, match="holds the unfinished output of another run"):
        Parts(tmp_path / "out.csv", IDENTITY, SCHEMA)


def test_an_output_made_by_another_identity_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(
        ValueError, match=r'differ in input_sha256 \("0f" there, "10" now\). Delete it, or name another'
    ):
        Parts(tmp_path / "out.csv", {**IDENTITY, "input_sha256": "10"}, SCHEMA)
    assert (tmp_path / "out.csv").read_bytes() == before and names(tmp_path) == ["out.csv", "out.csv.json"]
    run(tmp_path / "out.csv")  # by the same identity it is


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"out.csv": "id\n1\n"}, "is there already and was made otherwise: no record beside it says how"),
        ({"out.csv": "id\n1\n", "out.csv.json": "{}"}, r"out\.csv\.json is in the way: the output's record goes there"),
        ({"out.csv.json": "[1]"}, r"out\.csv\.json is in the way"),
    ],
)
def test_a_file_that_no_run_made_is_not_overwritten(tmp_path: Path, there: dict[str, str], said: str) -> None:
    for name, content in there.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        Parts(tmp_path / "out.csv", IDENTITY, SCHEMA)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == there


@pytest.mark.parametrize("stop", ["before the record", "before the parts go", "between the parts"])
def test_a_kill_while_merging_is_mended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    run(tmp_path / "whole.csv")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        where = {
            "before the record": "write_record",
            "before the parts go": "_remove",
            "between the parts": "shutil.rmtree",
        }
        parts = Parts(tmp_path / "out.csv", IDENTITY, SCHEMA)
        for number in range(3):
            parts.write(number, frame(number))
        patch.setattr(f"infer.parts.{where[stop]}", killed)
        parts.merge(3, RECORD)
    parts.close()
    assert "out.csv.parts" in names(tmp_path)
    (tmp_path / f".tmp-{'0' * 32}-out.csv").write_text("half")  # as a kill between two bytes leaves it
    assert finished(tmp_path / "out.csv", IDENTITY) == (stop != "before the record")
    run(tmp_path / "out.csv")
    assert names(tmp_path) == ["out.csv", "out.csv.json", "whole.csv", "whole.csv.json"]
    for ending in ("", ".json"):
        assert (tmp_path / f"out.csv{ending}").read_bytes() == (tmp_path / f"whole.csv{ending}").read_bytes()


def test_finished_takes_away_what_a_kill_left_behind(tmp_path: Path) -> None:
    run(tmp_path / "out.csv")
    (tmp_path / "out.csv.parts").mkdir()
    (tmp_path / "out.csv.parts" / "lock").touch()
    assert finished(tmp_path / "out.csv", IDENTITY)
    assert names(tmp_path) == ["out.csv", "out.csv.json"]


@pytest.mark.parametrize("change", [lambda content: b"", lambda content: content[:-4], lambda content: content + b"4,"])
def test_an_output_that_was_changed_afterwards_is_kept_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[bytes], bytes]
) -> None:
    open_log(None, main=True)
    run(tmp_path / "out.csv")
    whole = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.csv").write_bytes(changed := change(whole))
    assert not finished(tmp_path / "out.csv", IDENTITY)
    said = capsys.readouterr().out
    assert "out.csv is not as the run left it" in said and "its rows are read again" in said
    run(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == whole and finished(tmp_path / "out.csv", IDENTITY)
    aside = tmp_path / "out.csv.changed"
    assert (aside.read_bytes() if aside.exists() else b"") == changed


def test_a_record_that_tells_no_bytes_is_taken_at_its_word(tmp_path: Path) -> None:
    """Those of the versions before."""
    run(tmp_path / "out.csv")
    record = json.loads((tmp_path / "out.csv.json").read_text())
    del record["output"]
    (tmp_path / "out.csv.json").write_text(json.dumps(record))
    assert finished(tmp_path / "out.csv", IDENTITY)


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_beside_the_output_that_no_run_made_is_not_replaced(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "labels.csv").write_text("a person's")
    with pytest.raises(ValueError, match=r"labels\.csv is there already and was made otherwise: no record beside it"):
        Parts(tmp_path / "out.csv", IDENTITY, SCHEMA, others=("labels.csv", "tokens-*.bin"), replace=replace)
    assert names(tmp_path) == ["labels.csv"]
    (tmp_path / "labels.csv").rename(tmp_path / "tokens-1.bin")  # a cache is found again by its name
    Parts(tmp_path / "out.csv", IDENTITY, SCHEMA, others=("labels.csv", "tokens-*.bin"), replace=replace).close()
    (tmp_path / "labels.csv").write_text("of the run that has begun")
    Parts(tmp_path / "out.csv", IDENTITY, SCHEMA, others=("labels.csv", "tokens-*.bin"), replace=replace).close()


def test_an_output_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        Parts(tmp_path / "out.csv", IDENTITY, SCHEMA),
        pytest.raises(ValueError, match=r"out\.csv is being written by another run. Wait for it, stop it, or name"),
    ):
        Parts(tmp_path / "out.csv", IDENTITY, SCHEMA)
    Parts(tmp_path / "out.csv", IDENTITY, SCHEMA).close()


def test_the_parts_go_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that takes the lock in between would see its parts vanish."""
    tried = []

    def remove(folder: Path) -> None:
        with pytest.raises(ValueError, match="is being written by another run"):
            Parts(tmp_path / "out.csv", IDENTITY, SCHEMA)
        tried.append(folder)

    monkeypatch.setattr("infer.parts._remove", remove)
    run(tmp_path / "out.csv")
    assert tried == [tmp_path / "out.csv.parts"]


def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for name, said in {
        "out.xlsx": r"out\.xlsx ends in none of \.csv, \.csv\.gz, \.parquet",
        "file/out.csv": r"file/out\.csv cannot be written: .*directory.*Give a file in a folder that you can write to",
        "file/new/out.csv": "cannot be written",
        "folder.csv": r"folder\.csv is a folder. Give the name of a file inside it",
    }.items():
        with pytest.raises(ValueError, match=said):
            Parts(tmp_path / name, IDENTITY, SCHEMA)
    assert names(tmp_path) == ["file", "folder.csv"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written: Permission denied"):
        Parts(tmp_path / "out.csv", IDENTITY, SCHEMA)


def test_the_identity_of_an_input_is_its_bytes(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "a.zip").write_bytes(b"abc")
    expected = {"input_bytes": 3, "input_sha256": hashlib.sha256(b"abc").hexdigest()}
    assert input_identity(tmp_path / "a.zip") == {"input": "a.zip", **expected}
    assert input_identity(tmp_path / "a.zip" / "train.csv") == {"input": "train.csv", **expected}


# One process of a run of 20,000 rows in 40 chunks: argv[1] is the output, argv[2] the seconds a chunk takes.
PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from infer.ranks import rank
from test_parts import IDENTITY, RECORD, SCHEMA, Parts, frame
output, wait_s = Path(sys.argv[1]), float(sys.argv[2])
while rank() > 0 and not Path(str(output) + ".parts", "identity.json").exists():
    time.sleep(0.05)
with Parts(output, IDENTITY, SCHEMA, main=rank() == 0) as parts:
    for number in range(40):
        if parts.todo(number):
            time.sleep(wait_s)
            parts.write(number, frame(number, rows=500), {"number": number})
            print(number, flush=True)
    if rank() == 0:
        while not all(parts.done(number) for number in range(40)):
            time.sleep(0.05)
        parts.merge(40, RECORD | {"extras": parts.extras(40)})
"""


def start(output: Path, wait_s: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(output), str(wait_s)],
        cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def output_bytes(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), output.with_name(output.name + ".json").read_bytes()


@pytest.mark.parametrize("name", FORMS)
def test_a_run_killed_at_any_moment_gives_the_bytes_of_an_unbroken_one(tmp_path: Path, name: str) -> None:
    unbroken = tmp_path / "unbroken" / name
    assert start(unbroken).wait() == 0
    output, kills = tmp_path / "killed" / name, 0
    chance = random.Random(name)
    while not finished(output, IDENTITY):
        process = start(output, wait_s=0.02)
        assert process.stdout is not None
        process.stdout.readline()  # at least one chunk more with each start
        if kills < 2:
            time.sleep(chance.uniform(0, 0.9))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert output_bytes(output) == output_bytes(unbroken)
    assert names(output.parent) == [name, name + ".json"]


def test_two_processes_share_the_chunks_and_give_the_same_bytes(tmp_path: Path) -> None:
    run_alone = start(tmp_path / "alone.csv.gz")
    shares = [start(tmp_path / "shared.csv.gz", 0.01, RANK=str(number), WORLD_SIZE="2") for number in (1, 0)]
    said = [process.communicate(timeout=300)[0].split() for process in shares]
    assert run_alone.wait(300) == 0 and [process.returncode for process in shares] == [0, 0]
    assert said == [[str(n) for n in range(1, 40, 2)], [str(n) for n in range(0, 40, 2)]]
    assert output_bytes(tmp_path / "shared.csv.gz") == output_bytes(tmp_path / "alone.csv.gz")
    assert len(read_table(tmp_path / "shared.csv.gz").frame) == 20_000
