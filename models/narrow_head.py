"""The head of a language model, run on chosen positions only: never (B, T, V) logits where a few are read.

The rest is the model's own forward: softcaps, scales and biases of its head are its own affair. Knows tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def only_rows(model: Any, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[list[bool]]:
    """Inside, the head sees hidden[rows, columns] in place of hidden (B, T, H); yields whether it was ever called.

    rows, columns: (R, C) int64; what the head then returns has the shape (R, C, V).
    """
    head = model.get_output_embeddings()
    called: list[bool] = []
    if head is None:
        yield called
        return

    def narrow(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        called.append(True)
        hidden = inputs[0]
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)], *inputs[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield called
    finally:
        handle.remove()


def read_logits(model: Any, rows: torch.Tensor, columns: torch.Tensor, *, narrow: bool = True, **inputs: Any) -> Any:
    """(R, C, V) logits of the model's forward at positions [rows, columns].

    narrow: the head runs on these positions only; False computes all (B, T, V) of them first (for the benchmark).
    """
    if not narrow:
        logits = model(**inputs).logits
        return logits[rows.to(logits.device), columns.to(logits.device)]
    with only_rows(model, rows, columns) as called:
        logits = model(**inputs).logits
    if called:
        return logits
    return logits[rows.to(logits.device), columns.to(logits.device)]  # a head that is no module of its own
