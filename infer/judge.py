"""A language model as an untrained judge of arena rows: which answer is better, read in both orders and averaged.

question.permutations=none reads the order as given alone. Resumes after a kill, like every table the engine writes.
Knows arena rows and the label reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.chunked import P, fill_parts, kept_strays, open_parts, part_schema, probability_columns, probability_frame
from infer.identity import input_identity
from infer.label_reader import LabelReader, LabelReading
from infer.logs import log
from infer.parts import finished
from infer.predictions import OTHER_COLUMN, Predictions, swap_average
from infer.ranks import from_main, is_main, wait_for_all
from infer.readers import identify, load_label_reader, rotates
from infer.table_summary import report, summarise, summary_columns
from models.settings import Settings
from models.tasks.arena import LABELS, SWAP, ArenaRow

TURN_BREAK = "\n\n"
DISAGREEMENT = "swap_gap"  # L1 distance between the two orders, 0 to 2


def judge(rows: Sequence[ArenaRow], settings: Settings, out: Path) -> Predictions:
    """The probability of each outcome for every row; the mean of both orders of the answers.

    Writes out/judge.parquet with the raw log-probabilities of the order as given and how far the orders disagree.
    Raises ValueError for rows that the model could not compute in its precision: a submission needs them all.
    """
    if not rows:
        raise ValueError(f"{settings.arena.test_csv} has no row that can be judged. Give a file with at least one.")
    if settings.calibration.use or settings.calibration.fit:
        raise ValueError(
            "calibration.use and calibration.fit are for tables of texts (task=text): the judge averages its two "
            "orders as they are. Set both to null."
        )
    output = out / "judge.parquet"
    identity = {**identify(settings), "input": input_identity(settings.arena.test_csv), "rows": len(rows)}
    if from_main(is_main() and finished(output, identity)):
        log.info(f"{output} is finished already")
    else:
        _read_all(rows, settings, output, identity)
    if is_main():
        report(output, LABELS)
    table = pd.read_parquet(output)
    if DISAGREEMENT in table:
        log.info(f"the two orders of a row disagree by {table[DISAGREEMENT].mean():.3f} (L1, 0 to 2) on average")
    _refuse_unread(table)
    return Predictions(
        ids=table["id"].to_numpy(dtype=object),
        labels=LABELS,
        probs=table[[P + label for label in LABELS]].to_numpy(),
        other=table[OTHER_COLUMN].to_numpy(),
    )


def row_fields(row: ArenaRow, *, swapped: bool) -> dict[str, str]:
    """The template's fields of a row, its turns parted by an empty line; swapped: the answers exchanged."""
    first, second = (row.response_b, row.response_a) if swapped else (row.response_a, row.response_b)
    texts = {"prompt": row.prompt, "response_a": first, "response_b": second}
    return {name: TURN_BREAK.join(turns) for name, turns in texts.items()}


@dataclass(frozen=True)
class _Judging:
    """How a chunk of rows is read."""

    both: bool  # orders

    def read(self, reader: LabelReader, number: int, chunk: Sequence[ArenaRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
        orders = (False, True) if self.both else (False,)
        fields = [row_fields(row, swapped=swapped) for swapped in orders for row in chunk]
        reading = reader.read(fields, names=[f"row {row.id}" for _ in orders for row in chunk])
        given = _rows(reading, slice(len(chunk)))
        probs, gap, other = given.probs(), None, given.other
        if self.both:
            swapped = _rows(reading, slice(len(chunk), None))
            probs, gap = swap_average(probs, swapped.probs(), SWAP)
            other = (other + swapped.other) / 2
            given.cut_share = np.maximum(given.cut_share, swapped.cut_share)
        frame = probability_frame(given, LABELS, probs)
        frame[OTHER_COLUMN] = np.where(frame["predicted"].notna(), other, np.nan)
        frame.insert(0, "id", [row.id for row in chunk])
        if gap is not None:
            frame[DISAGREEMENT] = gap
        # Summed over both orders; halved, they are probabilities per row.
        strays = {text: prob / len(orders) for text, prob in kept_strays(reading).items()}
        return frame, {"strays": strays} | ({"reader": reader.identity} if number == 0 else {})


def _read_all(rows: Sequence[ArenaRow], settings: Settings, output: Path, identity: dict[str, Any]) -> None:
    both = settings.question.permutations == "cyclic"
    columns = [*probability_columns(LABELS, spread=rotates(settings)), *([DISAGREEMENT] if both else [])]
    size = settings.engine.chunk_rows
    chunks = [(number, rows[start : start + size]) for number, start in enumerate(range(0, len(rows), size))]
    with open_parts(output, identity, part_schema(["id"], columns)) as parts:
        count = fill_parts(parts, chunks, lambda: load_label_reader(settings), _Judging(both).read, rows=len(rows))
        if is_main():
            extras = parts.extras(count)
            frames = parts.frames(count, summary_columns(LABELS, labelled=False))
            figures = summarise(frames, LABELS, [one["strays"] for one in extras])
            parts.merge(count, {"labels": list(LABELS), "reader": extras[0]["reader"], **figures})
    wait_for_all()


def _rows(reading: LabelReading, rows: slice) -> LabelReading:
    spread = None if reading.spread is None else reading.spread[rows]
    return LabelReading(reading.log_probs[rows], reading.cut_share[rows], spread)


def _refuse_unread(table: pd.DataFrame) -> None:
    unread = table[P + LABELS[0]].isna()
    if unread.any():
        raise ValueError(
            f"{int(unread.sum())} rows have no finite numbers, the first is id {table['id'][unread].iloc[0]}. Use "
            "engine.precision=fp32."
        )
