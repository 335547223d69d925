"""Exploration: what the figures say is what the rows are; one page without a network, PNGs, and nothing trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose, pair_rows, tiny_run, write_arena_csv

from infer.report.figure_page import Figure, FigurePage, figure_html
from train.cli import _run
from train.explore import explore, explored
from train.explore_numbers import by_equal_bins, length_histogram, writing_system

TEXTS = ["good film"] * 3 + ["Good  FILM", "a bad plot", "bad and dull", "<script>alert(1)</script> fine"]
LABELS = ["positive", "positive", "positive", "negative", "negative", "negative", "positive"]


def reviews(folder: Path, *overrides: str):
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(folder / "in.csv", index=False)
    return compose(
        "+experiment=reviews_encoder", f"task.input_csv={folder / 'in.csv'}", f"run_dir={folder / 'run'}",
        "explore=true", *overrides,
    )  # fmt: skip


def figure(page: FigurePage, key: str) -> Figure:
    return next(one for one in page.figures if one.key == key)


def test_exploring_leaves_a_page_and_pictures_and_trains_nothing(tmp_path: Path) -> None:
    _run(reviews(tmp_path))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    keys = ("labels", "lengths", "lengths_by_label", "labels_by_length")
    assert names == {"explore.html", *(f"explore_{key}.png" for key in keys)}
    assert all((tmp_path / "run" / f"explore_{key}.png").read_bytes().startswith(b"\x89PNG") for key in keys)


def test_an_experiment_that_is_not_trained_can_be_explored(tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(tmp_path / "in.csv", index=False)
    given = [f"task.input_csv={tmp_path / 'in.csv'}", f"run_dir={tmp_path / 'run'}", "explore=true"]
    _run(compose("+experiment=reviews_soft", *given))
    assert (tmp_path / "run" / "explore.html").is_file()


def test_texts_are_counted_by_label_length_and_repeats(tmp_path: Path) -> None:
    page = explored(reviews(tmp_path))
    labels = figure(page, "labels")
    assert dict(zip(labels.x, labels.rows or [], strict=True)) == {"positive": 4, "negative": 3}
    assert dict(zip(labels.x, labels.series["share"], strict=True))["positive"] == pytest.approx(4 / 7)
    assert sum(map(sum, figure(page, "lengths").series.values())) == 7
    assert ("repeated texts", "3", "1 of them with another label") in page.tiles
    tables = {table.title: table.rows for table in page.tables}
    assert tables["Repeated texts"][0] == {"text": "good film", "rows": 4, "labels": "positive 3, negative 1"}
    words = {row["label"]: row["words"].split(", ") for row in tables["Words that stand with a label"]}
    assert words["negative"][0] == "bad" and "bad" not in words["positive"]


@pytest.mark.filterwarnings("error")
def test_a_single_word_tells_no_label_from_another(tmp_path: Path) -> None:
    settings = reviews(tmp_path)
    pd.DataFrame({"text": ["good", "Good", "good !"], "label": LABELS[2:5]}).to_csv(tmp_path / "in.csv", index=False)
    tables = {table.title: table.rows for table in explored(settings).tables}
    assert tables["Words that stand with a label"] == []


def test_a_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    settings = reviews(tmp_path)
    frame = pd.DataFrame({"text": [*TEXTS, TEXTS[-1]], "label": [*LABELS, "positive"]})
    frame.to_csv(tmp_path / "in.csv", index=False)
    html = figure_html(explored(settings))
    assert "&lt;script&gt;alert(1)" in html and "<script>alert(1)" not in html
    hostile = Figure("x", "</script><b>", "", "bars", ["</script>"], {"<i>": [1]})
    assert "</script><b>" not in figure_html(FigurePage("<u>", "", [hostile])).replace("&lt;/script&gt;&lt;b&gt;", "")


def test_pairs_are_counted_by_winner_and_length(tmp_path: Path, tiny_encoder: str) -> None:
    """Answer a is always the longer one, and wins but for the ties."""
    rows = [
        replace(
            row, response_a=("x" * (20 + at),), response_b=("x" * 10,), label_index=2 if at % 4 == 0 else 0,
            target=(0.0, 0.0, 1.0) if at % 4 == 0 else (1.0, 0.0, 0.0),
        )
        for at, row in enumerate(pair_rows(40))
    ]  # fmt: skip
    write_arena_csv(tmp_path / "train.csv", rows)
    page = explored(tiny_run(tmp_path, tiny_encoder))
    winners = figure(page, "winners")
    assert dict(zip(winners.x, winners.series["share"], strict=True)) == {"a wins": 0.75, "b wins": 0, "tie": 0.25}
    boxes = figure(page, "lengths_by_winner").series
    assert boxes["answer b"][0] == [10] * 5 and boxes["answer b"][1] == [0] * 5  # b never wins
    assert boxes["answer a"][0][2] == np.median([20 + at for at in range(40) if at % 4])
    assert ("the longer one wins", "100.0%", "of rows with a winner and unequal lengths") in page.tiles
    assert ("share a prompt", "100.0%", "largest group 2: keep groups whole") in page.tiles
    assert all(one.key != "turns" for one in page.figures), "every row has one turn"


def test_arena_pages_are_written_by_the_same_road(tmp_path: Path, tiny_encoder: str) -> None:
    path = explore(tiny_run(tmp_path, tiny_encoder, "explore=true"))
    assert path == tmp_path / "run" / "explore.html"
    assert len(list(path.parent.glob("explore_*.png"))) == 6


def test_bins_of_equal_count_keep_equal_values_together() -> None:
    values = np.array([0] * 50 + list(range(1, 51)))
    middles, means, rows = by_equal_bins(values, np.stack([values == 0, values > 0], axis=1).astype(float))
    assert rows[0] == 50 and sum(rows) == 100 and means[0].tolist() == [1, 0] and means[-1].tolist() == [0, 1]
    assert middles == sorted(middles)


def test_every_length_stands_in_a_bin_of_the_histogram() -> None:
    middles, counts = length_histogram({"a": np.array([0, 1, 5, 900]), "b": np.array([900])})
    assert sum(counts["a"]) == 4 and sum(counts["b"]) == 1 and counts["a"][-1] == 1
    assert length_histogram({"a": np.array([7, 7])})[1]["a"] == [2]
    assert all(np.diff(middles) > 0)


@pytest.mark.parametrize(
    ("text", "system"),
    [("good 1", "LATIN"), ("Füße", "LATIN"), ("хорошо ok", "CYRILLIC"), ("很好的电影", "CJK"), ("123 ?!", "")],
)
def test_the_writing_system_is_that_of_most_letters(text: str, system: str) -> None:
    assert writing_system(text) == system
