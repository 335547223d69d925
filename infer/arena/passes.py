"""The arena's test rows read by a run's checkpoints, kept as they are read, and in time.

A pass is one checkpoint reading every row in one order of its answers. Each is read in chunks, the longest rows first;
a finished chunk is a part (infer.parts), so that a kill costs one chunk, and the same command goes on.

With time_budget_minutes the passes go by their worth: every checkpoint in the order as given, the best on its held-out
rows first, then every checkpoint with the answers exchanged. Each goes from the shortest rows on: the first chunk, of
which nobody knows how long it takes, is then the least, and more rows are read by the end. What the time does not reach
is left out and said: swap averaging first, then folds, and a row that no pass has read gets the mean of the others. The
parts then stay, so that the same command reads what is missing.

Knows checkpoints, passes and time; never a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.adapter_reading import refuse_unread
from infer.arena.answer import BAD_ROWS, ORDERS, PREDICTIONS, SUBMISSION
from infer.arena.order_readers import OrderReader, RowChunks, chunk_rows, format_of, orders_of
from infer.checkpoints import checkpoint_identity
from infer.chunked import OutOfTime, P, fill_parts, open_parts
from infer.identity import input_identity
from infer.logs import log
from infer.pace import Pace
from infer.pace import said as said_s
from infer.parts import Parts
from infer.predictions import OTHER_COLUMN
from infer.ranks import any_of, world_size
from infer.stopping import time_left_s
from models.method_settings import NETWORK_METHODS
from models.settings import Settings, flatten
from models.tasks.arena import LABELS, ArenaRow
from models.tasks.files import read_record

COLUMNS = (*(P + label for label in LABELS), OTHER_COLUMN)
# Kept back of the time budget to join the parts and to write and check the answer.
RESERVE_S, RESERVE_S_PER_ROW, RESERVE_S_PER_PART = 5.0, 2e-4, 5e-3
OTHERS = (PREDICTIONS, BAD_ROWS, "tokens-*.bin")  # written beside the submission
FORECAST_AFTER = 3  # chunks: the first warms up
TRIES = 3  # of reading parts again that were damaged after they were written
# What the numbers of a part depend on beside the rows and the checkpoints.
_SETTINGS = ("method.name", "model.name", "model.attention", "trainer.predict_batch_rows", "engine.chunk_rows",
             "task.on_bad_row")  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One checkpoint, by its place among the run's, in one order: 0 as given, 1 the answers exchanged."""

    checkpoint: int
    order: int


@dataclass(frozen=True)
class _Piece:
    """A chunk of a pass; what fill_parts hands around. Its length is that of its rows."""

    one: Pass
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class ArenaPasses:
    """The work of a run's checkpoints on some rows, planned; `read` does it."""

    def __init__(self, checkpoints: Sequence[Path], rows: Sequence[ArenaRow], settings: Settings, out: Path) -> None:
        self.checkpoints, self.rows, self.settings = list(checkpoints), rows, settings
        self.out = out
        orders = [orders_of(checkpoint) for checkpoint in self.checkpoints]
        self.passes = [Pass(at, order) for at, count in enumerate(orders) for order in range(count)]
        self.output = out / SUBMISSION
        self.pace = Pace()
        self._chunks_read = 0

    @cached_property
    def chunks(self) -> RowChunks:
        """The rows in the order of reading. Minutes of tokenising where nothing is kept of it."""
        return chunk_rows(self.checkpoints[0], self.rows, self.settings, self.out)

    def identity(self) -> dict[str, Any]:
        """What every part depends on: settings, this device's number format, the checkpoints' files, the test's rows.

        Not the temperature, which is applied to the mean of the parts.
        """
        flat = flatten(self.settings)
        of_checkpoints = checkpoint_identity(Path(self.settings.run_dir), LABELS)
        named = flat["method.name"] in NETWORK_METHODS  # the others read with no network, whatever model.name says
        return {
            **{key: flat[key] for key in _SETTINGS if key in flat and (named or not key.startswith("model."))},
            "precision": sorted({found for one in self.checkpoints if (found := format_of(one, self.settings))}),
            "checkpoints": of_checkpoints["checkpoints"],
            "input": input_identity(self.settings.arena.test_csv),
            "rows": len(self.rows),
            "chunks": {"count": len(self.chunks.rows), "sha256": self.chunks.digest()},
        }

    def open(self) -> Any:
        """The parts, beside the submission that they will make; an older submission may go."""
        import pyarrow as pa

        fields = [pa.field("row", pa.int64()), *(pa.field(name, pa.float32()) for name in COLUMNS)]
        return open_parts(self.output, self.identity, pa.schema(fields), replace=True, others=OTHERS)

    def collect(self, parts: Parts) -> tuple[np.ndarray, bool]:
        """(what is there, as `found`; whether that is all), everything read that the time allows.

        A part that is damaged after it was written is read again. Raises ValueError where that happens every time.
        """
        for _ in range(TRIES):
            whole = self.read(parts)
            found = self.found(parts)
            lost = np.isnan(found).any(axis=2)
            if not any_of(whole and bool(lost.any())):
                return found, whole
            log.warning(
                f"warning: parts in {parts.folder} were damaged after they were written ({int(lost.sum())} rows of all "
                "passes); they are read again"
            )
        raise ValueError(f"{parts.folder}: parts are damaged again and again. Look after the disk, or name another.")

    def read(self, parts: Parts) -> bool:
        """Reads what is not there yet; False where the time budget left something out."""
        pieces: list[tuple[int, Any]] = list(self._pieces())
        try:
            fill_parts(
                parts, pieces, self._load, self._read, rows=sum(len(piece) for _, piece in pieces), cost=self._cost,
                model=lambda piece: piece.one.checkpoint, reserve_s=self.reserve_s, pace=self.pace,
            )  # fmt: skip
        except OutOfTime:
            return False
        parts.refuse_missing(len(pieces))
        return True

    @property
    def reserve_s(self) -> float:
        """Seconds that are kept back to write the answer."""
        parts = len(self.passes) * len(self.chunks.rows)
        return RESERVE_S + RESERVE_S_PER_ROW * len(self.rows) + RESERVE_S_PER_PART * parts

    def found(self, parts: Parts) -> np.ndarray:
        """(passes, N, L + 1) float32 of the parts that are there and whole; NaN where none is."""
        found = np.full((len(self.passes), len(self.rows), len(COLUMNS)), np.nan, dtype=np.float32)
        for number, piece in self._pieces():
            frame = parts.whole_frame(number)
            if frame is not None:
                assert np.array_equal(frame["row"], piece.rows), (parts.folder, number)
                values = frame[list(COLUMNS)].to_numpy(dtype=np.float32)
                found[self.passes.index(piece.one), piece.rows] = values
        return found

    def mean(self, found: np.ndarray) -> np.ndarray:
        """(N, L + 1) float64: of each checkpoint's orders, then of the checkpoints; NaN rows were not read at all."""
        total, count = np.zeros(found.shape[1:]), np.zeros((found.shape[1], 1))
        for at in range(len(self.checkpoints)):
            orders = found[[number for number, one in enumerate(self.passes) if one.checkpoint == at]]
            there = ~np.isnan(orders[:, :, :1])
            read = there.any(axis=0)
            sums = np.where(there, orders, 0).astype(np.float64).sum(axis=0)
            mean = sums / np.maximum(there.sum(axis=0), 1)
            labels = mean[:, : len(LABELS)]
            mean[:, : len(LABELS)] = labels / np.where(read, labels.sum(axis=1, keepdims=True), 1)
            total, count = total + mean, count + read
        with np.errstate(invalid="ignore"):
            return total / count

    def passes_read(self, found: np.ndarray) -> list[dict[str, Any]]:
        """What was read of what, for the file beside the submission."""
        counts = (~np.isnan(found[:, :, 0])).sum(axis=1)
        return [
            {"checkpoint": str(self.checkpoints[one.checkpoint]), "order": ORDERS[one.order], "rows": int(count)}
            for one, count in zip(self.passes, counts, strict=True)
        ]

    def say_left_out(self, found: np.ndarray) -> None:
        """What the time did not reach, in the log, with what it would have taken."""
        read = ~np.isnan(found[:, :, 0])
        cost = float((self.chunks.cost * (~read)).sum())
        seconds, loads = self.pace.seconds(cost), self.pace.load_s * int((~read).any(axis=1).sum())
        more = "" if seconds is None else f"; it would take about {said_s(seconds / world_size() + loads)} more"
        log.warning(f"warning: time_budget_minutes={self.settings.time_budget_minutes:g} is spent{more}")
        for order in (1, 0):
            short = [(one, len(self.rows) - int(read[number].sum())) for number, one in enumerate(self.passes)
                     if one.order == order and not read[number].all()]  # fmt: skip
            if short:
                named = ", ".join(f"{self._name(one)} ({rows} of {len(self.rows)} rows)" for one, rows in short)
                log.warning(f"left out, {'swap averaging' if order else 'folds'}: {named}")
        unread = int((~read.any(axis=0)).sum())
        if 0 < unread < len(self.rows):  # none at all: arena.answer says what they get
            log.warning(f"{unread} rows were read by no checkpoint and get the mean prediction, the longest rows")
        log.warning(f"what was read is kept in {self.output}.parts: the same command reads what is missing")

    def _pieces(self) -> Iterator[tuple[int, _Piece]]:
        """(number of its part, chunk), in the order of reading; the numbers do not depend on it."""
        count = len(self.chunks.rows)
        numbered = {one: number * count for number, one in enumerate(self.passes)}
        if self.settings.time_budget_minutes is not None:
            worth = self._by_heldout()
            shortest_first = [*enumerate(self.chunks.rows)][::-1]
            for one in sorted(self.passes, key=lambda one: (one.order, worth.index(one.checkpoint))):
                yield from ((numbered[one] + at, _Piece(one, rows)) for at, rows in shortest_first)
            return
        for checkpoint in range(len(self.checkpoints)):  # both orders of a chunk together: a checkpoint is loaded once
            mine = [one for one in self.passes if one.checkpoint == checkpoint]
            for at, rows in enumerate(self.chunks.rows):
                yield from ((numbered[one] + at, _Piece(one, rows)) for one in mine)

    def _by_heldout(self) -> list[int]:
        """The checkpoints, the least held-out log loss first; those that have none last."""
        return sorted(range(len(self.checkpoints)), key=lambda at: (heldout_log_loss(self.checkpoints[at]), at))

    def _cost(self, piece: Any) -> float:
        return float(self.chunks.cost[piece.rows].sum())

    def _load(self, checkpoint: int) -> OrderReader:
        return OrderReader(self.checkpoints[checkpoint], self.rows, self.chunks, self.settings)

    def _read(self, reader: OrderReader, number: int, piece: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
        one = piece.one
        if self._chunks_read == FORECAST_AFTER:
            self._forecast(one)
        self._chunks_read += 1
        values = reader.read(piece.rows, swapped=one.order == 1)
        self._refuse_unread(values, piece.rows)
        frame = pd.DataFrame(dict(zip(COLUMNS, values.T, strict=True)))
        frame.insert(0, "row", piece.rows)
        return frame, {}

    def _refuse_unread(self, values: np.ndarray, at: np.ndarray) -> None:
        """Before a part is written, which would stand in the way of every later run, whatever its number format."""
        try:
            refuse_unread(values.sum(axis=1), [self.rows[row].id for row in at])
        except ValueError as error:
            raise ValueError(f"{error} Delete {self.output}.parts then: its numbers are of this format.") from None

    def _forecast(self, now: Pass) -> None:
        """Says once, early on, how long all passes will take, and what will be left out where that is too long."""
        seconds = self.pace.seconds(float(self.chunks.cost.sum()))
        left = time_left_s() - self.reserve_s
        if seconds is None or math.isinf(left):
            return
        order = list(dict.fromkeys(piece.one for _, piece in self._pieces()))
        order = order[order.index(now) :]
        seconds = seconds / world_size() + self.pace.load_s  # each but the first loads another checkpoint
        whole = seconds * len(order) - self.pace.load_s
        fit = int((left + self.pace.load_s) / seconds)
        said = f"about {said_s(whole)} for {len(order)} passes over the rows, {said_s(left)} are left"
        if fit >= len(order):
            log.info(said)
        else:
            named = ", ".join(self._name(one) for one in order[max(fit, 1) :]) or "the longest rows"
            log.warning(f"{said}: expected to be left out, in whole or in part: {named}")

    def _name(self, one: Pass) -> str:
        folder = self.checkpoints[one.checkpoint]
        name = folder.parent.name if folder.name == "checkpoint" else folder.name
        return name + (" swapped" if one.order else "")


def heldout_log_loss(checkpoint: Path) -> float:
    """What done.json beside a fold's checkpoint says; infinity where nothing does."""
    try:
        return float(read_record(checkpoint.parent / "done.json")["log_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
