"""What the processes of a launch settle among themselves within a step: a number, a list, the mean gradient.

Gradients are averaged here where DistributedDataParallel cannot be let to: a process that has run out of memory would
leave the others waiting for its part. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed


def smallest(number: int, device: Any) -> int:
    """The smallest of all processes' numbers, in every process."""
    shared = torch.tensor(number, device=device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MIN)
    return int(shared)


def largest(number: int, device: Any) -> int:
    """The largest of all processes' numbers, in every process; a process alone has it."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return number
    shared = torch.tensor(number, device=device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return int(shared)


def joined(items: list[int]) -> list[int]:
    """All processes' lists one after the other, in every process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return items
    from accelerate.utils import gather_object

    return list(gather_object(items))


def mean(value: torch.Tensor) -> float:
    """The mean of all processes' values, in every process."""
    shared = value.detach().clone()
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(shared)
        shared /= distributed.get_world_size()
    return float(shared)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Put the mean over all processes in place of each trained parameter's gradient; none counts as zeros."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    under_way = []
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= distributed.get_world_size()
        under_way.append(distributed.all_reduce(parameter.grad, async_op=True))
    for one in under_way:
        one.wait()
