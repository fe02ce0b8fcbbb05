"""Devices: what says that their memory is out."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from rankwise.engine.models.devices import is_out_of_memory, quick_collections


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_is_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


class Cycle:
    """Nobody but the collector frees it."""

    def __init__(self) -> None:
        self.me = self


def test_collections_leave_out_what_was_alive_before_and_nothing_else() -> None:
    assert gc.get_freeze_count() == 0
    before = weakref.ref(Cycle())
    assert before() is not None
    with quick_collections():
        assert gc.get_freeze_count() > 0
        within = weakref.ref(Cycle())
        gc.collect()
        assert within() is None
        assert before() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert before() is None


def test_what_is_frozen_already_stays_so() -> None:
    gc.freeze()
    try:
        with quick_collections():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
