"""Whether `python -m infer` reads a million rows in flat memory, and survives a kill -9 to the same bytes.

    OMP_NUM_THREADS=1 python scripts/bench/million_rows.py [--rows 1000000] [--form parquet] [--chunk-rows 512]

Makes a file of short rows, the middle one damaged by a quote that is never closed, and a Llama of two layers, and runs
the real command three times: killed (SIGKILL) at a third of the rows, resumed, and unbroken to another output; the
resident set is sampled every second. Linux only (/proc). Exits with 1 where the two outputs differ, or where they do
not hold every row but the damaged one, which must be listed beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from soft_model import SHAPES, WORDS, build_model, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 1.0
MIB = 1 << 20


@dataclass
class Run:
    """What was seen of one process: (seconds, parts there, resident bytes) every second, and what it took."""

    name: str
    seconds: float = 0.0
    cpu_s: float = 0.0
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def resident_at(self, parts: int) -> int:
        """Resident bytes when so many parts were there: those of the first such sample."""
        return next((resident for _, there, resident in self.samples if there >= parts), 0)

    @property
    def reading(self) -> list[tuple[float, int, int]]:
        """The samples at which there were more parts than before: not while it starts, nor while it merges."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return [now for before, now in pairs if 0 < before[1] < now[1]]

    def rows_per_second(self, chunk_rows: int) -> float:
        """Rows a second while reading; NaN where too few samples saw it."""
        if len(self.reading) < 2:
            return float("nan")
        (start, first, _), (end, last, _) = self.reading[0], self.reading[-1]
        return (last - first) * chunk_rows / (end - start)


def write_rows(path: Path, count: int) -> None:
    """Short rows, each text its own, one written at a time; a quote in the middle one is never closed."""
    words = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(["id", "text"])
        for number in range(count):
            if number == count // 2:
                stream.write(f'row-{number},"a film\r\n')
                continue
            out.writerow([f"row-{number}", f"{' '.join(words.choices(WORDS, k=words.randint(3, 12)))} {number}"])


def write_model(folder: Path) -> None:
    """A Llama of two layers, hidden size 32, and its tokenizer of 1,024 entries."""
    shape = SHAPES["toy"]
    build_model(shape, device="cpu", precision="fp32").save_pretrained(folder)
    write_tokenizer(folder, shape.vocab)


def delivered(output: Path, rows: int) -> bool:
    """Is every row there but the damaged one, and is that one listed, with its line?"""
    record = json.loads(Path(f"{output}.json").read_text(encoding="utf-8"))
    with output.with_name(f"{output.name.partition('.')[0]}.bad_rows.csv").open(encoding="utf-8") as stream:
        listed = list(csv.DictReader(stream))
    print(f"{record['rows']} of {rows} rows delivered; left out: " + "; ".join(
        f"row {one['row']} (line {one['line']}), {one['reason']}" for one in listed
    ))  # fmt: skip
    return record["rows"] == rows - 1 and [one["line"] for one in listed] == [str(rows // 2 + 2)]


def command_of(folder: Path, output: Path, chunk_rows: int) -> list[str]:
    return [
        sys.executable, "-m", "infer", "+experiment=reviews_soft", f"model.name={folder / 'model'}",
        f"task.input_csv={folder / 'rows.csv'}", f"output={output}", f"engine.chunk_rows={chunk_rows}",
        "question.examples=[]",
    ]  # fmt: skip


def watch(name: str, command: list[str], output: Path, *, kill_at: int | None = None) -> Run:
    """Run the command to its end, or until kill_at parts are there."""
    run, started, cpu_before = Run(name), time.monotonic(), children_cpu_s()
    parts = output.with_name(output.name + ".parts")
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"} | os.environ
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(SAMPLE_S)
        there = len(list(parts.glob("part-*")))
        run.samples.append((time.monotonic() - started, there, resident_bytes(process.pid)))
        if kill_at is not None and there >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            break
    run.seconds, run.cpu_s = time.monotonic() - started, children_cpu_s() - cpu_before
    expected = -signal.SIGKILL if kill_at is not None else 0
    if process.returncode != expected:
        raise SystemExit(f"The {name} run ended with {process.returncode}, expected {expected}.")
    return run


def children_cpu_s() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident_bytes(pid: int) -> int:
    """The resident set of a process, 0 where it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def table(runs: list[Run], rows: int, chunk_rows: int) -> str:
    """The lines that are printed: one run each, with the resident set at 10 % of the rows and at the end of reading."""
    chunks = -(-rows // chunk_rows)
    lines = [
        f"{rows} rows",
        "| run | s | CPU s | rows/s | RSS at 10 %, MiB | after the last row | highest |",
        "|---" * 7 + "|",
    ]
    for run in runs:
        tenth = run.resident_at(max(1, chunks // 10)) if run.name != "resumed" else 0
        figures = [tenth, run.reading[-1][2] if run.reading else 0, max(resident for _, _, resident in run.samples)]
        shown = " | ".join(f"{figure / MIB:.0f}" if figure else "" for figure in figures)
        lines.append(
            f"| {run.name} | {run.seconds:.0f} | {run.cpu_s:.0f} | {run.rows_per_second(chunk_rows):.0f} | {shown} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--form", choices=("parquet", "csv", "csv.gz"), default="parquet")
    parser.add_argument("--chunk-rows", type=int, default=512)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="million-rows-") as name:
        folder = Path(name)
        write_rows(folder / "rows.csv", chosen.rows)
        write_model(folder / "model")
        killed, whole = (folder / f"{kind}.{chosen.form}" for kind in ("killed", "whole"))
        third = max(1, chosen.rows // chosen.chunk_rows // 3)
        runs = [
            watch("killed at a third", command_of(folder, killed, chosen.chunk_rows), killed, kill_at=third),
            watch("resumed", command_of(folder, killed, chosen.chunk_rows), killed),
            watch("unbroken", command_of(folder, whole, chosen.chunk_rows), whole),
        ]
        print(table(runs, chosen.rows, chosen.chunk_rows))
        same = all(
            Path(f"{killed}{ending}").read_bytes() == Path(f"{whole}{ending}").read_bytes() for ending in ("", ".json")
        )
        print("resumed and unbroken: " + ("the same bytes" if same else "THEY DIFFER"))
        whole_rows = delivered(whole, chosen.rows)
    sys.exit(0 if same and whole_rows else 1)


if __name__ == "__main__":
    main()
