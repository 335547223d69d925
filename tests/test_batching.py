"""Batches within a budget: what counts as a full memory, and that a failed batch is let go before the next try."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from infer import batching
from infer.batching import in_batches, is_out_of_memory


def test_a_failed_batch_is_let_go_before_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive_at_release: list[bool] = []
    done: list[int] = []

    def work(rows: np.ndarray) -> None:
        computed = torch.zeros(len(rows))
        held.append(weakref.ref(computed))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        done.extend(rows.tolist())

    monkeypatch.setattr(batching, "release_memory", lambda: alive_at_release.append(held[-1]() is not None))
    assert in_batches(work, np.arange(8), np.full(8, 10), 80) == 20
    assert alive_at_release == [False, False] and done == list(range(8))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_full_memory_is_known_by_what_the_libraries_say(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) is full
