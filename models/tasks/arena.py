"""The arena task: which of two chat answers wins, or a tie. A file in, rows out, odd ones repaired or refused by name.

Knows no tokenizer and no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.tasks.bad_rows import damaged_rows
from models.tasks.cells import UNEVEN_TURNS, Repairs, read_turns
from models.tasks.damaged_rows import BadRow
from models.tasks.tables import Table, read_table, require_columns

LABELS: tuple[str, ...] = ("model_a", "model_b", "tie")
# Column j of a swapped row is column SWAP[j] of the row as written: the answers change places, the tie stays.
SWAP: tuple[int, ...] = (1, 0, 2)

TEXT_COLUMNS = ("prompt", "response_a", "response_b")
WINNER_COLUMNS = tuple(f"winner_{label}" for label in LABELS)
VOTE_COLUMNS = ("votes_a", "votes_b", "votes_tie")  # in the order of LABELS

_TRUTH = {"1": 1, "1.0": 1, "True": 1, "true": 1, "0": 0, "0.0": 0, "False": 0, "false": 0}

Target = tuple[float, float, float]


@dataclass(frozen=True)
class ArenaRow:
    """One comparison: a conversation and the two answers given at each of its turns.

    prompt, response_a, response_b: the same number of turns each.
    target: probabilities over LABELS, one-hot or from votes; label_index: the winner columns' label. None where
    unlabelled.
    """

    id: str
    prompt: tuple[str, ...]
    response_a: tuple[str, ...]
    response_b: tuple[str, ...]
    model_a: str = ""
    model_b: str = ""
    target: Target | None = None
    label_index: int | None = None

    @property
    def label(self) -> str | None:
        """Name of the winner, or None where unlabelled."""
        return None if self.label_index is None else LABELS[self.label_index]

    def swapped(self) -> ArenaRow:
        """The same comparison with the answers exchanged; two swaps give the row back.

        Both orders carry one id: they are averaged before they reach a table, where an id stands once.
        """
        target = self.target
        return replace(
            self,
            response_a=self.response_b,
            response_b=self.response_a,
            model_a=self.model_b,
            model_b=self.model_a,
            target=None if target is None else (target[SWAP[0]], target[SWAP[1]], target[SWAP[2]]),
            label_index=None if self.label_index is None else SWAP[self.label_index],
        )


@dataclass(frozen=True)
class ArenaTable:
    """What a file gave: rows in the file's order, what was repaired in them, and the rows left out."""

    rows: list[ArenaRow]
    repairs: Repairs
    bad_rows: list[BadRow]


def read_rows(
    path: str | Path,
    *,
    labelled: bool,
    on_bad_row: str = "refuse",
    votes_path: str | Path | None = None,
) -> ArenaTable:
    """The rows of a Kaggle arena file (.csv, .csv.gz, .zip, .parquet).

    labelled: the winner columns are needed and read; otherwise they are ignored where present.
    on_bad_row: a row with unreadable cells, a label that is not one-hot or an id already seen is refused with its
    place, or skipped and listed in `bad_rows`.
    votes_path: a table of id and votes_a, votes_b, votes_tie; their shares become the target of the rows they name,
    the label stays the winner columns'.
    Refuses missing columns and a file without rows whatever on_bad_row says.
    """
    if on_bad_row not in ("refuse", "skip"):
        raise ValueError(f"on_bad_row is '{on_bad_row}', expected 'refuse' or 'skip'.")
    if votes_path is not None and not labelled:
        raise ValueError(f"votes_path is {votes_path} but the rows are read unlabelled. Set labelled, or leave it out.")
    table = read_table(path, mark_damage=on_bad_row == "skip")
    hint = "Is this the test file?" if labelled else ""
    require_columns(table, ("id", *TEXT_COLUMNS, *(WINNER_COLUMNS if labelled else ())), hint)
    parsed = parse_rows(table, labelled=labelled)
    if parsed.bad_rows and on_bad_row == "refuse":
        raise ValueError(_refusal(table, parsed.bad_rows))
    if not parsed.rows:
        bad = parsed.bad_rows
        why = f"all {len(bad)} rows are bad, the first since {bad[0].reason}" if bad else "nothing below the header"
        raise ValueError(f"{path} has no rows to read: {why}. Give a file with at least one row.")
    if votes_path is None:
        return parsed
    return replace(parsed, rows=with_votes(parsed.rows, read_votes(votes_path), str(votes_path)))


def parse_rows(table: Table, *, labelled: bool) -> ArenaTable:
    """The rows of a table that has the columns; bad ones are listed, never raised.

    The first row of an id is kept, a later one is bad: which of two is right cannot be known.
    """
    rows: list[ArenaRow] = []
    bad_rows: list[BadRow] = []
    repairs = Repairs()
    seen: dict[str, int] = {}
    frame = table.frame
    wanted = ["id", *TEXT_COLUMNS, "model_a", "model_b", *(WINNER_COLUMNS if labelled else ())]
    columns = [frame[name].tolist() if name in frame.columns else [""] * len(frame) for name in wanted]
    for number, cells in enumerate(zip(*columns, strict=True)):
        row_id = cells[0] or ""
        try:
            if row_id in seen:
                raise ValueError(f"the id was already used in row {seen[row_id] + 1}; ids must differ")
            seen[row_id] = number
            rows.append(_parse_row(row_id, cells[1:4], cells[4:6], cells[6:], repairs))
        except ValueError as error:
            place = int(table.numbers[number]) + 1
            bad_rows.append(BadRow(str(table.path), place, table.line(number), row_id, str(error)))
    bad_rows += damaged_rows(table, "id")
    return ArenaTable(rows, repairs, sorted(bad_rows, key=lambda bad: bad.row))


def text_bytes(row: ArenaRow) -> int:
    """Bytes of a row's texts in UTF-8: how long reading it takes, as far as that can be told without a tokenizer."""
    turns = (*row.prompt, *row.response_a, *row.response_b)
    return sum(len(turn.encode("utf-8", "surrogatepass")) for turn in turns)


def read_votes(path: str | Path) -> dict[str, Target]:
    """Shares of the votes over LABELS for each id of a votes table; refuses what is no count, or all zeros."""
    table = read_table(path)
    require_columns(table, ("id", *VOTE_COLUMNS))
    shares: dict[str, Target] = {}
    columns = [table.frame[name].tolist() for name in ("id", *VOTE_COLUMNS)]
    for number, (row_id, *written) in enumerate(zip(*columns, strict=True)):
        if row_id in shares:
            raise ValueError(f"{table.place(number)}: votes for id {row_id} are given twice. Keep one line per id.")
        shares[row_id] = _vote_shares(written, f"{table.place(number)}, id {row_id}")
    return shares


def with_votes(rows: Sequence[ArenaRow], shares: dict[str, Target], source: str = "the votes table") -> list[ArenaRow]:
    """The rows with votes as their target where an id has any; refuses votes that name none of the rows."""
    if not any(row.id in shares for row in rows):
        raise ValueError(
            f"{source} shares no id with the rows: it has {', '.join(list(shares)[:3])}, ... and the rows have "
            f"{', '.join(row.id for row in rows[:3])}, .... Give the votes of these rows, or none."
        )
    return [replace(row, target=shares[row.id]) if row.id in shares else row for row in rows]


def _parse_row(
    row_id: str, texts: Sequence[str], models: Sequence[str | None], winners: Sequence[str | None], repairs: Repairs
) -> ArenaRow:
    if not row_id:
        raise ValueError("the id is empty")
    label_index = _winner(winners) if winners else None
    fields: list[tuple[str, ...]] = []
    found: list[str] = []
    for name, cell in zip(TEXT_COLUMNS, texts, strict=True):
        try:
            turns, kinds = read_turns(cell)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        fields.append(turns)
        found.extend(kinds)
    length = max(map(len, fields))
    found.extend(UNEVEN_TURNS for turns in fields if len(turns) < length)
    # counted only once the whole row stands, so that a row left out leaves no trace in the report
    for kind in found:
        repairs.add(kind, row_id)
    prompt, response_a, response_b = (turns + ("",) * (length - len(turns)) for turns in fields)
    target: Target | None = None
    if label_index is not None:
        target = (float(label_index == 0), float(label_index == 1), float(label_index == 2))
    return ArenaRow(row_id, prompt, response_a, response_b, models[0] or "", models[1] or "", target, label_index)


def _winner(cells: Sequence[str | None]) -> int:
    written = ", ".join(f"{name}={cell or ''}" for name, cell in zip(WINNER_COLUMNS, cells, strict=True))
    if not any(cells):
        raise ValueError("it has no label: all winner columns are blank; label it or read the file as unlabelled")
    flags = [_TRUTH.get((cell or "").strip()) for cell in cells]
    if sorted(map(str, flags)) != ["0", "0", "1"]:
        raise ValueError(f"the label is not one-hot ({written}): one column must be 1, the others 0")
    return flags.index(1)


def _vote_shares(written: Sequence[str | None], place: str) -> Target:
    try:
        a, b, tie = (float(cell or "") for cell in written)
    except ValueError as error:
        raise ValueError(f"{place}: votes {', '.join(map(str, written))} are not three numbers.") from error
    total = a + b + tie
    if not (math.isfinite(total) and min(a, b, tie) >= 0 and total > 0):
        raise ValueError(f"{place}: votes {a:g}, {b:g}, {tie:g} must be 0 or more and not all 0. Leave the line out.")
    return (a / total, b / total, tie / total)


def _refusal(table: Table, bad_rows: Sequence[BadRow]) -> str:
    said = [f"{table.place(bad.row - 1)}, id {bad.id}: {bad.reason}." for bad in bad_rows[:3]]
    if len(bad_rows) > 3:
        said.append(f"... and {len(bad_rows) - 3} more such rows.")
    return "\n".join([*said, "Mend the file, or leave such rows out with task.on_bad_row=skip."])
