"""What is said about a finished table: rows, the mass on the labels, what took the rest, cuts, and the score.

Knows the columns that `infer.chunked` writes and the record beside a table; never a model or a setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.chunked import P
from infer.files import read_json
from infer.logs import log
from infer.metrics import metric_lines, score
from infer.predictions import OTHER_COLUMN, Predictions
from infer.text_files import ANSWERS_FILE, beside
from models.tasks.text import LABEL_COLUMN

LOW_MASS = 0.5  # median mass on the label set below which the numbers say more about the prompt than about the rows
TOKENS_NAMED = 5


def summary_columns(labels: Sequence[str], *, labelled: bool) -> list[str]:
    """The columns that `summarise` reads."""
    scored = ["id", LABEL_COLUMN, *(P + label for label in labels)] if labelled else []
    return [*scored, OTHER_COLUMN, "predicted", "cut_share"]


def summarise(
    frames: Iterable[pd.DataFrame], labels: Sequence[str], strays: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """The record's figures of a table given in pieces; keeps 4 bytes a row, and the labelled rows' columns.

    strays: per piece {token's text: probability summed over rows}, of what took the mass from the labels.
    """
    masses, known, cut_rows = [], [], 0
    chosen = dict.fromkeys(labels, 0)
    for frame in frames:
        for label, count in frame["predicted"].value_counts().items():
            chosen[str(label)] += int(count)
        masses.append(1 - frame[OTHER_COLUMN].to_numpy(dtype=np.float32))
        cut_rows += int((frame["cut_share"] > 0).sum())
        if LABEL_COLUMN in frame:
            known.append(frame[np.isfinite(masses[-1]) & frame[LABEL_COLUMN].notna().to_numpy()])
    mass = np.concatenate(masses)
    finite = mass[np.isfinite(mass)]
    result: dict[str, Any] = {
        "rows": len(mass),
        "not_finite": len(mass) - len(finite),
        "median_label_mass": float(np.median(finite)) if len(finite) else None,
        "strays": _heaviest(strays, len(mass)),
        "cut_rows": cut_rows,
        "predicted": chosen,
    }
    labelled = pd.concat(known, ignore_index=True) if known else pd.DataFrame()
    if len(labelled):
        result["score"] = score(Predictions.from_frame(labelled, labels))
        result["score"]["predicted_macro_f1"] = _macro_f1(labelled, labels)
    return result


def report(output: Path, labels: Sequence[str], path: Path | None = None) -> None:
    """Say what a person should know about a finished table, and where it is. path: of its record, if not beside it."""
    answers = beside(output, ANSWERS_FILE).name if path is None else f"_{ANSWERS_FILE}"
    path = path or Path(f"{output}.json")
    record = read_json(path)
    if record["not_finite"] and "answers" in record:
        log.info(
            f"{record['not_finite']} of {record['rows']} rows stay unanswered and stand empty in the table "
            f"({answers} says why); scores are of the others"
        )
    elif record["not_finite"]:
        log.info(
            f"{record['not_finite']} of {record['rows']} rows have no finite numbers and stand empty in the table. "
            "Use engine.precision=fp32."
        )
    if record["cut_rows"]:
        log.info(f"{record['cut_rows']} texts were too long and lost their middle (column cut_share)")
    mass = record["median_label_mass"]
    if mass is not None:
        taught = "adapters" in record.get("reader", {})  # shares alone: nothing taught them where the rest goes
        log.info(f"median mass on the labels: {mass:.3f}" + (" (adapters learn shares, not this)" if taught else ""))
        if not taught and mass < LOW_MASS:
            named = ", ".join(f"{text!r} {share:.3f}" for text, share in record["strays"])
            log.info(
                "warning: most of the probability is not on the labels, so the prompt does not ask for them as they "
                f"are spelt. The tokens that took it, with their mean share of all rows: {named}"
            )
    if "score" in record:
        log.info(metric_lines(record["score"]))
        if record["score"]["predicted_macro_f1"] != record["score"]["macro_f1"]:
            log.info(f"  macro-F1 of the labels chosen (column predicted)  {record['score']['predicted_macro_f1']:.4f}")
    counts = dict(record["predicted"])
    undecided = record["rows"] - record["not_finite"] - sum(counts.values())
    if undecided:
        counts["left to a person"] = undecided
    log.info("labels chosen: " + ", ".join(f"{label} {count}" for label, count in counts.items()))
    log.info(f"{output}: {record['rows']} rows, columns p_{', p_'.join(labels)}, p_other ({path} says how)")


def _heaviest(strays: Sequence[Mapping[str, float]], rows: int) -> list[list[Any]]:
    """[[token's text, mean probability over all rows], ...], the few that took most."""
    taken: dict[str, float] = {}
    for piece in strays:
        for text, prob in piece.items():
            taken[text] = taken.get(text, 0.0) + prob
    heaviest = sorted(taken.items(), key=lambda item: -item[1])[:TOKENS_NAMED]
    return [[text, round(prob / rows, 6)] for text, prob in heaviest]


def _macro_f1(table: pd.DataFrame, labels: Sequence[str]) -> float:
    """Of the column `predicted`, which decision weights may have chosen otherwise than the largest share."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(
            table[LABEL_COLUMN], table["predicted"].fillna(""), labels=list(labels), average="macro", zero_division=0
        )
    )
