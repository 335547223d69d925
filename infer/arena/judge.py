"""A language model as an untrained judge of arena rows: which answer is better, read in both orders and averaged.

question.permutations=none reads the order as given alone. Resumes after a kill, like every table the engine writes.
Knows arena rows and the label reader.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.arena.answer import BAD_ROWS, ORDERS, PREDICTIONS, SUBMISSION, ArenaReading
from infer.chunked import (
    OutOfTime,
    P,
    fill_parts,
    kept_strays,
    open_parts,
    part_schema,
    probability_columns,
    probability_frame,
)
from infer.identity import input_identity
from infer.logs import log
from infer.pace import Pace
from infer.parts import Parts, finished
from infer.predictions import OTHER_COLUMN, Predictions, swap_average
from infer.ranks import from_main, is_main, wait_for_all
from infer.readers.by_method import identify, load_label_reader, rotates
from infer.readers.label import LabelReader, LabelReading
from infer.stopping import time_left_s
from infer.table_summary import report, summarise, summary_columns
from models.settings import Settings
from models.tasks.arena import LABELS, SWAP, ArenaRow, text_bytes

TURN_BREAK = "\n\n"
DISAGREEMENT = "swap_gap"  # L1 distance between the two orders, 0 to 2
OTHERS = (SUBMISSION, f"{SUBMISSION}.json", PREDICTIONS, BAD_ROWS)  # written beside the judge's table
RESERVE_S = 10.0  # of the time budget: to join the parts, and to write and check the answer


def judge(rows: Sequence[ArenaRow], settings: Settings, out: Path) -> ArenaReading:
    """The probability of each outcome for every row; the mean of both orders of the answers.

    Writes out/judge.parquet with the raw log-probabilities of the order as given and how far the orders disagree. Where
    the time budget ends first, only the rows that were read come back, some in one order alone, and the same command
    reads what is missing.
    Raises ValueError for rows that the model could not compute in its precision: a submission needs them all.
    """
    if not rows:
        raise ValueError(f"{settings.arena.test_csv} has no row that can be judged. Give a file with at least one.")
    output = out / "judge.parquet"
    identity = {**identify(settings), "input": input_identity(settings.arena.test_csv), "rows": len(rows)}
    unfinished = None
    if from_main(is_main() and finished(output, identity)):
        log.info(f"{output} is finished already")
    else:
        unfinished = _read_all(rows, settings, output, identity)
    if unfinished is None and is_main():
        report(output, LABELS)
    table = pd.read_parquet(output) if unfinished is None else unfinished
    if DISAGREEMENT in table:
        log.info(f"the two orders of a row disagree by {table[DISAGREEMENT].mean():.3f} (L1, 0 to 2) on average")
    predictions = Predictions(
        ids=table["id"].to_numpy(dtype=object),
        labels=LABELS,
        probs=table[[P + label for label in LABELS]].to_numpy(),
        other=table[OTHER_COLUMN].to_numpy(),
    )
    counts = [len(table), *([int(table[DISAGREEMENT].notna().sum())] if DISAGREEMENT in table else [])]
    passes = [
        {"model": settings.model.name, "order": order, "rows": count}
        for order, count in zip(ORDERS, counts, strict=False)
    ]
    return ArenaReading(predictions, identity, passes)


def row_fields(row: ArenaRow, *, swapped: bool) -> dict[str, str]:
    """The template's fields of a row, its turns parted by an empty line; swapped: the answers exchanged."""
    first, second = (row.response_b, row.response_a) if swapped else (row.response_a, row.response_b)
    texts = {"prompt": row.prompt, "response_a": first, "response_b": second}
    return {name: TURN_BREAK.join(turns) for name, turns in texts.items()}


@dataclass
class _Judging:
    """How a chunk of rows is read, and how much of the work is left for it."""

    both: bool  # orders
    cost_left: float  # of the rows that this process has not read, in bytes of one order
    pace: Pace
    hurry: bool = True  # one order alone where both would take too long

    def cost(self, chunk: Sequence[ArenaRow]) -> float:
        return float(sum(map(text_bytes, chunk)))

    def orders(self) -> tuple[bool, ...]:
        """As given and swapped; as given alone where both orders of all that is left would take too long."""
        seconds = self.pace.seconds(self.cost_left)  # of what it did until now: both orders, unless some were dropped
        late = self.hurry and seconds is not None and seconds > time_left_s() - RESERVE_S
        if not self.both or late:
            return (False,)
        return (False, True)

    def read(self, reader: LabelReader, number: int, chunk: Sequence[ArenaRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
        orders = self.orders()
        self.cost_left -= self.cost(chunk)
        fields = [row_fields(row, swapped=swapped) for swapped in orders for row in chunk]
        reading = reader.read(fields, names=[f"row {row.id}" for _ in orders for row in chunk])
        given = _rows(reading, slice(len(chunk)))
        probs, gap, other = given.probs(), None, given.other
        if len(orders) == 2:
            swapped = _rows(reading, slice(len(chunk), None))
            probs, gap = swap_average(probs, swapped.probs(), SWAP)
            other = (other + swapped.other) / 2
            given.cut_share = np.maximum(given.cut_share, swapped.cut_share)
        frame = probability_frame(given, LABELS, probs)
        frame[OTHER_COLUMN] = np.where(frame["predicted"].notna(), other, np.nan)
        frame.insert(0, "id", [row.id for row in chunk])
        _refuse_unread(frame)  # before they are kept, where they would stand in the way of another number format
        if self.both:
            frame[DISAGREEMENT] = np.full(len(chunk), np.nan) if gap is None else gap
        # Summed over both orders; halved, they are probabilities per row.
        strays = {text: prob / len(orders) for text, prob in kept_strays(reading).items()}
        extras: dict[str, Any] = {"strays": strays} | ({"reader": reader.identity} if number == 0 else {})
        return frame, extras | ({"one_order_rows": len(chunk)} if self.both and gap is None else {})


def _read_all(
    rows: Sequence[ArenaRow], settings: Settings, output: Path, identity: dict[str, Any]
) -> pd.DataFrame | None:
    """Read what is not there yet and write the table; where time runs out, the rows that are there, as a frame."""
    both = settings.question.permutations == "cyclic"
    columns = [*probability_columns(LABELS, spread=rotates(settings)), *([DISAGREEMENT] if both else [])]
    size = settings.engine.chunk_rows
    chunks = [(number, rows[start : start + size]) for number, start in enumerate(range(0, len(rows), size))]
    pace = Pace()
    with open_parts(output, identity, part_schema(["id"], columns), others=OTHERS) as parts:
        left = float(sum(text_bytes(row) for number, chunk in chunks if parts.todo(number) for row in chunk))
        judging = _Judging(both, left, pace)
        load: Any = functools.cache(lambda _: load_label_reader(settings))
        try:
            count = fill_parts(
                parts, chunks, load, judging.read, rows=len(rows), cost=judging.cost, reserve_s=RESERVE_S, pace=pace
            )
            again = [(number, chunk) for number, chunk in chunks if "one_order_rows" in parts.extras_of(number)]
            wait_for_all()  # every process has seen the same
            if again:
                judging.hurry = False
                fill_parts(
                    parts, again, load, judging.read, rows=sum(len(chunk) for _, chunk in again),
                    cost=lambda chunk: 2 * judging.cost(chunk), reserve_s=RESERVE_S, pace=pace, todo=parts.mine,
                )  # fmt: skip
        except OutOfTime:
            return _read_in_time(parts, chunks, settings)
        if is_main():
            extras = parts.extras(count)
            frames = parts.frames(count, summary_columns(LABELS, labelled=False))
            figures = summarise(frames, LABELS, [one["strays"] for one in extras])
            parts.merge(count, {"labels": list(LABELS), "reader": extras[0]["reader"], **figures})
    wait_for_all()
    return None


def _read_in_time(parts: Parts, chunks: Sequence[tuple[int, Sequence[ArenaRow]]], settings: Settings) -> pd.DataFrame:
    """The rows that are there, once it is said what is not."""
    frames = {number: parts.whole_frame(number) for number, _ in chunks}
    there = {number: frame for number, frame in frames.items() if frame is not None}
    unread = sum(len(chunk) for number, chunk in chunks if number not in there)
    one_order = sum(parts.extras_of(number).get("one_order_rows", 0) for number in there)
    log.warning(
        f"warning: time_budget_minutes={settings.time_budget_minutes:g} is spent: {unread} of "
        f"{sum(len(chunk) for _, chunk in chunks)} rows are not read and get the mean prediction, {one_order} are read "
        f"in one order alone. What is read is kept in {parts.folder}: the same command reads what is missing."
    )
    return pd.concat([parts.schema.empty_table().to_pandas(), *there.values()])


def _rows(reading: LabelReading, rows: slice) -> LabelReading:
    spread = None if reading.spread is None else reading.spread[rows]
    return LabelReading(reading.log_probs[rows], reading.cut_share[rows], spread)


def _refuse_unread(table: pd.DataFrame) -> None:
    unread = table[P + LABELS[0]].isna()
    if unread.any():
        raise ValueError(
            f"{int(unread.sum())} rows have no finite numbers, the first is id {table['id'][unread].iloc[0]}. Use "
            "engine.precision=fp32, and delete the .parts folder of what was read until then."
        )
