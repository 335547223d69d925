"""A language model as an untrained judge of arena rows: which answer is better, read in both orders and averaged.

Resumes after a kill, like every table the engine writes. Knows arena rows and the label reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.chunked import LOG_P, P, fill_parts, part_schema, probability_columns, probability_frame
from infer.identity import input_identity
from infer.label_reader import LabelReader, LabelReading
from infer.logs import log
from infer.parts import Parts, finished
from infer.predictions import Predictions, swap_average
from infer.ranks import is_main, wait_for_all
from infer.text_run import load_reader, question_identity
from models.settings import Settings
from models.tasks.arena import LABELS, SWAP, ArenaRow

TURN_BREAK = "\n\n"
DISAGREEMENT = "swap_gap"  # L1 distance between the two orders, 0 to 2


def judge(rows: Sequence[ArenaRow], settings: Settings, out: Path) -> Predictions:
    """The probability of each outcome for every row; the mean of both orders of the answers.

    Writes out/judge.parquet with the raw log-probabilities of the order as given and how far the orders disagree.
    """
    output = out / "judge.parquet"
    identity = {**question_identity(settings), "input": input_identity(settings.arena.test_csv), "rows": len(rows)}
    columns = [*probability_columns(LABELS, spread=_spreads(settings)), DISAGREEMENT]
    schema = part_schema(["id"], columns)
    size = settings.engine.chunk_rows
    chunks = [(number, rows[start : start + size]) for number, start in enumerate(range(0, len(rows), size))]
    if not (is_main() and finished(output, identity)):
        parts = Parts(output, identity, schema) if is_main() else None
        wait_for_all()
        with parts or Parts(output, identity, schema, main=False) as parts:
            count = fill_parts(parts, chunks, lambda: load_reader(settings), _read, rows=len(rows))
            if is_main():
                parts.merge(count, {"labels": list(LABELS)})
    wait_for_all()
    table = pd.read_parquet(output)
    log.info(f"the two orders of a row disagree by {table[DISAGREEMENT].mean():.3f} (L1, 0 to 2) on average")
    _refuse_unread(table)
    return Predictions(
        ids=table["id"].to_numpy(dtype=object),
        labels=LABELS,
        probs=table[[P + label for label in LABELS]].to_numpy(),
        other=table["p_other"].to_numpy(),
    )


def row_fields(row: ArenaRow, *, swapped: bool) -> dict[str, str]:
    """The template's fields of a row, its turns parted by an empty line; swapped: the answers exchanged."""
    first, second = (row.response_b, row.response_a) if swapped else (row.response_a, row.response_b)
    texts = {"prompt": row.prompt, "response_a": first, "response_b": second}
    return {name: TURN_BREAK.join(turns) for name, turns in texts.items()}


def _read(reader: LabelReader, chunk: Sequence[ArenaRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
    fields = [row_fields(row, swapped=swapped) for row in chunk for swapped in (False, True)]
    both = reader.read(fields, names=[f"row {row.id}" for row in chunk for _ in range(2)])
    given, swapped = _every_second(both, 0), _every_second(both, 1)
    probs, gap = swap_average(given.probs(), swapped.probs(), SWAP)
    given.cut_share = np.maximum(given.cut_share, swapped.cut_share)
    frame = probability_frame(given, LABELS, probs)
    frame["p_other"] = (given.other + swapped.other) / 2
    frame.insert(0, "id", [row.id for row in chunk])
    frame[DISAGREEMENT] = gap
    return frame, {}


def _every_second(reading: LabelReading, first: int) -> LabelReading:
    spread = None if reading.spread is None else reading.spread[first::2]
    return LabelReading(reading.log_probs[first::2], reading.cut_share[first::2], spread)


def _spreads(settings: Settings) -> bool:
    return settings.question.answers != "text" and settings.question.permutations == "cyclic"


def _refuse_unread(table: pd.DataFrame) -> None:
    unread = table[LOG_P + LABELS[0]].isna() | table[P + LABELS[0]].isna()
    if unread.any():
        raise ValueError(
            f"{int(unread.sum())} rows have no finite numbers, the first is id {table['id'][unread].iloc[0]}. Use "
            "engine.precision=fp32."
        )
