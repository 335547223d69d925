"""Rows read by the adapter that a base carries now: by the engine, or by the new head; both orders of arena rows.

Training's evaluations and saved checkpoints share it. Knows readers and rows, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infer.batching import in_batches
from infer.calibration.temperature import floored_softmax
from infer.predictions import swap_average
from infer.ranks import over_ranks
from infer.readers.label import LabelReader, LabelReading
from models.adapter_base import AdapterBase
from models.tasks.arena import SWAP, ArenaRow


def read_active(
    base: AdapterBase, reader: LabelReader, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (),
    progress: bool = False,
) -> LabelReading:  # fmt: skip
    """The labels' log-probabilities of rows of text fields, in the number format of training.

    The sequence head knows no mass outside the labels: there p_other is 0.
    """
    with base.autocast():
        if base.head == "label":
            return reader.read(rows, names=names, progress=progress)
        return _read_sequences(base, reader, rows, names=names, progress=progress)


def sequence_prompts(reader: LabelReader, rows: Sequence[Mapping[str, str]]) -> tuple[list[np.ndarray], np.ndarray]:
    """(the token ids of each row's question, (N,) share of its text left out), as the sequence head gets them."""
    encoded = reader.encoder.encode([reader.arrangements[0].template.fill(row) for row in rows]) if rows else []
    encoded = [reader.encoder.fit(one, reader.max_tokens) for one in encoded]
    return [one.ids for one in encoded], np.array([one.cut_share for one in encoded])


def padded(prompts: Sequence[np.ndarray], device: Any = None) -> dict[str, Any]:
    """A network's inputs: input_ids (B, T) padded on the right with id 0, lengths (B,)."""
    import torch

    lengths = [len(prompt) for prompt in prompts]
    ids = np.zeros((len(prompts), max(lengths)), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    return {"input_ids": torch.tensor(ids, device=device), "lengths": torch.tensor(lengths, device=device)}


def _read_sequences(
    base: AdapterBase, reader: LabelReader, rows: Sequence[Mapping[str, str]], *, names: Sequence[str], progress: bool
) -> LabelReading:
    import torch

    from models.answer_network import SequenceNetwork

    network = SequenceNetwork(base.loaded.model)
    prompts, cut_share = sequence_prompts(reader, rows)
    log_probs = np.full((len(rows), len(reader.labels)), np.nan)
    was_training = base.loaded.model.training
    base.loaded.model.eval()

    def work(batch: np.ndarray) -> None:
        logits = network(**padded([prompts[row] for row in batch], base.device))
        log_probs[batch] = logits.double().log_softmax(dim=-1).cpu().numpy()

    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    try:
        with torch.inference_mode():
            in_batches(
                work, order, lengths, reader.engine.budget_tokens, progress=progress,
                name=lambda row: names[row] if names else f"row {row}",
            )  # fmt: skip
    finally:
        base.loaded.model.train(was_training)
    return LabelReading(log_probs, cut_share)


def predict_rows(
    read: Callable[..., LabelReading], rows: Sequence[Any], *, labels: int, tta: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((N, L) probabilities, (N,) mass outside the labels, (N,) disagreement of the orders; NaN: not read), float32.

    rows: TextRow or ArenaRow; tta: arena rows in both orders, averaged. Every process of a launch must call it.
    Raises ValueError for a row that the model could not compute in its number format.
    """
    pairs = bool(len(rows)) and isinstance(rows[0], ArenaRow)
    orders = (False, True) if pairs and tta else (False,)

    def work(mine: np.ndarray) -> np.ndarray:
        some = [rows[row] for row in mine]
        return np.stack([read_order(read, some, swapped=swapped) for swapped in orders], axis=1)

    found = over_ranks(np.arange(len(rows)), work)
    refuse_unread(found.sum(axis=(1, 2)), [row.id for row in rows])
    probs, other = found[:, :, :labels], found[:, :, labels].mean(axis=1)
    gap = np.full(len(rows), np.nan if pairs else 0.0)
    mean = probs[:, 0]
    if len(orders) == 2:
        mean, gap = swap_average(probs[:, 0], probs[:, 1], SWAP)
    return mean.astype(np.float32), other.astype(np.float32), gap.astype(np.float32)


def read_order(read: Callable[..., LabelReading], rows: Sequence[Any], *, swapped: bool) -> np.ndarray:
    """(n, L + 1) probabilities as this order has its labels, and the mass outside them; NaN: see refuse_unread."""
    reading = read([fields_of(row, swapped=swapped) for row in rows], names=[f"row {row.id}" for row in rows])
    return np.concatenate([reading.probs(), np.asarray(reading.other)[:, None]], axis=1)


def refuse_unread(found: np.ndarray, ids: Sequence[str]) -> None:
    """Raises ValueError where the model could not compute a row in its number format: (N,) of NaN."""
    unread = np.flatnonzero(np.isnan(found))
    if len(unread):
        raise ValueError(
            f"{len(unread)} rows have no finite numbers, the first is id {ids[unread[0]]}. Use trainer.precision "
            "and engine.precision fp32 or bf16."
        )


def fields_of(row: Any, *, swapped: bool = False) -> dict[str, str]:
    """The question's fields of a row; swapped: the answers of an arena row exchanged."""
    from infer.arena.judge import row_fields

    return row_fields(row, swapped=swapped) if isinstance(row, ArenaRow) else row.fields


def mean_reading(readings: Sequence[LabelReading]) -> LabelReading:
    """The mean of several adapters' probabilities over the labels, and of the mass that they left outside."""
    first = readings[0]
    if len(readings) == 1:
        return first
    shares = np.mean([reading.probs() for reading in readings], axis=0)
    # In log space: training moves the shares alone, and what the labels hold together may be tiny.
    held = np.logaddexp.reduce([np.logaddexp.reduce(reading.log_probs, axis=1) for reading in readings], axis=0)
    with np.errstate(divide="ignore"):
        log_probs = np.log(shares) + (held - np.log(len(readings)))[:, None]
    strays: dict[str, float] = {}
    for reading in readings:
        for text, prob in reading.strays.items():
            strays[text] = strays.get(text, 0.0) + prob / len(readings)
    spreads = [reading.spread for reading in readings if reading.spread is not None]
    spread = np.mean(spreads, axis=0) if spreads else None
    return LabelReading(log_probs, first.cut_share, spread, strays)


def tempered(reading: LabelReading, temperature: float) -> LabelReading:
    """The reading with its labels' shares softened or sharpened; the mass outside the labels stays."""
    answered = np.isfinite(reading.log_probs).all(axis=1)
    log_probs = reading.log_probs.copy()
    held = np.logaddexp.reduce(log_probs[answered], axis=1, keepdims=True)
    log_probs[answered] = np.log(floored_softmax(log_probs[answered] / temperature)) + held
    return LabelReading(log_probs, reading.cut_share, reading.spread, reading.strays, reading.notes)
