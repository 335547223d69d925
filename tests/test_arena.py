"""models.tasks.arena: real rows whole, odd rows repaired by name, wrong rows refused with their place."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks import cells
from models.tasks.arena import LABELS, SWAP, ArenaRow, read_rows
from models.tasks.bad_rows import write_bad_rows
from models.tasks.cells import write_turns

settings.load_profile("ci")  # the same examples every time, and no deadline: a busy machine is not a bug

WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"]
HEADER = ["id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNERS]
GOOD = ["1", "gpt", "claude", '["p"]', '["a"]', '["b"]', "1", "0", "0"]

# data/arena_kaggle_sample/SOURCE.md: every row with more than one turn
TURNS = {
    "30192": 2, "53567": 3, "481524": 2, "604575": 6, "738614": 2, "1120158": 3, "1813737": 10, "1842252": 5,
    "2388511": 2, "3504181": 2, "3710170": 2, "3995635": 5, "4961077": 2, "5530797": 2, "6807968": 2, "7021095": 2,
}  # fmt: skip

turns = st.lists(st.text(), min_size=1, max_size=3).map(tuple)
share = st.floats(0, 1, allow_nan=False)


@st.composite
def arena_rows(draw: st.DrawFn) -> ArenaRow:
    label = draw(st.sampled_from([None, 0, 1, 2]))
    target = None if label is None else draw(st.tuples(share, share, share))
    return ArenaRow("1", draw(turns), draw(turns), draw(turns), draw(st.text()), draw(st.text()), target, label)


def written(path: Path, *rows: list[str], header: list[str] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def changed(**cells_by_name: str) -> list[str]:
    return [cells_by_name.get(name, cell) for name, cell in zip(HEADER, GOOD, strict=True)]


# --- a row and its other order


@given(arena_rows())
def test_two_swaps_give_the_row_back(row: ArenaRow) -> None:
    assert row.swapped().swapped() == row


def test_a_swap_exchanges_answers_models_label_and_target() -> None:
    row = ArenaRow("9", ("p",), ("a",), ("b",), "gpt", "claude", (0.5, 0.3, 0.2), 0)
    assert row.swapped() == ArenaRow("9", ("p",), ("b",), ("a",), "claude", "gpt", (0.3, 0.5, 0.2), 1)


def test_a_tie_stays_a_tie_and_an_unlabelled_row_stays_unlabelled() -> None:
    tie = ArenaRow("9", ("p",), ("a",), ("b",), target=(0.0, 0.0, 1.0), label_index=2).swapped()
    assert (tie.label, tie.target) == ("tie", (0.0, 0.0, 1.0))
    unlabelled = ArenaRow("9", ("p",), ("a",), ("b",)).swapped()
    assert (unlabelled.label, unlabelled.target) == (None, None)


def test_swapped_columns_are_unswapped_by_the_same_exchange() -> None:
    probs = np.array([[0.5, 0.3, 0.2]])
    assert probs[:, SWAP].tolist() == [[0.3, 0.5, 0.2]]
    assert probs[:, SWAP][:, SWAP].tolist() == probs.tolist()
    assert [LABELS[i] for i in SWAP] == ["model_b", "model_a", "tie"]


# --- real rows


def test_the_real_kaggle_rows_are_read_without_repair(real_data: Path) -> None:
    table = read_rows(real_data / "arena_kaggle_sample" / "train.csv", labelled=True)
    assert (table.repairs.report(), table.bad_rows) == ("nothing repaired", [])
    assert [sum(row.label == label for row in table.rows) for label in LABELS] == [31, 33, 36]
    assert {row.id: len(row.prompt) for row in table.rows if len(row.prompt) > 1} == TURNS
    assert all(len(row.prompt) == len(row.response_a) == len(row.response_b) for row in table.rows)
    first = table.rows[0]
    assert (first.id, first.model_a, first.model_b, first.target) == (
        "30192", "gpt-4-1106-preview", "gpt-4-0613", (1.0, 0.0, 0.0),
    )  # fmt: skip
    assert [row.id for row in table.rows if row.response_a == row.response_b] == ["1827787", "3590999"]


def test_writing_the_real_turns_again_gives_the_file_s_very_cells(real_data: Path) -> None:
    path = real_data / "arena_kaggle_sample" / "train.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        cells_by_id = {cells["id"]: cells for cells in csv.DictReader(stream)}
    for row in read_rows(path, labelled=True).rows:
        for name in ("prompt", "response_a", "response_b"):
            assert write_turns(getattr(row, name)) == cells_by_id[row.id][name], (row.id, name)


def test_the_public_test_file_has_three_unlabelled_rows(real_data: Path) -> None:
    rows = read_rows(real_data / "arena_kaggle_sample" / "test.csv", labelled=False).rows
    assert [(row.id, len(row.prompt), row.label, row.model_a) for row in rows] == [
        ("136060", 1, None, ""), ("211333", 1, None, ""), ("1233961", 2, None, ""),
    ]  # fmt: skip


def test_the_human_rows_take_their_votes_as_target_and_keep_the_winner_as_label(real_data: Path) -> None:
    folder = real_data / "arena_human"
    table = read_rows(folder / "train.csv.gz", labelled=True, votes_path=folder / "votes.csv.gz")
    assert table.repairs.report() == "nothing repaired"
    assert [sum(row.label == label for row in table.rows) for label in LABELS] == [905, 919, 618]
    targets = np.array([row.target for row in table.rows])
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-12)  # float64 rounding of three shares
    labels = np.array([row.label_index for row in table.rows])
    plural = targets.max(axis=1) > np.sort(targets, axis=1)[:, 1] + 1e-9
    assert (targets.argmax(axis=1) == labels)[plural].all()
    assert (labels[~plural] == 2).all()  # a draw of votes is written as a tie
    assert ((targets > 0).sum(axis=1) > 1).any()


# --- odd rows


def test_each_repair_is_counted_with_the_id_it_happened_to(tmp_path: Path) -> None:
    path = written(
        tmp_path / "train.csv",
        changed(id="n", response_a="[null]"),
        changed(id="m", response_b=""),
        changed(id="t", prompt="just text"),
        changed(id="l", prompt="['it\"s']"),
        changed(id="s", response_a='["\\ud83d"]'),
        changed(id="u", prompt='["p","q"]', response_a='["a"]', response_b='["b","c"]'),
    )
    table = read_rows(path, labelled=True)
    assert table.repairs.ids == {
        cells.NULL_TURN: ["n"], cells.MISSING_CELL: ["m"], cells.PLAIN_CELL: ["t"], cells.PYTHON_LIST: ["l"],
        cells.LONE_SURROGATE: ["s"], cells.UNEVEN_TURNS: ["u"],
    }  # fmt: skip
    by_id = {row.id: row for row in table.rows}
    assert by_id["n"].response_a == by_id["m"].response_b == ("",)
    assert by_id["u"].response_a == ("a", "")
    assert by_id["l"].prompt == ('it"s',)


@pytest.mark.parametrize("row_id", ["007", "9223372036854775807", "a b", "1e5", "NA", "2147483648.0"])
def test_an_id_is_kept_as_written(tmp_path: Path, row_id: str) -> None:
    assert read_rows(written(tmp_path / "a.csv", changed(id=row_id)), labelled=True).rows[0].id == row_id


def test_parquet_with_native_lists_gives_the_same_rows_as_csv(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [2**62, 5], "model_a": ["gpt", None], "model_b": ["claude", "x"], "prompt": [["p", "q"], ["r"]],
            "response_a": [["a", None], ["c"]], "response_b": [["b", "d"], None],
            "winner_model_a": [1, 0], "winner_model_b": [0, 0], "winner_tie": [0, 1],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    csv_path = written(
        tmp_path / "a.csv",
        [str(2**62), "gpt", "claude", '["p","q"]', '["a",null]', '["b","d"]', "1", "0", "0"],
        ["5", "", "x", '["r"]', '["c"]', "", "0", "0", "1"],
    )
    from_parquet, from_csv = (read_rows(path, labelled=True) for path in (tmp_path / "a.parquet", csv_path))
    assert from_parquet == from_csv


def test_winner_columns_are_not_looked_at_when_unlabelled_rows_are_asked_for(tmp_path: Path) -> None:
    row = read_rows(written(tmp_path / "a.csv", changed(winner_tie="nonsense")), labelled=False).rows[0]
    assert (row.label, row.target) == (None, None)


# --- refusals


@pytest.mark.parametrize(
    ("cells_by_name", "said"),
    [
        ({"id": ""}, "id : the id is empty"),
        ({"id": "1"}, "id 1: the id was already used in row 1; ids must differ"),
        ({"winner_tie": "1"}, "id 2: the label is not one-hot (winner_model_a=1, winner_model_b=0, winner_tie=1)"),
        ({"winner_model_a": "0"}, "id 2: the label is not one-hot (winner_model_a=0,"),
        ({"winner_model_a": "0.6", "winner_tie": "0.4"}, "id 2: the label is not one-hot (winner_model_a=0.6,"),
        ({"winner_model_a": ""}, "id 2: the label is not one-hot (winner_model_a=,"),
        (dict.fromkeys(WINNERS, ""), "id 2: it has no label: all winner columns are blank"),
        ({"response_b": '["cut off'}, "id 2: response_b begins like a list but is neither"),
    ],
)
def test_a_wrong_row_is_refused_with_file_row_line_and_id(tmp_path: Path, cells_by_name: dict, said: str) -> None:
    path = written(tmp_path / "train.csv", GOOD, changed(**{"id": "2"} | cells_by_name))
    with pytest.raises(ValueError) as refusal:
        read_rows(path, labelled=True)
    message = str(refusal.value)
    assert message.startswith(f"{path}, row 2 (line 3), id ")
    assert said in message
    assert message.endswith("Mend the file, or leave such rows out with task.on_bad_row=skip.")


def test_many_wrong_rows_are_counted_and_the_first_three_shown(tmp_path: Path) -> None:
    path = written(tmp_path / "train.csv", *(changed(id=str(i), winner_tie="1") for i in range(5)))
    with pytest.raises(ValueError, match=r"(?s)id 0: .*id 1: .*id 2: .*\.\.\. and 2 more such rows\.\n"):
        read_rows(path, labelled=True)


def test_skipped_rows_are_listed_and_leave_no_trace_in_the_others(tmp_path: Path) -> None:
    path = written(
        tmp_path / "train.csv",
        changed(id="1", prompt='["two\nlines"]'),
        changed(id="2", prompt="[null]", response_a='["cut off'),
        changed(id="1"),
        changed(id="3", winner_tie="1"),
        changed(id="4"),
    )
    table = read_rows(path, labelled=True, on_bad_row="skip")
    assert [row.id for row in table.rows] == ["1", "4"]
    assert [(bad.row, bad.line, bad.id) for bad in table.bad_rows] == [(2, 4, "2"), (3, 5, "1"), (4, 6, "3")]
    assert table.repairs.report() == "nothing repaired"  # the null turn went with its row
    write_bad_rows(tmp_path / "bad_rows.csv", table.bad_rows)
    with (tmp_path / "bad_rows.csv").open(newline="") as stream:
        listed = list(csv.DictReader(stream))
    assert [(bad["file"], bad["row"], bad["id"]) for bad in listed] == [(str(path), n, i) for n, i in (
        ("2", "2"), ("3", "1"), ("4", "3"),
    )]  # fmt: skip
    assert listed[1]["reason"] == "the id was already used in row 1; ids must differ"


def test_missing_columns_are_refused_even_when_bad_rows_are_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "train.csv", GOOD[:5], header=["id", "model_a", "model_b", "promt", "response_a"])
    with pytest.raises(ValueError, match=r"no column 'prompt' \(closest: 'promt'\), 'response_b' \(closest: 'respon"):
        read_rows(path, labelled=False, on_bad_row="skip")


def test_the_test_file_read_as_labelled_is_refused(real_data: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'winner_model_a', .* It has: id, prompt, .* the test file\?"):
        read_rows(real_data / "arena_kaggle_sample" / "test.csv", labelled=True)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows to read: nothing below the header"):
        read_rows(written(tmp_path / "a.csv"), labelled=True)
    with pytest.raises(ValueError, match="has no rows to read: all 1 rows are bad, the first since the id is empty"):
        read_rows(written(tmp_path / "a.csv", changed(id="")), labelled=True, on_bad_row="skip")


def test_an_unknown_way_to_treat_bad_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_bad_row is 'drop', expected 'refuse' or 'skip'"):
        read_rows(tmp_path / "a.csv", labelled=True, on_bad_row="drop")  # type: ignore[arg-type]


# --- votes

VOTES = ["id", "votes_a", "votes_b", "votes_tie"]


def test_votes_become_shares_by_id_and_rows_without_votes_stay_one_hot(tmp_path: Path) -> None:
    path = written(tmp_path / "train.csv", changed(id="1"), changed(id="2"))
    votes = written(tmp_path / "votes.csv", ["2", "1", "3", "0"], ["77", "1", "0", "0"], header=VOTES)
    rows = read_rows(path, labelled=True, votes_path=votes).rows
    assert [(row.target, row.label) for row in rows] == [((1, 0, 0), "model_a"), ((0.25, 0.75, 0), "model_a")]


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        (["1", "-1", "2", "0"], r"row 1 \(line 2\), id 1: votes -1, 2, 0 must be 0 or more and not all 0"),
        (["1", "0", "0", "0"], "id 1: votes 0, 0, 0 must be 0 or more and not all 0"),
        (["1", "nan", "1", "0"], "id 1: votes nan, 1, 0 must be 0 or more"),
        (["1", "", "1", "0"], "id 1: votes , 1, 0 are not three numbers"),
        (["5", "1", "0", "0"], "shares no id with the rows: it has 5, ... and the rows have 1, ...."),
    ],
)
def test_wrong_votes_are_refused(tmp_path: Path, votes: list[str], said: str) -> None:
    path = written(tmp_path / "votes.csv", votes, header=VOTES)
    with pytest.raises(ValueError, match=said):
        read_rows(written(tmp_path / "train.csv", GOOD), labelled=True, votes_path=path)


def test_votes_for_one_id_twice_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "votes.csv", ["1", "1", "0", "0"], ["1", "0", "1", "0"], header=VOTES)
    with pytest.raises(ValueError, match="votes for id 1 are given twice"):
        read_rows(written(tmp_path / "train.csv", GOOD), labelled=True, votes_path=path)


def test_votes_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="but the rows are read unlabelled"):
        read_rows(tmp_path / "a.csv", labelled=False, votes_path=tmp_path / "votes.csv")
