"""Builds `data/sample/`, arena rows in Kaggle's format and reviews, from the source archive of vaderSentiment 3.3.2.

    python scripts/make_samples.py                      # fetches the archive with pip
    python scripts/make_samples.py --archive vaderSentiment-3.3.2.tar.gz

Knows the archive and the Kaggle cell format; nothing of models or folds. Every choice is a hash of SEED and a key, so
the files are the same bytes on every machine and every Python. What the files mean: `data/sample/README.md`.
"""

import argparse
import csv
import hashlib
import html
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.tasks.cells import write_turns
from models.tasks.files import write_atomically

PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
OUTER_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
INNER_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

SEED = "tiebreak-sample-1"
TRAIN_ROWS, TEST_ROWS, REVIEWS = 1500, 300, 1000
MIN_WORDS = 4
# 0.85 of a scale of 8: 30 % of random pairs of snippets lie closer, which is the share of ties in the real competition.
TIE_GAP = 0.85
MULTI_TURN_ONE_IN = 16  # the real file: one row in six; here fewer, since a mean over turns makes more ties
REVIEWERS = 40

WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
TEST_COLUMNS = ("id", "prompt", "response_a", "response_b")
TRAIN_COLUMNS = ("id", "model_a", "model_b", *TEST_COLUMNS[1:], *WINNERS)

# Wordings vary in words, not only in the number: prompt groups stay many even where grouping ignores digits.
# Short on purpose: a reader of one answer at a time reads the prompt twice, and on a CPU tokens are minutes.
OPENINGS = (
    "{city}, {month}, card {number}: who liked their film more?",
    "{month} in {city}, line {number}: which praises its film more?",
    "{city} festival, {month}, slip {number}: which one is kinder?",
    "Reader {number}, {city}, {month}: which review is the warmer one?",
    "{city} film club, {month}, box {number}: who would go again?",
    "Entry {number}, {city}, {month}: which line sells more tickets?",
)
FOLLOW_UPS = (
    "And the {show} film?",
    "Same two, page {number}: who is more pleased now?",
    "Now the {show} one of {month}: which is kinder?",
)
CITIES = (
    "Aarhus", "Bergen", "Bilbao", "Bologna", "Bruges", "Cardiff", "Cork", "Cracow", "Gdansk", "Ghent", "Graz",
    "Halifax", "Innsbruck", "Leeds", "Lucerne", "Malmo", "Nantes", "Odense", "Porto", "Riga", "Seville",
    "Split", "Tampere", "Tartu", "Toulouse", "Trieste", "Utrecht", "Valencia", "Vilnius", "Zagreb",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
SHOWS = (
    "afternoon", "late-night", "open-air", "members'", "opening-day", "Sunday", "preview", "student",
    "closing-day",
)  # fmt: skip


@dataclass(frozen=True)
class Snippet:
    """One movie-review snippet; mean: its raters' mean sentiment, -4 (worst) to 4 (best)."""

    id: int
    text: str
    mean: float


@dataclass(frozen=True)
class Pair:
    """One arena row: as many prompts as snippets on either side; turn t is prompts[t], side_a[t], side_b[t]."""

    id: int
    reviewer_a: str
    reviewer_b: str
    prompts: tuple[str, ...]
    side_a: tuple[Snippet, ...]
    side_b: tuple[Snippet, ...]

    @property
    def winner(self) -> tuple[int, int, int]:
        """One-hot over WINNERS: the side with the higher mean over its turns, a tie within TIE_GAP."""
        gap = sum(a.mean - b.mean for a, b in zip(self.side_a, self.side_b, strict=True)) / len(self.prompts)
        if abs(gap) < TIE_GAP:
            return (0, 0, 1)
        return (1, 0, 0) if gap > 0 else (0, 1, 0)


def draw(key: str, below: int) -> int:
    """Integer in [0, below) decided by SEED and key alone: unlike `random.shuffle`, the same in every Python."""
    return int.from_bytes(hashlib.sha256(f"{SEED}/{key}".encode()).digest()) % below


def download_archive(folder: Path) -> Path:
    """The archive as pip fetched it into folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE.partition("==")[0]]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"pip could not download {PACKAGE}: {last}\n"
            "Fetch its source archive where there is a network and pass it with --archive FILE."
        )
    return found[0]


def verify_archive(archive: Path) -> None:
    """Refuses a file other than the one the samples were made from: other bytes, other labels under the same name."""
    if not archive.is_file():
        raise ValueError(f"--archive {archive}: no such file. Leave --archive out to fetch {PACKAGE} with pip.")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    if sha256 != ARCHIVE_SHA256:
        raise ValueError(
            f"{archive} has sha256 {sha256}, expected {ARCHIVE_SHA256}.\nDelete it and fetch it again: "
            f"python -m pip download --no-deps --no-binary vaderSentiment {PACKAGE}"
        )


def read_ground_truth(archive: Path) -> str:
    """Text of the movie-review file, read from the archive within the archive; nothing is unpacked to disk."""
    with tarfile.open(archive) as outer:
        inner_bytes = _member(outer, OUTER_MEMBER)
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        return _member(inner, INNER_MEMBER).decode("utf-8")


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    if name not in tar.getnames() or (stream := tar.extractfile(name)) is None:
        raise ValueError(f"The archive holds no file {name}. Use the source archive of {PACKAGE}.")
    return stream.read()


def parse_snippets(ground_truth: str) -> list[Snippet]:
    """Usable snippets in file order: cleaned, MIN_WORDS words or more, the first of several with the same words.

    Drops `Cube?s`: the source lost a character there, and which one is a guess.
    """
    snippets: dict[str, Snippet] = {}
    for line in ground_truth.splitlines():
        number, mean, raw = line.split("\t")
        text = clean_text(raw)
        if len(text.split()) >= MIN_WORDS and not re.search(r"\w\?\w", text):
            words = " ".join(re.findall(r"\w+", text.lower()))
            snippets.setdefault(words, Snippet(int(number), text, float(mean)))
    return list(snippets.values())


def clean_text(raw: str) -> str:
    """The text with entities resolved (`&amp;`), `''` made the quotation mark it stands for, blanks made single."""
    return " ".join(html.unescape(raw).replace("''", '"').split())


def make_pairs(snippets: Sequence[Snippet], count: int) -> list[Pair]:
    """count rows of shuffled snippets, each used once: no split of the rows can share one. Refuses too few snippets."""
    shuffled = iter(sorted(snippets, key=lambda snippet: draw(f"order/{snippet.id}", 2**64)))
    pairs = []
    for index in range(count):
        turns = 2 + draw(f"turns/{index}", 2) if draw(f"multi/{index}", MULTI_TURN_ONE_IN) == 0 else 1
        drawn = [snippet for snippet, _ in zip(shuffled, range(2 * turns), strict=False)]
        if len(drawn) < 2 * turns:
            raise ValueError(f"{len(snippets)} snippets make only {index} of {count} rows. Ask for fewer rows.")
        pairs.append(_pair(index, drawn[:turns], drawn[turns:]))
    return pairs


def _pair(index: int, side_a: Sequence[Snippet], side_b: Sequence[Snippet]) -> Pair:
    reviewer = draw(f"reviewer_a/{index}", REVIEWERS)
    other = (reviewer + 1 + draw(f"reviewer_b/{index}", REVIEWERS - 1)) % REVIEWERS  # never the same one
    return Pair(
        id=draw(f"id/{index}", 2**62),  # beyond what a float holds exactly: reading ids as floats shows at once
        reviewer_a=f"reviewer_{reviewer:04d}",
        reviewer_b=f"reviewer_{other:04d}",
        prompts=tuple(prompt_text(index, turn) for turn in range(len(side_a))),
        side_a=tuple(side_a),
        side_b=tuple(side_b),
    )


def prompt_text(index: int, turn: int) -> str:
    """The question of row `index` at turn `turn`; every row asks in words of its own, see OPENINGS."""
    wordings = OPENINGS if turn == 0 else FOLLOW_UPS
    return wordings[draw(f"wording/{index}/{turn}", len(wordings))].format(
        city=CITIES[draw(f"city/{index}", len(CITIES))],
        month=MONTHS[draw(f"month/{index}", len(MONTHS))],
        show=SHOWS[draw(f"show/{index}/{turn}", len(SHOWS))],
        number=1000 + draw(f"number/{index}/{turn}", 9000),
    )


def choose_reviews(snippets: Iterable[Snippet], count: int) -> list[Snippet]:
    """count snippets by id, half with a mean above zero, half below; a mean of exactly zero has no sign and is out."""
    ordered = sorted(snippets, key=lambda snippet: draw(f"review/{snippet.id}", 2**64))
    half = count // 2
    chosen = [s for s in ordered if s.mean > 0][:half] + [s for s in ordered if s.mean < 0][:half]
    if len(chosen) < 2 * half:
        raise ValueError(f"Only {len(chosen)} of {count} reviews: too few snippets of one sign. Ask for fewer reviews.")
    return sorted(chosen, key=lambda snippet: snippet.id)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes the table whole or not at all; `\\n` ends a line, as in the competition's files."""
    with write_atomically(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def write_arena(folder: Path, train: Sequence[Pair], test: Sequence[Pair]) -> None:
    """Writes train, test, sample_submission and test_truth (the submission as it should have been), each by id."""
    train, test = (sorted(pairs, key=lambda pair: pair.id) for pairs in (train, test))

    def cells(pair: Pair) -> list[str]:
        sides = [[snippet.text for snippet in side] for side in (pair.side_a, pair.side_b)]
        return [write_turns(turns) for turns in (pair.prompts, *sides)]

    labelled = ((pair.id, pair.reviewer_a, pair.reviewer_b, *cells(pair), *pair.winner) for pair in train)
    write_csv(folder / "train.csv", TRAIN_COLUMNS, labelled)
    write_csv(folder / "test.csv", TEST_COLUMNS, ((pair.id, *cells(pair)) for pair in test))
    third = ("0.333333333",) * 3  # as Kaggle's own sample_submission.csv writes it
    write_csv(folder / "sample_submission.csv", ("id", *WINNERS), ((pair.id, *third) for pair in test))
    write_csv(folder / "test_truth.csv", ("id", *WINNERS), ((pair.id, *pair.winner) for pair in test))


def write_reviews(path: Path, reviews: Iterable[Snippet]) -> None:
    """Writes id,text,mean,label; the mean to four decimals, the label its sign."""
    rows = ((s.id, s.text, f"{s.mean:.4f}", "positive" if s.mean > 0 else "negative") for s in reviews)
    write_csv(path, ("id", "text", "mean", "label"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Verifies the archive, then writes both samples; a refusal ends the program with its message and exit code 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--archive", type=Path, help=f"source archive of {PACKAGE}; fetched with pip if left out")
    parser.add_argument("--out", type=Path, default=Path("data/sample"))
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            archive = args.archive or download_archive(Path(folder))
            verify_archive(archive)
            snippets = parse_snippets(read_ground_truth(archive))
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from refusal
    pairs = make_pairs(snippets, TRAIN_ROWS + TEST_ROWS)
    write_arena(args.out / "arena", pairs[:TRAIN_ROWS], pairs[TRAIN_ROWS:])
    write_reviews(args.out / "reviews" / "reviews.csv", choose_reviews(snippets, REVIEWS))
    print(f"{TRAIN_ROWS} training rows, {TEST_ROWS} test rows and {REVIEWS} reviews in {args.out}")


if __name__ == "__main__":
    main()
