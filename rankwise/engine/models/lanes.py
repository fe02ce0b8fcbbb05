"""Lanes: parts of a step side by side on the cores of a CPU, each on a thread of its own.

The products of a small model, or of few rows, are too small for several threads: at the end of
each one they wait for the slowest. A lane takes its part through the whole model on one core.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import torch
from torch import nn

P = TypeVar("P")
A = TypeVar("A")
M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")

_MOST_LANES = 8
"""More cores are shared out over these: a lane's part of a step gets small. Measured on two."""


def num_lanes(device: torch.device) -> int:
    """Lanes of this process: as many as it has threads, on a CPU; a card is one."""
    return min(torch.get_num_threads(), _MOST_LANES) if device.type == "cpu" else 1


def lanes_of(model: nn.Module) -> int:
    """Lanes that can read a model: one where weights are quantised, stay in files, or on a card."""
    weights = [*model.parameters()]
    plain = all(x.device.type == "cpu" and x.is_floating_point() for x in weights)
    return num_lanes(weights[0].device) if plain else 1


def lanes_within(max_tokens: int, longest: int, most: int) -> int:
    """Lanes among which ``max_tokens`` are shared out so that each can read the longest text."""
    return max(1, min(most, max_tokens // longest))


class Lanes(NamedTuple):
    """Threads that compute side by side; a single lane is the calling thread itself."""

    pool: ThreadPoolExecutor | None

    def map(
        self,
        work: Callable[[P, Callable[[int], None]], A],
        parts: Sequence[P],
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[A]:
        """What ``work`` makes of each part, in their order, whichever ends first.

        Args:
            work: of one part; what it tells is heard by ``advance``, on the calling thread.
            parts: of any number.
            advance: of the progress of all of them.
        """
        if self.pool is None or len(parts) == 1:  # which has all threads of the process then
            return [work(part, advance) for part in parts]
        told: SimpleQueue[int | None] = SimpleQueue()
        futures = [self.pool.submit(work, part, told.put) for part in parts]
        for future in futures:
            future.add_done_callback(lambda _: told.put(None))
        running = len(futures)
        while running:
            count = told.get()
            if count is None:
                running -= 1
            else:
                advance(count)
        return [future.result() for future in futures]


@contextlib.contextmanager
def opened(count: int) -> Generator[Lanes]:
    """Within the block there are ``count`` lanes, which share the threads of the process."""
    if count == 1:
        yield Lanes(None)
        return
    num_threads = torch.get_num_threads()
    each = max(1, num_threads // count)
    # the number of threads is set for the thread that sets it
    pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (each,))
    try:
        yield Lanes(pool)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


def twin(model: M, bank: B) -> tuple[M, B]:
    """Other modules over the same frozen weights, for another thread.

    Modules ask a bank which rows belong to which adapter; the twin's ask a bank of their own.

    Args:
        model: no weight of which is trained.
        bank: that its modules ask.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy((model, bank), shared)
