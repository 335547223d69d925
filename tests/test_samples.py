"""The committed sample is what `data/sample/README.md` says.

Rebuilding it needs the source archive: set TIEBREAK_VADER_ARCHIVE to it. The script's own tests: test_make_samples.py.
"""

import collections
import csv
import importlib
import itertools
import json
import os
import re
import sys
from pathlib import Path

import pytest

from models.tasks.cells import write_turns

ROOT = Path(__file__).resolve().parents[1]
ARENA = ROOT / "data" / "sample" / "arena"
REVIEWS = ROOT / "data" / "sample" / "reviews" / "reviews.csv"
PRODUCTS = ROOT / "data" / "sample" / "products" / "products.csv"
CATEGORIES = [
    "Home Furnishing", "Baby Care", "Watches", "Home Decor & Festive Needs", "Kitchen & Dining",
    "Beauty and Personal Care", "Computers",
]  # fmt: skip
KAGGLE = ROOT.parent / "shared" / "data" / "arena_kaggle_sample"
WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"]
TEXTS = ["prompt", "response_a", "response_b"]

sys.path.append(str(ROOT / "scripts"))
make_samples = importlib.import_module("make_samples")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def labelled_rows() -> list[dict[str, str]]:
    """Every row of the sample with its winner columns, test rows joined to their truth by id."""
    truth = {row["id"]: row for row in rows_of(ARENA / "test_truth.csv")}
    return rows_of(ARENA / "train.csv") + [row | truth[row["id"]] for row in rows_of(ARENA / "test.csv")]


def arena_snippets() -> list[str]:
    return [text for row in labelled_rows() for column in TEXTS[1:] for text in json.loads(row[column])]


def winner_of(row: dict[str, str]) -> str:
    return next(name for name in WINNERS if row[name] == "1")


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("train", "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"),
        ("test", "id,prompt,response_a,response_b"),
        ("sample_submission", "id,winner_model_a,winner_model_b,winner_tie"),
        ("test_truth", "id,winner_model_a,winner_model_b,winner_tie"),
    ],
)
def test_columns_are_the_competitions(name: str, header: str) -> None:
    assert (ARENA / f"{name}.csv").read_text(encoding="ascii").partition("\n")[0] == header


@pytest.mark.parametrize("name", ["train", "test"])
def test_every_cell_is_json_as_kaggle_writes_it(name: str) -> None:
    for row in rows_of(ARENA / f"{name}.csv"):
        for cell in (row[column] for column in TEXTS):
            turns = json.loads(cell)
            assert json.dumps(turns, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/") == cell
            assert all(isinstance(turn, str) and turn.strip() for turn in turns)


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_real_competition_files_come_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    if not KAGGLE.is_dir():
        pytest.skip(f"no real competition rows at {KAGGLE}")
    columns, *rows = csv.reader((KAGGLE / f"{name}.csv").open(encoding="utf-8", newline=""))
    places = [columns.index(column) for column in TEXTS]
    for row in rows:
        for place in places:
            row[place] = write_turns(json.loads(row[place]))
    make_samples.write_csv(tmp_path / "again.csv", columns, rows)
    assert (tmp_path / "again.csv").read_bytes() == (KAGGLE / f"{name}.csv").read_bytes()


def test_ids_are_unique_and_too_long_for_a_float() -> None:
    ids = [int(row["id"]) for row in labelled_rows()]
    assert len(set(ids)) == len(ids) == 1800
    assert max(ids) < 2**63
    assert any(int(float(number)) != number for number in ids)


def test_every_label_row_is_one_hot() -> None:
    assert {tuple(row[name] for name in WINNERS) for row in labelled_rows()} == {
        ("1", "0", "0"),
        ("0", "1", "0"),
        ("0", "0", "1"),
    }


@pytest.mark.parametrize("name", ["train", "test_truth"])
def test_neither_side_is_favoured_and_three_in_ten_are_ties(name: str) -> None:
    rows = rows_of(ARENA / f"{name}.csv")
    share = {winner: count / len(rows) for winner, count in collections.Counter(map(winner_of, rows)).items()}
    assert 0.27 < share["winner_tie"] < 0.34
    assert abs(share["winner_model_a"] - share["winner_model_b"]) < 0.05


def test_no_snippet_is_in_two_rows() -> None:
    snippets = arena_snippets()
    assert len({text.casefold() for text in snippets}) == len(snippets)


def test_every_snippet_has_four_words() -> None:
    assert min(len(text.split()) for text in arena_snippets() + [row["text"] for row in rows_of(REVIEWS)]) >= 4


def test_both_sides_answer_every_turn() -> None:
    turns: collections.Counter[int] = collections.Counter()
    for row in labelled_rows():
        (count,) = {len(json.loads(row[column])) for column in TEXTS}
        turns[count] += 1
    assert set(turns) == {1, 2, 3}


def test_prompts_make_many_small_groups_even_without_their_numbers() -> None:
    groups = collections.Counter(re.sub(r"\d+", "", row["prompt"].casefold()) for row in labelled_rows())
    assert max(groups.values()) < 18  # 1 % of the rows: five folds by group come out even
    assert len({row["prompt"].casefold() for row in labelled_rows()}) == 1800


def test_the_two_reviewers_of_a_row_differ() -> None:
    assert all(row["model_a"] != row["model_b"] for row in rows_of(ARENA / "train.csv"))


def test_truth_and_submission_hold_the_test_ids_in_order() -> None:
    ids = [row["id"] for row in rows_of(ARENA / "test.csv")]
    assert [row["id"] for row in rows_of(ARENA / "test_truth.csv")] == ids
    assert [row["id"] for row in rows_of(ARENA / "sample_submission.csv")] == ids


def test_winners_agree_with_the_means_the_reviews_file_shows() -> None:
    mean = {json.dumps([row["text"]]): float(row["mean"]) for row in rows_of(REVIEWS)}
    checked = 0
    for row in labelled_rows():
        sides = [json.dumps(json.loads(row[column])) for column in TEXTS[1:]]
        if all(side in mean for side in sides):
            gap = mean[sides[0]] - mean[sides[1]]
            assert winner_of(row) == ("winner_tie" if abs(gap) < 0.85 else WINNERS[gap < 0])
            checked += 1
    assert checked >= 5  # sentences that are in both files; enough that a swapped column could not hide


def test_reviews_are_labelled_by_the_sign_of_their_mean() -> None:
    rows = rows_of(REVIEWS)
    assert list(rows[0]) == ["id", "text", "mean", "label"]
    assert all((float(row["mean"]) > 0) == (row["label"] == "positive") for row in rows)
    assert collections.Counter(row["label"] for row in rows) == {"positive": 500, "negative": 500}
    assert len({row["id"] for row in rows}) == 1000


def test_products_are_twelve_short_listings_of_each_category() -> None:
    rows = rows_of(PRODUCTS)
    assert list(rows[0]) == ["id", "text", "label"]
    assert [row["id"] for row in rows] == [str(number) for number in range(1, 85)]
    assert collections.Counter(row["label"] for row in rows) == dict.fromkeys(CATEGORIES, 12)
    assert len({row["text"].casefold() for row in rows}) == 84
    assert all(8 <= len(row["text"].split()) <= 40 and row["text"].isascii() for row in rows)


def test_products_stand_in_no_order_of_their_labels() -> None:
    labels = [row["label"] for row in rows_of(PRODUCTS)]
    repeats = sum(first == second for first, second in itertools.pairwise(labels))
    assert repeats < 25  # 12 of 83 by chance; sorted rows would have 77
    assert set(labels[:42]) == set(CATEGORIES)  # the first half already shows them all


def test_no_product_says_its_category_in_full() -> None:
    for row in rows_of(PRODUCTS):
        if " " in row["label"]:
            assert row["label"].casefold() not in row["text"].casefold()


def test_readme_counts_are_the_files_counts() -> None:
    readme = (ROOT / "data" / "sample" / "README.md").read_text(encoding="utf-8")
    for shown, counted in (("train", "train"), ("test", "test_truth")):
        rows = rows_of(ARENA / f"{counted}.csv")
        counts = collections.Counter(map(winner_of, rows))
        cells = [len(rows), *(counts[name] for name in WINNERS)]
        assert f"| arena/{shown}.csv | {' | '.join(map(str, cells))} |" in readme
    several = [
        sum(len(json.loads(row["prompt"])) > 1 for row in rows_of(ARENA / f"{n}.csv")) for n in ("train", "test")
    ]
    assert "{} training rows and {} test rows have two or three turns".format(*several) in readme
    assert "Copyright (c) 2016 C.J. Hutto" in readme
    assert f"| products/products.csv | {len(rows_of(PRODUCTS))} |" in readme


def test_the_sample_stays_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "data" / "sample").rglob("*") if path.is_file()) < 1_500_000


def test_rebuilding_from_the_source_archive_changes_no_byte(tmp_path: Path) -> None:
    archive = os.environ.get("TIEBREAK_VADER_ARCHIVE")
    if not archive:
        pytest.skip("set TIEBREAK_VADER_ARCHIVE to vaderSentiment-3.3.2.tar.gz to rebuild the sample")
    make_samples.main(["--archive", archive, "--out", str(tmp_path)])
    for built in sorted(tmp_path.rglob("*.csv")):
        assert built.read_bytes() == (ROOT / "data" / "sample" / built.relative_to(tmp_path)).read_bytes(), built.name
    assert len(list(tmp_path.rglob("*.csv"))) == 5
