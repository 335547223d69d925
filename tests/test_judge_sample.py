"""Drawing a sample for a judge: how many of what, always the same, and never over someone's verdicts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from infer.audit.sample import (
    SAMPLE_FILE,
    Sample,
    draw_sample,
    read_labelled_table,
    read_sample,
    usual_counts,
    write_sample,
)
from infer.predictions import Predictions


def labels_csv(path: Path, counts: dict[str, int]) -> Path:
    """A labels.csv with so many rows of each label, as `python -m infer` writes it for skills."""
    rows = [f"{label.lower()} skill {n},{label},1,0,0,0" for label, count in counts.items() for n in range(count)]
    path.write_text("skill,label,p_Hard,p_Soft,p_Unknown,p_other\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path):
    return read_labelled_table(labels_csv(tmp_path / "labels.csv", {"Hard": 300, "Soft": 80, "Unknown": 20}))


def drawn(sample: Sample) -> dict[str, set[str]]:
    return {label: {row.text for row in sample.rows if row.predicted == label} for label in sample.labels}


def test_fifty_hard_and_fifty_soft_are_drawn_by_default(table) -> None:
    sample = draw_sample(table, usual_counts(table.labels))
    assert Counter(row.predicted for row in sample.rows) == {"Hard": 50, "Soft": 50}
    assert [row.number for row in sample.rows] == list(range(1, 101))
    assert sample.population == {"Hard": 300, "Soft": 80, "Unknown": 20}
    assert len({row.text for row in sample.rows}) == 100
    assert all(row.text == f"{row.predicted.lower()} skill {row.text.split()[-1]}" for row in sample.rows)


def test_other_labels_are_drawn_fifty_each() -> None:
    assert usual_counts(["yes", "no"]) == {"yes": 50, "no": 50}


def test_the_seed_decides_and_labels_are_drawn_apart(table) -> None:
    both = {"Hard": 30, "Soft": 30}
    assert draw_sample(table, both, seed=7) == draw_sample(table, both, seed=7)
    assert draw_sample(table, both, seed=7) != draw_sample(table, both, seed=8)
    more = drawn(draw_sample(table, {"Hard": 60, "Soft": 30, "Unknown": 5}, seed=7))
    fewer = drawn(draw_sample(table, both, seed=7))
    assert fewer["Hard"] < more["Hard"] and fewer["Soft"] == more["Soft"]


def test_every_row_is_as_likely_as_another(table) -> None:
    times = Counter(text for seed in range(200) for text in drawn(draw_sample(table, {"Soft": 40}, seed=seed))["Soft"])
    # 200 draws of half of 80 rows: mean 100, standard deviation 7; 5 of them for the furthest of 80
    assert len(times) == 80 and all(65 < count < 135 for count in times.values())


def test_the_labels_are_mixed_so_that_the_order_tells_nothing(table) -> None:
    sample = draw_sample(table, usual_counts(table.labels))
    assert 15 <= sum(row.predicted == "Hard" for row in sample.rows[:50]) <= 35


def test_a_label_with_fewer_rows_gives_all_it_has(table) -> None:
    assert len(draw_sample(table, {"Unknown": 50}).rows) == 20


@pytest.mark.parametrize(("counts", "said"), [({"Sofd": 5}, "closest: 'Soft'"), ({"Soft": 0}, "1 or more")])
def test_a_draw_that_cannot_be_is_refused(table, counts: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw_sample(table, counts)


def test_a_label_that_nothing_was_predicted_as_cannot_be_drawn_alone(tmp_path: Path) -> None:
    table = read_labelled_table(labels_csv(tmp_path / "labels.csv", {"Hard": 3}))
    with pytest.raises(ValueError, match="no row predicted as Soft"):
        draw_sample(table, {"Soft": 5})


def test_the_prediction_is_what_counts_where_the_true_label_stands_beside_it(tmp_path: Path) -> None:
    made = Predictions(
        ids=["a", "b"], labels=("Hard", "Soft"), probs=[[0.9, 0.1], [0.8, 0.2]], other=[0, 0], truth=["Soft", "Soft"]
    )
    made.to_frame().assign(text=["SQL", "Tact"]).to_parquet(tmp_path / "out.parquet")
    table = read_labelled_table(tmp_path / "out.parquet")
    assert (list(table.predicted), list(table.ids), list(table.texts)) == (["Hard"] * 2, ["a", "b"], ["SQL", "Tact"])
    assert table.labels == ("Hard", "Soft")


def test_rows_without_a_prediction_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("id,text,predicted\n1,SQL,Hard\n2,Tact,\n3,Go,Hard\n", encoding="utf-8")
    table = read_labelled_table(path)
    assert (list(table.ids), table.unpredicted) == (["1", "3"], 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,predicted\n1,Hard\n", "--text-column"),
        ("skill,p_Hard,p_Soft\nSQL,1,0\n", "--label-column"),
        ("skill,label,p_Hard,p_Soft\nSQL,hard,1,0\n", r"row 1 \(line 2\).*'hard' \(closest: 'Hard'\)"),
        ("skill,label\nSQL,Hard\n  ,Soft\n", r"row 2 \(line 3\).*empty"),
        ("skill,label\n", "no row with a label"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_labelled_table(path)


def test_the_judge_sees_no_prediction_unless_it_is_asked_for(table, tmp_path: Path) -> None:
    write_sample(tmp_path / "blind", draw_sample(table, {"Soft": 5}))
    write_sample(tmp_path / "seeing", draw_sample(table, {"Soft": 5}, shows_predicted=True))
    blind = pd.read_csv(tmp_path / "blind" / SAMPLE_FILE, encoding="utf-8-sig")
    assert list(blind.columns) == ["number", "text", "verdict", "note"] and blind["verdict"].isna().all()
    assert list(pd.read_csv(tmp_path / "seeing" / SAMPLE_FILE, encoding="utf-8-sig")["predicted"]) == ["Soft"] * 5


def test_a_sample_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('skill;label\n"Prüfung; ""Sicht""\nund Ton";Hard\n=1+1;Soft\n', encoding="utf-8")
    sample = draw_sample(read_labelled_table(path), {"Hard": 1, "Soft": 1})
    assert write_sample(tmp_path / "judge", sample)
    assert read_sample(tmp_path / "judge") == sample
    assert {row.text for row in sample.rows} == {'Prüfung; "Sicht"\nund Ton', "=1+1"}


def test_drawing_again_keeps_the_verdicts_and_another_sample_is_refused(table, tmp_path: Path) -> None:
    sample = draw_sample(table, {"Soft": 5})
    write_sample(tmp_path, sample)
    judged = (tmp_path / SAMPLE_FILE).read_text(encoding="utf-8").replace(",,", ",Soft,", 1)
    (tmp_path / SAMPLE_FILE).write_text(judged, encoding="utf-8")
    assert not write_sample(tmp_path, sample)
    with pytest.raises(ValueError, match="another sample"):
        write_sample(tmp_path, draw_sample(table, {"Soft": 6}))
    (tmp_path / "key.json").unlink()
    with pytest.raises(ValueError, match=r"without its key\.json"):
        write_sample(tmp_path, sample)
    assert (tmp_path / SAMPLE_FILE).read_text(encoding="utf-8") == judged


def test_a_folder_without_a_sample_says_how_to_draw_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draw TABLE"):
        read_sample(tmp_path)
