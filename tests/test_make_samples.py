"""`scripts/make_samples.py` on a tiny archive of the real one's shape: what it keeps, who wins, what it refuses."""

import csv
import hashlib
import importlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.tasks.cells import write_turns

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
make_samples = importlib.import_module("make_samples")

WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"]
GROUND_TRUTH = "\r\n".join(
    [
        "1\t2.5\tA splendid, moving film.",
        "2\t-1.25\tLovely &amp; Amazing    is ''neither'' of those.",
        "3\t3.0\tToo short, sorry.",
        "4\t0.5\ta splendid moving film",
        "5\t-3.0\tCube?s worst film by far.",
        "6\t0\tTwo hours in André's kitchen.",
        *(f"{n}\t{(-1) ** n * n / 20}\tSnippet number {n} on a film/play." for n in range(7, 67)),
    ]
)


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_archive(path: Path, inner_name: str = make_samples.INNER_MEMBER) -> Path:
    """An archive within an archive, as vaderSentiment ships it; either has a member that tries to leave its folder."""
    inner_bytes = io.BytesIO()
    with tarfile.open(fileobj=inner_bytes, mode="w:gz") as inner:
        add_file(inner, "../escaped.txt", b"inner")
        add_file(inner, inner_name, GROUND_TRUTH.encode("utf-8"))
    with tarfile.open(path, "w:gz") as outer:
        add_file(outer, "../escaped.txt", b"outer")
        add_file(outer, make_samples.OUTER_MEMBER, inner_bytes.getvalue())
    return path


@pytest.fixture
def small_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny archive that passes for the real one, and row counts that it can fill."""
    path = write_archive(tmp_path / "archive.tar.gz")
    for name, value in {"TRAIN_ROWS": 12, "TEST_ROWS": 4, "REVIEWS": 20}.items():
        monkeypatch.setattr(make_samples, name, value)
    monkeypatch.setattr(make_samples, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def snippet(mean: float, number: int = 0) -> object:
    return make_samples.Snippet(number, f"Text {number} with mean {mean}.", mean)


def winner(side_a: list[float], side_b: list[float]) -> tuple[int, int, int]:
    sides = [tuple(snippet(mean) for mean in side) for side in (side_a, side_b)]
    return make_samples.Pair(1, "reviewer_0001", "reviewer_0002", ("Which?",) * len(side_a), *sides).winner


def test_snippets_are_cleaned_and_fragments_repeats_and_damaged_ones_are_dropped() -> None:
    parsed = make_samples.parse_snippets(GROUND_TRUTH)
    assert [(s.id, s.text, s.mean) for s in parsed[:3]] == [
        (1, "A splendid, moving film.", 2.5),
        (2, 'Lovely & Amazing is "neither" of those.', -1.25),
        (6, "Two hours in André's kitchen.", 0.0),
    ]
    assert len(parsed) == 3 + 60


def test_a_cell_is_an_ascii_list_with_slashes_escaped_and_emoji_as_pairs() -> None:
    written = write_turns(["and/or", 'é "said"', "\U0001f600"])
    assert written == r'["and\/or","\u00e9 \"said\"","\ud83d\ude00"]'


def test_the_higher_mean_wins_and_a_small_gap_is_a_tie() -> None:
    assert winner([2.0], [1.0]) == (1, 0, 0)
    assert winner([-3.0], [-2.0]) == (0, 1, 0)
    assert winner([1.0], [1.8]) == (0, 0, 1)


def test_turns_are_judged_by_their_mean() -> None:
    assert winner([3.0, -3.0], [0.5, 0.5]) == (0, 0, 1)  # one turn won, one lost: gap -0.5
    assert winner([3.0, -1.0], [-1.0, -1.0]) == (1, 0, 0)  # gap 2


def test_exchanging_the_sides_exchanges_the_winner() -> None:
    for side_a, side_b in (([2.0], [-1.0]), ([0.1], [0.2]), ([1.0, 2.0], [3.0, 4.0])):
        a, b, tie = winner(side_a, side_b)
        assert winner(side_b, side_a) == (b, a, tie)


def test_building_twice_gives_the_same_bytes_and_unpacks_nothing(small_archive: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_samples.main(["--archive", str(small_archive), "--out", str(tmp_path / name)])
    first, second = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("first", "second")
    )
    assert first == second
    assert sorted(first) == [
        "arena/sample_submission.csv",
        "arena/test.csv",
        "arena/test_truth.csv",
        "arena/train.csv",
        "reviews/reviews.csv",
    ]
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_built_row_holds_its_snippets_and_its_winner(small_archive: Path, tmp_path: Path) -> None:
    make_samples.main(["--archive", str(small_archive), "--out", str(tmp_path)])
    mean = {s.text: s.mean for s in make_samples.parse_snippets(GROUND_TRUTH)}
    with (tmp_path / "arena" / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    for row in rows:
        a, b = json.loads(row["response_a"]), json.loads(row["response_b"])
        gap = sum(mean[text] for text in a) / len(a) - sum(mean[text] for text in b) / len(b)
        expected = "winner_tie" if abs(gap) < 0.85 else WINNERS[gap < 0]
        assert [row[name] for name in WINNERS] == [str(int(name == expected)) for name in WINNERS]


def test_another_archive_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "other.tar.gz")
    with pytest.raises(SystemExit, match=rf"other.tar.gz has sha256 .*expected {make_samples.ARCHIVE_SHA256}"):
        make_samples.main(["--archive", str(archive), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_missing_archive_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nowhere.tar.gz: no such file. Leave --archive out"):
        make_samples.main(["--archive", str(tmp_path / "nowhere.tar.gz")])


def test_an_archive_without_the_ratings_is_refused_by_the_members_name(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "hollow.tar.gz", inner_name="hutto_ICWSM_2014/something_else.txt")
    with pytest.raises(ValueError, match=r"holds no file hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"):
        make_samples.read_ground_truth(archive)


def test_a_failed_download_says_to_pass_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"ERROR: no network\n.*--archive FILE"):
        make_samples.main(["--out", str(tmp_path / "out")])


def test_too_few_snippets_are_refused_with_the_number_they_make() -> None:
    with pytest.raises(ValueError, match=r"3 snippets make only 1 of 2 rows"):
        make_samples.make_pairs([snippet(1.0, number) for number in (1, 2, 3)], 2)
    with pytest.raises(ValueError, match=r"Only 3 of 4 reviews"):
        make_samples.choose_reviews([snippet(mean) for mean in (1.0, 2.0, -1.0, 0.0)], 4)


def test_a_table_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    make_samples.write_csv(path, ["id"], [[1], [2]])

    def broken() -> Iterator[list[int]]:
        yield [3]
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        make_samples.write_csv(path, ["id"], broken())
    assert path.read_text() == "id\n1\n2\n"
