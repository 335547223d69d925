"""Training, arena predictions and tables of texts under faults that are real; the same command then ends as ever.

Every fault ends as one sentence and exit code 2, leaves what was finished as it was, and no unfinished file behind.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import survived, tiny_arguments
from text_runs import arguments as text_arguments
from text_runs import reviews
from warm_commands import WarmCommands

from infer.locks import hold

TEXTS = 64  # in chunks of 8
FINISHED = ("*/checkpoint/*.safetensors", "*/heldout.csv", "*/done.json", "folds.csv", "*.parts/part-*.parquet")


@dataclass
class Job:
    """A command that writes into `place`. tables: what it leaves there, by name.

    needs: the folder, beside `place`, of what it reads that is no input, copied there first.
    """

    verb: str
    command: Callable[[Path], list[str]]
    tables: tuple[str, ...]
    unbroken: dict[str, bytes]
    needs: Path | None = None

    def results(self, place: Path) -> dict[str, bytes]:
        return {name: (place / name).read_bytes() for name in self.tables}


TABLES = {
    "train": ("folds.csv", "heldout.csv", "fold0/heldout.csv", "fold1/heldout.csv"),
    "arena": ("predictions.csv", "submission.csv"),
    "text": ("out.csv", "out.csv.json"),
}


@pytest.fixture(scope="module")
def jobs(
    tmp_path_factory: pytest.TempPathFactory, warm: WarmCommands, tiny_encoder: str, tiny_language_model: str
) -> dict[str, Job]:
    """The three commands, each run once without any fault."""
    home = tmp_path_factory.mktemp("unbroken")
    arena, texts = tiny_arguments(home, tiny_encoder), text_arguments(home, tiny_language_model)
    arena = [one for one in arena if not one.startswith("run_dir=")]
    reviews(TEXTS).to_csv(home / "in.csv", index=False)
    trained = home / "train"
    commands = {
        "train": lambda place: [*arena, "report=false", f"run_dir={place}"],
        "arena": lambda place: [*arena, "report=false", f"run_dir={trained}", f"out_dir={place}"],
        "text": lambda place: [*(one for one in texts if not one.startswith("output=")), f"output={place / 'out.csv'}"],
    }
    found = {}
    for name, command in commands.items():
        (home / name).mkdir()
        job = Job("train" if name == "train" else "infer", command, TABLES[name], {})
        code, said = warm.tell(job.verb, command(home / name), home / "said")
        assert code == 0, said
        job.unbroken = job.results(home / name)
        found[name] = job
    found["train"].needs = found["arena"].needs = trained
    return found


@pytest.fixture
def place(tmp_path: Path, warm: WarmCommands) -> Iterator[Path]:
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    while warm.ask("unmount", folder=str(folder)):  # what was mounted there is memory until then
        continue


def marks(folder: Path, *patterns: str) -> dict[str, str]:
    """SHA-256 of the files below."""
    files = {file for pattern in patterns or ("**/*",) for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def is_a_sentence(code: int, said: str) -> str:
    """The one sentence that a command ended with."""
    assert code == 2, said
    assert "Traceback" not in said and "Logging error" not in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].rstrip().endswith("."), said
    return errors[0]


def ends_as_ever(job: Job, server: WarmCommands, place: Path, said: Path, seen: Path) -> None:
    """The same command again, without the fault."""
    code, told = server.tell(job.verb, job.command(place), said)
    assert code == 0, told
    assert job.results(seen) == job.unbroken
    left = [path.name for path in seen.rglob("*") if path.name.startswith(".tmp-")]
    assert not left, left


def suffer_full_disks(job: Job, server: WarmCommands, place: Path, sizes_kb: list[int]) -> int:
    """One command on a disk that grows from size to size until it ends; how many times it was full."""
    if not server.can_mount or not server.ask("mount", folder=str(place), size=f"{sizes_kb[0]}k"):
        pytest.skip("this system lets nobody mount a tmpfs here")
    said, seen, count = place.parent / "said", server.seen(place), 0
    for size in sizes_kb:
        assert server.ask("mount", folder=str(place), size=f"{size}k", again=True)
        finished = marks(seen, *FINISHED)
        code, told = server.tell(job.verb, job.command(place), said)
        if code == 0:
            break
        assert "the disk is full" in is_a_sentence(code, told)
        after = marks(seen, *FINISHED)
        assert {name: after.get(name) for name in finished} == finished
        assert not [path for path in seen.rglob(".tmp-*")]
        count += 1
    assert server.ask("mount", folder=str(place), size="64m", again=True)
    ends_as_ever(job, server, place, said, seen)
    survived("full disk", count)
    return count


@pytest.mark.parametrize(("name", "sizes"), [("train", [40, 200, 500]), ("arena", [4, 8]), ("text", [8, 24, 48])])
def test_a_full_disk(name: str, sizes: list[int], jobs: dict[str, Job], warm: WarmCommands, place: Path) -> None:
    assert suffer_full_disks(jobs[name], warm, place, sizes) >= 2


def suffer_file_limits(job: Job, server: WarmCommands, place: Path, limits: list[int]) -> int:
    """One command while no file may be larger than each limit in turn; how many times that ended it."""
    said, count = place.parent / "said", 0
    for limit in limits:
        finished = marks(place, *FINISHED)
        code, told = server.tell(job.verb, job.command(place), said, file_bytes=limit)
        if code == 0:
            break
        assert "larger than a file may be here" in is_a_sentence(code, told)
        after = marks(place, *FINISHED)
        assert {name: after.get(name) for name in finished} == finished
        assert not [path for path in place.rglob(".tmp-*")]
        count += 1
    ends_as_ever(job, server, place, said, place)
    survived("file larger than allowed", count)
    return count


@pytest.mark.parametrize(("name", "limits"), [("train", [1000, 100_000]), ("arena", [100, 240]), ("text", [500, 3000])])
def test_a_limit_on_the_size_of_files(
    name: str, limits: list[int], jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    assert suffer_file_limits(jobs[name], warm, place, limits) == len(limits)


@pytest.mark.parametrize("name", ["train", "arena", "text"])
def test_a_disk_without_the_right_to_write(name: str, jobs: dict[str, Job], warm: WarmCommands, place: Path) -> None:
    job, said, seen = jobs[name], place.parent / "said", warm.seen(place)
    if not warm.can_mount or not warm.ask("mount", folder=str(place), size="64m", read_only=True):
        pytest.skip("this system lets nobody mount a tmpfs here")
    told = is_a_sentence(*warm.tell(job.verb, job.command(place), said))
    assert str(place) in told and "read-only" in told.lower()
    assert not marks(seen)
    assert warm.ask("mount", folder=str(place), size="64m", again=True)
    ends_as_ever(job, warm, place, said, seen)
    survived("read-only disk")


def test_caches_of_libraries_that_cannot_be_written_stop_no_training(
    jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    cache = Path.home() / ".cache"
    cache.mkdir(exist_ok=True)
    if not warm.can_mount or not warm.ask("mount", folder=str(cache), size="64k", read_only=True):
        pytest.skip("this system lets nobody mount a tmpfs here")
    try:
        ends_as_ever(jobs["train"], warm, place, place.parent / "said", place)
    finally:
        assert warm.ask("unmount", folder=str(cache))
    survived("read-only disk")


@pytest.mark.parametrize("moment", ["config.yaml", "fold0/attempts/0/checkpoint-*", "fold0/done.json"])
def test_a_run_folder_that_vanishes_while_it_is_trained(
    moment: str, jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    job, said, run = jobs["train"], place.parent / "said", place / "run"
    pid = warm.start(job.verb, job.command(run), said, halt=run / moment)
    warm.halted(pid)
    run.rename(place / "away")
    warm.resume(pid)
    told = is_a_sentence(warm.wait(pid), said.read_text())
    assert "vanished" in told and str(run) in told
    shutil.rmtree(run, ignore_errors=True)
    ends_as_ever(job, warm, run, said, run)
    survived("folder that vanishes")


def test_a_folder_of_parts_that_vanishes_while_texts_are_read(
    jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    job, said, parts = jobs["text"], place.parent / "said", place / "out.csv.parts"
    pid = warm.start(job.verb, job.command(place), said, halt=parts / "part-000001.parquet")
    warm.halted(pid)
    parts.rename(place / "away")
    warm.resume(pid)
    told = is_a_sentence(warm.wait(pid), said.read_text())
    assert str(parts) in told
    ends_as_ever(job, warm, place, said, place)
    survived("folder that vanishes")


def test_an_output_that_another_run_writes(jobs: dict[str, Job], warm: WarmCommands, place: Path) -> None:
    job, said = jobs["text"], place.parent / "said"
    (place / "out.csv.parts").mkdir()
    with hold(place / "out.csv.parts" / "lock", "not here"):
        told = is_a_sentence(*warm.tell(job.verb, job.command(place), said))
    assert "is being written by another run" in told
    ends_as_ever(job, warm, place, said, place)
    survived("lock held by another run")


def suffer_empty_file(job: Job, server: WarmCommands, place: Path, name: str) -> None:
    """A finished run with a file of zero bytes: made again, or a sentence that names it; no other table is touched."""
    assert job.needs is not None
    run, said = place / "run", place.parent / "said"
    shutil.copytree(job.needs, run)
    (run / name).write_bytes(b"")
    other = {key: mark for key, mark in marks(run, *FINISHED).items() if key != name}
    out = run if job.verb == "train" else place / "out"
    command = [*job.command(out), f"run_dir={run}"]
    code, told = server.tell(job.verb, command, said)
    if code != 0:
        sentence = is_a_sentence(code, told)
        assert Path(name).name in sentence or str((run / name).parent) in sentence, sentence
        assert {key: marks(run, *FINISHED).get(key) for key in other} == other
        shutil.copy(job.needs / name, run / name)
        code, told = server.tell(job.verb, command, said)
    assert code == 0, told
    assert job.results(out) == job.unbroken
    survived("file of zero bytes")


READ_BY_TRAIN = ["config.yaml", "folds.csv", "fold0/done.json", "fold0/heldout.csv", "metrics.json", "baselines.json"]
READ_BY_INFER = ["fold0/checkpoint/model.safetensors", "fold1/checkpoint/tiebreak.json", "calibration.json"]


@pytest.mark.parametrize(
    ("verb", "name"), [*(("train", name) for name in READ_BY_TRAIN), *(("arena", name) for name in READ_BY_INFER)]
)
def test_a_file_of_zero_bytes_in_the_run_folder(
    verb: str, name: str, jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    suffer_empty_file(jobs[verb], warm, place, name)


@pytest.mark.parametrize(
    ("job", "key"), [("train", "task.train_csv"), ("arena", "task.test_csv"), ("text", "task.input_csv")]
)
def test_an_input_of_zero_bytes(job: str, key: str, jobs: dict[str, Job], warm: WarmCommands, place: Path) -> None:
    (place / "empty.csv").touch()
    command = [*jobs[job].command(place), f"{key}={place / 'empty.csv'}"]
    assert "empty.csv" in is_a_sentence(*warm.tell(jobs[job].verb, command, place.parent / "said"))
    survived("file of zero bytes")


@pytest.mark.parametrize("name", ["out.csv.parts/identity.json", "out.csv.parts/part-000003.parquet"])
def test_a_file_of_zero_bytes_among_the_parts(name: str, jobs: dict[str, Job], warm: WarmCommands, place: Path) -> None:
    job, said = jobs["text"], place.parent / "said"
    code, told = warm.tell(job.verb, job.command(place), said, file_bytes=6_000)  # the table is larger than parts
    assert "out.csv cannot be written" in is_a_sentence(code, told)
    (place / name).write_bytes(b"")
    code, told = warm.tell(job.verb, job.command(place), said)
    if code != 0:
        assert name.partition("/")[0] in is_a_sentence(code, told)
        shutil.rmtree(place / "out.csv.parts")
    ends_as_ever(job, warm, place, said, place)
    survived("file of zero bytes")


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "largest"), [("train", 900), ("arena", 16), ("text", 80)])
@pytest.mark.parametrize("seed", range(4))
def test_full_disks_of_many_sizes(
    seed: int, name: str, largest: int, jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    sizes = sorted({4 * random.Random(seed).randint(1, largest // 4) for _ in range(8)})
    suffer_full_disks(jobs[name], warm, place, sizes)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "largest"), [("train", 200_000), ("arena", 600), ("text", 8_000)])
@pytest.mark.parametrize("seed", range(4))
def test_limits_of_many_sizes(
    seed: int, name: str, largest: int, jobs: dict[str, Job], warm: WarmCommands, place: Path
) -> None:
    suffer_file_limits(jobs[name], warm, place, sorted(random.Random(seed).randint(1, largest) for _ in range(8)))


@pytest.mark.nightly
@pytest.mark.parametrize("verb", ["train", "arena"])
def test_every_file_of_a_run_folder_with_zero_bytes(
    verb: str, jobs: dict[str, Job], warm: WarmCommands, tmp_path: Path
) -> None:
    needs = jobs[verb].needs
    assert needs is not None
    for number, name in enumerate(sorted(marks(needs))):
        (tmp_path / str(number) / "place").mkdir(parents=True)
        suffer_empty_file(jobs[verb], warm, tmp_path / str(number) / "place", name)
