"""Reads rows chunk by chunk into parts that survive a kill, on one process or several, and joins them at the end.

Knows chunks and frames; what a row is and how it is read are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from infer.logs import log
from infer.parts import Parts
from infer.ranks import is_main, wait_for_all, world_size

if TYPE_CHECKING:
    from infer.label_reader import LabelReader, LabelReading

P, LOG_P = "p_", "logp_"


def fill_parts(
    parts: Parts,
    chunks: Iterable[tuple[int, Sequence[Any]]],
    reader: Callable[[], LabelReader],
    read: Callable[[LabelReader, Sequence[Any]], tuple[pd.DataFrame, Mapping[str, Any]]],
    *,
    rows: int,
) -> int:
    """Write the part of every chunk that is not there yet; the number of chunks.

    reader: loads the model; not called where every part is there. read: (reader, a chunk's rows) -> its frame and the
    extras kept beside it. rows: of all chunks, for the progress bar.
    """
    loaded: LabelReader | None = None
    count, done, kept, started = 0, 0, 0, time.monotonic()
    with tqdm(total=rows, desc="reading", unit="row", disable=not is_main() or None) as bar:
        for number, chunk in chunks:
            count = number + 1
            if parts.todo(number):
                if loaded is None:
                    loaded, started = reader(), time.monotonic()
                parts.write(number, *read(loaded, chunk))
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
    named = [*(P + label for label in labels), "p_other", "predicted", "confidence"]
    return [*named, *(["spread"] if spread else []), *(LOG_P + label for label in labels), "cut_share"]


def probability_frame(reading: LabelReading, labels: Sequence[str], probs: Any) -> pd.DataFrame:
    """The columns of probability_columns; empty cells where the model's numbers are not finite.

    probs: (N, L), what stands in the p_ columns (calibrated, say); logp_ columns are always raw.
    """
    finite = np.isfinite(reading.log_probs).all(axis=1)
    columns: dict[str, Any] = {P + label: probs[:, at] for at, label in enumerate(labels)}
    columns["p_other"] = reading.other
    columns["predicted"] = [labels[int(row.argmax())] if ok else None for row, ok in zip(probs, finite, strict=True)]
    columns["confidence"] = probs.max(axis=1)
    if reading.spread is not None:
        columns["spread"] = reading.spread
    columns |= {LOG_P + label: reading.log_probs[:, at] for at, label in enumerate(labels)}
    columns["cut_share"] = reading.cut_share
    return pd.DataFrame(columns)


def part_schema(strings: Sequence[str], columns: Sequence[str]) -> Any:
    """The schema of every part: `strings` first, then `columns`, float32 but for `predicted`."""
    import pyarrow as pa

    texts = [pa.field(name, pa.string()) for name in strings]
    return pa.schema(texts + [pa.field(name, pa.string() if name == "predicted" else pa.float32()) for name in columns])
