"""The rows worth a person's look, most wrong first, as plain values for a page's table.

Knows tables and texts; a text stays the text it is, the page never takes it for HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infer.predictions import PROB_FLOOR, Predictions
from infer.report.content import known_rows

ROWS_SHOWN = 2000
TEXT_CHARACTERS = 2_000_000  # in the page, over all rows
LONGEST_TEXT, SHORTEST_CUT = 4000, 160


def row_table(
    predictions: Predictions, texts: Mapping[str, str | Mapping[str, str]], most: int = ROWS_SHOWN
) -> dict[str, Any]:
    """{rows: [[id, true column or -1, loss or None, probs, other, [text, ...]], ...], columns: names of the texts, ...}

    All rows where there are no more than `most`; the order is that of usefulness (see most_useful).
    """
    chosen = most_useful(predictions, most)
    known = known_rows(predictions)
    losses = row_losses(predictions)
    column_of = {label: column for column, label in enumerate(predictions.labels)}
    cells = [_as_columns(texts.get(row_id, {})) for row_id in predictions.ids[chosen]]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    longest = int(np.clip(TEXT_CHARACTERS // max(1, len(chosen) * len(columns)), SHORTEST_CUT, LONGEST_TEXT))
    probs = np.round(predictions.probs.astype(np.float64), 4)
    rows = [
        [
            predictions.ids[row],
            column_of[predictions.truth[row]] if predictions.truth is not None and known[row] else -1,
            round(float(losses[row]), 4) if known[row] else None,
            probs[row].tolist(),
            round(float(predictions.other[row]), 4),
            [cut(named.get(column, ""), longest) for column in columns],
        ]
        for row, named in zip(chosen, cells, strict=True)
    ]
    return {"rows": rows, "columns": columns, "all": len(predictions), "cut_at": longest}


def most_useful(predictions: Predictions, most: int) -> np.ndarray:
    """Positions of at most `most` rows: half the most wrong, three tenths the least sure, the rest evenly from all.

    Without labels: seven tenths the least sure. Sorted by loss, largest first, then by confidence, lowest first.
    """
    losses, sure = row_losses(predictions), predictions.probs.max(axis=1)
    # One key for both orders: rows without a loss stand behind those with one.
    order = np.lexsort((sure, np.where(np.isnan(losses), np.inf, -losses)))
    if len(order) <= most:
        return order
    wrong = order[: most // 2] if np.isfinite(losses).any() else order[:0]
    chosen = set(wrong.tolist())
    unsure = [row for row in np.argsort(sure, kind="stable")[: 2 * most].tolist() if row not in chosen]
    chosen |= set(unsure[: most * 8 // 10 - len(wrong) - (0 if len(wrong) else most // 10)])
    rest = [row for row in order.tolist() if row not in chosen]
    wanted = most - len(chosen)
    chosen |= {rest[at] for at in np.linspace(0, len(rest) - 1, wanted).astype(int)}
    return order[[row in chosen for row in order.tolist()]]


def row_losses(predictions: Predictions) -> np.ndarray:
    """(N,) minus log of the true label's probability, in nats; NaN where it is unknown."""
    losses = np.full(len(predictions), np.nan)
    known = known_rows(predictions)
    if predictions.truth is not None and known.any():
        losses[known] = -np.log(np.maximum(predictions.take(known).truth_probs(), PROB_FLOOR))
    return losses


def cut(text: str, longest: int) -> str:
    """The text, or its head and its tail around a mark that says how much is missing."""
    if len(text) <= longest:
        return text
    head = longest * 2 // 3
    return f"{text[:head]} […{len(text) - longest} characters…] {text[-(longest - head) :]}"


def _as_columns(text: str | Mapping[str, str]) -> Mapping[str, str]:
    return {"text": text} if isinstance(text, str) else text
