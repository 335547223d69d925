"""What each lever of a small card gives: time and memory of a training step, interleaved in one run.

    python scripts/bench/levers.py --shape base --tokens 512 --rows 8 --precision fp16 --json levers.json       on a GPU
    OMP_NUM_THREADS=1 python scripts/bench/levers.py --shape base --layers 4 --json levers.json             on a CPU

A DeBERTa-v3 of the shape with random weights and the default's attention. The levers take their turn on the same batch
in each of --rounds; the middle round counts. A CPU's seconds are processor seconds. peak: of a step over what stands
before it. state: gradients and the optimiser's numbers of what trains, by arithmetic, which stand for the whole run. A
lever that cannot run here says why.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from batches import clock, tier_of, write_json
from deberta_shapes import SHAPES, build
from soft_worker import Peak, synchronise
from tried import tried

from models.adapters import checkpoint_activations
from models.encoder import freeze_lowest
from models.encoder_adapters import add_adapters
from models.method_settings import AdapterSettings
from train.levers import COMPILED_TOKENS, compile_lack, embeddings_in_32_bits, rounded

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
GRADIENT_BYTES = 4
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2}
ADAPTER = AdapterSettings(head="label", rank=16, alpha=32, dropout=0.0, targets="all-linear", use="auto")


@dataclass(frozen=True)
class Lever:
    """How a network is made from the plain one. change: of the network, in place."""

    name: str
    setting: str
    attention: str | None = None  # None: as --attention asks
    dropout: float = 0.1
    change: Callable[[Any], object] = lambda network: None
    optimizer: str = "adamw"
    compiled: bool = False


@dataclass(frozen=True)
class Line:
    """One lever's figures; time_x and peak_x are over the plain step's."""

    name: str
    setting: str
    attention: str | None = None
    step_s: float | None = None
    time_x: float | None = None
    peak_mib: float | None = None
    peak_x: float | None = None
    state_mib: float | None = None
    cannot: str | None = None


def levers(layers: int) -> list[Lever]:
    half = layers // 2 + 1
    return [
        Lever("plain", "-"),
        Lever("transformers' attention", "model.attention=eager", attention="eager"),
        Lever("dropout 0", "model.dropout=0.0", dropout=0.0),
        Lever("embeddings frozen", "model.frozen_layers=1", change=lambda one: freeze_lowest(one, 1)),
        Lever("lower half frozen", f"model.frozen_layers={half}", change=lambda one: freeze_lowest(one, half)),
        Lever("adapters", "model.adapters=true", change=lambda one: add_adapters(one, ADAPTER)),
        Lever("every layer recomputed", "trainer.activation_checkpointing=true", change=checkpoint_activations),
        Lever(
            "every second recomputed", "the same with trainer.checkpoint_every=2",
            change=lambda one: checkpoint_activations(one, 2),
        ),
        Lever("8-bit AdamW", "trainer.optimizer=adamw_8bit", optimizer="adamw_8bit"),
        Lever("compiled", "trainer.compile=true", compiled=True),
    ]  # fmt: skip


class Runner:
    """One lever's network and its steps."""

    def __init__(self, options: argparse.Namespace, lever: Lever) -> None:
        self.device, self.half = options.device, HALF.get(options.precision)
        self.network: Any = build(
            options.network, tier=lever.attention or options.attention, vocabulary=options.vocabulary,
            dropout=lever.dropout, device=options.device,
        ).train()  # fmt: skip
        lever.change(self.network)
        self.network.to(options.device)
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        whole = embeddings_in_32_bits(self.network) if lever.optimizer != "adamw" else []
        in_whole, numbers = (sum(weight.numel() for weight in some) for some in (whole, trained))
        self.state_bytes = numbers * GRADIENT_BYTES + in_whole * STATE_BYTES["adamw"]
        self.state_bytes += (numbers - in_whole) * STATE_BYTES[lever.optimizer]
        self.optimiser = _optimiser(lever.optimizer, trained)
        self.scaler = torch.amp.GradScaler(options.device, enabled=options.precision == "fp16")
        if lever.compiled:
            self.network = torch.compile(self.network)

    def step(self, ids: torch.Tensor) -> None:
        with nullcontext() if self.half is None else torch.autocast(self.device, dtype=self.half):
            loss = self.network(ids, attention_mask=torch.ones_like(ids)).logits.float().pow(2).mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()


def _optimiser(name: str, trained: list[Any]) -> Any:
    if name == "adamw":
        return torch.optim.AdamW(trained, lr=1e-6, fused=True)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(trained, lr=1e-6)


def measure(options: argparse.Namespace, keep: Callable[[list[Line]], None] = lambda lines: None) -> list[Line]:
    """A line for each lever: networks are made one after another for the peak, and step side by side for the time.

    keep: is given all lines after each lever. What must be compiled comes when all others are timed: it may take
    minutes, or the process with it.
    """
    drawn = torch.Generator().manual_seed(1)
    tokens = rounded(options.tokens, COMPILED_TOKENS)
    ids = torch.randint(1, options.vocabulary, (options.rows, tokens), generator=drawn).to(options.device)
    lines: dict[str, Line] = {}
    runners: dict[str, Runner] = {}
    for compiled in (False, True):
        for lever in levers(options.network.layers):
            if lever.compiled is compiled:
                lines[lever.name] = Line(lever.name, lever.setting, cannot=compile_lack() if compiled else None)
                if lines[lever.name].cannot is None:
                    found, cannot = tried(lambda: _alone(options, lever, ids))  # noqa: B023
                    lines[lever.name] = replace(lines[lever.name], cannot=cannot)
                    if found:
                        runners[lever.name], lines[lever.name] = found
                keep(list(lines.values()))
        _time(options, runners, lines, ids)
        keep(list(lines.values()))
    return list(lines.values())


def _alone(options: argparse.Namespace, lever: Lever, ids: torch.Tensor) -> tuple[Runner, Line]:
    """The lever's network after its first steps, and their memory."""
    runner = Runner(options, lever)
    attention = tier_of(runner.network)
    runner.step(ids)  # AdamW's state is made, kernels are compiled
    peak = Peak(options.device)
    runner.step(ids)
    peak_mib, state_mib = peak.over_start() / 2**20, runner.state_bytes / 2**20
    return runner, Line(lever.name, lever.setting, attention, peak_mib=peak_mib, state_mib=state_mib)


def _time(
    options: argparse.Namespace, runners: dict[str, Runner], lines: dict[str, Line], ids: torch.Tensor
) -> None:  # fmt: skip
    """Time the networks in turns, into their lines; one that fails beside the others leaves both."""

    def step(runner: Runner) -> float:
        synchronise(options.device)
        started = clock(options.device)
        runner.step(ids)
        synchronise(options.device)
        return clock(options.device) - started

    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name in list(runners):
            spent, cannot = tried(lambda: step(runners[name]))  # noqa: B023
            if cannot is None:
                seconds[name].append(spent)
            else:
                lines[name] = replace(lines[name], cannot=cannot)
                del runners[name], seconds[name]
    plain = lines["plain"]
    plain_s = statistics.median(seconds["plain"]) if "plain" in seconds else None
    for name, found in seconds.items():
        step_s, peak_mib = statistics.median(found), lines[name].peak_mib or 0
        lines[name] = replace(lines[name], step_s=step_s)
        if plain_s and plain.peak_mib:
            lines[name] = replace(lines[name], time_x=step_s / plain_s, peak_x=peak_mib / plain.peak_mib)


def table(lines: list[Line]) -> str:
    """Markdown."""
    rows = ["| lever | setting | step s | x plain | peak MiB | x plain | state MiB |", "| --- " * 7 + "|"]
    for one in lines:
        figures = [one.step_s, one.time_x, one.peak_mib, one.peak_x, one.state_mib]
        forms = (".3f", ".2f", ",.0f", ".2f", ",.0f")
        shown = [format(value, form) if value is not None else "-" for value, form in zip(figures, forms, strict=True)]
        note = f" ({one.cannot})" if one.cannot else ""
        rows.append(f"| {one.name}{note} | `{one.setting}` | {' | '.join(shown)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=128_100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", *HALF), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", choices=("auto", "eager", "sdpa"), default="auto", help="auto: sdpa")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.network = SHAPES[options.shape]
    if options.layers:
        options.network = replace(options.network, layers=options.layers)

    def keep(lines: list[Line]) -> None:
        if options.json:
            write_json(options.json, "levers", options, {"lines": [asdict(one) for one in lines]})

    lines = measure(options, keep)
    print(f"attention {lines[0].attention}, but where a row says otherwise\n")
    print(table(lines))


if __name__ == "__main__":
    main()
