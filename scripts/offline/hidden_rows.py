"""A test set like the competition's hidden one: 25,000 rows of its lengths, with nulls, empties, giants and damage.

Lengths are drawn from log-normals through the figures known of the 57,477 training rows (characters: prompt median
91, 95 % below 1,419, longest 32,829; answer median 1,040, 95 % below 3,580, longest 53,000; turns: 1, 5 % above 2, up
to 36); the text itself is that of data/sample/arena, repeated. Knows no model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

COUNT = 25_000
CHARACTERS_PER_TOKEN = 4.0  # of English under any of the tokenizers here; the same on both sides of an extrapolation
PROMPT = (91, 1_419, 32_829)  # median, 95th percentile, longest: characters
ANSWER = (1_040, 3_580, 53_000)
SHARE_NULL, SHARE_EMPTY, SHARE_MANY_TURNS = 0.004, 0.004, 0.05
GIANTS, DAMAGED = 40, 3  # of 25,000
NORMAL_95 = 1.6449


class Row(NamedTuple):
    """A row as it stands in the file; kind: plain, null, empty, turns, giant or damaged."""

    id: str
    prompt: str
    response_a: str
    response_b: str
    kind: str


def hidden_rows(texts: Sequence[str], *, count: int = COUNT, seed: int = 0) -> list[Row]:
    """count rows. texts: to make answers from; at least one that is not empty."""
    random = np.random.default_rng(seed)
    pool = " ".join(text for text in texts if text.strip())
    kinds = random.choice(
        ["null", "empty", "turns", "plain"], count,
        p=[SHARE_NULL, SHARE_EMPTY, SHARE_MANY_TURNS, 1 - SHARE_NULL - SHARE_EMPTY - SHARE_MANY_TURNS],
    ).astype(object)  # fmt: skip
    odd = random.permutation(count)
    giants, damaged = max(1, GIANTS * count // COUNT), max(1, DAMAGED * count // COUNT)
    kinds[odd[:giants]], kinds[odd[giants : giants + damaged]] = "giant", "damaged"
    ids = 10_000_000 + random.permutation(90_000_000 // 90)[:count] * 90

    def text(lengths: tuple[int, int, int], *, longest: bool = False) -> str:
        median, high, most = lengths
        drawn = median * np.exp(random.normal() * np.log(high / median) / NORMAL_95)
        size = most if longest else int(min(max(drawn, 1), most))
        start = int(random.integers(len(pool)))
        return (pool[start:] + pool * (size // len(pool) + 1))[:size]

    rows = []
    for number, kind in zip(ids, kinds, strict=True):
        turns = int(random.integers(2, 37)) if kind == "turns" else 1
        prompt = [text(PROMPT, longest=kind == "giant") for _ in range(turns)]
        cells: list[list[str | None]] = [
            [text(ANSWER, longest=kind == "giant") for _ in range(turns)] for _ in range(2)
        ]
        side = int(random.integers(2))
        if kind == "null":
            cells[side][-1] = None
        elif kind == "empty":
            cells[side] = [""] if random.random() < 0.5 else []
            cells[1 - side] = cells[1 - side] if random.random() < 0.5 else [""]
        written = [json.dumps(cell, ensure_ascii=bool(random.integers(2))) for cell in (prompt, *cells)]
        if kind == "damaged":
            written[1 + side] = written[1 + side][: len(written[1 + side]) // 2]
        rows.append(Row(str(number), written[0], written[1], written[2], str(kind)))
    return rows


def tokens_of(rows: Sequence[Row], budget_tokens: int) -> np.ndarray:
    """(N,) how many tokens of each row a network with this budget reads, about."""
    lengths = np.array([len(row.prompt) + len(row.response_a) + len(row.response_b) for row in rows])
    return np.minimum(lengths / CHARACTERS_PER_TOKEN, budget_tokens)


def stratified(rows: Sequence[Row], count: int, budget_tokens: int, *, each: int = 2) -> list[Row]:
    """About count rows, evenly spread over the lengths, and at least `each` of every kind; in the file's order."""
    order = np.argsort(tokens_of(rows, budget_tokens), kind="stable")
    chosen = set(order[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)].tolist())
    for kind in sorted({row.kind for row in rows}):
        chosen |= set([at for at, row in enumerate(rows) if row.kind == kind][:each])
    return [rows[at] for at in sorted(chosen)]


def write_test(folder: Path, rows: Sequence[Row]) -> None:
    """test.csv and sample_submission.csv, the latter in another order."""
    folder.mkdir(parents=True)
    with (folder / "test.csv").open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(["id", "prompt", "response_a", "response_b"])
        out.writerows(row[:4] for row in rows)
    with (folder / "sample_submission.csv").open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(["id", "winner_model_a", "winner_model_b", "winner_tie"])
        out.writerows([row.id, "0.333", "0.333", "0.333"] for row in sorted(rows, key=lambda row: row.id))
