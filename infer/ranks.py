"""One job on several processes: each takes a share of the rows, everyone gets the whole result, in order.

Works without a launcher too. Knows arrays, not what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np

# Longest pause of one process while the main one works alone (features, baselines); the default gives up in minutes.
RANK_WAIT_S = 4 * 3600


class RankError(ValueError):
    """What one process of a launch alone has met: it tells it itself, since the main one knows nothing of it."""


def rank() -> int:
    """This process's number, as the launcher (accelerate, torchrun) set it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_state() -> Any:
    """accelerate's view of the launch; whoever asks first opens the process group, so everyone asks here."""
    import torch
    from accelerate import PartialState

    # Without cpu=True each of several processes on a CPU takes itself for the only one (trap T5).
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=RANK_WAIT_S))


def is_main() -> bool:
    """True in the one process that writes files and speaks."""
    return world_size() == 1 or bool(rank_state().is_main_process)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:  # accelerate takes seconds to import
        rank_state().wait_for_everyone()


def from_main(value: Any) -> Any:
    """The main process's value, in every process: for what is looked up on a disk that others are about to change."""
    if world_size() == 1 or rank_state().num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def any_of(value: bool) -> bool:
    """True in every process where it is True in one; returns when every process has come here."""
    if world_size() == 1 or rank_state().num_processes == 1:
        return value
    from accelerate.utils import gather_object

    return any(gather_object([value]))


def true_for_all(value: bool) -> bool:
    """Whether it is true in every process."""
    from accelerate.utils import gather_object

    return all(gather_object([value])) if rank_state().num_processes > 1 else value


def over_ranks(order: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """work(rows) -> (len(rows), L) on every process's share of `order`; the whole (N, L), row i for i, everywhere.

    order: (N,) a permutation of the rows. Shares are dealt like cards, so that sorted lengths stay balanced.
    """
    from accelerate.utils import gather_object

    state = rank_state()
    mine = order[state.process_index :: state.num_processes]
    found = work(mine)
    parts = gather_object([(mine, found)]) if state.num_processes > 1 else [(mine, found)]
    whole = np.empty((len(order), *found.shape[1:]), dtype=found.dtype)
    for rows, values in parts:
        whole[rows] = values
    return whole
