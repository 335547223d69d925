"""What exact label probabilities cost, ours beside its switched-off halves and beside other packages, on one model.

    python scripts/bench/soft_classification.py --shape m32 --job two --prompts 200 --table two.md
    python scripts/bench/soft_classification.py --model FOLDER --job many --methods ours,lm-eval --device cuda

It makes its own Llama-shaped model and tokenizer unless --model names a real one, and runs anywhere; memory is read on
Linux. Methods run one process each, round after round, so that a busy minute falls on all of them; "x ours" is the
median over rounds. A package that wants an interpreter of its own gets it: --python cappr=/path/to/bin/python. Work is
counted in a run of its own: FLOPs of plain matmuls, attention apart, beside the fewest that give exact probabilities
and the mass outside the labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from cards import MEMORY_HELP, card_gib
from soft_job import ANSWERS, largest_difference, make_job, median_ratio
from soft_methods import METHODS, OURS, package_of
from soft_model import SHAPES, plain_folder, write_tokenizer
from soft_worker import FACTS, ORACLE, Facts, Measured, Setup, log_probs_file

from models.tasks.files import write_atomically

WORKER = Path(__file__).with_name("soft_worker.py")
Worker = Callable[[str, str], Measured]


@dataclass
class Row:
    """A method's line of the table."""

    method: str
    counted: Measured
    difference: float | None = None
    rounds: list[Measured] = field(default_factory=list)

    def seconds(self, on_gpu: bool) -> list[float]:
        """What is compared: CPU seconds of all threads, or wall seconds where a GPU does the work."""
        return [one.wall_s if on_gpu else one.cpu_s for one in self.rounds]


def spawn(folder: Path, pythons: dict[str, str], threads: int, *arguments: str) -> dict:
    """The JSON line that a worker of these arguments prints; its errors go to this terminal."""
    python = pythons.get(package_of(arguments[0]) or "", sys.executable)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [python, str(WORKER), str(folder), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        return asdict(Measured(arguments[0], cannot=f"its process ended with {done.returncode}"))
    return json.loads(done.stdout.splitlines()[-1])


def run_rounds(methods: list[str], rounds: int, worker: Worker) -> Iterator[list[Row]]:
    """All rows so far, after every run: a counted one of each method, then `rounds` timed ones, all methods in each.

    Who cannot run is kept, with the reason, and not tried again.
    """
    rows: list[Row] = []
    for method in methods:
        rows.append(Row(method, worker(method, "count")))
        print(f"counted  {method:<32} {rows[-1].counted.cannot or ''}", flush=True)
        yield rows
    for number in range(1, rounds + 1):
        for row in rows:
            if row.counted.cannot is None:
                found = worker(row.method, "time")
                row.counted.cannot = found.cannot
                row.rounds += [found] if found.cannot is None else []
                seconds = f"{found.cpu_s:8.2f} CPU s {found.wall_s:8.2f} s"
                print(f"round {number}  {row.method:<32} {found.cannot or seconds}", flush=True)
                yield rows


def compare(rows: list[Row], folder: Path) -> None:
    """Fill in each row's largest difference from the oracle, which has run."""
    oracle = np.load(log_probs_file(folder, ORACLE))
    for row in rows:
        if row.counted.cannot is None and row.difference is None:
            row.difference = largest_difference(np.load(log_probs_file(folder, row.method)), oracle)


def table(rows: list[Row], facts: Facts, on_gpu: bool) -> list[str]:
    """Lines of GitHub Markdown; those who could not run say why."""
    unit = "ms per prompt | prompts/s" if on_gpu else "CPU s | wall s"
    lines = [f"| method | work, x the floor | {unit} | x ours | MiB over load | largest difference of log P |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    own = next((row for row in rows if row.method == OURS and row.rounds), None)
    for row in rows:
        if row.counted.cannot is not None or not row.rounds:
            lines.append(f"| {row.method} | {row.counted.cannot or 'not timed'} | | | | | |")
            continue
        wall = min(one.wall_s for one in row.rounds)
        best = f"{1e3 * wall / facts.texts:.2f} | {facts.texts / wall:.1f}"
        if not on_gpu:
            best = f"{min(one.cpu_s for one in row.rounds):.2f} | {wall:.2f}"
        ratio = f"{median_ratio(own.seconds(on_gpu), row.seconds(on_gpu)):.2f}" if own else "-"
        peak = max(one.peak_mib for one in row.rounds)
        difference = "-" if row.difference is None else f"{row.difference:.1e}"
        work = row.counted.flops / facts.least_flops
        lines.append(f"| {row.method} | {work:.2f} | {best} | {ratio} | {peak:.0f} | {difference} |")
    return lines


def roofline(row: Row, facts: Facts) -> str:
    """Ours beside what the machine allows: its weights read once per pass, its floor of FLOPs at the matmul rate."""
    wall = min(one.wall_s for one in row.rounds)
    reading = row.counted.passes * facts.weight_bytes / facts.bytes_per_s
    computing = facts.least_flops / facts.flops_per_s
    floor = max(reading, computing)
    return (
        f"Roofline: {facts.flops_per_s / 1e12:.2f} TFLOP/s and {facts.bytes_per_s / 1e9:.0f} GB/s measured. "
        f"{row.counted.passes} passes read the weights in {reading:.3f} s; the floor's FLOPs take {computing:.3f} s. "
        f"At most {facts.texts / floor:.0f} prompts/s; ours {facts.texts / wall:.0f}, {wall / floor:.2f} x the time."
    )


def headline(facts: Facts, options: argparse.Namespace) -> str:
    job = (
        f"{facts.texts} prompts: {facts.shared_tokens} shared tokens, then {facts.own_tokens / facts.texts:.1f} of "
        f"their own; {len(ANSWERS[options.job])} answers with {facts.inside} tokens inside their tree"
    )
    return (
        f"{job}. {options.model or options.shape}: {facts.parameters / 1e6:.0f} M parameters, {options.precision}. "
        f"Floor {facts.least_flops / facts.texts / 1e9:.3f} GFLOP a prompt. {facts.hardware}, best of "
        f"{options.rounds} rounds, commit {commit()}."
    )


def commit() -> str:
    """The short commit of this checkout, with a + where files differ from it; 'unknown' outside git."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=WORKER.parent, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def chosen(names: str | None) -> list[str]:
    """Ours, then the methods that are, or else begin with, the comma-separated names, in that order; refuses others."""
    if names is None:
        return list(METHODS)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if not any(method.startswith(name) for method in METHODS):
            raise SystemExit(f"--methods {name}: no method begins so. There are: {'; '.join(METHODS)}")
    found = [OURS]
    for name in wanted:
        found += [name] if name in METHODS else [method for method in METHODS if method.startswith(name)]
    return list(dict.fromkeys(found))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="m32", help="the made model")
    parser.add_argument("--model", help="a real one instead: a folder, a hub name, package:...")
    parser.add_argument("--job", choices=ANSWERS, default="two", help="two labels of one token, or eight of 2 to 4")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", help="comma-separated beginnings of names, run in this order behind ours")
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=PATH", help="a peer's interpreter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], help="default: fp32, on a GPU fp16")
    parser.add_argument("--memory-gib", type=card_gib, help=MEMORY_HELP)
    parser.add_argument("--oracle-prompts", type=int, default=24, help="compared with the float64 reference; 0: none")
    parser.add_argument("--table", type=Path, help="write the table as GitHub Markdown")
    return resolve(parser.parse_args(arguments))


def resolve(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in methods, device and precision; refuse what no worker could do."""
    options.methods = chosen(options.methods)
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.precision = options.precision or ("fp16" if options.device == "cuda" else "fp32")
    if options.memory_gib is not None and options.device != "cuda":
        raise SystemExit(f"--memory-gib {options.memory_gib} caps a GPU's memory, and the device is the CPU.")
    if any("=" not in pair for pair in options.python):
        raise SystemExit(f"--python {' '.join(options.python)}: expected PACKAGE=PATH, such as cappr=venv/bin/python.")
    return options


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write what the workers read."""
    model = plain_folder(options.model, options.precision, folder) if options.model else None
    setup = Setup(
        shape=options.shape, model=model, device=options.device, precision=options.precision,
        threads=options.threads, memory_gib=options.memory_gib, oracle_prompts=options.oracle_prompts,
    )  # fmt: skip
    (folder / "setup.json").write_text(json.dumps(asdict(setup)))
    make_job(options.job, options.prompts).save(folder / "job.json")
    if options.model is None:
        write_tokenizer(folder, SHAPES[options.shape].vocab)


def main() -> None:
    options = parse()
    pythons = dict(pair.split("=", 1) for pair in options.python)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        found = spawn(folder, pythons, options.threads, FACTS)
        if "cannot" in found:
            raise SystemExit(f"The model could not be loaded and measured: {found['cannot']}. The reason stands above.")
        facts = Facts(**found)

        def worker(method: str, mode: str) -> Measured:
            return Measured(**spawn(folder, pythons, options.threads, method, mode))

        # First, so that a run that is ended has its differences too.
        cannot = worker(ORACLE, "time").cannot if options.oracle_prompts else None
        for rows in run_rounds(options.methods, options.rounds, worker):
            if options.oracle_prompts and cannot is None:
                compare(rows, folder)
            lines = report(rows, facts, options, cannot)
            if options.table is not None:
                with write_atomically(options.table) as unfinished:
                    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines))


def report(rows: list[Row], facts: Facts, options: argparse.Namespace, cannot: str | None) -> list[str]:
    """The Markdown of what has been measured so far. cannot: why the oracle could not run."""
    lines = [headline(facts, options), "", *table(rows, facts, options.device == "cuda"), ""]
    lines += [f"The oracle could not run: {cannot}"] if cannot else []
    return lines + [roofline(row, facts) for row in rows if row.method == OURS and row.rounds]


if __name__ == "__main__":
    main()
