"""The passes of encoder-decoders: the encoder once per prompt, the answers' tree as the decoder's input.

    ForestPass  the chains of the tree side by side in one decoder row, under a block mask: cheap
    DecoderPass one decoder row per chain: always right

`infer.forward.plans` checks which may be used. Knows token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from infer.forward.passes import first_visits, padded
from models.answer_tree import AnswerTree
from models.narrow_head import read_logits


class ForestPass:
    """Encoder-decoder: the chains of the tree side by side in one decoder row, each after its own start token.

    Right where a token's bias depends on how far back it looks (T5), wrong with positions counted from the row's
    start: the engine's check tells.
    """

    def __init__(self, model: Any, tree: AnswerTree, start_id: int, *, narrow: bool = True) -> None:
        self.model, self.tree, self.start_id, self.narrow = model, tree, start_id, narrow
        self.device = model.get_input_embeddings().weight.device
        self.chains = tree.chains()
        self.seen_at = first_visits(self.chains, tree.fed)
        self.sizes = [1 + len(chain) for chain in self.chains]

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        return lengths + sum(self.sizes)

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        texts, present = padded(prompts), _present(prompts)
        row = [self.start_id]
        for at, chain in enumerate(self.chains):
            row += [self.start_id] * bool(at) + [int(self.tree.tokens[node - 1]) for node in chain]
        blocks = [torch.ones(size, size, dtype=torch.bool).tril() for size in self.sizes]
        dtype = self.model.get_input_embeddings().weight.dtype
        hidden = ~torch.block_diag(*blocks).bool()
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
        starts = np.cumsum([0, *self.sizes])
        columns = torch.tensor([int(starts[chain]) + depth for chain, depth in self.seen_at]).repeat(len(prompts), 1)
        return read_logits(
            self.model,
            torch.arange(len(prompts))[:, None].expand_as(columns),
            columns,
            narrow=self.narrow,
            input_ids=texts.to(self.device),
            attention_mask=present.to(self.device),
            decoder_input_ids=torch.tensor(row).repeat(len(prompts), 1).to(self.device),
            decoder_attention_mask=mask.repeat(len(prompts), 1, 1, 1).to(self.device),
            use_cache=False,
        )


class DecoderPass:
    """Encoder-decoder: encoder once per prompt, then one plain decoder row per chain."""

    def __init__(self, model: Any, tree: AnswerTree, start_id: int, *, narrow: bool = True) -> None:
        self.model, self.tree, self.start_id, self.narrow = model, tree, start_id, narrow
        self.device = model.get_input_embeddings().weight.device
        self.chains = tree.chains()
        self.seen_at = first_visits(self.chains, tree.fed)

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        return (lengths + 1 + max(map(len, self.chains))) * len(self.chains)

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        texts, present = padded(prompts).to(self.device), _present(prompts).to(self.device)
        encoded = self.model.get_encoder()(input_ids=texts, attention_mask=present)
        count = len(self.chains)
        encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(count, dim=0)
        rows = [np.array([self.start_id, *self.tree.tokens[[node - 1 for node in chain]]]) for chain in self.chains]
        chain, depth = (torch.tensor(part) for part in zip(*self.seen_at, strict=True))
        positions = torch.arange(len(prompts))[:, None] * count + chain
        return read_logits(
            self.model,
            positions,
            depth.repeat(len(prompts), 1),
            narrow=self.narrow,
            encoder_outputs=encoded,
            attention_mask=present.repeat_interleave(count, dim=0),
            decoder_input_ids=padded(rows).repeat(len(prompts), 1).to(self.device),
            use_cache=False,
        )


def _present(sequences: Sequence[np.ndarray]) -> torch.Tensor:
    """(B, T) 1 where a token stands, 0 for padding: by length, never by id (a pad id may occur in a text)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()
