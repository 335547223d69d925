"""What a QLoRA step costs, ours beside the plain road: peak memory and rows/s on a 4-bit Llama with random weights.

    python scripts/bench/qlora.py --shape 8b --memory-gib t4 --label --json qlora.json        on a GPU
    python scripts/bench/qlora.py --shape head --memory-gib 4 --lengths 512 --rows 8          on a CPU, a few minutes

The model has the shape of Llama-3.1-8B (or --shape), is quantized matrix by matrix, and trains r 16 adapters on all
linear layers, with activation checkpointing. A road runs in a process of its own; a size that does not fit is a line
of the table, and the next is tried; both files are written after every figure. Beside each peak stands what the shape
says it should be (qlora_arithmetic.py). --memory-gib stands for a smaller card (cards.py): torch's allocator gets what
CUDA's context would leave of it, and a size fits where what was reserved and what was seen outside the allocator are no
more than the card. On a CPU nothing is capped, and what would not fit is marked. --label adds skills labelled per
second, read at once and with a chain of thought.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cards import MEMORY_HELP, card_gib
from qlora_arithmetic import ROADS, parts, step_flops, total
from qlora_model import SHAPES, parse_shape
from qlora_table import tables
from qlora_worker import LABEL, Setup
from soft_classification import commit
from soft_worker import hardware

from models.tasks.files import write_atomically

WORKER = Path(__file__).with_name("qlora_worker.py")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
NEW_TOKENS = 150


def lines_of(setup_file: Path, setup: Setup, road: str, sizes: list[list[int]]) -> Iterator[dict]:
    """The JSON lines of a worker as they come; a last one of kind Ended where it failed."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(setup.threads), "MKL_NUM_THREADS": str(setup.threads), "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1", "WANDB_MODE": "disabled",
    }  # fmt: skip
    command = [sys.executable, str(WORKER), str(setup_file), road, json.dumps(sizes)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"kind"'):
                yield json.loads(line)
    if process.returncode:
        yield {"kind": "Ended", "cannot": f"its process ended with {process.returncode}"}


def run_road(setup_file: Path, setup: Setup, road: str, sizes: list[list[int]]) -> Iterator[dict]:
    """How the model stands, then a cell for each size. One that died is started again behind its last."""
    stands, done = False, 0
    while done < len(sizes):
        before = done
        for line in lines_of(setup_file, setup, road, sizes[before:]):
            if line["kind"] == "Standing":
                if not stands:
                    yield line
                stands = True
            elif done < len(sizes):
                length, rows = sizes[done]
                cell = {"road": road, "length": length, "rows": rows} | line
                done += 1
                print(said(cell), flush=True)
                yield cell
        assert done > before, (road, sizes[before:])
        if not stands:  # it never came to a size, and would not come to the next
            for length, rows in sizes[done:]:
                yield cell | {"length": length, "rows": rows}
            return


def said(cell: dict) -> str:
    figures = cell.get("cannot") or f"{cell['peak_gib']:6.2f} GiB {cell['rows_per_s']:8.2f} rows/s"
    return f"{cell['road']:<20} T {cell['length']:>5} B {cell['rows']:>3}  {figures}"


def expected(setup: Setup, cell: dict) -> list[float]:
    """[least, most] GiB by the arithmetic; without the context, which no allocator's figure holds."""
    ranges = parts(
        setup.shape, cell["rows"], cell["length"], setup.rank, ROADS[cell["road"]],
        width=4 if setup.precision == "fp32" else 2, four_bit=setup.quantization == "nf4", on_gpu=False,
    )  # fmt: skip
    return list(total(ranges))


def speed(setup: Setup, cell: dict) -> float | None:
    """Useful matmul TFLOP/s of a step, attention not counted; what a road does beyond them makes it less."""
    if cell.get("step_s") is None:
        return None
    full = ROADS[cell["road"]].full_logits
    return step_flops(setup.shape, cell["rows"] * cell["length"], cell["rows"], full=full) / cell["step_s"] / 1e12


def fits(cell: dict, card: float | None) -> bool | None:
    """Whether a card of so many GiB holds it: what the allocator reserved and what lay outside; None without a card."""
    if card is None:
        return None
    peak = cell.get("reserved_gib") or cell.get("peak_gib")
    return peak is not None and peak + (cell.get("outside_gib") or 0.0) <= card


def measure(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All that the run found, as it goes into the JSON file. keep: called with it after every figure."""
    setup: Setup = options.setup
    sizes = [[length, rows] for length in options.lengths for rows in options.rows]
    found: dict[str, Any] = {
        "hardware": hardware(setup.device, setup.threads), "commit": commit(), "packages": versions(),
        "setup": asdict(setup), "roads": [], "cells": [], "label": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        setup_file = Path(folder) / "setup.json"
        setup_file.write_text(json.dumps(asdict(setup)), encoding="utf-8")
        for road in options.roads:
            for line in run_road(setup_file, setup, road, sizes):
                if line["kind"] == "Standing":
                    found["roads"].append(line)
                else:
                    derived = {"expected_gib": expected(setup, line), "tflop_per_s": speed(setup, line)}
                    found["cells"].append(line | derived | {"fits": fits(line, setup.memory_gib)})
                keep(found)
        if options.label:
            for line in lines_of(setup_file, setup, LABEL, []):
                found["label"].append(line)
                rate = line.get("rows_per_s")
                figures = line["cannot"] if rate is None else f"{rate:.2f} rows/s"
                print(f"{line.get('way', LABEL):<32} {figures}", flush=True)
                keep(found)
    return found


def versions() -> dict[str, str | None]:
    known: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = None
    return known


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="8b", help=f"{', '.join(SHAPES)}, or V,H,layers,heads,kv_heads,F")
    parser.add_argument("--lengths", type=numbers, default=[256, 512, 1024], help="tokens of the longest row: T")
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16], help="rows of a batch: B")
    parser.add_argument("--roads", default=",".join(ROADS).replace("ours, full logits", "full"),
                        help="comma-separated: ours, full (our preparation, all logits), plain; or none")  # fmt: skip
    parser.add_argument("--steps", type=int, default=3, help="timed ones; the middle one counts")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], help="default: fp16, on a CPU fp32")
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--memory-gib", type=card_gib, help=MEMORY_HELP)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--label", action="store_true", help="labelling too: skills/s, beside a chain of thought")
    parser.add_argument("--label-rows", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="of the chain of thought")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--table", type=Path, help="write the tables as GitHub Markdown")
    return resolve(parser.parse_args(arguments))


def numbers(text: str) -> list[int]:
    """1,2,4 as [1, 2, 4]; each is 1 at least."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers from 1 on, joined by commas")
    return found


def resolve(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the roads and the setup of the workers; refuse what none could do."""
    import torch

    known = {"ours": "ours", "full": "ours, full logits", "plain": "plain"}
    wanted = [] if options.roads == "none" else options.roads.split(",")
    if not set(wanted) <= set(known):
        raise SystemExit(f"--roads {options.roads}: expected some of {', '.join(known)}, joined by commas, or none.")
    if min(options.lengths) < 2:
        raise SystemExit("--lengths: expected 2 at least, a prompt's token and an answer's.")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = options.precision or ("fp16" if device == "cuda" else "fp32")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA GPU here. Use --device cpu and a small --shape.")
    if device == "cpu" and precision == "fp16":
        raise SystemExit("--precision fp16 needs a CUDA GPU: Trainer ignores it on a CPU. Use fp32 or bf16.")
    if options.quantization == "nf4" and versions()["bitsandbytes"] is None:
        raise SystemExit("4-bit weights need bitsandbytes: pip install 'tiebreak[gpu]', or --quantization none.")
    try:
        shape = parse_shape(options.shape)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    options.roads = [known[name] for name in wanted]
    options.setup = Setup(
        shape=shape, device=device, precision=precision, quantization=options.quantization, rank=options.rank,
        steps=options.steps, memory_gib=options.memory_gib, threads=options.threads, label_rows=options.label_rows,
        new_tokens=options.new_tokens,
    )  # fmt: skip
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    def keep(found: dict[str, Any]) -> None:
        text = "\n".join(tables(found)) + "\n"
        for path, content in ((options.json, json.dumps(found, indent=2) + "\n"), (options.table, text)):
            if path is not None:
                with write_atomically(path) as unfinished:
                    unfinished.write_text(content, encoding="utf-8")

    found = measure(options, keep)
    keep(found)
    print("\n" + "\n".join(tables(found)))


if __name__ == "__main__":
    main()
