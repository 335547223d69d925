"""Rows for a network, of prompts and the answer trees behind them: ids, positions, masks, and where to read.

Everything is made on the prompts' device from a few small tables. Knows token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from models.answer_tree import AnswerTree


@dataclass(frozen=True)
class Rows:
    """What the model's forward gets, and the positions (B, 1 + n) to read: the prompt's last token and the nodes."""

    inputs: dict[str, Any]
    rows: torch.Tensor
    columns: torch.Tensor


class TreeTables(nn.Module):
    """K answer trees as tensors that move with a network, and the rows that they make of prompts.

    fed: n, the most nodes of any of them. The tables are no part of a checkpoint.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    chains: torch.Tensor
    visits: torch.Tensor

    def __init__(self, trees: Sequence[AnswerTree]) -> None:
        super().__init__()
        self.fed = max(tree.fed for tree in trees)
        chains = [tree.chains() for tree in trees]
        tokens = np.zeros((len(trees), self.fed), dtype=np.int64)
        depths = np.ones((len(trees), self.fed), dtype=np.int64)
        ancestors = np.tile(np.eye(self.fed, dtype=bool), (len(trees), 1, 1))
        longest = max(len(chain) for of_tree in chains for chain in of_tree)
        chain_ids = np.zeros((len(trees), max(map(len, chains)), longest), dtype=np.int64)
        visits = np.zeros((len(trees), 1 + self.fed, 2), dtype=np.int64)
        for at, tree in enumerate(trees):
            tokens[at, : tree.fed], depths[at, : tree.fed] = tree.tokens, tree.depths
            ancestors[at, : tree.fed, : tree.fed] = tree.ancestors()
            for number, chain in enumerate(chains[at]):
                chain_ids[at, number, : len(chain)] = tree.tokens[[node - 1 for node in chain]]
                for depth, node in enumerate(chain, start=1):
                    visits[at, node] = number, depth
        made = {"tokens": tokens, "depths": depths, "ancestors": ancestors, "chains": chain_ids, "visits": visits}
        for name, table in made.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def prompts_alone(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> Rows:
        """Plain causal rows: a model never looks at the padding on the right, so no mask is needed."""
        return Rows({"input_ids": input_ids}, _numbers(lengths), lengths[:, None] - 1)

    def tree_rows(self, input_ids: torch.Tensor, lengths: torch.Tensor, tree: torch.Tensor, dtype: torch.dtype) -> Rows:
        """One row per prompt, the nodes of its tree right behind it, under an additive (B, 1, T + n, T + n) mask."""
        count, width = len(input_ids), input_ids.shape[1] + self.fed
        places = lengths[:, None] + torch.arange(self.fed, device=lengths.device)  # (B, n), right behind the prompt
        ids = nn.functional.pad(input_ids, (0, self.fed)).scatter(1, places, self.tokens[tree])
        positions = torch.arange(width, device=lengths.device).repeat(count, 1)
        positions = positions.scatter(1, places, lengths[:, None] + self.depths[tree] - 1)
        seen = torch.ones(width, width, dtype=torch.bool, device=lengths.device).tril().repeat(count, 1, 1)
        # Before a node stand its whole prompt and the nodes listed before it, of which it may see its ancestors alone.
        seen[_numbers(lengths)[:, :, None], places[:, :, None], places[:, None, :]] = self.ancestors[tree]
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        mask = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        columns = torch.cat([lengths[:, None] - 1, places], dim=1)
        return Rows(inputs, _numbers(lengths).expand_as(columns), columns)

    def packed_rows(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, tree: torch.Tensor, dtype: torch.dtype, prefix: int
    ) -> Rows:
        """All prompts in one row without padding, the `prefix` tokens that they share standing there once.

        Each prompt's own tokens see the prefix and themselves alone, at the positions they have in their own rows.
        """
        apart = self.tree_rows(input_ids, lengths, tree, torch.float32)
        ids, seen = apart.inputs["input_ids"], apart.inputs["attention_mask"][:, 0] == 0  # (B, W), (B, W, W)
        column = torch.arange(ids.shape[1], device=ids.device)
        own = (column >= prefix) & (column < lengths[:, None] + self.fed)  # (B, W)
        row, at = own.nonzero(as_tuple=True)  # (S,) the row and column of every token
        total = prefix + len(row)
        sees = torch.ones(total, total, dtype=torch.bool, device=ids.device).tril()
        sees[prefix:, prefix:] = (row[:, None] == row) & seen[row[:, None], at[:, None], at]
        mask = torch.zeros(total, total, dtype=dtype, device=ids.device)
        mask = mask.masked_fill_(~sees, torch.finfo(dtype).min)[None, None]
        places = torch.full_like(own, -1, dtype=torch.long).masked_scatter(
            own, prefix + torch.arange(len(row), device=ids.device)
        )
        # A shorter tree's missing nodes point anywhere: nothing is read there.
        columns = places.gather(1, apart.columns).clamp(min=0).flatten()[None]
        positions = apart.inputs["position_ids"]
        inputs = {
            "input_ids": torch.cat([ids[0, :prefix], ids[own]])[None],
            "position_ids": torch.cat([positions[0, :prefix], positions[own]])[None],
            "attention_mask": mask,
        }
        return Rows(inputs, torch.zeros_like(columns), columns)

    def chain_rows(self, input_ids: torch.Tensor, lengths: torch.Tensor, tree: torch.Tensor) -> Rows:
        """One plain causal row per prompt and root-to-tip chain of its tree: right for every causal model."""
        chains = self.chains[tree]  # (B, C, D)
        count, each, deep = chains.shape
        ids = nn.functional.pad(input_ids, (0, deep))[:, None].repeat(1, each, 1)
        places = (lengths[:, None] + torch.arange(deep, device=lengths.device))[:, None].expand(count, each, deep)
        ids = ids.scatter(2, places, chains).flatten(0, 1)
        chain, depth = self.visits[tree].unbind(dim=-1)  # (B, 1 + n) each
        return Rows({"input_ids": ids}, _numbers(lengths) * each + chain, lengths[:, None] - 1 + depth)


def _numbers(lengths: torch.Tensor) -> torch.Tensor:
    """(B, 1): the row's own number."""
    return torch.arange(len(lengths), device=lengths.device)[:, None]
