"""Answers as the token paths that follow a prompt, cut from the encoding of both together.

    prompt  "Review: fine\nSentiment:"     ids ... 27 9
    answer  " positive"                    encoded after it: ... 27 9 | 41        path (41,)

    prompt  "It is posi"                   ids ... 6 88
    answer  "tive"                         encoded after it: ... 6 | 41           the token 88 is taken back; path (41,)

A prompt whose last token merges with an answer is conditioned on the text of that token instead of on the token
(token healing): log P(answer) = log P(path) - log P(a text that goes on like the prompt). Spaces at the prompt's end
belong to the answers. Knows texts and token ids, never a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from models.answer_tree import AnswerTree, Ids, build_tree
from models.prompt_tokens import Encoded, PromptEncoder
from models.prompts import Piece, Prompt
from models.token_texts import TokenTexts

ENDS = ("none", "eos", "boundary")
TREES_KEPT = 64  # with end=boundary each holds the vocabulary's word starts once per answer
TAILS_KEPT = 10_000  # prompts' last words whose answers are remembered: a template that ends with the text has many


@dataclass(frozen=True)
class Cut:
    """How answers continue a prompt. taken_back: ids removed from the prompt's end; paths: one per answer."""

    taken_back: Ids
    paths: tuple[Ids, ...]


class Answers:
    """Texts that may follow a prompt, A of them, as paths of one tokenizer.

    end: none (an answer's mass includes every continuation), eos (it is followed by an end token) or boundary (by an
    end token, or by one that starts a new word and leads to no other answer). end_ids: further end tokens, such as
    those of the model's generation config.
    Only the canonical encoding of an answer counts, not every way to spell it in tokens.
    """

    def __init__(
        self, encoder: PromptEncoder, texts: Sequence[str], *, end: str = "none", end_ids: Sequence[int] = (),
        seq2seq: bool = False,
    ) -> None:  # fmt: skip
        if end not in ENDS:
            raise ValueError(f"end={end!r}: expected one of {', '.join(ENDS)}.")
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"The answers are {texts!r}, expected a list of texts, one at least.")
        self.encoder, self.texts, self.end, self.seq2seq = encoder, tuple(texts), end, seq2seq
        self.end_ids = sorted({*end_ids, *end_tokens(encoder.tokenizer)})
        self._cuts: dict[tuple[Prompt, str], tuple[Cut, list[int]]] = {}
        self._trees: dict[Cut, AnswerTree] = {}

    def follow(self, encoded: Encoded) -> tuple[np.ndarray, Cut]:
        """(the prompt's ids as the model gets them, how the answers continue them).

        Raises ValueError naming an answer that encodes to nothing.
        """
        if self.seq2seq:
            return encoded.ids, self._decoder_cut
        prompt, spaces = split_spaces(encoded.prompt)
        ids = encoded.ids if not spaces else self.encoder.encode([prompt])[0].ids
        tail = last_word(prompt)
        if (tail, spaces) not in self._cuts:
            self._remember(tail, spaces)
        cut, own = self._cuts[tail, spaces]
        if tail != prompt and not self._in_step(ids, own, cut):
            cut = self._cut(prompt, spaces)
        if cut.taken_back:
            assert tuple(ids[-len(cut.taken_back) :]) == cut.taken_back, (ids, cut)
            ids = ids[: -len(cut.taken_back)]
        if not len(ids):
            ids = self.encoder.encode([()])[0].ids
        return ids, cut

    def tree(self, cut: Cut) -> AnswerTree:
        """The tree of the answers' paths, with the masses that `end` and taken-back tokens need."""
        if cut not in self._trees:
            if len(self._trees) >= TREES_KEPT:
                self._trees.clear()
            ends = None if self.end == "none" else self._ends
            self._trees[cut] = build_tree(cut.paths, end_ids=ends, taken_back=self._start(cut))
        return self._trees[cut]

    def _remember(self, tail: Prompt, spaces: str) -> None:
        if len(self._cuts) >= TAILS_KEPT:
            self._cuts.clear()
        self._cuts[tail, spaces] = self._cut(tail, spaces), self.encoder.bare_ids(tail)

    def _in_step(self, ids: np.ndarray, own: Sequence[int], cut: Cut) -> bool:
        """Does the tail encoded alone end as the whole prompt does, its first token apart?"""
        same = len(own) - 1 if len(own) > 1 else len(own)
        return len(cut.taken_back) < len(own) and same <= len(ids) and list(ids[len(ids) - same :]) == list(own[-same:])

    def _cut(self, prompt: Prompt, spaces: str) -> Cut:
        own = self.encoder.bare_ids(prompt)
        joint = [self.encoder.bare_ids((*prompt, Piece(spaces + text))) for text in self.texts]
        same = min(_common(own, ids) for ids in joint)
        paths = tuple(tuple(ids[same:]) for ids in joint)
        for text, ids in zip(self.texts, joint, strict=True):
            if list(ids) == list(own):
                raise ValueError(f"The answer {text!r} encodes to nothing behind this prompt. Give it a text.")
        self._refuse_unknown(paths)
        return Cut(tuple(own[same:]), paths)

    def _refuse_unknown(self, paths: Sequence[Ids]) -> None:
        """An unknown token stands for many texts: its probability is no answer's."""
        unknown = self.encoder.tokenizer.unk_token_id
        for text, path in zip(self.texts, paths, strict=True):
            if unknown is not None and unknown in path and unknown not in self.end_ids:
                raise ValueError(
                    f"The answer {text!r} has characters that this tokenizer does not know ({list(path)}). "
                    "Give it a text in the model's script."
                )

    @cached_property
    def most_tokens(self) -> int:
        """Tokens that the longest answer adds to a prompt at most, one more than alone for what may be taken back."""
        return 1 + max(len(self.encoder.bare_ids((Piece(" " + text),))) for text in self.texts)

    @cached_property
    def _decoder_cut(self) -> Cut:
        paths = tuple(tuple(self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in self.texts)
        if not all(paths):
            raise ValueError(f"The answer {self.texts[paths.index(())]!r} encodes to nothing. Give it a text.")
        self._refuse_unknown(paths)
        return Cut((), paths)

    @cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self.encoder.tokenizer)

    @cached_property
    def _ends(self) -> np.ndarray:
        words = self._texts.word_starts() if self.end == "boundary" else np.array([], dtype=np.int64)
        return np.union1d(words, np.array(self.end_ids, dtype=np.int64))

    def _start(self, cut: Cut) -> list[tuple[Ids, np.ndarray]]:
        """The ways a text may go on like the tokens that were taken back: after a path, tokens that complete them."""
        if not cut.taken_back:
            return []
        spell = self._texts.texts
        wanted = b"".join(spell[token] for token in cut.taken_back)
        paths = {path[:depth] for path in (cut.taken_back, *cut.paths) for depth in range(len(path))}
        ways = []
        for path in sorted(paths):
            spelt = b"".join(spell[token] for token in path)
            if len(spelt) < len(wanted) and wanted.startswith(spelt):
                ways.append((path, self._texts.starting_with(wanted[len(spelt) :])))
        return ways


def end_tokens(tokenizer: Any) -> list[int]:
    """Ids that end a text, or an assistant's turn in the chat template."""
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "REPLYPLACE"}]
        try:
            rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception:  # a template that wants other turns: then only the eos token is known
            return sorted(found)
        after = rendered.partition("REPLYPLACE")[2]
        ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        controls = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        found |= {token for token in ids[:1] if token in controls}
    return sorted(found)


def split_spaces(prompt: Prompt) -> tuple[Prompt, str]:
    """(the prompt without the spaces at its end, these spaces)."""
    pieces, spaces = list(prompt), ""
    while (pieces and pieces[-1].text.rstrip(" ") != pieces[-1].text) or (pieces and not pieces[-1].text):
        last = pieces.pop()
        kept = last.text.rstrip(" ")
        spaces = last.text[len(kept) :] + spaces
        if kept:
            pieces.append(Piece(kept, last.given))
            break
    return tuple(pieces), spaces


def last_word(prompt: Prompt) -> Prompt:
    """The prompt's last word, with the space before it and after it: all that an answer's encoding can depend on."""
    whole = "".join(piece.text for piece in prompt)
    parts = whole.rsplit(None, 1)
    start = len(parts[0]) if len(parts) == 2 else 0
    pieces = []
    for piece in prompt:
        if start < len(piece.text):
            pieces.append(Piece(piece.text[start:], piece.given))
        start = max(0, start - len(piece.text))
    return tuple(pieces)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same
