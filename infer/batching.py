"""Prompts of mixed lengths as batches within a token budget; shrinks the budget when memory runs out.

Knows lengths and row numbers, never what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm.auto import tqdm


def distinct(prompts: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
    """(positions of the first of each different prompt, (N,) which of these each prompt equals)."""
    numbers: dict[bytes, int] = {}
    firsts: list[int] = []
    same_as = np.empty(len(prompts), dtype=np.int64)
    for at, prompt in enumerate(prompts):
        key = np.asarray(prompt, dtype=np.int64).tobytes()
        if key not in numbers:
            numbers[key] = len(firsts)
            firsts.append(at)
        same_as[at] = numbers[key]
    return firsts, same_as


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """How many first tokens all prompts share; at least one token of each is left over."""
    longest = min(map(len, prompts)) - 1
    first = np.asarray(prompts[0])[:longest]
    for prompt in prompts[1:]:
        same = np.asarray(prompt)[: len(first)] == first
        if not same.all():
            first = first[: int(same.argmin())]
    return len(first)


def batches(order: np.ndarray, tokens: np.ndarray, budget_tokens: int) -> Iterator[np.ndarray]:
    """Rows in the given order, as many together as fit: rows x the longest row's tokens <= budget, one row at least.

    tokens: (N,) what each row costs.
    """
    start = 0
    while start < len(order):
        end, longest = start + 1, tokens[order[start]]
        while end < len(order):
            longest = max(longest, tokens[order[end]])
            if (end + 1 - start) * longest > budget_tokens:
                break
            end += 1
        yield order[start:end]
        start = end


def in_batches(
    work: Callable[[np.ndarray], None],
    order: np.ndarray,
    tokens: np.ndarray,
    budget_tokens: int,
    *,
    progress: bool = False,
    name: Callable[[int], str] = str,
    doing: str = "reading",
) -> int:
    """Call work(rows) for every batch of `order`; the budget that was enough in the end. doing: for the progress bar.

    Out of memory halves the budget, and the work goes on from the batch that failed. Raises MemoryError with
    `name(row)` where a single row does not fit.
    """
    done = 0
    with tqdm(total=len(order), desc=doing, unit="row", delay=3, leave=False, disable=not progress or None) as bar:
        while done < len(order):
            for rows in batches(order[done:], tokens, budget_tokens):
                full = False
                try:
                    work(rows)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(rows) == 1:
                        raise MemoryError(
                            f"{name(int(rows[0]))} alone ({tokens[rows[0]]} tokens) does not fit into memory. Shorten "
                            "it (max_tokens; task.budget_tokens for pairs), or use fewer bits (quantization=nf4) or "
                            "another device."
                        ) from error
                    full = True
                if full:  # out of the except block: the error's traceback holds what the batch had computed
                    budget_tokens = int(min(budget_tokens, len(rows) * tokens[rows].max())) // 2
                    release_memory()
                    break
                done += len(rows)
                bar.update(len(rows))
    return budget_tokens


# In lower case; the last is of cuBLAS and cuDNN, whose workspaces are not torch's.
FULL = ("can't allocate memory", "out of memory", "_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch and its libraries raise on a full GPU or a full host."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in FULL)


def release_memory() -> None:
    """Give back what no tensor holds any more, so that the next try finds it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
