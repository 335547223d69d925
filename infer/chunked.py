"""Reads rows chunk by chunk into parts that survive a kill, on one process or several, and joins them at the end.

Knows chunks and frames; what a row is and how it is read are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from infer.logs import log
from infer.parts import Parts
from infer.predictions import OTHER_COLUMN
from infer.ranks import is_main, wait_for_all, world_size

if TYPE_CHECKING:
    from infer.label_reader import LabelReading
    from infer.readers import Reader

P, LOG_P = "p_", "logp_"

Read = Callable[[Any, int, Sequence[Any]], tuple[pd.DataFrame, Mapping[str, Any]]]


@contextmanager
def open_parts(output: Path, identity: Mapping[str, Any], schema: Any) -> Iterator[Parts]:
    """The parts of an output in every process, the main one's first: it checks, locks and makes the folder."""
    parts = Parts(output, identity, schema) if is_main() else None
    wait_for_all()
    with parts or Parts(output, identity, schema, main=False) as opened:
        yield opened


def fill_parts(
    parts: Parts,
    chunks: Iterable[tuple[int, Sequence[Any]]],
    reader: Callable[[], Reader],
    read: Read,
    *,
    rows: int,
) -> int:
    """Write the part of every chunk that is not there yet; the number of chunks, once every process is done.

    reader: loads the model; not called where every part is there. read: (reader, number of the chunk, its rows) -> its
    frame and the extras kept beside it. rows: of all chunks, for the progress bar.
    """
    loaded: Reader | None = None
    count, done, kept, started = 0, 0, 0, time.monotonic()
    with tqdm(total=rows, desc="reading", unit="row", disable=not is_main() or None) as bar:
        for number, chunk in chunks:
            count = number + 1
            if parts.todo(number):
                if loaded is None:
                    loaded, started = reader(), time.monotonic()
                parts.write(number, *read(loaded, number, chunk))
                done += len(chunk)
            elif world_size() == 1:
                kept += len(chunk)
            bar.update(len(chunk))
    wait_for_all()
    seconds = time.monotonic() - started
    if kept:
        log.info(f"{kept} rows were there already")
    if done:
        each = f" on this process, one of {world_size()}" if world_size() > 1 else ""
        log.info(f"{done} rows read in {seconds:.1f} s{each}, {done / seconds:.1f} rows/s")
    return count


def probability_columns(labels: Sequence[str], *, spread: bool) -> list[str]:
    """Names of the columns a reading fills, in the output's order."""
    named = [*(P + label for label in labels), OTHER_COLUMN, "predicted", "confidence"]
    return [*named, *(["spread"] if spread else []), *(LOG_P + label for label in labels), "cut_share"]


def probability_frame(
    reading: LabelReading, labels: Sequence[str], probs: np.ndarray, rule: Any = None
) -> pd.DataFrame:
    """The columns of probability_columns; only cut_share and what is finite of logp_ where the row has no answer.

    probs: (N, L), what stands in the p_ columns (calibrated, say); a row of NaN has no answer. logp_ is always raw.
    rule: a decision (infer.thresholds) or cutoff (infer.cutoffs): its choose(probs) gives the column of each row's
    label, -1 where a person should choose; None: the likeliest.
    """
    probs = np.asarray(probs, dtype=np.float32)  # as they are kept: the likeliest label is that of the numbers shown
    answered = np.isfinite(probs).all(axis=1)
    columns: dict[str, Any] = {P + label: probs[:, at] for at, label in enumerate(labels)}
    columns[OTHER_COLUMN] = np.where(answered, reading.other, np.nan)
    chosen = probs.argmax(axis=1) if rule is None else rule.choose(probs)
    columns["predicted"] = np.where(answered, np.array([*labels, None], dtype=object)[chosen], None)
    named = np.where(chosen < 0, probs.argmax(axis=1), chosen)
    columns["confidence"] = np.take_along_axis(probs, named[:, None], axis=1)[:, 0]
    if reading.spread is not None:
        columns["spread"] = reading.spread
    columns |= {LOG_P + label: reading.log_probs[:, at] for at, label in enumerate(labels)}
    columns["cut_share"] = reading.cut_share
    return pd.DataFrame(columns)


def kept_strays(reading: LabelReading) -> dict[str, float]:
    """What of a reading's strays is kept beside its part, {token's text: probability summed over the chunk's rows}."""
    return {text: round(prob, 6) for text, prob in reading.strays.items()}


def part_schema(strings: Sequence[str], columns: Sequence[str]) -> Any:
    """The schema of every part: `strings` first, then `columns`, float32 but for `predicted`."""
    import pyarrow as pa

    texts = [pa.field(name, pa.string()) for name in strings]
    return pa.schema(texts + [pa.field(name, pa.string() if name == "predicted" else pa.float32()) for name in columns])
