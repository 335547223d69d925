"""A part of a benchmark that may not run on this machine: its figures, or why there are none. Knows nothing of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch

from infer.batching import is_out_of_memory, release_memory

OUT_OF_MEMORY = "out of memory"
SHOWN = 200  # characters of an error; all of it is in the log


def tried(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what `work` gives, None), or (None, why not) with its memory free again.

    A kernel that cannot be made or a package that is not there costs one line of a table and not the whole. Raises what
    CUDA says where the error has left it unusable for this process: whatever came next would be refused for it.
    """
    try:
        return work(), None
    except Exception as error:
        cannot = why(error)
    release_memory()  # behind the handler: the error's traceback holds the tensors
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return None, cannot


def why(error: Exception) -> str:
    """An error on one line; the traceback of what is no lack of memory goes to the terminal."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    traceback.print_exc()
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:SHOWN]
