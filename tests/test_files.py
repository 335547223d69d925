"""A finished file appears in one step, and a failure leaves the older one."""

import errno
import json
import os
import stat
from pathlib import Path

import pandas as pd
import pytest

from infer.files import read_frame, write_frame, write_json
from models.tasks.disk import DiskError
from models.tasks.files import write_atomically, write_folder_atomically


def test_a_failure_leaves_the_older_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("older")
    with pytest.raises(RuntimeError, match="disk full"), write_atomically(path) as temporary:
        temporary.write_text("half of the new o")
        raise RuntimeError("disk full")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_the_older_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new_folder" / "scores.csv"
    with write_atomically(path) as temporary:
        temporary.write_text("first")
    with write_atomically(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_flushes_no_folder_takes_files_all_the_same(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some of FUSE, SMB and 9p; a disk that fails is told."""
    flushed, fsync = [], os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)

    def write() -> None:
        write_json(tmp_path / "metrics.json", {"log_loss": 1.0})
        with write_folder_atomically(tmp_path / "checkpoint") as folder:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "weights").write_bytes(b"1")

    if number == errno.EIO:
        with pytest.raises(DiskError, match="input/output error"):
            write()
        return
    write()
    assert len(flushed) == 2 and (tmp_path / "checkpoint" / "adapter" / "weights").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "metrics.json"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="whoever may read every folder sees nothing of it")
def test_a_folder_that_may_be_written_and_not_read_takes_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o300)
    try:
        write_json(tmp_path / "metrics.json", {"log_loss": 1.0})
    finally:
        tmp_path.chmod(0o700)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_folder_in_the_way_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name} is a folder"), write_atomically(tmp_path):
        pass


def test_json_that_cannot_be_written_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"log_loss": 1.0986, "name": "Prüfung"})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"log_loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"log_loss": 1.0986, "name": "Prüfung"}


def test_the_same_table_gives_the_same_compressed_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["007", "NA"], "fold": [0, 1]})
    write_frame(frame, tmp_path / "first.csv.gz")
    write_frame(frame, tmp_path / "second.csv.gz")
    assert (tmp_path / "first.csv.gz").read_bytes() == (tmp_path / "second.csv.gz").read_bytes()
    assert read_frame(tmp_path / "first.csv.gz", text=["id"])["id"].tolist() == ["007", "NA"]


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table\.xlsx ends in none of"):
        write_frame(pd.DataFrame({"id": ["1"]}), tmp_path / "table.xlsx")
    assert list(tmp_path.iterdir()) == []
