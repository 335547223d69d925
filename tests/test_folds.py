"""train.folds: no prompt in two folds, labels spread evenly, folds kept in a file, wrong files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks.arena import ArenaRow, read_rows
from models.tasks.groups import prompt_groups
from train.folds import make_folds, read_folds, write_folds
from train.rows import arena_rows

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug


def labelled(number: int, prompt: str, label: int) -> ArenaRow:
    return ArenaRow(str(number), (prompt,), ("a",), ("b",), label_index=label)


def many(count: int, prompts: int | None = None) -> list[ArenaRow]:
    return [labelled(n, f"prompt {n % (prompts or count)}", n % 3) for n in range(count)]


@pytest.fixture(scope="module")
def human_rows(real_data: Path) -> list[ArenaRow]:
    return read_rows(real_data / "arena_human" / "train.csv.gz", labelled=True).rows


def folds_of_groups(rows: list[ArenaRow], folds: np.ndarray) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for group, fold in zip(prompt_groups(rows).tolist(), folds.tolist(), strict=True):
        found.setdefault(group, set()).add(fold)
    return found


def shares(rows: list[ArenaRow], chosen: np.ndarray) -> np.ndarray:
    """Share of each label among the chosen rows."""
    labels = np.array([row.label_index for row in rows])[chosen]
    return np.array([(labels == label).mean() for label in range(3)])


def test_real_prompts_stay_together_and_every_fold_looks_like_the_whole(human_rows: list[ArenaRow]) -> None:
    folds = make_folds(arena_rows(human_rows), count=5, seed=0)
    assert all(len(found) == 1 for found in folds_of_groups(human_rows, folds).values())
    assert max(prompt_groups(human_rows)) + 1 < len(human_rows)  # prompts do recur here
    whole = shares(human_rows, folds >= 0)
    for fold in range(5):
        assert abs((folds == fold).mean() - 0.2) < 0.01
        np.testing.assert_allclose(shares(human_rows, folds == fold), whole, atol=0.02)  # ten rows of 489


def test_a_holdout_is_one_stratified_part_of_about_that_share(human_rows: list[ArenaRow]) -> None:
    rows = human_rows[:800]
    folds = make_folds(arena_rows(rows), count=5, seed=0, holdout=0.15)
    assert set(folds.tolist()) == {-1, 0}
    assert abs((folds == 0).mean() - 0.15) < 0.01
    assert all(len(found) == 1 for found in folds_of_groups(rows, folds).values())
    np.testing.assert_allclose(shares(rows, folds == 0), shares(rows, folds == -1), atol=0.04)  # five rows of 120


@settings(max_examples=30)
@given(st.integers(2, 4), st.integers(12, 60), st.integers(0, 9), st.data())
def test_both_orders_and_all_twins_of_a_prompt_share_a_fold(count: int, n: int, seed: int, data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    rows = [labelled(i, f"prompt {prompt}", i % 3) for i, prompt in enumerate(prompts)]
    rows += [row.swapped() for row in rows]
    try:
        folds = make_folds(arena_rows(rows), count=count, seed=seed)
    except ValueError as refusal:
        assert "needs" in str(refusal) or "leaves fold" in str(refusal)
        return
    assert all(len(found) == 1 for found in folds_of_groups(rows, folds).values())
    assert set(folds.tolist()) == set(range(count))


def test_the_same_seed_gives_the_same_folds_and_another_seed_others() -> None:
    rows = many(60)
    assert (
        make_folds(arena_rows(rows), count=3, seed=1).tolist() == make_folds(arena_rows(rows), count=3, seed=1).tolist()
    )
    assert (
        make_folds(arena_rows(rows), count=3, seed=1).tolist() != make_folds(arena_rows(rows), count=3, seed=2).tolist()
    )


def test_a_label_that_never_occurs_is_no_obstacle() -> None:
    rows = [labelled(n, f"prompt {n}", n % 2) for n in range(8)]
    assert np.bincount(make_folds(arena_rows(rows), count=2, seed=0)).tolist() == [4, 4]


@pytest.mark.parametrize(("rows_per_label", "held"), [(2, 0.5), (5, 0.2), (20, 0.15)])
def test_a_holdout_is_as_near_to_its_share_as_whole_parts_of_the_rows_allow(rows_per_label: int, held: float) -> None:
    # as many equal parts as a label has rows: halves, fifths, twentieths
    folds = make_folds(arena_rows(many(3 * rows_per_label)), count=5, seed=0, holdout=0.15)
    assert (folds == 0).mean() == pytest.approx(held, abs=1e-12)


# --- refusals


def test_fewer_prompts_than_folds_are_refused() -> None:
    said = r"folds.count=5 needs 5 different prompts and 5 rows of each label, but the 30 rows are enough for 4\. Ask"
    with pytest.raises(ValueError, match=said):
        make_folds(arena_rows(many(30, prompts=4)), count=5, seed=0)


def test_fewer_rows_of_a_label_than_folds_are_refused() -> None:
    rows = [*many(30), labelled(99, "x", 2)]
    rare = [row for row in rows if row.label_index != 2] + [rows[-1]]
    with pytest.raises(ValueError, match="the 21 rows are enough for 1"):
        make_folds(arena_rows(rare), count=5, seed=0)


def test_a_single_fold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"folds.count=1 gives 1 part\(s\), expected 2 or more"):
        make_folds(arena_rows(many(30)), count=1, seed=0)


@pytest.mark.parametrize("holdout", [0.0, 1.0, 15.0])
def test_a_holdout_that_is_no_share_is_refused(holdout: float) -> None:
    with pytest.raises(ValueError, match=f"folds.holdout is {holdout}, expected a share of the rows between 0 and 1"):
        make_folds(arena_rows(many(30)), count=5, seed=0, holdout=holdout)


def test_a_share_of_too_few_rows_asks_for_rows_and_not_for_fewer_folds() -> None:
    said = r"folds.holdout=0.2 needs 2 different prompts .* enough for 1\. Give more rows: of each label at least two"
    with pytest.raises(ValueError, match=said):
        make_folds(arena_rows(many(3)), count=5, seed=0, holdout=0.2)


def test_unlabelled_rows_are_refused() -> None:
    rows = [*many(30), ArenaRow("77", ("p",), ("a",), ("b",))]
    with pytest.raises(ValueError, match=r"1 rows have no label \(id 77\), but folds are stratified by it"):
        make_folds(arena_rows(rows), count=5, seed=0)


# --- the file


def test_folds_written_come_back_for_rows_in_any_order(tmp_path: Path) -> None:
    rows = many(30, prompts=20)
    folds = make_folds(arena_rows(rows), count=3, seed=0)
    write_folds(tmp_path / "folds.csv", arena_rows(rows), folds)
    assert (tmp_path / "folds.csv").read_text().splitlines()[0] == "id,fold,group"
    assert read_folds(tmp_path / "folds.csv", arena_rows(rows)).tolist() == folds.tolist()
    assert read_folds(tmp_path / "folds.csv", arena_rows(rows[::-1])).tolist() == folds[::-1].tolist()


def test_a_holdout_comes_back_with_its_rows_that_are_never_held_out(tmp_path: Path) -> None:
    rows = many(60)
    folds = make_folds(arena_rows(rows), count=5, seed=0, holdout=0.15)
    write_folds(tmp_path / "folds.csv", arena_rows(rows), folds)
    assert read_folds(tmp_path / "folds.csv", arena_rows(rows)).tolist() == folds.tolist()


ROWS = [labelled(1, "x", 0), labelled(2, "X ", 1), labelled(3, "y", 2)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("id,fold\n1,0\n2,0\n", r"lacks 1 of the rows \(id 3\). Give the folds of exactly these rows"),
        ("id,fold\n1,0\n2,0\n3,1\n4,1\n", r"names 1 ids that are no rows \(id 4\)"),
        ("id,fold\n01,0\n2,0\n3,1\n", r"lacks 1 of the rows \(id 1\) and names 1 ids that are no rows \(id 01\)"),
        ("id,fold\n1,0\n2,0\n3,1\n3,1\n", r"row 4 \(line 5\): id 3 is given twice"),
        ("id,fold\n1,0\n2,0\n3,one\n", r"row 3 \(line 4\), id 3: fold is 'one', expected a whole number from 0, or -1"),
        ("id,fold\n1,0\n2,0\n3,-2\n", r"id 3: fold is '-2', expected a whole number"),
        ("id,fold\n1,0\n2,0\n3,\n", "id 3: fold is '', expected a whole number"),
        ("id,flod\n1,0\n", r"has no column 'fold' \(closest: 'flod'\)"),
        ("id,fold\n1,0\n2,1\n3,1\n", "puts one prompt in two folds: id 1 in 0, id 2 in 1. A model would be scored on"),
    ],
)
def test_a_wrong_folds_file_is_refused(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "folds.csv").write_text(lines)
    with pytest.raises(ValueError, match=said) as refusal:
        read_folds(tmp_path / "folds.csv", arena_rows(ROWS))
    assert str(tmp_path / "folds.csv") in str(refusal.value)


def test_neither_order_of_a_held_out_row_is_trained_on() -> None:
    """Finetuning traps 42 and 43: swap copies of one row in two folds are the catastrophic leak."""
    from conftest import pair_rows

    from train.batches import StepSampler
    from train.fold import FoldData

    rows = pair_rows(60)
    data = FoldData(arena_rows(rows), make_folds(arena_rows(rows), count=3, seed=0))
    for fold in range(3):
        training = data.training(fold)
        steps = StepSampler([5] * len(training), swap="both", step_items=4, seed=0)
        shown = {int(training[item // 2]) for items in steps for item in items}
        held = set(data.heldout(fold).tolist())
        assert not shown & held and shown | held == set(range(60))
