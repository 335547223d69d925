"""Reading a label at once beside writing a chain of thought first: rows/s, and what it is worth, in one run.

    python scripts/bench/cot_against_soft.py                                             # SmolLM2, data/sample/skills
    python scripts/bench/cot_against_soft.py --rows 500 --input skills.csv --soft skills_chat --chain skills_cot_chat \\
        --new-tokens 150 --batch-rows 64 --model meta-llama/Llama-3.1-8B-Instruct --quantization nf4

The same model, loaded once, reads the same rows twice; each way is warmed up first. Last-word parsing costs what the
chain of thought costs. Of labelled rows it also says how good each way is. Random weights of the full 8B shape:
scripts/bench/qlora.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP_ROWS = 2
SOFT, CHAIN, LAST_WORD = "soft: the label read at once", "chain of thought, the label read", "its last word"


@dataclass
class Line:
    """A way's figures. The scores are None where rows have no label, log loss and AUC where there is no probability."""

    way: str
    seconds: float
    rows_per_s: float
    accuracy: float | None = None
    macro_f1: float | None = None
    log_loss: float | None = None
    auc: float | None = None


def settings_of(options: argparse.Namespace, question: str) -> Any:
    """The settings of skills_cot with the benchmark's model, rows and one of its two questions."""
    from hydra import compose, initialize_config_module

    from infer.door import to_settings

    given = {
        "question": question, "model.name": options.model, "model.quantization": options.quantization,
        "task.input_csv": options.input, "task.text_column": options.text_column, "engine.precision": options.precision,
        "generation.max_new_tokens": options.new_tokens, "generation.batch_rows": options.batch_rows,
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    with initialize_config_module("conf", version_base="1.3"):
        return to_settings(compose("config", overrides=["+experiment=skills_cot", *overrides]))


def sample(settings: Any, rows: int, seed: int) -> list[Any]:
    """`rows` rows of the table, or all where it has fewer, in a seeded order."""
    from infer.text_run import open_source

    every = [row for _, chunk in open_source(settings).chunks() for row in chunk]
    return [every[at] for at in np.random.default_rng(seed).permutation(len(every))[:rows]]


def timed(reader: Any, rows: Sequence[Any]) -> tuple[Any, float]:
    """(the reading of the rows, its seconds), after a few rows that settle how the model is computed."""
    fields = [row.fields for row in rows]
    reader.read(fields[:WARM_UP_ROWS])
    started = time.perf_counter()
    reading = reader.read(fields, names=[row.place for row in rows], progress=True)
    return reading, time.perf_counter() - started


def line(way: str, rows: Sequence[Any], labels: Sequence[str], probs: np.ndarray, seconds: float, soft: bool) -> Line:
    """probs: (N, L); without soft all of a row's is on one label. AUC: of the first two labels, on rows of the two."""
    from infer.metrics import score
    from infer.predictions import Predictions

    found = Line(way, seconds, len(rows) / seconds)
    known = [at for at, row in enumerate(rows) if row.label is not None]
    if not known:
        return found
    truth = np.array([rows[at].label for at in known], dtype=object)
    ids = np.array([str(at) for at in known], dtype=object)
    table = Predictions(ids, tuple(labels), probs[known], np.zeros(len(known), dtype=np.float32), truth)
    figures: dict[str, Any] = score(table, bootstrap=0)
    found.accuracy, found.macro_f1 = figures["accuracy"], figures["macro_f1"]
    if soft:
        found.log_loss = figures["log_loss"]
        found.auc = figures["auc_pairs"].get("/".join(labels[:2]))
    return found


def table(lines: Sequence[Line]) -> list[str]:
    """GitHub Markdown; x: how many times as fast as the chain of thought."""
    slow = next(one for one in lines if one.way == CHAIN).rows_per_s
    rows = [
        "| way | rows/s | x | log loss | AUC | macro-F1 | accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in lines:
        scores = [one.log_loss, one.auc, one.macro_f1, one.accuracy]
        said = " | ".join("-" if value is None else f"{value:.3f}" for value in scores)
        rows.append(f"| {one.way} | {one.rows_per_s:.2f} | {one.rows_per_s / slow:.1f} | {said} |")
    return rows


def compare(options: argparse.Namespace) -> tuple[list[Line], dict[str, Any]]:
    """(a line per way, the reasoning's figures and how often both ways agree)."""
    from infer.readers.chain_of_thought import ChainReader
    from infer.readers.label import LabelReader
    from infer.readers.reasoning_notes import reasoning_figures
    from models.causal import load_language_model

    soft, chained = settings_of(options, options.soft), settings_of(options, options.chain)
    rows = sample(soft, options.rows, options.seed)
    model = soft.language_model
    loaded = load_language_model(model.name, precision=soft.engine.precision, quantization=model.quantization)
    print(loaded.line, flush=True)
    label_reader, chain_reader = (
        LabelReader(loaded, soft.question),
        ChainReader(loaded, chained.question, chained.generation),
    )
    for reader in (label_reader, chain_reader):
        reader.check()
    assert label_reader.labels == chain_reader.labels, (label_reader.labels, chain_reader.labels)
    labels = label_reader.labels
    at_once, at_once_s = timed(label_reader, rows)
    behind, behind_s = timed(chain_reader, rows)
    notes = behind.notes or []
    # What names no label became Unknown, the last one, where this was done first.
    parsed = [labels.index(note["last_word"] or labels[-1]) for note in notes]
    lines = [
        line(SOFT, rows, labels, at_once.probs(), at_once_s, True),
        line(CHAIN, rows, labels, behind.probs(), behind_s, True),
        line(LAST_WORD, rows, labels, np.eye(len(labels))[parsed], behind_s, False),
    ]
    agree = float((at_once.probs().argmax(axis=1) == behind.probs().argmax(axis=1)).mean())
    return lines, {**reasoning_figures(notes), "agree": agree, "model": loaded.line}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, a hub name, package:...; default: SmolLM2 from its package")
    parser.add_argument("--quantization", choices=["none", "nf4"])
    parser.add_argument("--precision", choices=["auto", "fp32", "fp16", "bf16"])
    parser.add_argument("--input", help="a table of skills; default: data/sample/skills/skills.csv")
    parser.add_argument("--text-column", help="default: Skill")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--soft", default="skills", help="conf/question/NAME.yaml, read at once")
    parser.add_argument("--chain", default="skills_cot", help="conf/question/NAME.yaml, reasoned about")
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--batch-rows", type=int, help="of the chain of thought")
    parser.add_argument("--json", type=Path, help="write the figures")
    return parser.parse_args(arguments)


def main() -> None:
    from infer.readers.reasoning_notes import reasoning_line
    from models.tasks.files import write_atomically

    options = parse()
    lines, figures = compare(options)
    print(*table(lines), sep="\n")
    print(f"{reasoning_line(figures)}. Both ways name the same label in {figures['agree']:.1%}.")
    if options.json:
        text = json.dumps({"lines": [asdict(one) for one in lines], "reasoning": figures}, indent=1)
        with write_atomically(options.json) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
