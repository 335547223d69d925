"""Which parts of a model's last block need run only on what is read: found by trying, never by their names.

A part is run on the positions that are read, with NaN for what it gives elsewhere; where a number that is read is
still the same, nothing that is read depends on the rest. Only modules of kinds that look at one position at a time are
tried at all. Knows hidden states of one small batch, which it runs through the block again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from infer.forward.last_block import LastBlock, only_read, position_wise
from models.narrow_head import only_rows

# Of the largest number: other kernels for fewer rows round otherwise, in half precision too. NaN is what decides.
ROUNDING = 0.05


def find_last_block(model: Any, ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> LastBlock | None:
    """The block that runs last, and what of it needs run only on what is read; None where there is nothing.

    ids: (B, T), read at [rows, columns], (R, C): some positions of every row, and not its first ones. The model is
    run once, its last block once for each part that is tried. What torch.compile made need not heed hooks, and
    is left alone.
    """
    if any(getattr(module, "_compiled_call_impl", None) or hasattr(module, "_orig_mod") for module in model.modules()):
        return None
    with only_rows(model, rows, columns), _recorded(_last_of_lists(model)) as calls:
        model(input_ids=ids, use_cache=False)
    if not calls or calls[-1].times != 1:  # none, or one that runs again and again
        return None
    block, shape = calls[-1], (ids.shape[0], ids.shape[1])
    with _recorded([module for module in block.module.modules() if module is not block.module]) as inner:
        expected = block.again()[rows, columns]

    def same(last: LastBlock) -> bool:
        with only_read(model, last, rows, columns, shape, fill=torch.nan):
            found = block.again()[rows, columns]
        return bool(((found - expected).abs() <= ROUNDING * expected.abs().max()).all())  # false for NaN

    name = next(name for name, module in model.named_modules() if module is block.module)
    tried = {call.module for call in inner if call.of_positions(shape) and position_wise(call.module)}
    last = _with_modules(LastBlock(name), block.module, "", tried, same)
    attending = replace(last, queries=True)
    last = attending if same(attending) else last
    return last if last.modules else None


def _with_modules(
    last: LastBlock, parent: nn.Module, path: str, tried: set[nn.Module], same: Callable[[LastBlock], bool]
) -> LastBlock:
    """`last` with the largest parts of the parent that may join it."""
    for name, module in parent.named_children():
        if isinstance(module, nn.ModuleList):  # experts: each is called with what is routed to it
            continue
        longer = replace(last, modules=(*last.modules, path + name))
        joins = module in tried and same(longer)
        last = longer if joins else _with_modules(last, module, f"{path}{name}.", tried, same)
    return last


@dataclass
class _Call:
    """What a module was last called with, and what it gave."""

    module: nn.Module
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    times: int = 0

    def again(self) -> torch.Tensor:
        """The hidden states of the same call once more, float32."""
        result = self.module(*self.arguments, **self.keywords)
        return (result if isinstance(result, torch.Tensor) else result[0]).float()

    def of_positions(self, shape: tuple[int, int]) -> bool:
        """Whether it was one tensor for one tensor, each a row per position of (B, T), once."""
        tensors = (*self.arguments, self.result)
        shapes = [tuple(one.shape[:-1]) for one in tensors if isinstance(one, torch.Tensor)]
        rows = (shape, (shape[0] * shape[1],))
        return self.times == 1 and not self.keywords and len(tensors) == len(shapes) == 2 and set(shapes) <= {*rows}


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[list[_Call]]:
    """Inside, calls are recorded; yields a record for each module, at the end in the order of their last calls."""
    calls = {module: _Call(module) for module in modules}
    order: list[_Call] = list(calls.values())

    def record(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None:
        call = calls[module]
        call.arguments, call.keywords, call.result, call.times = arguments, keywords, result, call.times + 1
        order.sort(key=lambda one: one is call)  # stable: the latest stands last

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        yield order


def _last_of_lists(parent: nn.Module) -> list[nn.Module]:
    """The last member of each list of modules that is not inside another (a block's experts are)."""
    found: list[nn.Module] = []
    for module in parent.children():
        found += list(module)[-1:] if isinstance(module, nn.ModuleList) else _last_of_lists(module)
    return found
