"""Texts that a causal language model writes behind prompts, greedily, many rows at once: the same text as alone.

    prefix that all share | padding | a row's own tokens | what it writes
    computed once           unseen    longest rows first   until an end token, a stop text, or max_new_tokens

A row that has ended leaves its batch. Whether a model takes padding, a shared prefix and kept keys and values is
checked against plain unpadded passes first; one that does not is read one row at a time, from its beginning at every
token: slow, and right. The model's own sampling settings (temperature, penalties) are not used.

Knows token ids and texts, no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infer.batching import common_prefix, distinct, in_batches
from infer.engine import LEAST_PREFIX, bare_network, in_eval_mode
from infer.growing_rows import GrowingRows, RowsAnew, best_start
from infer.next_token import model_end_tokens, token_count
from infer.plans import positions, steady_reach
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


class Generator:
    """Writes with one model (`models.causal.LoadedModel`, or anything with its fields), which is left as it was found.

    batch_rows: written at once; halved for good when memory runs out. stops: texts that end a row's text and are no
    part of it. Raises ValueError for an encoder-decoder.
    """

    def __init__(self, loaded: Any, *, max_new_tokens: int, batch_rows: int, stops: Sequence[str] = ()) -> None:
        self.model, self.tokenizer = bare_network(loaded.model), loaded.tokenizer
        if self.model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(self.model).__name__} is an encoder-decoder, expected a causal language model: it does not go "
                "on from its prompt. Use another model, or method=next_token, which reads both."
            )
        self.max_new_tokens, self.batch_rows, self.stops = max_new_tokens, batch_rows, tuple(stops)
        self.ends = {*end_tokens(self.tokenizer), *model_end_tokens(self.model)}
        self.vocab_size = token_count(self.tokenizer)

    def write(
        self, prompts: Sequence[np.ndarray], *, names: Sequence[str] = (), progress: bool = False
    ) -> list[Written]:
        """What the model writes behind each of N prompts (arrays of token ids). names: of the prompts, for errors.

        A row whose logits are not finite ends there, as cut. Raises ValueError for a prompt without tokens or room,
        MemoryError naming a prompt that does not fit alone.
        """
        self._refuse(prompts, names)
        firsts, same_as = distinct(prompts)
        unique = [np.asarray(prompts[at], dtype=np.int64) for at in firsts]
        found: dict[int, Written] = {}

        def name(row: int) -> str:
            return names[firsts[row]] if names else f"row {firsts[row]}"

        with in_eval_mode(self.model), torch.inference_mode():
            lengths = np.array([len(prompt) for prompt in unique], dtype=np.int64)
            far = lengths + self.max_new_tokens >= steady_reach(self.model.config)
            for row in np.flatnonzero(far):  # angles that depend on the longest row: each row alone, anew
                found[int(row)] = self._written(unique[row], *self._finish(RowsAnew(self.model, [unique[row]]))[0])
            near = np.flatnonzero(~far)
            if len(near):
                self._write_batches(unique, near[np.argsort(-lengths[near], kind="stable")], found, progress, name)
        return [found[int(row)] for row in same_as]

    def _refuse(self, prompts: Sequence[np.ndarray], names: Sequence[str]) -> None:
        reach = positions(self.model.config)
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= reach - self.max_new_tokens:
                raise ValueError(
                    f"{names[row] if names else f'row {row}'} has {len(prompt)} tokens, expected 1 to "
                    f"{reach - self.max_new_tokens}: the model's positions reach {reach}, and generation.max_new_tokens"
                    f"={self.max_new_tokens} come behind. Shorten the prompt, or write fewer tokens."
                )

    def _write_batches(
        self, prompts: list[np.ndarray], order: np.ndarray, found: dict[int, Written], progress: bool, name: Any
    ) -> None:
        longest = prompts[order[0]]
        shared = common_prefix([prompts[row] for row in order]) if len(order) > 1 else 0
        start = best_start(self.model, longest, shared if shared >= LEAST_PREFIX else 0, self.max_new_tokens)

        def work(batch: np.ndarray) -> None:
            for row, (ids, ended) in zip(batch, self._finish(start([prompts[row] for row in batch])), strict=True):
                found[int(row)] = self._written(prompts[row], ids, ended)

        # Every row is counted as the longest, so that a batch has batch_rows rows, and half of them after a failure.
        cost = len(longest) + self.max_new_tokens
        budget = in_batches(
            work, order, np.full(len(prompts), cost), self.batch_rows * cost, progress=progress, name=name,
            doing="writing",
        )  # fmt: skip
        self.batch_rows = max(1, budget // cost)

    def _finish(self, way: GrowingRows) -> list[tuple[list[int], bool]]:
        """(ids, whether the text ended by itself) of each row of a batch."""
        logits = way.logits()
        written: list[list[int]] = [[] for _ in range(len(logits))]
        ended = [False] * len(written)
        alive = list(range(len(written)))
        for step in range(1, self.max_new_tokens + 1):
            logits = logits[:, : self.vocab_size].float()
            chosen, finite = logits.argmax(-1).tolist(), torch.isfinite(logits.amax(-1)).tolist()
            keep = []
            for place, row in enumerate(alive):
                if not finite[place]:
                    continue
                written[row].append(chosen[place])
                ended[row] = chosen[place] in self.ends or self._stopped(written[row])
                if not ended[row]:
                    keep.append(place)
            if not keep or step == self.max_new_tokens:
                break
            way.go_on(keep, [chosen[place] for place in keep])
            alive = [alive[place] for place in keep]
            logits = way.logits()
        return list(zip(written, ended, strict=True))

    def _stopped(self, ids: list[int]) -> bool:
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
