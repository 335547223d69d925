"""The last block on the positions that are read, and on no others: nobody sees what it makes of those.

                        keys, values | queries, attention, output projection, second norm, MLP
    blocks 1 .. L - 1   every token  | every token
    block L             every token  | the positions that are read (of a shared prefix: none)

A layer that works position by position is handed the rows that are read, by a hook; its result is laid into zeros, so
that all shapes stay. `last_block_search` finds which layers of a model these are. Knows tensors, no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# How classes of layers are called that treat each position by itself, quantised and mixtures of experts included.
POSITION_WISE = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D", "Norm", "Experts", "Router")
ATTENTION_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class LastBlock:
    """What of a model's last block runs on what is read only. modules: by name; queries: those of its attention."""

    name: str
    modules: tuple[str, ...] = ()
    queries: bool = False


@contextmanager
def only_read(
    model: nn.Module, last: LastBlock | None, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int],
    *, fill: float = 0.0,
) -> Iterator[None]:  # fmt: skip
    """Inside, the last block's parts see hidden[rows, columns] in place of hidden (B, T, H), and give `fill` elsewhere.

    rows, columns: (R, C) int64; shape: (B, T). None: all runs as ever. A module that takes its positions in one row,
    (B T, H), is served as well; one that is called with any other number of positions is left alone.
    """
    with ExitStack() as hooks:
        if last is not None:
            for module in _modules(model, last):
                trim = _Trim((rows * shape[1] + columns).flatten(), shape[0] * shape[1], fill)
                hooks.callback(module.register_forward_pre_hook(trim.narrow).remove)
                hooks.callback(module.register_forward_hook(trim.widen).remove)
            if last.queries:
                _hook_queries(hooks, model.get_submodule(last.name), _ReadQueries(rows, columns, shape, fill))
        yield


def position_wise(module: nn.Module) -> bool:
    """Whether all weights inside belong to layers of such kinds. Not enough by itself: attention has no others."""
    holders = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return bool(holders) and all(type(part).__name__.endswith(POSITION_WISE) for part in holders)


def _modules(model: nn.Module, last: LastBlock) -> list[nn.Module]:
    """The modules of these names that are still of such kinds: an adapter may have come since they were found."""
    block = model.get_submodule(last.name)
    found = dict(block.named_modules())
    return [found[name] for name in last.modules if name in found and position_wise(found[name])]


@dataclass
class _Trim:
    """A module's two hooks. flat: what is read of `positions` in one row; lead: (B, T) of a call under way."""

    flat: torch.Tensor
    positions: int
    fill: float
    lead: torch.Size | None = None

    def narrow(self, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = inputs[0]
        self.lead = hidden.shape[:-1] if hidden.shape[:-1].numel() == self.positions else None
        if self.lead is None:
            return None
        self.flat = self.flat.to(hidden.device)
        part = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.flat)
        return (part[None] if hidden.ndim == 3 else part, *inputs[1:])

    def widen(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self.lead is None:
            return None
        whole = output.new_full((self.positions, output.shape[-1]), self.fill)
        whole[self.flat] = output.reshape(-1, output.shape[-1])
        return whole.view(*self.lead, output.shape[-1])


def _hook_queries(hooks: ExitStack, block: nn.Module, queries: _ReadQueries) -> None:
    """Inside the block, and there only, torch's attention is the queries' own."""
    running = hooks.enter_context(ExitStack())  # closed when the block ends or, where it raises, with all the others

    def begin(*_: Any) -> None:
        running.enter_context(queries)

    def end(*_: Any) -> None:
        running.close()

    hooks.callback(block.register_forward_pre_hook(begin).remove)
    hooks.callback(block.register_forward_hook(end).remove)


class _ReadQueries(TorchFunctionMode):
    """scaled_dot_product_attention for the queries that are read; the others' results are `fill`."""

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int], fill: float) -> None:
        super().__init__()
        self.shape, self.fill = shape, fill
        self.columns = _by_row(rows, columns, shape[0])  # (B, C)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            given = dict(zip(ATTENTION_ARGUMENTS, args, strict=False)) | (kwargs or {})
            if (given["query"].shape[0], given["query"].shape[-2]) == self.shape and given["query"].ndim == 4:
                return self._attend(**given)
        return func(*args, **(kwargs or {}))

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **others: Any,
    ) -> torch.Tensor:  # fmt: skip
        self.columns = columns = self.columns.to(query.device)
        rows = torch.arange(len(columns), device=query.device)[:, None]
        if is_causal:
            attn_mask = (torch.arange(key.shape[-2], device=key.device) <= columns[:, :, None])[:, None]  # (B, 1, C, S)
        elif attn_mask is not None:
            attn_mask = attn_mask.expand(len(columns), -1, -1, -1).transpose(1, 2)[rows, columns].transpose(1, 2)
        read = query.transpose(1, 2)[rows, columns].transpose(1, 2)  # (B, heads, T, size) -> (B, heads, C, size)
        found = scaled_dot_product_attention(read, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **others)
        whole = found.new_full((*self.shape, found.shape[1], found.shape[3]), self.fill)
        whole[rows, columns] = found.transpose(1, 2)
        return whole.transpose(1, 2)


def _by_row(rows: torch.Tensor, columns: torch.Tensor, count: int) -> torch.Tensor:
    """(count, C) the columns read in each row, as often repeated as makes them equally many; 0 where there is none."""
    if len(rows) == count and bool((rows == torch.arange(count)[:, None]).all()):
        return columns
    found: list[list[int]] = [[] for _ in range(count)]
    for row, column in zip(rows.flatten().tolist(), columns.flatten().tolist(), strict=True):
        found[row].append(column)
    most = max(map(len, found))
    return torch.tensor([(one + one[:1] * most)[:most] if one else [0] * most for one in found])
