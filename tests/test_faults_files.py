"""What a disk refuses, for real: a small tmpfs, a limit on a file's size, a mount without the right to write.

Each fault stands in a process of its own, forked from this one, with mounts of its own.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from socket import gaierror

import numpy as np
import pytest
from warm_commands import alone, mount

from models.tasks.disk import DiskError
from models.tasks.files import write_atomically, write_folder_atomically

NOISE = np.random.default_rng(0).random(400_000)  # 3.2 MB that no packing makes small
FULL_BYTES = 1_000_000  # of the disk, or of what a file may have


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Imported once here, not in every child."""
    import pandas
    import pyarrow.parquet
    import safetensors.numpy
    import sklearn.linear_model
    import skops.io
    import tokenizers
    import torch

    assert all((pandas, pyarrow.parquet, safetensors.numpy, skops.io, sklearn.linear_model, tokenizers, torch))


def in_child(work: Callable[[], str]) -> str:
    """What work() gives in a forked process; skips where it skipped, fails where it failed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        answer = ["failed", "died"]
        try:
            answer = ["ok", work()]
        except pytest.skip.Exception as skipped:
            answer = ["skipped", str(skipped)]
        except BaseException:
            answer = ["failed", traceback.format_exc()]
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    kind, said = json.loads(answer)
    if kind == "skipped":
        pytest.skip(said)
    assert kind == "ok", said
    return said


def put_disk(folder: Path, size: int) -> None:
    """A disk of so many bytes in place of the folder, for this process alone."""
    if not alone() or not mount(str(folder), str(size)):
        pytest.skip("this system lets nobody mount a tmpfs here")


def write_parquet(path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"a": NOISE}).to_parquet(path)


def write_csv(path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"a": NOISE}).to_csv(path)


def write_safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": NOISE}, path)


def write_torch(path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    torch.save({"a": torch.from_numpy(NOISE)}, path)


def write_numpy(path: Path) -> None:
    np.save(path, NOISE)


def write_skops(path: Path) -> None:
    import zipfile

    import skops.io
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression()
    model.coef_ = NOISE
    skops.io.dump(model, path, compression=zipfile.ZIP_DEFLATED)


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"{number:040}": number for number in range(60_000)}, unk_token="")).save(str(path))


WRITERS = [
    write_parquet, write_csv, write_safetensors, write_torch, write_numpy, write_skops, write_tokenizer,
]  # fmt: skip


def refused(path: Path, write: Callable[[Path], None]) -> str:
    """The sentence of write_atomically; what stood at the path still stands, and nothing else was left."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(DiskError) as caught, write_atomically(path) as temporary:
        write(temporary)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    return str(caught.value)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_a_sentence_whoever_writes_and_the_older_file_stays(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    def work() -> str:
        put_disk(tmp_path, FULL_BYTES)
        (tmp_path / "file.npy").write_text("older")
        return refused(tmp_path / "file.npy", write)

    said = in_child(work)
    assert said.startswith(f"{tmp_path}/file.npy cannot be written: the disk is full (")
    assert "of 1.0 MB free). Make room" in said


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_file_larger_than_allowed_is_a_sentence_whoever_writes(write: Callable[[Path], None], tmp_path: Path) -> None:
    def work() -> str:
        (tmp_path / "file.npy").write_text("older")
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
        return refused(tmp_path / "file.npy", write)

    assert "larger than a file may be here (ulimit -f: 1.0 MB)" in in_child(work)


def test_a_full_disk_under_a_folder_leaves_the_older_folder(tmp_path: Path) -> None:
    def work() -> str:
        put_disk(tmp_path, FULL_BYTES)
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "weights").write_text("older")
        with pytest.raises(DiskError) as caught, write_folder_atomically(tmp_path / "checkpoint") as unfinished:
            (unfinished / "small").write_text("there is room for this")
            write_safetensors(unfinished / "weights")
        assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "weights"]
        assert (tmp_path / "checkpoint" / "weights").read_text() == "older"
        return str(caught.value)

    assert "/checkpoint cannot be written: the disk is full" in in_child(work)


def test_a_disk_without_the_right_to_write_is_a_sentence(tmp_path: Path) -> None:
    def work() -> str:
        put_disk(tmp_path, FULL_BYTES)
        (tmp_path / "file.npy").write_text("older")
        mount(str(tmp_path), str(FULL_BYTES), read_only=True, again=True)
        said = refused(tmp_path / "file.npy", write_numpy)
        with pytest.raises(DiskError) as caught, write_atomically(tmp_path / "new" / "file.npy"):
            pytest.fail("the block began without a folder")
        return said + str(caught.value)

    assert in_child(work).count("the disk is mounted read-only. Name another folder") == 2


def test_a_folder_of_someone_else_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)

    def work() -> str:
        if os.getuid() == 0:
            os.chmod(tmp_path, 0o755)
            for parent in tmp_path.parents[:2]:
                os.chmod(parent, 0o755)
            os.setgid(65534)
            os.setuid(65534)
        return refused(folder / "file.npy", write_numpy)

    assert f"there is no right to write in {folder}. Get it" in in_child(work)


def test_a_folder_that_vanishes_while_its_file_is_written_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.json"
    with pytest.raises(DiskError, match=r"run has vanished\. Put it back"), write_atomically(path) as temporary:
        temporary.write_text("{}")
        shutil.rmtree(tmp_path / "run")
    with (
        pytest.raises(DiskError, match="run has vanished"),
        write_folder_atomically(tmp_path / "run" / "checkpoint") as unfinished,
    ):
        shutil.rmtree(tmp_path / "run")
        (unfinished / "weights").write_text("")
    assert not list(tmp_path.iterdir())


def test_a_name_too_long_and_a_file_in_the_way_are_sentences(tmp_path: Path) -> None:
    assert "its name has 304 bytes" in refused(tmp_path / ("n" * 300 + ".npy"), write_numpy)
    assert "its name has 240 bytes" in refused(tmp_path / ("n" * 236 + ".npy"), write_numpy)
    (tmp_path / "file").write_text("no folder")
    for write in (write_atomically, write_folder_atomically):
        with pytest.raises(DiskError, match="a file stands where its folder is to be"), write(tmp_path / "file" / "x"):
            pass


def test_an_error_of_another_file_is_not_told_as_this_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, write_atomically(tmp_path / "table.csv"):
        (tmp_path / "part-000001").read_bytes()
    assert not isinstance(caught.value, DiskError)
    with pytest.raises(RuntimeError, match="matrix"), write_atomically(tmp_path / "table.csv"):
        raise RuntimeError("a matrix is singular")


def test_an_unfinished_folder_that_is_taken_away_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_text("older")
    with pytest.raises(FileNotFoundError), write_folder_atomically(tmp_path / "checkpoint") as unfinished:
        (unfinished / "weights").write_text("newer")
        unfinished.rename(tmp_path / "away")
    assert (tmp_path / "checkpoint" / "weights").read_text() == "older"


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(111, "refused"), TimeoutError(110, "timed out"), BrokenPipeError(32, "broken pipe"),
     ChildProcessError(10, "no child"), gaierror(-2, "name not known")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_a_server_or_a_process_refuses_is_not_the_disks(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, write_atomically(tmp_path / "table.csv"):
        raise error
    assert caught.value is error
    with pytest.raises(DiskError, match="stale"), write_atomically(tmp_path / "table.csv"):
        raise OSError(116, "stale file handle")  # of a disk behind a network


def test_a_disk_behind_a_network_that_does_not_answer_is_the_disks(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(DiskError, match="timed out"), write_atomically(path):
        raise TimeoutError(110, "timed out", str(path))
