"""Training is killed at any moment, and its checkpoints are damaged: the same command ends with the same run.

Reduced here; `-m nightly` has the full numbers.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from warm_runs import ROADS, Road, moments

from models.manifest import MANIFEST, damage
from train.checkpoints import last_whole_checkpoint
from train.finished import settle_finished


def kill_at_moments(one: Road, count: int, folder: Path, *, seed: int) -> int:
    """Kill `count` runs, each once, and let each go on; how many kills that were."""
    kills = 0
    for number, after_s in enumerate(moments(count, seed, one.seconds)):
        place = folder / str(number)
        place.mkdir()
        while not one.killed(place, after_s):  # it was faster than the undisturbed one
            shutil.rmtree(place / "run")
            after_s *= 0.8
        kills += 1
        one.ends_as_undisturbed(place)
        assert not list(place.rglob("damaged-*")), "a kill left a checkpoint that is none"
        shutil.rmtree(place)
    return kills


def kill_until_it_ends(one: Road, folder: Path, *, seed: int) -> int:
    """Kill the same run again and again; how often it took. No kill takes back what an earlier launch had saved."""
    kills, longest_s, saved = 0, 1.2 * one.seconds, (0, 0)
    random = np.random.default_rng(seed)
    while True:
        if one.killed(folder, random.uniform(0.2, 1.0) * longest_s):
            kills += 1
            assert kills < 100, "no kill left a step behind"
            now = reached(folder / "run")
            assert now >= saved, f"kill {kills}: from {saved} back to {now} (folds done, steps saved of the next)"
            saved = now
        elif kills:
            one.ends_as_undisturbed(folder)
            assert not list(folder.rglob("damaged-*")), "a kill left a checkpoint that is none"
            return kills
        else:  # the machine has become faster
            shutil.rmtree(folder / "run")
            longest_s /= 2


def reached(run: Path) -> tuple[int, int]:
    """(folds done, steps saved of the one under way)."""
    done = len(list(run.glob("fold*/done.json")))
    saved = (run / f"fold{done}" / "attempts" / "0").glob("checkpoint-*")
    return done, max((int(path.name.rpartition("-")[2]) for path in saved), default=0)


def test_the_undisturbed_run_ends_with_two_folds_and_nothing_left_over(road) -> None:
    whole = road("encoder").whole
    assert {"fold0/done.json", "fold1/done.json", "heldout.csv", f"fold1/checkpoint/{MANIFEST}"} <= whole.keys()
    assert not [name for name in whole if "attempts" in name or ".tmp-" in name]
    assert whole["fold0/done.json"]["steps"] == 15 and whole["fold0/done.json"]["cut_short"] is False


def test_killed_at_two_moments_it_ends_with_the_same_run(road, tmp_path: Path) -> None:
    assert kill_at_moments(road("encoder"), 2, tmp_path, seed=0) == 2


@pytest.mark.parametrize(
    ("kind", "step"),
    [("adapter", 3), *(pytest.param(kind, 6, marks=pytest.mark.slow) for kind in ("encoder", "text"))],
)
def test_killed_between_two_evaluations_it_ends_with_the_same_run(road, tmp_path: Path, kind: str, step: int) -> None:
    """What looks at the first step after an evaluation, as after a resume, must leave the next ones as they are."""
    one = road(kind)
    code, _ = one.run(
        *one.command, f"run_dir={tmp_path / 'run'}", log=tmp_path / "log", number=signal.SIGKILL,
        until=str(tmp_path / "run" / "fold0" / "attempts" / "0" / f"checkpoint-{step}"),
    )  # fmt: skip
    assert code == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    one.ends_as_undisturbed(tmp_path)
    assert "going on from" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_run(road, tmp_path: Path) -> None:
    assert kill_until_it_ends(road("encoder"), tmp_path, seed=1) >= 1


@pytest.mark.parametrize("kind", ["text", "adapter"])
@pytest.mark.slow
def test_the_other_networks_are_killed_too(road, tmp_path: Path, kind: str) -> None:
    assert kill_at_moments(road(kind), 2, tmp_path, seed=2) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ROADS)
def test_killed_at_25_moments_it_ends_with_the_same_run(road, tmp_path: Path, kind: str) -> None:
    kills = kill_at_moments(road(kind), 25, tmp_path, seed=3)
    print(f"{kind}: {kills} kills survived")
    assert kills == 25


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ROADS)
def test_killed_again_and_again_five_times_over(road, tmp_path: Path, kind: str) -> None:
    kills = 0
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        kills += kill_until_it_ends(road(kind), tmp_path / str(seed), seed=seed)
    print(f"{kind}: {kills} kills survived in five runs")
    assert kills >= 5, "a run that was not killed is begun again, faster"


def truncate(file: Path, random: np.random.Generator) -> None:
    file.write_bytes(file.read_bytes()[: int(random.integers(0, file.stat().st_size))])


def zero(file: Path, random: np.random.Generator) -> None:
    file.write_bytes(b"")


def flip(file: Path, random: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    file.write_bytes(content)


def delete(file: Path, random: np.random.Generator) -> None:
    file.unlink()


DAMAGES = (truncate, zero, flip, delete)


@pytest.fixture(scope="module")
def stopped(road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped amid its first fold, with two checkpoints."""
    one, folder = road("encoder"), tmp_path_factory.mktemp("stopped")
    attempt = folder / "run" / "fold0" / "attempts" / "0"
    code, _ = one.run(
        *one.command, f"run_dir={folder / 'run'}", log=folder / "log", number=signal.SIGTERM,
        until=str(attempt / "checkpoint-8"),
    )  # fmt: skip
    assert code == 128 + signal.SIGTERM, (folder / "log").read_text()[-3000:]
    assert len(list(attempt.glob("checkpoint-*"))) >= 2
    return folder / "run"


def damaged_copies(stopped: Path, tmp_path: Path, *, seed: int):
    """(name of the damage, a copy of the stopped run whose newest checkpoint has it), for every file and damage."""
    newest = last_whole_checkpoint(stopped / "fold0" / "attempts" / "0")
    assert newest is not None
    random = np.random.default_rng(seed)
    for name in sorted(path.name for path in newest.iterdir()):
        for harm in DAMAGES:
            copy = tmp_path / f"{harm.__name__}-{name}"
            shutil.copytree(stopped, copy / "run")
            harm(copy / "run" / "fold0" / "attempts" / "0" / newest.name / name, random)
            yield f"{name}: {harm.__name__}", copy, newest.name


def test_every_damage_to_every_file_of_a_checkpoint_is_found(stopped: Path, tmp_path: Path) -> None:
    tried = 0
    for what, copy, newest in damaged_copies(stopped, tmp_path, seed=0):
        attempt = copy / "run" / "fold0" / "attempts" / "0"
        older = last_whole_checkpoint(attempt)
        assert older is not None and older.name != newest, what
        assert (attempt / f"damaged-{newest}").is_dir(), f"{what}: a damaged checkpoint is kept"
        tried += 1
        shutil.rmtree(copy)
    assert tried >= 4 * 6


def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_the_same(road, stopped: Path, tmp_path: Path) -> None:
    one = road("encoder")
    for what, copy, newest in damaged_copies(stopped, tmp_path, seed=1):
        if what == "trained.safetensors: flip":
            one.ends_as_undisturbed(copy)
            said = (copy / "log").read_text()
            assert f"Set aside as damaged-{newest}" in said and "going on from" in said, what
        shutil.rmtree(copy)


@pytest.mark.nightly
def test_after_any_damage_to_a_checkpoint_the_run_ends_the_same(road, stopped: Path, tmp_path: Path) -> None:
    newest = last_whole_checkpoint(stopped / "fold0" / "attempts" / "0")
    assert newest is not None
    tried = 0
    for what, copy, _ in damaged_copies(stopped, tmp_path, seed=2):
        road("encoder").ends_as_undisturbed(copy)
        assert (copy / "run" / "fold0" / "attempts" / "0" / f"damaged-{newest.name}").is_dir(), what
        tried += 1
        shutil.rmtree(copy)
    print(f"{tried} damages survived")
    assert tried == len(DAMAGES) * len(list(newest.iterdir()))


@pytest.mark.slow
def test_without_any_whole_checkpoint_the_fold_begins_anew(road, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    checkpoints = list((tmp_path / "run" / "fold0" / "attempts" / "0").glob("checkpoint-*"))
    for checkpoint in checkpoints:
        zero(checkpoint / "trained.safetensors", np.random.default_rng())
    road("encoder").ends_as_undisturbed(tmp_path)
    assert len(list((tmp_path / "run" / "fold0" / "attempts" / "0").glob("damaged-*"))) == len(checkpoints)


@pytest.fixture(scope="module")
def finished(road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    road("encoder").ends_as_undisturbed(folder)
    return folder / "run"


def test_a_finished_fold_that_was_damaged_is_trained_again(road, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    flip(tmp_path / "run" / "fold1" / "checkpoint" / "model.safetensors", np.random.default_rng(0))
    road("encoder").ends_as_undisturbed(tmp_path)
    assert (tmp_path / "run" / "damaged-fold1" / "checkpoint").is_dir()
    said = (tmp_path / "log").read_text()
    assert "fold 1: checkpoint: model.safetensors holds other bytes" in said and "the fold is trained again" in said
    assert "fold 0: done before, kept" in said


def test_what_a_kill_left_half_written_is_removed_and_what_a_prediction_is_writing_is_not(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "fold0", tmp_path / "fold0")
    left = [tmp_path / name for name in ("", "fold0", "fold0/checkpoint")]
    for folder in left:
        (folder / ".tmp-0123-metrics.json").write_text("{")
    (tmp_path / ".tmp-0123-submission.csv").write_text("id,")
    settle_finished(tmp_path, [0])
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == [".tmp-0123-submission.csv"]


@pytest.mark.parametrize("harm", DAMAGES)
def test_every_damage_to_every_file_of_a_finished_fold_is_found(finished: Path, tmp_path: Path, harm) -> None:
    files = [path.relative_to(finished) for path in (finished / "fold0").rglob("*") if path.is_file()]
    for file in files:
        if file.name == "README.md" or (harm is flip and file.name == "done.json"):  # for people; of no account
            continue
        shutil.rmtree(tmp_path, ignore_errors=True)
        shutil.copytree(finished / "fold0", tmp_path / "fold0")
        harm(tmp_path / file, np.random.default_rng(0))
        if file.name == "done.json" and harm is delete:
            assert settle_finished(tmp_path, [0]) == {}
            continue
        assert settle_finished(tmp_path, [0]) == {}, file
        assert (tmp_path / "damaged-fold0").is_dir(), file


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_refused_on_load_with_the_files_name(finished: Path, tmp_path: Path, harm) -> None:
    from infer.classifiers import load_classifier

    folder = tmp_path / "checkpoint"
    shutil.copytree(finished / "fold0" / "checkpoint", folder)
    assert damage(folder, required=True) is None
    load_classifier(folder)
    harm(folder / "model.safetensors", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"is damaged: model\.safetensors .*python -m train.*delete manifest\.json"):
        load_classifier(folder)
