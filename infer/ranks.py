"""One job on several processes: each takes a share of the rows, everyone gets the whole result, in order.

Works without a launcher too. Knows arrays, not what they mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def is_main() -> bool:
    """True in the one process that writes files and speaks."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def wait_for_all() -> None:
    """Return when every process has come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def over_ranks(order: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """work(rows) -> (len(rows), L) on every process's share of `order`; the whole (N, L), row i for i, everywhere.

    order: (N,) a permutation of the rows. Shares are dealt like cards, so that sorted lengths stay balanced.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    mine = order[state.process_index :: state.num_processes]
    found = work(mine)
    parts = gather_object([(mine, found)]) if state.num_processes > 1 else [(mine, found)]
    whole = np.empty((len(order), *found.shape[1:]), dtype=found.dtype)
    for rows, values in parts:
        whole[rows] = values
    return whole
