"""From rows to the tensors of a batch: the one tokenisation of a row, for training and for prediction.

A row's fields are tokenised once (TokenCache); orders, budgets and batches only copy ids. Knows no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.tasks.arena import ArenaRow
from models.tasks.arena_features import antisymmetric_columns, features
from models.tasks.segments import Frame, encode_answer, encode_pair, make_frame
from models.tasks.tokens import TokenFields

# Feature values are cut at this many standard deviations: one giant row must not drown a linear score.
CLIP_DEVIATIONS = 5.0


@dataclass(frozen=True)
class FeatureScale:
    """Mean and standard deviation of the structural features on the training rows; (F,) each.

    The antisymmetric ("odd") columns keep a mean of 0, so that a swap still only changes their sign.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, matrix: np.ndarray) -> FeatureScale:
        odd = antisymmetric_columns()
        mean = np.where(odd, 0.0, matrix.mean(axis=0))
        deviation = np.sqrt(((matrix - mean) ** 2).mean(axis=0))
        return cls(mean, np.where(deviation > 1e-6, deviation, 1.0))

    def apply(self, matrix: np.ndarray) -> PairFeatures:
        scaled = np.clip((matrix - self.mean) / self.deviation, -CLIP_DEVIATIONS, CLIP_DEVIATIONS).astype(np.float32)
        odd = antisymmetric_columns()
        return PairFeatures(scaled[:, odd], scaled[:, ~odd])


@dataclass(frozen=True)
class PairFeatures:
    """odd: (N, P), negated by a swap. even: (N, E), left alone by it."""

    odd: np.ndarray
    even: np.ndarray


@dataclass(frozen=True)
class PairReader:
    """How a checkpoint reads a row: the head's sequences within the token budget.

    multiple: a batch is padded to a multiple of so many tokens, for kernels that are compiled for each length.
    """

    frame: Frame
    head: str
    budget_tokens: int
    prompt_share: float
    pad_id: int
    multiple: int = 1

    def sequences(self, fields: TokenFields, swapped: bool) -> list[Any]:
        """The encoded sequences of one pair: one for the joint head; answer A's, then B's for the siamese."""
        if self.head == "joint":
            return [encode_pair(fields, swapped, self.frame, self.budget_tokens, prompt_share=self.prompt_share)]
        return [
            encode_answer(fields, which, self.frame, self.budget_tokens, prompt_share=self.prompt_share)
            for which in (("b", "a") if swapped else ("a", "b"))
        ]

    def tokens(self, fields: TokenFields) -> int:
        """What a row takes in a batch: its sequences, all as long as the longest."""
        sequences = self.sequences(fields, False)
        return len(sequences) * max(len(one.input_ids) for one in sequences)

    def batch(
        self, cache: Sequence[TokenFields], items: Sequence[int], pair_features: PairFeatures | None = None
    ) -> dict[str, torch.Tensor]:
        """The network's inputs for a batch of items (2 * row + swapped), padded to its longest sequence.

        Returns input_ids, attention_mask, token_type_ids: (B, T) int64 joint, (2B, T) siamese; and odd (B, P), even
        (B, E) float32 where features are given.
        """
        sequences = [one for item in items for one in self.sequences(cache[item // 2], bool(item % 2))]
        longest = -(-max(len(one.input_ids) for one in sequences) // self.multiple) * self.multiple
        shape = (len(sequences), longest)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        for at, one in enumerate(sequences):
            length = len(one.input_ids)
            ids[at, :length] = one.input_ids
            mask[at, :length] = 1
            types[at, :length] = one.token_type_ids
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        if pair_features is not None:
            rows = np.asarray(items) // 2
            sign = np.where(np.asarray(items) % 2, -1.0, 1.0).astype(np.float32)[:, None]
            inputs |= {"odd": pair_features.odd[rows] * sign, "even": pair_features.even[rows]}
        return {name: torch.from_numpy(array) for name, array in inputs.items()}


def scaled_features(rows: Sequence[ArenaRow], scale: FeatureScale | None) -> PairFeatures | None:
    """The scaled structural features of rows; None where the checkpoint reads text only."""
    return None if scale is None else scale.apply(features(rows))


def row_tokens(fields: TokenFields) -> int:
    """Tokens of a row's texts, markers not counted."""
    return sum(len(turn) for turns in (fields.prompt, fields.answer_a, fields.answer_b) for turn in turns)


def load_tokenizer(source: str | Path, *, newlines: bool = True) -> Any:
    """The tokenizer of a folder or hub name. Raises ValueError for a stub, see check_tokenizer.

    newlines: they get a token of their own where they have none; without it the tokenizer is the checkpoint's own.
    """
    from transformers import AutoConfig, AutoTokenizer

    from models.tasks.tokens import check_tokenizer, keep_newlines, restore_nfkc

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    check_tokenizer(tokenizer, AutoConfig.from_pretrained(source, trust_remote_code=False).vocab_size)
    restore_nfkc(tokenizer)
    if newlines:
        keep_newlines(tokenizer)
    return tokenizer


def make_reader(tokenizer: Any, *, head: str, budget_tokens: int, prompt_share: float, multiple: int = 1) -> PairReader:
    """The reader of a tokenizer. Raises ValueError where the budget is too small for both answers."""
    frame = make_frame(tokenizer)
    return PairReader(frame, head, budget_tokens, prompt_share, tokenizer.pad_token_id, multiple)
