"""A part of a benchmark that may not run on this machine: its figures, or why there are none. Knows nothing of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from infer.batching import is_out_of_memory, release_memory

OUT_OF_MEMORY = "out of memory"
SHOWN = 200  # characters of an error; all of it is in the log


def tried(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what `work` gives, None), or (None, why not) with its memory free again.

    A kernel that cannot be made or a package that is not there costs one line of a table and not the whole.
    """
    try:
        return work(), None
    except Exception as error:
        cannot = OUT_OF_MEMORY
        if not is_out_of_memory(error):
            traceback.print_exc()
            cannot = f"{type(error).__name__}: {error}".partition("\n")[0][:SHOWN]
    release_memory()  # behind the handler: the error's traceback holds the tensors
    return None, cannot
