"""Labelling with the benchmark's model: one reading of each row by the engine, beside writing a chain of thought first.

Both get the same prompts, an instruction that all share and a few words of each row's own, and both read the answer
with the engine; the chain of thought writes its tokens before (infer.generation, in batches of 64). The weights are
random, so what is written means nothing; how long it takes does not depend on that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from qlora_model import build
from qlora_worker import Setup, peak_gib, start
from soft_job import INSTRUCTION_WORDS
from soft_model import WORDS, load_tokenizer, write_tokenizer
from soft_worker import Peak, synchronise

SKILL_WORDS = (1, 5)
ANSWERS = [" good", " little", " other"]
BATCH_ROWS = 64  # of the chain of thought
WARM_UP_ROWS = 2
ENGINE, ALONE, CHAIN = "engine", "engine without the shared prefix", "chain of thought"


@dataclass
class Labelled:
    """How fast one way labels. written: tokens of a row's reasoning, on average. write_s: of the seconds, writing."""

    way: str
    rows: int
    prompt_tokens: float
    shared_tokens: int
    seconds: float | None = None
    rows_per_s: float | None = None
    write_s: float = 0.0
    written: float = 0.0
    peak_gib: float | None = None
    cannot: str | None = None


def make_prompts(tokenizer: Any, rows: int, seed: int = 0) -> list[np.ndarray]:
    """`rows` prompts as ids: an instruction of 200 random words, 1 to 5 words of their own, and a question."""
    random = np.random.default_rng(seed)
    instruction = " ".join(random.choice(WORDS, INSTRUCTION_WORDS))
    texts = [" ".join(random.choice(WORDS, count)) for count in random.integers(*SKILL_WORDS, rows, endpoint=True)]
    # A number of its own: the engine would read equal rows once.
    prompts = [f"{instruction} {text} {number}\nLabel:" for number, text in enumerate(texts)]
    return [np.asarray(tokenizer(prompt)["input_ids"], dtype=np.int64) for prompt in prompts]


def measure_label(setup: Setup) -> Iterator[Labelled]:
    """A line for the engine, the engine with every prompt read whole, and the chain of thought."""
    from tried import why

    import infer.generation  # noqa: F401  imports are no part of the model's memory
    from infer.batching import common_prefix
    from infer.engine import Engine
    from models.answer_tree import build_tree

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), setup.shape.vocab)
        tokenizer = load_tokenizer(folder)
    before = start(setup)
    model = build(setup.shape, device=setup.device, precision=setup.precision, quantization=setup.quantization)
    prompts = make_prompts(tokenizer, setup.label_rows)
    tree = build_tree([tuple(tokenizer(answer)["input_ids"]) for answer in ANSWERS])

    def reader(prefix: bool) -> Callable[[list[np.ndarray]], tuple[float, float]]:
        engine = Engine(model, prefix=prefix)

        def read(some: list[np.ndarray]) -> tuple[float, float]:
            engine.read(some, tree)
            return 0.0, 0.0

        return read

    ways = {ENGINE: reader(True), ALONE: reader(False), CHAIN: chain(setup, model, tokenizer, reader(False))}
    sizes = float(np.mean([len(prompt) for prompt in prompts])), common_prefix(prompts)
    for name, way in ways.items():
        line = Labelled(name, len(prompts), *sizes)
        since = Peak(setup.device)
        try:
            way(prompts[:WARM_UP_ROWS])
            synchronise(setup.device)
            started = time.perf_counter()
            line.write_s, line.written = way(prompts)
            synchronise(setup.device)
            line.seconds = time.perf_counter() - started
            line.rows_per_s = len(prompts) / line.seconds
            line.peak_gib = peak_gib(since, before)
        except Exception as error:
            line.cannot = why(error)
        yield line


def chain(
    setup: Setup, model: Any, tokenizer: Any, read: Callable
) -> Callable[[list[np.ndarray]], tuple[float, float]]:
    """prompts -> (seconds of writing, tokens written per row); what is written is read behind."""
    from infer.generation import Generator

    loaded = SimpleNamespace(model=model, tokenizer=tokenizer)
    generator = Generator(loaded, max_new_tokens=setup.new_tokens, batch_rows=BATCH_ROWS)

    def think(prompts: list[np.ndarray]) -> tuple[float, float]:
        started = time.perf_counter()
        found = generator.write(prompts)
        seconds = time.perf_counter() - started
        # Any ids of that number: a random model's text would not come back as the same tokens.
        random = np.random.default_rng(0)
        behind = [random.integers(setup.shape.vocab, size=one.tokens) for one in found]
        read([np.append(prompt, ids) for prompt, ids in zip(prompts, behind, strict=True)])
        return seconds, float(np.mean([one.tokens for one in found]))

    return think
