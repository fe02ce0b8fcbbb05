"""Many devices that fail: what of the work of passes is lost, and when all is done.

Discrete events. A device that works fails at random times; it is back after a while, empty. What
its pass had saved is kept; the rest is lost. Its lease runs out, and the next free device goes on
with it, which loads the base again. A device that is free takes the pass with the most work left.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

HOUR = 3600.0


class Trouble(NamedTuple):
    """How devices fail, and what is done about it; seconds.

    Attributes:
        failures_per_hour: of a device, at work or not; after exponential times.
        repair: until a failed device is back.
        lease: until others may take its pass.
        save_every: between saved states of a pass, as in ``train.save_every``.
        load: of a pass before it goes on.
    """

    failures_per_hour: float
    repair: float
    lease: float
    save_every: float
    load: float


class Outcome(NamedTuple):
    """What came of it; seconds.

    Attributes:
        makespan: until all is done.
        worked: by all devices together.
        lost: of these, what was done since the last saved state, and the loading before it.
        num_failures: of devices that were at work.
    """

    makespan: float
    worked: float
    lost: float
    num_failures: int


def simulated(
    passes: Sequence[float], num_devices: int, trouble: Trouble, rng: random.Random | None = None
) -> Outcome:
    """Do passes of so many seconds, loading not counted, on devices that fail."""
    return _Simulation(passes, num_devices, trouble, rng or random.Random(0)).run()


class _Simulation:
    def __init__(
        self, passes: Sequence[float], num_devices: int, trouble: Trouble, rng: random.Random
    ) -> None:
        self._left, self._trouble, self._rng = list(passes), trouble, rng
        self._waiting = [(-work, number) for number, work in enumerate(passes)]
        self._free = list(range(num_devices))
        self._fails_at = [self._next_failure(0.0) for _ in self._free]
        # (when, what, device, pass): the pass may be taken, or the device is free
        self._events: list[tuple[float, str, int, int]] = []
        self._worked = self._lost = 0.0
        self._num_failures = 0
        heapq.heapify(self._waiting)

    def run(self) -> Outcome:
        now, num_left = 0.0, len(self._left)
        while num_left:
            while self._waiting and self._free:
                self._begin(heapq.heappop(self._free), now)
            now, what, device, number = heapq.heappop(self._events)
            if what == "expired":
                heapq.heappush(self._waiting, (-self._left[number], number))
            else:
                heapq.heappush(self._free, device)
                num_left -= what == "done"
        return Outcome(now, self._worked, self._lost, self._num_failures)

    def _begin(self, device: int, now: float) -> None:
        """A free device takes the longest pass, unless it has failed in the meantime."""
        trouble = self._trouble
        while self._fails_at[device] < now:
            back = self._fails_at[device] + trouble.repair
            self._fails_at[device] = self._next_failure(back)
            if back > now:
                heapq.heappush(self._events, (back, "back", device, -1))
                return
        _, number = heapq.heappop(self._waiting)
        end, fails_at = now + trouble.load + self._left[number], self._fails_at[device]
        if end <= fails_at:
            heapq.heappush(self._events, (end, "done", device, number))
            self._worked += end - now
            return
        done = max(fails_at - now - trouble.load, 0.0)
        saved = done // trouble.save_every * trouble.save_every
        self._left[number] -= saved
        self._worked += fails_at - now
        self._lost += fails_at - now - saved
        self._num_failures += 1
        heapq.heappush(self._events, (fails_at + trouble.lease, "expired", device, number))
        heapq.heappush(self._events, (fails_at + trouble.repair, "back", device, -1))
        self._fails_at[device] = self._next_failure(fails_at + trouble.repair)

    def _next_failure(self, now: float) -> float:
        rate = self._trouble.failures_per_hour / HOUR
        return now + self._rng.expovariate(rate) if rate else math.inf
