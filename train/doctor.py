"""`python -m train +experiment=... doctor=true`: what a run would read, cut and cost, and what looks wrong.

Answers "why does my model not learn?" before the hours are spent. Knows rows, tokens and one timed step.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from infer.logs import open_log
from infer.ranks import is_main
from models.precision import device_and_precision
from models.settings import Settings
from models.tasks.arena import LABELS, ArenaRow, read_rows
from models.tasks.groups import prompt_groups
from train.encoder_learner import build_network

PERCENTILES = (50, 90, 95, 99, 100)
SAMPLE_ROWS = 2000  # for what costs an encoding per row
UNKNOWN_LIMIT = 0.01
TIMED_STEPS = 2


def examine(settings: Settings) -> list[str]:
    """Print the report and return its lines. Raises ValueError for what would ruin a run, such as a tokenizer stub."""
    log = open_log(None, main=is_main())
    lines: list[str] = []
    for line in _report(settings):
        lines.append(line)
        log.info(line)
    return lines


def _report(settings: Settings) -> Iterator[str]:
    task = settings.arena
    table = read_rows(task.train_csv, labelled=True, on_bad_row=task.on_bad_row, votes_path=task.votes_csv)
    yield f"{settings.name}: {len(table.rows)} rows from {task.train_csv}"
    yield f"  repaired       {table.repairs.report()}"
    if table.bad_rows:
        yield f"  dropped        {len(table.bad_rows)} bad rows"
    yield from describe_rows(table.rows)
    if settings.method.name == "encoder":
        yield from _encoder_lines(settings, table.rows)


def describe_rows(rows: Sequence[ArenaRow]) -> Iterator[str]:
    """Labels, turns, repeats and prompt groups."""
    counts = Counter(row.label for row in rows)
    yield "  labels         " + ", ".join(f"{label} {counts[label] / len(rows):.1%}" for label in LABELS)
    absent = [label for label in LABELS if not counts[label]]
    if absent:
        yield f"  WARNING        no row has the label {', '.join(absent)}: it can never be learnt"
    turns = np.array([len(row.prompt) for row in rows])
    yield f"  turns          {np.mean(turns > 1):.1%} of rows have several; most {turns.max()}"
    empty = sum(not "".join(row.response_a).strip() or not "".join(row.response_b).strip() for row in rows)
    same = sum(row.response_a == row.response_b for row in rows)
    yield f"  odd answers    {empty} rows with an empty answer, {same} with two identical ones"
    repeated, conflicting = repeats(rows)
    yield f"  repeats        {repeated} rows repeat another's texts (either order), {conflicting} with another label"
    groups = Counter(prompt_groups(rows).tolist())
    shared = sum(count for count in groups.values() if count > 1)
    yield (
        f"  prompt groups  {len(groups)}; {shared / len(rows):.1%} of rows share a prompt, largest group "
        f"{max(groups.values())}: folds keep each group whole"
    )


def repeats(rows: Sequence[ArenaRow]) -> tuple[int, int]:
    """(rows whose prompt and answers occurred before in either order, those of them with another winner)."""
    first: dict[tuple, int | None] = {}
    repeated = conflicting = 0
    for row in rows:
        # The smaller of the two orders stands for both, its winner with it.
        upright = row if row.response_a <= row.response_b else row.swapped()
        key = (upright.prompt, upright.response_a, upright.response_b)
        if key in first:
            repeated += 1
            conflicting += first[key] != upright.label_index
        else:
            first[key] = upright.label_index
    return repeated, conflicting


def _encoder_lines(settings: Settings, rows: list[ArenaRow]) -> Iterator[str]:
    from models.names import resolve_model
    from models.reader import load_tokenizer, make_reader, row_tokens
    from models.tasks.tokens import tokenise_fields, unknown_share

    source = resolve_model(settings.model.name)
    tokenizer = load_tokenizer(source)
    fields = tokenise_fields(rows, tokenizer)
    yield f"  model          {settings.model.name}, {settings.encoder.head} head, {len(tokenizer)} tokens known"
    tokens = fields.row_tokens()
    spread = ", ".join(f"p{p} {np.percentile(tokens, p):.0f}" for p in PERCENTILES)
    yield f"  tokens a row   {spread}"
    unknown = unknown_share(fields, tokenizer)
    yield f"  unknown        {unknown:.2%} of tokens are {tokenizer.unk_token}" + (
        "  WARNING: this tokenizer does not fit these texts" if unknown > UNKNOWN_LIMIT else ""
    )
    reader = make_reader(
        tokenizer,
        head=settings.encoder.head,
        budget_tokens=settings.arena.budget_tokens,
        prompt_share=settings.arena.prompt_share,
    )
    sample = np.random.default_rng(0).permutation(len(rows))[:SAMPLE_ROWS]
    cut = [tokens_cut(reader.sequences(fields[int(row)], False)) for row in sample]
    shown = [row_tokens(fields[int(row)]) for row in sample]
    yield (
        f"  budget         {settings.arena.budget_tokens} tokens: {np.mean(np.array(cut) > 0):.1%} of rows are cut, "
        f"{sum(cut) / max(1, sum(shown)):.1%} of tokens left out"
    )
    yield from _cost_lines(settings, rows, fields, reader, tokenizer)


def tokens_cut(sequences: Sequence[Any]) -> int:
    """Tokens of a row that no reading shows: of the prompt where it is cut most, and of each answer."""
    return max(one.cut[0] for one in sequences) + sum(sum(one.cut[1:]) for one in sequences)


def _cost_lines(settings: Settings, rows: list[ArenaRow], fields: Any, reader: Any, tokenizer: Any) -> Iterator[str]:
    """Device, precision, steps, and the time they would take by a few timed ones."""
    from infer.ranks import world_size
    from models.reader import FeatureScale
    from models.tasks.arena_features import features

    trainer = settings.trainer
    device, precision, line = device_and_precision(trainer.precision)
    yield f"  {line.replace('device ', 'device         ', 1)}"
    count = 1 if settings.folds.holdout is not None else settings.folds.count
    share = 1 - (settings.folds.holdout or 1 / count)
    items = len(rows) * share * (2 if trainer.swap == "both" else 1)
    steps = math.ceil(items / (trainer.batch_rows * trainer.accumulation * world_size())) * trainer.epochs
    sample = np.random.default_rng(0).permutation(len(rows))[: trainer.batch_rows]
    matrix = features([rows[int(row)] for row in sample]) if settings.encoder.pair_features else None
    scale = None if matrix is None else FeatureScale.fit(matrix)
    model = build_network(settings, tokenizer, scale).to(device)
    inputs = reader.batch([fields[int(row)] for row in sample], [2 * at for at in range(len(sample))],
                          None if scale is None or matrix is None else scale.apply(matrix))  # fmt: skip
    seconds = _timed_step(model, {k: v.to(device) for k, v in inputs.items()}, device, precision) * trainer.accumulation
    yield (
        f"  steps          {steps:.0f} a fold, {count} fold(s), {trainer.batch_rows * trainer.accumulation} pairs a "
        f"step; about {seconds:.2f} s a step here, {steps * count * seconds / 60:.0f} min in all"
    )


def _timed_step(model: Any, inputs: dict[str, Any], device: str, precision: str) -> float:
    """Seconds of one forward and backward pass, after a warm-up."""
    import torch

    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    model.train()
    spent = math.inf
    for _ in range(1 + TIMED_STEPS):
        started = time.perf_counter()
        with torch.autocast(device, dtype=half, enabled=half is not None):
            loss = model(**inputs).square().mean()
        loss.backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        spent = min(spent, time.perf_counter() - started)
    return spent
