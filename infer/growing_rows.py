"""Rows of tokens that grow by one token at a time, and the next token's logits of each.

    KeptRows  padded on the left behind a shared prefix, keys and values kept from token to token: cheap
    RowsAnew  every row alone, from its beginning at every token: always right

`best_start` says which of them a model takes, by trying. Knows token ids.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from infer.batching import is_out_of_memory
from infer.forward.passes import SharedPrefix
from infer.forward.plans import PROBE_PREFIX, probe_prompts
from models.mask_checks import PROBE_LENGTHS, agree, looks_back
from models.narrow_head import only_rows

_taken: weakref.WeakKeyDictionary[Any, dict[Any, bool]] = weakref.WeakKeyDictionary()


class GrowingRows(Protocol):
    """Rows of tokens that grow: the next token's logits of each, and on with some of them."""

    def logits(self) -> torch.Tensor:
        """(B, V) logits of the next token of each row, in the model's dtype."""

    def go_on(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        """The rows at these places stay, each with one token more; one that stands twice goes on in two ways."""


class RowsAnew:
    """Every row read from its beginning at every token: no padding, no mask, nothing kept. Always right."""

    def __init__(self, model: Any, prompts: Sequence[np.ndarray]) -> None:
        self.model, self.rows = model, [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        self.device = model.get_input_embeddings().weight.device

    def logits(self) -> torch.Tensor:
        parts = []
        for row in self.rows:
            place = torch.tensor([[0]]), torch.tensor([[len(row) - 1]])
            with only_rows(self.model, *place):
                ids = torch.as_tensor(row, device=self.device)[None]
                parts.append(self.model(input_ids=ids, use_cache=False).logits[:, -1])
        return torch.cat(parts)

    def go_on(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        self.rows = [np.append(self.rows[place], token) for place, token in zip(keep, tokens, strict=True)]


class KeptRows:
    """Rows padded on the left (behind a shared prefix), whose keys and values are kept from token to token."""

    def __init__(self, model: Any, prompts: Sequence[np.ndarray], prefix: SharedPrefix | None = None) -> None:
        self.model, self.device = model, model.get_input_embeddings().weight.device
        before = 0 if prefix is None else len(prefix)
        width = max(map(len, prompts)) - before
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        seen = torch.zeros(len(prompts), before + width, dtype=torch.long)
        seen[:, :before] = 1
        for row, prompt in enumerate(prompts):
            own = len(prompt) - before
            ids[row, width - own :] = torch.as_tensor(np.asarray(prompt[before:], dtype=np.int64))
            seen[row, before + width - own :] = 1
        self.places = (seen.cumsum(-1) - 1).clamp_min(0)[:, before:].to(self.device)
        self.ids, self.seen = ids.to(self.device), seen.to(self.device)
        self.cache: Any = None if prefix is None else _growing(prefix, len(prompts))
        # ALiBi models count positions by the mask themselves, and know no such argument.
        self.placed = "position_ids" in inspect.signature(model.forward).parameters

    def logits(self) -> torch.Tensor:
        rows = torch.arange(len(self.ids))[:, None]
        with only_rows(self.model, rows, torch.full_like(rows, self.ids.shape[1] - 1)):
            out = self.model(
                input_ids=self.ids, attention_mask=self.seen, past_key_values=self.cache, use_cache=True,
                **({"position_ids": self.places} if self.placed else {}),
            )  # fmt: skip
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def go_on(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        if list(keep) != list(range(len(self.ids))):
            places = torch.tensor(keep, device=self.device)
            self.cache.batch_select_indices(places)
            self.seen, self.places = self.seen[places], self.places[places]
        self.ids = torch.tensor(tokens, dtype=torch.long, device=self.device)[:, None]
        self.seen = torch.cat([self.seen, torch.ones_like(self.ids)], dim=1)
        self.places = self.places[:, -1:] + 1


def _growing(prefix: SharedPrefix, rows: int) -> Cache:
    """A cache of `rows` rows that begin with the prefix and go on with their own tokens."""
    layers: list[Any] = []
    for keys, values in prefix.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = (part.expand(rows, -1, -1, -1) for part in (keys, values))
        layers.append(layer)
    return Cache(layers=layers)


def best_start(
    model: Any, longest: np.ndarray, shared: int, new_tokens: int
) -> Callable[[Sequence[np.ndarray]], GrowingRows]:
    """What makes growing rows of prompts: the fastest way in which the model says what it says of each row alone.

    longest: of the prompts. shared: first tokens that all of them have, at least one fewer than the shortest. Padding
    stands behind these, so they are computed once only where no layer looks back fewer tokens than the longest row
    will have.
    """
    reach, _ = looks_back(model.config)
    if shared and len(longest) + new_tokens <= reach and _takes(model, longest, prefix=True):
        return partial(KeptRows, model, prefix=SharedPrefix(model, longest[:shared]))
    return partial(KeptRows, model) if _takes(model, longest, prefix=False) else partial(RowsAnew, model)


def _takes(model: Any, longest: np.ndarray, *, prefix: bool) -> bool:
    """Does the model say of padded rows with kept keys and values what it says of each alone? Asked once."""
    dtype = model.get_input_embeddings().weight.dtype
    key = (prefix, dtype, getattr(model.config, "_attn_implementation", None))
    taken = _taken.setdefault(model, {})
    if key not in taken:
        probes, tokens = probe_prompts(model, longest, PROBE_LENGTHS)
        try:
            shared = SharedPrefix(model, probes[0][:PROBE_PREFIX]) if prefix else None
            kept, anew = KeptRows(model, probes, shared), RowsAnew(model, probes)
            same = [agree(kept.logits(), anew.logits(), dtype)]
            for keep, more in (([0, 1], tokens[:2]), ([1], tokens[2:3])):
                kept.go_on(keep, more)
                anew.go_on(keep, more)
                same.append(agree(kept.logits(), anew.logits(), dtype))
            taken[key] = all(same)
        except Exception as error:  # whatever a model does that cannot take a mask or a cache
            if is_out_of_memory(error):
                raise
            taken[key] = False
    return taken[key]
