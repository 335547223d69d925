"""What a network learns from steps of similar lengths, beside steps of random rows: held-out loss along the training.

    python scripts/bench/batches_learning.py --source train.csv.gz --budget 256 --seeds 3 --json learning.json

A small BERT of random weights, the same seeds for both ways, the same held-out fifth of the rows. --source must be rows
in which something can be learnt in minutes: in arena rows that is that longer answers win.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from batches import Job, arguments, cut, load_job, make_network, network_sizes, rows_of, sizes, train_epoch, write_json
from torch.nn import functional as F


@dataclass(frozen=True)
class Curve:
    """Held-out log loss of one way along the training, (rows seen, mean over seeds, standard deviation)."""

    way: str
    points: list[tuple[int, float, float]]


def learn(options: argparse.Namespace, job: Job, tokenizer: Any) -> list[Curve]:
    """Train `dynamic` and `tokens` from the same seeds, and read the same held-out rows along the way."""
    order = np.random.default_rng(0).permutation(len(job.lengths))
    held, training = order[: len(order) // 5], order[len(order) // 5 :]
    curves = []
    for way in ("dynamic", "tokens"):
        runs = [one_run(options, job, tokenizer, way, training, held, seed) for seed in range(options.seeds)]
        losses = np.array([[loss for _, loss in run] for run in runs])
        points = zip([seen for seen, _ in runs[0]], losses.mean(0).tolist(), losses.std(0).tolist(), strict=True)
        curves.append(Curve(way, [(seen, mean, deviation) for seen, mean, deviation in points]))
    return curves


def one_run(
    options: argparse.Namespace, job: Job, tokenizer: Any, way: str, training: np.ndarray, held: np.ndarray, seed: int
) -> list[tuple[int, float]]:
    """[(rows seen, held-out log loss)], four times an epoch."""
    torch.manual_seed(seed)
    network = make_network(options.network, tokenizer, job.reader, **network_sizes(options))
    network.to(options.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.rate)
    points: list[tuple[int, float]] = []
    for epoch in range(options.epochs):
        steps = rows_of(cut(way, job.lengths[training], seed=1000 * seed + epoch, **sizes(options)), training)
        marks = {round(share * len(training) / 4) // options.step_rows for share in (1, 2, 3)} | {len(steps)}

        def look(seen: int, before: int = epoch * len(training), marks: set[int] = marks) -> None:
            if -(-seen // options.step_rows) in marks:
                points.append((before + seen, heldout_loss(network, job, held, options.device)))

        train_epoch(network, optimiser, job, steps, options.device, after=look)
    print(f"  {way}, seed {seed}: {points[-1][1]:.4f}", flush=True)
    return points


def heldout_loss(network: Any, job: Job, held: np.ndarray, device: str) -> float:
    network.eval()
    total = 0.0
    with torch.inference_mode():
        for at in range(0, len(held), 32):
            part = held[at : at + 32]
            logits = network(**{k: v.to(device) for k, v in job.reader.batch(job.fields, (2 * part).tolist()).items()})
            total += float(F.cross_entropy(logits.cpu(), torch.from_numpy(job.targets[part]), reduction="sum"))
    network.train()
    return total / len(held)


def curve_lines(curves: Sequence[Curve]) -> list[str]:
    """Both ways beside each other, with how many standard deviations of a seed apart."""
    out = ["| rows seen | dynamic | tokens | apart |", "| --- " * 4 + "|"]
    for (seen, one, spread), (_, other, other_spread) in zip(curves[0].points, curves[1].points, strict=True):
        noise = np.hypot(spread, other_spread)
        apart = f"{(other - one) / noise:+.1f} sd"
        out.append(f"| {seen:,} | {one:.4f} ± {spread:.4f} | {other:.4f} ± {other_spread:.4f} | {apart} |")
    return out


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(head="siamese", network="bert", budget=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    job, tokenizer = load_job(options.source, options.tokenizer, head=options.head, budget=options.budget)
    curves = learn(options, job, tokenizer)
    print("\n".join(curve_lines(curves)))
    if options.json:
        write_json(options.json, "batches_learning", options, {"lines": [asdict(one) for one in curves]})


if __name__ == "__main__":
    main()
