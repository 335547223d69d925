"""A folder of parts as an output: which parts are its own and whole, whom it refuses, what a kill leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from ray_jobs import job_of, receipts, table
from text_runs import reviews

from infer.cluster.inputs import named_files, read_input
from infer.cluster.part_folder import OpenFolder
from infer.cluster.slices import Slice
from infer.part_files import part_frames
from infer.text_run import reading_identity


def test_the_folder_is_refused_to_what_did_not_make_it(tmp_path: Path, tiny_language_model: str) -> None:
    for name in ("a.parquet", "b.parquet"):
        table(tmp_path / "in" / name, 8)
    job, files = job_of(tmp_path, tiny_language_model)
    identity = reading_identity(job.settings)
    with OpenFolder(job.parts, identity, files):
        receipts(job, [Slice(file, 0, 1) for file in files])
        with pytest.raises(ValueError, match="is being written by another run"):
            OpenFolder(job.parts, identity, files)
    OpenFolder(job.parts, identity, files).close()
    other = {**identity, "question.prompt": "Film: {text}"}
    with pytest.raises(ValueError, match=r"2 parts that were made otherwise: they differ in question\.prompt"):
        OpenFolder(job.parts, other, files)
    with pytest.raises(ValueError, match="1 parts of files that input does not name, part-b-"):
        OpenFolder(job.parts, identity, files[:1])
    table(tmp_path / "in" / "b.parquet", 9)
    changed = [read_input(file.name, file.path) for file in files]
    with pytest.raises(ValueError, match=r"b\.parquet changed since its parts were made: input_bytes"):
        OpenFolder(job.parts, identity, changed)
    table(tmp_path / "in" / "b.parquet", 8)
    table(tmp_path / "in" / "0.parquet", 8)  # one more stands in nobody's way
    more = [read_input(name, path) for name, path in named_files(str(tmp_path / "in"), tmp_path / "out").items()]
    with OpenFolder(job.parts, identity, more) as folder:
        assert folder.done() == {"0.parquet": set(), "a.parquet": {0}, "b.parquet": {0}}


def test_texts_that_changed_behind_the_same_footer_are_a_changed_file(tmp_path: Path, tiny_language_model: str) -> None:
    """A footer has the sizes and the first and last text of each column; here they stay."""
    rows = reviews(40)
    rows["text"] = [f"{'a' if at == 0 else 'z' if at == 39 else 'm'} good {at:03d}" for at in range(40)]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    rows.to_parquet(path, compression=None)
    job, files = job_of(tmp_path, tiny_language_model)
    with OpenFolder(job.parts, reading_identity(job.settings), files):
        receipts(job, [Slice(files[0], 0, 5)])
    before = path.stat().st_size
    rows.loc[1:38, "text"] = rows.loc[1:38, "text"].str.replace("good", "poor")
    rows.to_parquet(path, compression=None)
    assert path.stat().st_size == before
    with pytest.raises(ValueError, match=r"a\.parquet changed since its parts were made: input_sha256"):
        OpenFolder(job.parts, reading_identity(job.settings), [read_input("a.parquet", path)])


def test_inputs_of_one_name_in_many_folders_have_parts_of_their_own(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["day=8561/part-00000.parquet", "day=139274/part-00000.parquet"]  # 32 bits of their digests are the same
    for number, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True)
        reviews(16).assign(id=[f"{number}-{at}" for at in range(16)]).to_parquet(path)
    job, files = job_of(tmp_path, tiny_language_model)
    identity = reading_identity(job.settings)
    with OpenFolder(job.parts, identity, files) as folder:
        receipts(job, [Slice(file, 0, 2) for file in files])
        assert folder.done() == {name: {0, 1} for name in names}
        ids = pd.concat(part_frames(sorted(folder.folder.glob("part-*")), ["id"]))["id"]
    assert len(ids) == ids.nunique() == 32
    monkeypatch.setattr("infer.cluster.part_folder.DIGEST_DIGITS", 8)
    with pytest.raises(ValueError, match=r"139274/part-00000\.parquet and .*8561/part-00000\.parquet, whose parts"):
        OpenFolder(job.parts, identity, files)


def test_a_folder_that_is_gone_hides_no_error_and_keeps_no_lock(tmp_path: Path, tiny_language_model: str) -> None:
    table(tmp_path / "in" / "a.parquet", 8)
    job, files = job_of(tmp_path, tiny_language_model)
    with pytest.raises(ZeroDivisionError), OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").write_text("a file in its place")
        1 / 0  # noqa: B018
    assert folder._lock is None


def test_parts_that_are_torn_or_of_a_moved_name_are_not_done(tmp_path: Path, tiny_language_model: str) -> None:
    table(tmp_path / "in" / "a.parquet", 40)
    job, files = job_of(tmp_path, tiny_language_model)
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        receipts(job, [Slice(files[0], 0, 5)])
        paths = [job.parts.path(files[0], chunk) for chunk in range(5)]
        paths[0].write_bytes(paths[0].read_bytes()[:500])
        content = bytearray(paths[1].read_bytes())
        content[40] ^= 1  # in a page: the footer is whole
        paths[1].write_bytes(bytes(content))
        paths[2].write_bytes(b"")
        assert folder.done() == {"a.parquet": {3, 4}}
