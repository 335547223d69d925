"""What runner=ray decides without Ray: which files and slices, which parts are ours, what a worker does with damage."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import compose
from ray_jobs import job_of, receipts, table
from text_runs import reviews, settings_of

from infer.cluster.inputs import InputFile, named_files
from infer.cluster.part_folder import OpenFolder
from infer.cluster.pool import fitting_pool, require_ray
from infer.cluster.run import run_on_ray
from infer.cluster.slices import Slice, said_missing, slices_to_read
from infer.part_files import part_frames
from infer.text_reading import TextReading
from infer.text_run import reading_identity


def test_a_folder_a_glob_and_a_list_name_tables_by_their_path_below(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.csv", "day/a.parquet", "_hidden/a.parquet", ".b.csv", "out/part-a.parquet"):
        table(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no table")
    out = tmp_path / "in" / "out"
    assert list(named_files(str(tmp_path / "in"), out)) == ["a.parquet", "b.csv", "day/a.parquet"]
    assert list(named_files(f"{tmp_path}/in/*.parquet", out)) == ["a.parquet"]
    assert list(named_files(f"{tmp_path}/in/**/*.parquet", out)) == ["a.parquet", "day/a.parquet"]
    assert list(named_files(f"{tmp_path}/*/b.csv", out)) == ["in/b.csv"]
    both = [str(tmp_path / "in" / "b.csv"), f"{tmp_path}/in/*.parquet"]
    assert list(named_files(both, out)) == ["a.parquet", "b.csv"]


def test_what_names_no_table_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "a.csv")
    table(tmp_path / "other" / "a.csv")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for given, said in {
        "s3://bucket/a.parquet": "s3://bucket/a.parquet is an address, expected a path that every machine",
        f"{tmp_path}/*.parquet": r"\*\.parquet names no table",
        f"{tmp_path}/empty": "empty names no table",
        f"{tmp_path}/b.csv": "b.csv does not exist",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            named_files(given, out)
    with pytest.raises(ValueError, match=r"two files a\.csv.*Give the folder above both"):
        named_files([str(tmp_path / "a.csv"), str(tmp_path / "other" / "a.csv")], out)
    with pytest.raises(ValueError, match="is the folder of input="):
        named_files(f"{tmp_path}/*.csv", tmp_path)


def test_slices_follow_row_groups_and_hold_every_chunk_once() -> None:
    file = InputFile(Path("a"), "a", {}, (25, 3, 3, 19))  # 50 rows, 7 chunks of 8
    found = slices_to_read([file], {"a": set()}, {"a": None}, chunk_rows=8, workers=1)
    # the first chunks of the groups: row 25 is in chunk 3, rows 28 and 31 too; the last group begins with chunk 4
    assert [(one.first, one.stop) for one in found] == [(0, 4), (4, 7)]
    found = slices_to_read([file], {"a": {0, 3, 5}}, {"a": None}, chunk_rows=8, workers=8)
    dealt = [at for one in found for at in range(one.first, one.stop or 0) if one.wants(at) and at not in {0, 3, 5}]
    assert sorted(dealt) == [1, 2, 4, 6] and len(found) > 2
    assert not slices_to_read([file], {"a": set(range(7))}, {"a": None}, chunk_rows=8, workers=8)


def test_a_text_file_is_read_to_an_end_that_nobody_knows() -> None:
    file = InputFile(Path("a.csv"), "a.csv", {}, None)

    def slices(done: set[int], end: int | None, workers: int = 1) -> list[tuple[int, int | None, int, int]]:
        found = slices_to_read([file], {"a.csv": done}, {"a.csv": end}, chunk_rows=8, workers=workers)
        return [(one.first, one.stop, one.share, one.shares) for one in found]

    assert slices(set(), None, workers=2) == [(0, None, 0, 2), (0, None, 1, 2)]
    assert slices({0, 1, 3}, None) == [(1, None, 0, 1)]  # a chunk that is there is seen again: it may be the last
    assert slices({0, 1, 3}, 33) == [(2, 5, 0, 1)]
    assert slices({0, 1, 2}, 24) == []


def test_a_slice_survives_json() -> None:
    one = Slice(InputFile(Path("x/a"), "a", {"bytes": 3}, (25, 3)), 4, None, 1, 2)
    assert Slice.from_json(one.to_json()) == one


def test_a_slice_given_again_yields_as_much_and_writes_nothing(tmp_path: Path, tiny_language_model: str) -> None:
    table(tmp_path / "in" / "a.csv", 40)
    job, files = job_of(tmp_path, tiny_language_model)
    with OpenFolder(job.parts, reading_identity(job.settings), files):
        shares = [Slice(files[0], 0, None, share, 2) for share in range(2)]
        first = receipts(job, shares)
        made = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}
        assert len(made) == 5
        again = receipts(job, shares)
        assert [one["chunk"] for one in first] == [one["chunk"] for one in again] == [0, 2, 4, 1, 3]
        assert made == {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}


def test_rows_without_ids_are_named_by_their_file(tmp_path: Path, tiny_language_model: str) -> None:
    for name in ("a.csv", "day/a.csv"):
        table(tmp_path / "in" / name, 3)
    job, files = job_of(tmp_path, tiny_language_model, "task.id_column=null")
    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        receipts(job, [Slice(file, 0, None) for file in files])
        ids = pd.concat(part_frames(sorted(folder.folder.glob("part-*")), ["id"]))["id"]
    assert sorted(ids) == [f"{name}:{at}" for name in ("a.csv", "day/a.csv") for at in range(3)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["input=x.csv"], r"input=x\.csv is for runner=ray; .* task\.input_csv=FILE"),
        (["runner=spark"], r"runner='spark': expected one of local, ray"),
        (["runner=ray"], r"predictions\.parquet: runner=ray writes a folder of Parquet parts: output=out/"),
        (["runner=ray", "output=out", "calibration.fit=batch"], "calibration.fit needs one table on one machine"),
        (["runner=ray", "output=out", "spreadsheet=true"], "spreadsheet=true with runner=ray"),
        (["ray.actors=0"], r"ray\.actors=0: expected a number from 1"),
    ],
)
def test_what_the_runner_cannot_do_is_refused_by_name(given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose("+experiment=reviews_soft", *given)


@pytest.mark.parametrize(("experiment", "said"), [("arena_deberta", "texts, not arena rows"), ("skills_soft", "once")])
def test_tasks_that_need_one_machine_are_refused(experiment: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose(f"+experiment={experiment}", "runner=ray", "output=out")


def test_what_heads_and_ids_tell_is_refused_before_ray_starts(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.cluster.pool.worker_pool", None)
    monkeypatch.setattr("infer.cluster.run.require_ray", lambda: None)

    def refused(said: str, *overrides: str) -> None:
        given = ["runner=ray", f"input={tmp_path / 'in'}", *overrides]
        with pytest.raises((ValueError, OSError), match=said):
            run_on_ray(settings_of(tmp_path, tiny_language_model, *given, output="out"))

    for name in ("a.parquet", "b.csv"):
        table(tmp_path / "in" / name, 8)
    refused(r"b\.csv, row 1 \(line 2\): id 'r0' stands already in .*a\.parquet, row 1")
    rows = reviews(40)
    rows.loc[39, "id"] = "r0"
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    rows.to_parquet(tmp_path / "in" / "a.parquet", row_group_size=16)  # of two slices
    refused(r"a\.parquet, row 40: id 'r0' stands already in .*a\.parquet, row 1")
    shutil.rmtree(tmp_path / "in")
    table(tmp_path / "in" / "a.parquet", 8)
    reviews(8).drop(columns="label").assign(id=[f"s{at}" for at in range(8)]).to_csv(tmp_path / "in/b.csv", index=False)
    refused("task.label_column=auto means label in .*a.parquet and None in .*b.csv")
    shutil.rmtree(tmp_path / "in")
    table(tmp_path / "in" / "a.parquet", 8)
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 and no more")
    refused("b.parquet is not a Parquet file, or is damaged")
    (tmp_path / "in" / "b.parquet").unlink()
    refused("s3://bucket is an address", "output=s3://bucket")
    if os.geteuid():
        (tmp_path / "out").mkdir(mode=0o500)
        refused("out cannot be written")


def test_a_missing_ray_is_answered_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "tiebreak\[ray\]".*or runner=local'):
        require_ray()


def test_a_worker_begins_no_chunk_that_its_pace_says_would_be_late(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, clock
) -> None:
    """Chunks that are there are told all the same; what is left is said and read by the next launch."""
    table(tmp_path / "in" / "a.parquet", 40)
    table(tmp_path / "in" / "b.csv", 40)
    job, files = job_of(tmp_path, tiny_language_model)
    fill = TextReading.fill

    def slow(reading: TextReading, reader: Any, rows: Any) -> Any:
        time.sleep(2)
        return fill(reading, reader, rows)

    with OpenFolder(job.parts, reading_identity(job.settings), files) as folder:
        receipts(job, [Slice(files[0], 0, 2)])  # and what it takes to load and read for the first time in this process
        with monkeypatch.context() as patch:
            patch.setattr(TextReading, "fill", slow)
            begun = time.time()
            short = replace(job, deadline=begun + 6)
            found = receipts(short, [Slice(files[0], 0, 5), Slice(files[1], 0, None)])
        assert time.time() < short.deadline
        kinds = ["late" if "late" in one else "read" for one in found]
        assert kinds[:3] == ["read"] * 3 and kinds[-2:] == ["late"] * 2 and 2 <= len(kinds) - 3 <= 3, found
        done = folder.done()
        assert done["b.csv"] == set() and 3 <= len(done["a.parquet"]) < 5
        said = said_missing(files, done, folder.ends(), 8)
        assert said == f"{5 - len(done['a.parquet'])} of 5 chunks of a.parquet, all of b.csv"
        over = replace(job, deadline=time.time() - 1)
        monkeypatch.setattr("infer.cluster.worker.ReadingJob.reading", None)  # no file is opened
        assert [one["late"] for one in receipts(over, [Slice(file, 0, None) for file in files])] == [True, True]


@pytest.mark.parametrize(
    ("overrides", "machines", "expected"),
    [
        ([], [{"CPU": 8.0}, {"CPU": 4.0}], (3, 4.0, 0.0)),  # all cores of the smallest machine each
        (["ray.cpus_per_actor=2", "ray.actors=5"], [{"CPU": 8.0}, {"CPU": 4.0}], (5, 2.0, 0.0)),
        ([], [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}], (4, 1.0, 1.0)),  # a machine without a GPU reads nothing
        (["ray.gpus_per_actor=0.5"], [{"CPU": 8.0, "GPU": 2.0}], (4, 1.0, 0.5)),
        (["ray.actors=9"], [{"CPU": 2.0, "GPU": 1.0}], (1, 1.0, 1.0)),
    ],
)
def test_workers_are_as_many_as_machines_have_room_for(overrides: list[str], machines: Any, expected: Any) -> None:
    settings = compose("+experiment=reviews_soft", *overrides).ray
    pool = fitting_pool(settings, machines, cluster=True)
    assert (pool.actors, pool.cpus, pool.gpus) == expected


def test_a_worker_that_no_machine_has_room_for_is_refused() -> None:
    settings = compose("+experiment=reviews_soft", "ray.gpus_per_actor=1").ray
    with pytest.raises(ValueError, match=r"No machine has room for a worker of 1 CPUs and 1 GPUs.*ray\.gpus_per_actor"):
        fitting_pool(settings, [{"CPU": 8.0}], cluster=False)
