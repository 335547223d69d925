"""Do drawn answers come as often as the probabilities read from logits say? Two tables of the same rows, row by row.

    python -m infer +experiment=reviews_soft && python -m infer +experiment=reviews_sampling
    python scripts/bench/sampling.py runs/reviews_soft/seed42/predictions.parquet \\
        runs/reviews_sampling/seed42/predictions.parquet

For each label: the share of rows whose number of draws lies within the central 95 % binomial interval of the
probability that was read, beside the share that should (numbers are whole, so a little more than 0.95). And what
drawing costs: the same rows' scores by the logits, by the draws' majority, and by one draw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from infer.chunked import LOG_P, P
from infer.predictions import OTHER_COLUMN

TAIL = 0.025  # on either side of the interval


@dataclass(frozen=True)
class Agreement:
    """One label. inside: share of the rows within their interval; expected: of such rows if draws follow the logits.

    worst: the largest distance of a row's share from its probability, in standard deviations.
    """

    label: str
    rows: int
    inside: float
    expected: float
    worst: float


def agreements(read: pd.DataFrame, drawn: pd.DataFrame, samples: int) -> list[Agreement]:
    """Of every label; the tables' rows are joined by id."""
    from scipy.stats import binom

    both = joined(read, drawn)
    found = []
    for name in [column for column in read.columns if column.startswith(LOG_P)]:
        probs = np.exp(both[f"{name}_read"].to_numpy(dtype=np.float64))
        # A row without an answer is one in which no draw was a label.
        times = np.rint(np.exp(both[f"{name}_drawn"].fillna(-np.inf).to_numpy(dtype=np.float64)) * samples)
        low, high = binom.ppf(TAIL, samples, probs), binom.ppf(1 - TAIL, samples, probs)
        expected = binom.cdf(high, samples, probs) - binom.cdf(low - 1, samples, probs)
        deviation = np.sqrt(samples * probs * (1 - probs))
        found.append(
            Agreement(
                name.removeprefix(LOG_P), len(both), float(((low <= times) & (times <= high)).mean()),
                float(expected.mean()), float((np.abs(times - samples * probs) / deviation).max()),
            )
        )  # fmt: skip
    return found


def joined(read: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """Both tables' columns, those of the same name with _read and _drawn behind it. Refuses rows that differ."""
    if sorted(read["id"]) != sorted(drawn["id"]):
        raise ValueError("The two tables have other rows (column id). Give tables of the same input.")
    return read.merge(drawn, on="id", suffixes=("_read", "_drawn"), validate="one_to_one")


def scores(read: pd.DataFrame, drawn: pd.DataFrame) -> list[tuple[str, float, float, float]]:
    """(way, accuracy, log loss, share of labels that are not the logits' label), of labelled and answered rows.

    One draw: the mean over the draws of a row, which is what a single one scores on average.
    """
    from sklearn.metrics import log_loss

    both = joined(read, drawn).dropna(subset=["predicted_read", "predicted_drawn"])
    labels = sorted(name.removeprefix(P) for name in read.columns if name.startswith(P) and name != OTHER_COLUMN)
    truth, of = both["label_read"].to_numpy(), {label: at for at, label in enumerate(labels)}
    rows, right = np.arange(len(both)), np.array([of[label] for label in truth])
    found = []
    for way, end in (("logits, the likeliest label", "read"), ("draws, the label that came most often", "drawn")):
        probs = both[[f"{P}{label}_{end}" for label in labels]].to_numpy(dtype=np.float64)
        probs = probs / probs.sum(axis=1, keepdims=True)  # float32 in the table
        chosen = both[f"predicted_{end}"].to_numpy()
        differ = float((chosen != both["predicted_read"].to_numpy()).mean())
        found.append((way, float((chosen == truth).mean()), float(log_loss(truth, probs, labels=labels)), differ))
    likeliest = np.array([of[label] for label in both["predicted_read"]])
    one = (float(probs[rows, right].mean()), float("nan"), 1 - float(probs[rows, likeliest].mean()))
    return [*found, ("one draw", *one)]


def main(arguments: Sequence[str] | None = None) -> list[Agreement]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("read", type=Path, help="the table of method=next_token")
    parser.add_argument("drawn", type=Path, help="the table of method=sampled")
    options = parser.parse_args(arguments)
    read, drawn = (_table(path) for path in (options.read, options.drawn))
    record = json.loads(Path(f"{options.drawn}.json").read_text(encoding="utf-8"))
    samples = int(record["identity"]["generation.samples"])
    found = agreements(read, drawn, samples)
    print(f"{samples} draws of each of {found[0].rows} rows\n")
    print(
        "| label | rows inside their 95 % interval | should be | farthest, standard deviations |\n| --- "
        + "| --- " * 3
        + "|"
    )
    for one in found:
        print(f"| {one.label} | {one.inside:.3f} | {one.expected:.3f} | {one.worst:.1f} |")
    if "label" in read.columns:
        print("\n| way | accuracy | log loss | other label than the logits |\n| --- " + "| --- " * 3 + "|")
        for way, accuracy, loss, differ in scores(read, drawn):
            print(f"| {way} | {accuracy:.3f} | {'-' if np.isnan(loss) else f'{loss:.3f}'} | {differ:.3f} |")
    return found


def _table(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    return frame.assign(id=frame["id"].astype(str))


if __name__ == "__main__":
    main()
