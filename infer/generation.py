"""Texts that a causal language model writes behind prompts, many rows at once: the same text as alone.

    prefix that all share | padding | a row's own tokens | what it writes
    computed once           unseen    longest rows first   until an end token, a stop text, or max_new_tokens

A row that has ended leaves its batch. Whether a model takes padding, a shared prefix and kept keys and values is
checked against plain unpadded passes first; one that does not is read one row at a time, from its beginning at every
token: slow, and right. Greedy, or drawn at a temperature with a seed: a row's random numbers come from the seed and its
own prompt, so they do not depend on the batch it is in. The model's own sampling settings (temperature, penalties, the
likeliest p or k) are not used.

Knows token ids and texts, no labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infer.batching import common_prefix, distinct, in_batches
from infer.engine import LEAST_PREFIX, bare_network, in_eval_mode
from infer.forward.plans import positions, steady_reach
from infer.growing_rows import GrowingRows, RowsAnew, best_start
from infer.next_token import model_end_tokens, token_count
from models.answers import end_tokens

# Tokens decoded to look for a stop text, beside one for each of its bytes: a character may be spread over four.
TAIL_TOKENS = 4


@dataclass(frozen=True)
class Written:
    """What was written behind one prompt: its text up to the end token or stop text, and its tokens, those included.

    cut: max_new_tokens were used up before the text ended.
    """

    text: str
    tokens: int
    cut: bool


@dataclass(frozen=True)
class Drawn:
    """What several draws behind one prompt began with: its tokens, and in how many draws.

    ended: it went as far as was asked; False where the model's logits were not finite.
    """

    ids: tuple[int, ...]
    times: int
    ended: bool


@dataclass(frozen=True)
class _Beginning:
    """What some draws of a row (draws: their numbers) have written so far."""

    row: int
    ids: list[int]
    draws: np.ndarray


class Generator:
    """Writes with one model (`models.causal.LoadedModel`, or anything with its fields), which is left as it was found.

    batch_rows: written at once; halved for good when memory runs out. stops: texts that end a row's text and are no
    part of it. temperature: 0 writes the likeliest token, above it tokens are drawn, with their log-probabilities
    divided by it. Raises ValueError for an encoder-decoder.
    """

    def __init__(
        self, loaded: Any, *, max_new_tokens: int, batch_rows: int, stops: Sequence[str] = (), temperature: float = 0.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer = bare_network(loaded.model), loaded.tokenizer
        if self.model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(self.model).__name__} is an encoder-decoder, expected a causal language model: it does not go "
                "on from its prompt. Use another model, or method=next_token, which reads both."
            )
        self.max_new_tokens, self.batch_rows, self.stops = max_new_tokens, batch_rows, tuple(stops)
        self.temperature, self.seed = temperature, seed
        self.ends = {*end_tokens(self.tokenizer), *model_end_tokens(self.model)}
        self.vocab_size = token_count(self.tokenizer)

    def write(
        self, prompts: Sequence[np.ndarray], *, names: Sequence[str] = (), progress: bool = False
    ) -> list[Written]:
        """What the model writes behind each of N prompts (arrays of token ids). names: of the prompts, for errors.

        A row whose logits are not finite ends there, as cut. Raises ValueError for a prompt without tokens or room,
        MemoryError naming a prompt that does not fit alone.
        """
        found = self._all(prompts, 1, lambda ids: not self._stopped(ids), names=names, progress=progress)
        return [
            self._written(np.asarray(prompt), list(one.ids), one.ended)
            for prompt, (one,) in zip(prompts, found, strict=True)
        ]

    def draw(
        self, prompts: Sequence[np.ndarray], times: int, goes_on: Callable[[Sequence[int]], bool], *,
        names: Sequence[str] = (), progress: bool = False,
    ) -> list[list[Drawn]]:  # fmt: skip
        """What `times` draws behind each of N prompts wrote, each while goes_on(its tokens), those alike counted once.

        Draws that have begun alike are computed once, so few answers cost little more than one. Refuses temperature 0.
        """
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} draws the same tokens every time, expected more than 0.")
        return self._all(prompts, times, goes_on, names=names, progress=progress)

    def _all(
        self, prompts: Sequence[np.ndarray], times: int, goes_on: Callable[[Sequence[int]], bool], *,
        names: Sequence[str], progress: bool,
    ) -> list[list[Drawn]]:  # fmt: skip
        self._refuse(prompts, names)
        firsts, same_as = distinct(prompts)
        unique = [np.asarray(prompts[at], dtype=np.int64) for at in firsts]
        found: dict[int, list[Drawn]] = {}

        def name(row: int) -> str:
            return names[firsts[row]] if names else f"row {firsts[row]}"

        def finish(way: GrowingRows, rows: Sequence[int]) -> None:
            found.update(zip(rows, self._finish(way, [unique[row] for row in rows], times, goes_on), strict=True))

        with in_eval_mode(self.model), torch.inference_mode():
            lengths = np.array([len(prompt) for prompt in unique], dtype=np.int64)
            far = lengths + self.max_new_tokens >= steady_reach(self.model.config)
            for row in np.flatnonzero(far).tolist():  # angles that depend on the longest row: each row alone, anew
                finish(RowsAnew(self.model, [unique[row]]), [row])
            near = np.flatnonzero(~far)
            if len(near):
                order = near[np.argsort(-lengths[near], kind="stable")]
                self._in_batches(unique, order, finish, progress, name)
        return [found[int(row)] for row in same_as]

    def _refuse(self, prompts: Sequence[np.ndarray], names: Sequence[str]) -> None:
        reach = positions(self.model.config)
        for row, prompt in enumerate(prompts):
            most = reach - self.max_new_tokens + 1  # the last token is written and never read
            if not 0 < len(prompt) <= most:
                raise ValueError(
                    f"{names[row] if names else f'row {row}'} has {len(prompt)} tokens, expected 1 to "
                    f"{most}: the model's positions reach {reach}, and generation.max_new_tokens"
                    f"={self.max_new_tokens} come behind. Shorten the prompt, or write fewer tokens."
                )

    def _in_batches(
        self, prompts: list[np.ndarray], order: np.ndarray, finish: Callable[[GrowingRows, Sequence[int]], None],
        progress: bool, name: Callable[[int], str],
    ) -> None:  # fmt: skip
        longest = prompts[order[0]]
        shared = common_prefix([prompts[row] for row in order]) if len(order) > 1 else 0
        start = best_start(self.model, longest, shared if shared >= LEAST_PREFIX else 0, self.max_new_tokens)

        def work(batch: np.ndarray) -> None:
            finish(start([prompts[row] for row in batch]), batch.tolist())

        # Every row is counted as the longest, so that a batch has batch_rows rows, and half of them after a failure.
        cost = len(longest) + self.max_new_tokens
        budget = in_batches(
            work, order, np.full(len(prompts), cost), self.batch_rows * cost, progress=progress, name=name,
            doing="writing",
        )  # fmt: skip
        self.batch_rows = max(1, budget // cost)

    def _finish(
        self, way: GrowingRows, prompts: Sequence[np.ndarray], times: int, goes_on: Callable[[Sequence[int]], bool]
    ) -> list[list[Drawn]]:
        """What each row of a batch wrote in `times` draws, in the order in which they ended."""
        found: list[list[Drawn]] = [[] for _ in prompts]
        alive = [_Beginning(row, [], np.arange(times)) for row in range(len(prompts))]
        chances = [self._chances(prompt) for prompt in prompts] if self.temperature else []
        for step in range(1, self.max_new_tokens + 1):
            logits = way.logits()[:, : self.vocab_size].float()
            finite = torch.isfinite(logits.amax(-1)).tolist()
            points = [one.random(times) for one in chances]  # also for draws that have ended: each keeps its place
            keep, grown = [], []
            for place, (begun, chosen) in enumerate(zip(alive, self._chosen(logits, alive, points), strict=True)):
                if not finite[place]:
                    found[begun.row].append(Drawn(tuple(begun.ids), len(begun.draws), ended=False))
                    continue
                for token, draws in chosen:
                    one = _Beginning(begun.row, [*begun.ids, token], draws)
                    ended = token in self.ends or not goes_on(one.ids)
                    if ended or step == self.max_new_tokens:
                        found[one.row].append(Drawn(tuple(one.ids), len(draws), ended))
                    else:
                        keep.append(place)
                        grown.append(one)
            if not grown:
                break
            way.go_on(keep, [one.ids[-1] for one in grown])
            alive = grown
        return found

    def _chosen(
        self, logits: torch.Tensor, alive: Sequence[_Beginning], points: Sequence[np.ndarray]
    ) -> list[list[tuple[int, np.ndarray]]]:
        """For each beginning, the next tokens with the draws that chose them. points: (times,) of each row, 0 to 1."""
        if not self.temperature:
            return [[(token, one.draws)] for token, one in zip(logits.argmax(-1).tolist(), alive, strict=True)]
        chosen = []
        for row, one in zip(logits.cpu(), alive, strict=True):
            reached = torch.softmax(row.double() / self.temperature, -1).cumsum(-1).numpy()
            # The first token whose cumulative probability is above the point: never one of probability 0.
            tokens = np.searchsorted(reached, points[one.row][one.draws] * reached[-1], side="right")
            tokens = tokens.clip(max=len(reached) - 1)
            chosen.append([(int(token), one.draws[tokens == token]) for token in dict.fromkeys(tokens.tolist())])
        return chosen

    def _chances(self, prompt: np.ndarray) -> np.random.Generator:
        """The random numbers of one prompt."""
        digest = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest()
        return np.random.default_rng([self.seed, *np.frombuffer(digest, dtype="<u4").tolist()])

    def _stopped(self, ids: Sequence[int]) -> bool:
        if not self.stops:
            return False
        tail = max(len(stop.encode()) for stop in self.stops) + TAIL_TOKENS
        text = self.tokenizer.decode(ids[-tail:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self.stops)

    def _written(self, prompt: np.ndarray, ids: list[int], ended: bool) -> Written:
        """The text of the ids, as they read behind the prompt: some tokenizers drop a first token's space."""
        settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        own = [token for token in ids if token not in self.ends]
        before = prompt[-1:].tolist()
        text = self.tokenizer.decode(before + own, **settings)[len(self.tokenizer.decode(before, **settings)) :]
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character at the cut
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        return Written(text[: min(ends)] if ends else text, len(ids), cut=not ended)
