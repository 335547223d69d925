"""Prompts as token ids: the beginning-of-text token once, rows' texts as plain text, long texts cut in the middle.

Knows pieces of text and a tokenizer, no answers and no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from models.prompts import Prompt
from models.tasks.segments import CUT_MARK
from models.tasks.tokens import spelt_out_controls

LEAST_TEXT = 8  # tokens of a row's text below which a prompt says nothing


@dataclass(frozen=True)
class Encoded:
    """A prompt's token ids, (T,) int64, what was encoded, and the share (0 to 1) of the row's text left out."""

    ids: np.ndarray
    prompt: Prompt
    cut_share: float = 0.0


class PromptEncoder:
    """Encodes prompts with one tokenizer.

    chat: the template writes its own beginning, none is added. seq2seq: the encoder's text, which also gets the end
    token that its tokenizer puts there.
    """

    def __init__(self, tokenizer: Any, *, chat: bool = False, seq2seq: bool = False) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is a slow tokenizer, expected a fast one. Load it with AutoTokenizer."
            )
        self.tokenizer = tokenizer
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        self.before: list[int] = [] if chat else full[:at]
        self.after: list[int] = full[at + len(bare) :] if seq2seq else []

    def encode(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        """The ids of every prompt; one that would have none gets the beginning- or end-of-text token."""
        wholes = ["".join(piece.text for piece in prompt) for prompt in prompts]
        settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        plain = self.tokenizer(wholes, **settings)["input_ids"]
        parts = zip(prompts, wholes, plain, strict=True)
        return [Encoded(self._framed(self._guarded(*part)), part[0]) for part in parts]

    def bare_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a stretch of text alone, nothing added."""
        whole = "".join(piece.text for piece in prompt)
        return self._guarded(prompt, whole, self.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])

    def fit(self, encoded: Encoded, room: int) -> Encoded:
        """The prompt within `room` tokens: the row's texts lose their middles, what stands around them nothing.

        The longest text is cut first. Raises ValueError where the prompt leaves the texts less than a few tokens.
        """
        if len(encoded.ids) <= room:
            return encoded
        bare = tuple(replace(piece, text="") if piece.given else piece for piece in encoded.prompt)
        around = len(self.encode([bare])[0].ids)
        texts = [piece.text for piece in encoded.prompt if piece.given]
        offsets = [self._offsets(text) for text in texts]
        sizes = [len(marks) for marks in offsets]
        # Inside the prompt a text may take more tokens than alone: control tokens that it spells are written out.
        stretched = max(1.0, (len(encoded.ids) - around) / max(1, sum(sizes)))
        keep = int((room - around) / stretched)
        while keep >= LEAST_TEXT * len(texts) > 0:
            lengths = _level(sizes, keep)
            kept = iter(_middle_out(*one) for one in zip(texts, offsets, lengths, strict=True))
            shorter = tuple(replace(piece, text=next(kept)) if piece.given else piece for piece in encoded.prompt)
            tried = self.encode([shorter])[0]
            if len(tried.ids) <= room:
                return replace(tried, cut_share=1 - sum(lengths) / sum(sizes))
            keep -= len(tried.ids) - room
        raise ValueError(
            f"The prompt around the row's text takes {around} tokens and may take {room} with it. Shorten the "
            "instruction or the examples, or raise max_tokens."
        )

    def _framed(self, ids: list[int]) -> np.ndarray:
        before = [] if ids[: len(self.before)] == self.before else self.before
        framed = [*before, *ids, *self.after]
        if not framed:
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            framed = [] if start is None else [start]
        return np.array(framed, dtype=np.int64)

    @cached_property
    def _controls(self) -> re.Pattern[str] | None:
        """Every added token that is not mere space: control tokens, but also marks like <think>."""
        spelt = sorted((name for name in self._ids if name.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spelt))) if spelt else None

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of every added token, by its text."""
        ids = {str(token.content): number for number, token in self.tokenizer.added_tokens_decoder.items()}
        special = map(str, self.tokenizer.all_special_tokens)
        return {name: self.tokenizer.convert_tokens_to_ids(name) for name in special} | ids

    @cached_property
    def _spelt_out(self) -> dict[int, list[int]]:
        return spelt_out_controls(self.tokenizer)

    def _guarded(self, prompt: Prompt, whole: str, ids: Sequence[int]) -> list[int]:
        """The ids of the whole text, encoded anew where a row's text takes part in a control token."""
        if self._controls is None or not any(piece.given for piece in prompt):
            return list(ids)
        written, start = set(), 0
        for piece in prompt:
            for found in () if piece.given else self._controls.finditer(piece.text):
                written.add((start + found.start(), start + found.end()))
            start += len(piece.text)
        asked = sum(self._ids[whole[slice(*span)]] in self._spelt_out for span in written)
        spelt = any(found.span() not in written for found in self._controls.finditer(whole))
        # A normaliser may make a control token of a text that looks like none: full-width brackets, capitals.
        if spelt or sum(token in self._spelt_out for token in ids) != asked:
            return self._encode_guarded(prompt)
        return list(ids)

    def _encode_guarded(self, prompt: Prompt) -> list[int]:
        """The ids where control tokens are those of the asker's pieces only; others become their characters' tokens.

        Control tokens part a text anyway, so encoding the stretches between them one by one changes no other token.
        """
        assert self._controls is not None
        ids: list[int] = []
        stretch = ""
        for piece in prompt:
            start = 0
            for found in () if piece.given else self._controls.finditer(piece.text):
                ids += self._plain(stretch + piece.text[start : found.start()], first=not ids)
                ids.append(self._ids[found[0]])
                stretch, start = "", found.end()
            stretch += piece.text[start:]
        return ids + self._plain(stretch, first=not ids)

    def _plain(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        anchor = "" if first or self._same_inside else "\n"  # takes the space some put before every text
        settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        found = self.tokenizer([anchor + text, anchor], **settings)["input_ids"]
        ids = found[0][len(found[1]) :]
        return [one for token in ids for one in self._spelt_out.get(token, (token,))]

    @cached_property
    def _same_inside(self) -> bool:
        """Is text after a control token encoded as at the very beginning?"""
        control = next(iter(self.tokenizer.all_special_tokens), "")
        alone = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return bool(self.tokenizer(f"{control}a", add_special_tokens=False)["input_ids"][1:] == alone)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        found = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return list(found["offset_mapping"])


def _level(sizes: Sequence[int], keep: int) -> list[int]:
    """Tokens left of each text so that they sum to `keep` at most and the longest lose first."""
    low, high = 0, max(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= keep else (low, middle - 1)
    return [min(size, low) for size in sizes]


def _middle_out(text: str, marks: Sequence[tuple[int, int]], keep: int) -> str:
    """The first and last of `keep` tokens' text around a mark; the text itself where nothing is to be cut."""
    if keep >= len(marks):
        return text
    head, tail = keep - keep // 2, keep // 2
    end = text[marks[len(marks) - tail][0] :] if tail else ""
    return f"{text[: marks[head - 1][1] if head else 0]} {CUT_MARK} {end}"
