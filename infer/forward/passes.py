"""Forward passes that give the logits at the nodes of an answer tree, and nothing else.

Every pass is the model's own forward: softcaps, scales and biases of its head are its own affair. Only what reaches
the head is chosen here, by a hook that hands it the hidden states of the nodes that are read. Knows token ids.

    TreePass    prompt tokens, then the tree's nodes, one row per prompt, under a tree mask: cheap
    ChainPass   one causal row per prompt and root-to-tip chain of the tree, no mask at all: always right

`infer.forward.plans` checks which may be used. Encoder-decoders have theirs in `infer.forward.decoder_passes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from infer.forward.last_block import LastBlock, only_read
from infer.forward.prefix_attention import attending_apart
from models import narrow_head
from models.answer_tree import AnswerTree


class Pass(Protocol):
    """What the engine needs of a way to compute."""

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens that prompts of these lengths take through the network."""

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, 1 + n, V): the root's logits and those of node 1..n, in the model's dtype."""


class SharedPrefix:
    """Keys and values of tokens that stand before every row, computed once for one row.

    Raises TypeError where the model keeps anything but plain keys and values per layer (recurrent states).
    """

    def __init__(self, model: Any, ids: np.ndarray, *, last: LastBlock | None = None, apart: bool = False) -> None:
        self.ids, self.apart = np.asarray(ids, dtype=np.int64), apart
        cache = DynamicCache()  # without the config: full layers, also where the model's own would forget
        inputs = torch.as_tensor(self.ids, device=model.get_input_embeddings().weight.device)[None]
        row, column = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), len(ids) - 1)  # nothing is read: one is
        with narrow_head.only_rows(model, row, column), only_read(model, last, row, column, (1, len(ids))):
            cache = model(input_ids=inputs, past_key_values=cache, use_cache=True).past_key_values
        layers = getattr(cache, "layers", None)
        if not layers or any(type(layer) is not DynamicLayer or layer.get_seq_length() != len(ids) for layer in layers):
            raise TypeError(f"{type(model).__name__} keeps more than keys and values of the {len(ids)} prefix tokens")
        self.layers = [(layer.keys, layer.values) for layer in layers]
        # The last block's few queries are cheap over all keys in one piece, and only so can they be told from the rest.
        self.whole = (len(layers) - 1,) if last is not None and last.queries else ()

    def __len__(self) -> int:
        return len(self.ids)

    def cache(self) -> Cache:
        """A cache of any number of rows that all begin with the prefix; usable for one forward pass after another."""
        kinds = [_ApartLayer if self.apart and at not in self.whole else _PrefixLayer for at in range(len(self.layers))]
        return Cache(layers=[kind(keys, values) for kind, (keys, values) in zip(kinds, self.layers, strict=True)])

    @contextmanager
    def attended(self, model: Any) -> Iterator[Cache]:
        """A cache for one forward pass inside, and the attention that goes with it."""
        with attending_apart(model, self.layers) if self.apart else nullcontext():
            yield self.cache()


class _PrefixLayer(DynamicLayer):
    """One layer's prefix: what is added is handed to the attention and then forgotten, so it is never stored twice."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (1, heads, P, head size)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        rows = key_states.shape[0]  # expand is a view; only the concatenation that attention reads is written
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2)
        values = torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2)
        return keys, values


class _ApartLayer(_PrefixLayer):
    """One layer's prefix that the attention finds by itself: it is handed what is added alone."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def read_logits(
    model: Any, rows: torch.Tensor, columns: torch.Tensor, *, narrow: bool = True, last: LastBlock | None = None,
    prefix: SharedPrefix | None = None, **inputs: Any,
) -> Any:  # fmt: skip
    """models.narrow_head.read_logits behind a prefix; last: what of the last block runs on the read positions only."""
    shape = tuple(inputs["input_ids"].shape)
    with ExitStack() as stack:
        if last is not None:
            stack.enter_context(only_read(model, last, rows, columns, shape))
        if prefix is not None:
            inputs["past_key_values"] = stack.enter_context(prefix.attended(model))
        return narrow_head.read_logits(model, rows, columns, narrow=narrow, use_cache=prefix is not None, **inputs)


class TreePass:
    """One row per prompt: its tokens, then the tree's nodes at the columns behind the longest prompt of the batch.

    A node sees the prefix, its own prompt and its ancestors; it stands at the position its depth says.
    window: keys further back than this are hidden, as the model itself would; None: none are.
    layer_types: names of the masks a model with two kinds of layers takes, {name: windowed?}.
    """

    def __init__(
        self, model: Any, tree: AnswerTree, prefix: SharedPrefix | None = None, *, narrow: bool = True,
        last: LastBlock | None = None, window: int | None = None, layer_types: dict[str, bool] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tree, self.prefix, self.narrow, self.last = model, tree, prefix, narrow, last
        self.window, self.layer_types = window, layer_types
        self.before = 0 if prefix is None else len(prefix)
        self.device = model.get_input_embeddings().weight.device
        self.ancestors = torch.as_tensor(tree.ancestors())

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        return lengths + self.tree.fed

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        ids = torch.zeros(len(prompts), longest + self.tree.fed, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
        ids[:, longest:] = torch.as_tensor(self.tree.tokens)
        depths = torch.as_tensor(self.tree.depths)
        positions = torch.arange(longest).repeat(len(prompts), 1)
        positions = torch.cat([positions, lengths[:, None] + depths - 1], dim=1) + self.before
        columns = torch.cat([lengths[:, None] - 1, (longest + torch.arange(self.tree.fed)).repeat(len(ids), 1)], dim=1)
        return read_logits(
            self.model,
            torch.arange(len(ids))[:, None].expand_as(columns),
            columns,
            narrow=self.narrow,
            last=self.last,
            input_ids=ids.to(self.device),
            attention_mask=self._masks(lengths, longest, positions),
            position_ids=positions.to(self.device),
            prefix=self.prefix,
        )

    def _masks(self, lengths: torch.Tensor, longest: int, positions: torch.Tensor) -> Any:
        """Additive (B, 1, T, P + T) masks; a float mask serves sdpa and eager attention alike.

        (B, 1, T, T) where attention looks at the prefix by itself.
        """
        rows, nodes = len(lengths), self.tree.fed
        before = 0 if self.prefix is not None and self.prefix.apart else self.before
        total = longest + nodes
        seen = torch.zeros(rows, total, before + total, dtype=torch.bool)
        seen[:, :, :before] = True
        text = seen[:, :, before:]
        # Padding after a prompt sees what stands before it, so that no query is left without a key (NaN).
        text[:, :longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
        text[:, longest:, :longest] = (torch.arange(longest) < lengths[:, None])[:, None, :]
        text[:, longest:, longest:] = self.ancestors
        if self.window is None:
            return self._additive(seen)
        keys = torch.cat([torch.arange(before).repeat(rows, 1), positions], dim=1)
        near = positions[:, :, None] - keys[:, None, :] < self.window
        if self.layer_types is None:
            return self._additive(seen & near)
        return {name: self._additive(seen & near if windowed else seen) for name, windowed in self.layer_types.items()}

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        dtype = self.model.get_input_embeddings().weight.dtype
        mask = torch.zeros(seen.shape, dtype=dtype)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None].to(self.device)


class ChainPass:
    """One plain causal row per prompt and chain of the tree: the model builds its own masks and positions.

    Rows are padded on the right, where a causal model never looks. With answers of one token this is the prompt alone.
    """

    def __init__(
        self, model: Any, tree: AnswerTree, prefix: SharedPrefix | None = None, *, narrow: bool = True,
        last: LastBlock | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tree, self.prefix, self.narrow, self.last = model, tree, prefix, narrow, last
        self.device = model.get_input_embeddings().weight.device
        self.chains = tree.chains()
        self.seen_at = first_visits(self.chains, tree.fed)

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        return (lengths + max(map(len, self.chains))) * len(self.chains)

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        tails = [self.tree.tokens[[node - 1 for node in chain]] for chain in self.chains]
        sequences = [np.concatenate([prompt, tail]) for prompt in prompts for tail in tails]
        ids = padded(sequences)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        chain, depth = (torch.tensor(part) for part in zip(*self.seen_at, strict=True))
        rows = torch.arange(len(prompts))[:, None] * len(self.chains) + chain
        columns = lengths[:, None] - 1 + depth
        return read_logits(
            self.model, rows, columns, narrow=self.narrow, last=self.last, prefix=self.prefix,
            input_ids=ids.to(self.device),
        )  # fmt: skip


def first_visits(chains: list[list[int]], fed: int) -> list[tuple[int, int]]:
    """For the root and node 1..n: (the first chain that visits it, its depth there)."""
    visits = {0: (0, 0)}
    for at, chain in enumerate(chains):
        for depth, node in enumerate(chain, start=1):
            visits.setdefault(node, (at, depth))
    return [visits[node] for node in range(fed + 1)]


def padded(sequences: Sequence[np.ndarray]) -> torch.Tensor:
    """(B, T) int64, padded on the right with id 0, which nothing that is read ever sees."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(np.asarray(sequence, dtype=np.int64))
    return ids
