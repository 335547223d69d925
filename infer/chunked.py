"""Reads rows chunk by chunk into parts that survive a kill, on one process or several, and joins them at the end.

A signal and the end of the time budget leave every finished part in its place. Knows chunks and frames; what a row is
and how it is read are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from infer.logs import log
from infer.pace import Pace
from infer.pace import said as said_s
from infer.parts import Parts
from infer.predictions import OTHER_COLUMN
from infer.ranks import RankError, any_of, is_main, wait_for_all, world_size
from infer.stopping import Stopped, TimeSpent, asked_to_stop, finishing_steps, no_longer_than, time_left_s

if TYPE_CHECKING:
    from infer.readers.label import LabelReading

P, LOG_P = "p_", "logp_"
# A chunk that takes longer than this is given up at a signal, where a shorter one is finished: a spot machine or a
# notebook is killed 10 to 30 s after its SIGTERM.
FINISH_S = 5.0
LINE_EVERY_S = 30.0  # where no bar is drawn

Read = Callable[[Any, int, Sequence[Any]], tuple[pd.DataFrame, Mapping[str, Any]]]


@contextmanager
def open_parts(
    output: Path, identity: Mapping[str, Any] | Callable[[], Mapping[str, Any]], schema: Any, *, replace: bool = False,
    others: Sequence[str] = (),
) -> Iterator[Parts]:  # fmt: skip
    """The parts of an output in every process, the main one's first: it checks, locks and makes the folder."""
    parts = Parts(output, identity, schema, replace=replace, others=others) if is_main() else None
    wait_for_all()
    with parts or Parts(output, identity, schema, main=False) as opened:
        yield opened


class OutOfTime(ValueError):
    """The time budget was spent before every chunk was read; the parts that were are in their place."""


class _Lines:
    """Signs of life in the log, where stderr is no terminal and no bar is drawn: nohup, a notebook's log, `2> log`."""

    def __init__(self, rows: int, *, shown: bool) -> None:
        self.rows, self.shown, self.told = rows, shown, time.monotonic()

    def begin(self, first: int) -> None:
        """Before the first chunk, of so many rows."""
        if self.shown:
            log.info(f"reading {self.rows} rows, {first} at a time: then they are kept (engine.chunk_rows)")

    def tell(self, passed: int, done: int, seconds: float, left_s: float | None) -> None:
        """After a chunk, at most every LINE_EVERY_S. passed: rows read or there already. done: by this process."""
        if self.shown and passed < self.rows and time.monotonic() - self.told >= LINE_EVERY_S:
            self.told = time.monotonic()
            to_go = "" if left_s is None else f", about {said_s(left_s)} to go"
            log.info(f"{passed} of {self.rows} rows, {done / seconds:.1f} rows/s{to_go}")


def fill_parts(
    parts: Parts,
    chunks: Iterable[tuple[int, Sequence[Any]]],
    load: Callable[[Any], Any],
    read: Read,
    *,
    rows: int,
    cost: Callable[[Any], float] = len,
    model: Callable[[Any], Hashable] = lambda chunk: None,
    reserve_s: float = 0.0,
    pace: Pace | None = None,
    todo: Callable[[int], bool] | None = None,
) -> int:
    """Write the part of every chunk that is not there yet; the number of chunks, once every process is done.

    load: of a chunk's `model` -> its reader; called where a chunk needs another than the one before, and not at all
    where every part is there. read: (reader, number of the chunk, its rows) -> its frame and the extras kept beside it.
    rows: of all chunks, for the progress bar. cost: of a chunk, in a unit that grows as its time does; by it and `pace`
    is told whether one more fits. todo: which chunks this process reads; None: its share of those without a part.
    With a time budget a chunk that does not fit, its model's loading included, is left out, and a shorter one after it
    is read. How long the first load and the first chunk take nobody knows: they are broken off when the budget less
    reserve_s is spent, as any other would be, so that what is overrun is one call into C (infer.stopping).
    Raises OutOfTime, in every process, where the time budget less reserve_s leaves chunks out; Stopped at a signal;
    RankError where this process, of several, could not read a chunk.
    """
    loaded: Any = None
    named: Hashable = None
    pace, todo = pace or Pace(), todo or parts.todo
    count, done, kept, passed, seconds, costs, late, ended = 0, 0, 0, 0, 0.0, 0.0, False, False

    def left_s() -> float:
        return time_left_s() - reserve_s

    bounded = no_longer_than(left_s()) if left_s() > 0 else nullcontext()  # nothing is begun then
    try:
        with bounded, tqdm(total=rows, desc="reading", unit="row", disable=not is_main() or None) as bar:
            lines = _Lines(rows, shown=is_main() and bool(bar.disable))
            for number, chunk in chunks:
                _stop_if_asked()
                count = max(count, number + 1)
                if todo(number):
                    expected, other = pace.seconds(cost(chunk)), loaded is None or model(chunk) != named
                    fit = pace.fits(cost(chunk), left_s(), load=other)
                    if fit and other:
                        loaded, named, begun = None, model(chunk), time.monotonic()  # the old one goes first
                        loaded = load(named)
                        pace.load_s = time.monotonic() - begun
                        fit = pace.fits(cost(chunk), left_s(), load=False)  # by now
                        if not done:
                            lines.begin(len(chunk))
                    if fit:
                        with finishing_steps() if expected is not None and expected <= FINISH_S else nullcontext():
                            begun = time.monotonic()
                            parts.write(number, *read(loaded, number, chunk))
                            pace.add(cost(chunk), time.monotonic() - begun)
                            seconds += time.monotonic() - begun
                            done += len(chunk)
                            costs += cost(chunk)
                    late |= not fit
                    if late and left_s() <= 0:  # nothing after it fits: it need not even be parsed
                        break
                elif world_size() == 1:
                    kept += len(chunk)
                bar.update(len(chunk))
                passed += len(chunk)
                if done:
                    lines.tell(passed, done, seconds, pace.seconds(costs / done * (rows - passed) / world_size()))
            ended = True
    except TimeSpent:
        late |= not ended
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, _kept(parts, kept + done, rows)) from None
    except ValueError as error:
        if world_size() == 1:
            raise
        raise RankError(str(error)) from error
    if _in_any(late, parts):  # every process comes here once its share is done
        none = "" if done else " No chunk was read to its end: give more time, or smaller chunks (engine.chunk_rows)."
        raise OutOfTime(
            f"time_budget_minutes is spent: {_kept(parts, kept + done, rows)} It has the whole budget again then.{none}"
        )
    if kept:
        log.info(f"{kept} rows were there already")
    if done:
        each = f" on this process, one of {world_size()}" if world_size() > 1 else ""
        log.info(f"{done} rows read in {seconds:.1f} s{each}, {done / seconds:.1f} rows/s")
    return count


def _stop_if_asked() -> None:
    """A signal that came inside a finaliser or a callback of C is swallowed there: between chunks nothing swallows."""
    number = asked_to_stop()
    if number is not None:
        raise Stopped(number)


def _in_any(late: bool, parts: Parts) -> bool:
    try:
        return any_of(late)
    except RuntimeError as error:  # gloo's and NCCL's, where a process that they wait for has ended
        raise ValueError(
            f"another process of this launch ended before its share was read; its own words say why. "
            f"{_kept(parts, 0, 0)}"
        ) from error


def _kept(parts: Parts, done: int, rows: int) -> str:
    read = f"{done} of {rows} rows are read and" if world_size() == 1 else "what is read is"
    return f"{read} kept in {parts.folder}. The same command goes on from there."


def probability_columns(labels: Sequence[str], *, spread: bool) -> list[str]:
    """Names of the columns a reading fills, in the output's order."""
    named = [*(P + label for label in labels), OTHER_COLUMN, "predicted", "confidence"]
    return [*named, *(["spread"] if spread else []), *(LOG_P + label for label in labels), "cut_share"]


def probability_frame(
    reading: LabelReading, labels: Sequence[str], probs: np.ndarray, rule: Any = None
) -> pd.DataFrame:
    """The columns of probability_columns; only cut_share and what is finite of logp_ where the row has no answer.

    probs: (N, L), what stands in the p_ columns (calibrated, say); a row of NaN has no answer. logp_ is what the reader
    gave, before any calibration of these rows: raw, but for trained adapters and classifiers, whose reader has applied
    the temperature of their run.
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
