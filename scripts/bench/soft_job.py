"""The jobs of the soft-classification benchmark: prompts behind one instruction, answers, and their least work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from soft_model import WORDS

KEYS_VALUES = ("k_proj", "v_proj")
INSTRUCTION_WORDS = 200
TEXT_WORDS = (20, 120)
ANSWERS = {
    "two": [" positive", " negative"],
    # 26 tokens, but only 12 places inside the tree: the beginnings are shared.
    "many": [
        " account login password reset",
        " account login password expired",
        " billing card payment failed",
        " billing card refund late",
        " delivery parcel lost",
        " delivery late",
        " product damaged box",
        " question other",
    ],
}


@dataclass(frozen=True)
class Job:
    """N prompts, all beginning with the instruction and a space, and L answers, each beginning with a space."""

    instruction: str
    prompts: list[str]
    answers: list[str]

    def first(self, count: int) -> Job:
        return Job(self.instruction, self.prompts[:count], self.answers)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def make_job(name: str, count: int, seed: int = 0) -> Job:
    """`count` prompts of random common words, of 20 to 120 words each, behind an instruction of 200 words."""
    random = np.random.default_rng(seed)
    instruction = " ".join(random.choice(WORDS, INSTRUCTION_WORDS))
    texts = [" ".join(random.choice(WORDS, length)) for length in random.integers(*TEXT_WORDS, count, endpoint=True)]
    return Job(instruction, [f"{instruction} {text}\nLabel:" for text in texts], ANSWERS[name])


@dataclass(frozen=True)
class Size:
    """What a job asks of a model, in tokens: N texts, P shared, S_total of all texts, n inside the answers' tree."""

    texts: int
    shared: int
    own_total: int
    inside: int


def job_size(job: Job, tokenizer: Any) -> Size:
    prompts = [encode(tokenizer, prompt) for prompt in job.prompts]
    answers = [encode(tokenizer, job.prompts[0] + answer)[len(prompts[0]) :] for answer in job.answers]
    shared = 0
    while all(len(ids) > shared + 1 and ids[shared] == prompts[0][shared] for ids in prompts):
        shared += 1
    own_total = sum(len(ids) - shared for ids in prompts)
    inside = {tuple(ids[:depth]) for ids in answers for depth in range(1, len(ids))}
    return Size(len(prompts), shared, own_total, len(inside))


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def least_flops(size: Size, body: int, last: int, head: int) -> float:
    """The fewest matmul FLOPs that give exact probabilities and the mass outside them, attention not counted.

    Every distinct token passes the body once (`body` weights). What gives no keys or values in the last layer (`last`)
    and the head (`head` = V * H) are needed at each text's last token and at each of the n places inside the answers'
    tree only: 2W(S + n + P/N) + 2(W' + VH)(1 + n) per text.
    """
    tokens = size.own_total + size.texts * size.inside + size.shared
    return 2.0 * body * tokens + 2.0 * (last + head) * size.texts * (1 + size.inside)


def weights(model: Any) -> tuple[int, int, int]:
    """(body, last, head): weights that every token must be multiplied with, and those for the tokens that are read.

    last: the last layer's but for keys and values, as far as these go by the names of Llama; else the layer is body.
    """
    head = model.get_output_embeddings().weight
    embeddings = {id(head), id(model.get_input_embeddings().weight)}
    body = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2 and id(weight) not in embeddings)
    layers = next(module for module in model.modules() if type(module).__name__ == "ModuleList")
    final = {name: weight.numel() for name, weight in layers[-1].named_parameters() if weight.dim() == 2}
    kept = sum(count for name, count in final.items() if name.split(".")[-2] in KEYS_VALUES)
    last = sum(final.values()) - kept if kept else 0
    return body - last, last, head.numel()


def largest_difference(log_probs: np.ndarray, oracle: np.ndarray) -> float:
    """Over the oracle's rows, which are the first ones; natural-log units. Infinite where a value is not a number."""
    difference = np.abs(log_probs[: len(oracle)].astype(np.float64) - oracle).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds, each a pair of figures taken minutes apart on one machine, as the best ones are not."""
    return float(np.median([other / own for own, other in zip(ours, theirs, strict=True)]))
