"""Adapters packed into passes, and passes onto equal devices, so that all is done early.

Everything is counted in one unit of work, seconds or scored tokens. What one device does without a
break is a ``Job``. A pass costs something whoever is in it, and the work of its adapters: they
read other rows, so no product of theirs is shared. Fewer passes are less work in all, more of them
end sooner on several devices.

Finding the least makespan is NP-hard. So ``packed`` fills devices first fit, longest first, for
the least time that suffices (MULTIFIT), ``scheduled`` lets each free device take the job with the
most work behind it (list scheduling), and ``lower_bound`` says what no schedule can beat.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

_ROUNDS = 12
"""Halvings of the range of times that may suffice."""

_ROUNDING = 1e-9
"""Of a limit, what sums may be above it by rounding."""


class Job(NamedTuple):
    """What one device does without a break; or an adapter, which is done as a part of a pass.

    Attributes:
        name: of this job alone.
        work: that it is.
        needs: names of the jobs that must end first.
        ahead: of its work, what is done before it waits for them: a pass trains first, and needs
            the base's scores when it is scored itself.
    """

    name: str
    work: float
    needs: tuple[str, ...] = ()
    ahead: float = 0.0


class Slot(NamedTuple):
    """A job, when it is done, and by which of the devices, from 0."""

    job: Job
    device: int
    start: float
    end: float


class Schedule(NamedTuple):
    """What each of some equal devices does when; slots are in the order of their starts."""

    slots: tuple[Slot, ...]
    num_devices: int

    @property
    def makespan(self) -> float:
        """When all is done."""
        return max((slot.end for slot in self.slots), default=0.0)

    @property
    def held(self) -> float:
        """Summed over devices, the time from the start to the end of the last job of each."""
        ends = [0.0] * self.num_devices
        for slot in self.slots:
            ends[slot.device] = max(ends[slot.device], slot.end)
        return sum(ends)


def as_pass(name: str, adapters: Sequence[Job], pass_work: float) -> Job:
    """The job of training adapters together and then scoring them; ``Task`` has its arguments."""
    return Job(
        name,
        work=pass_work + sum(adapter.work for adapter in adapters),
        needs=tuple(dict.fromkeys(need for adapter in adapters for need in adapter.needs)),
        ahead=sum(adapter.ahead for adapter in adapters),
    )


class Task(NamedTuple):
    """What there is to do, before anything is packed.

    Attributes:
        adapters: that may share passes; they may need jobs of ``alone``, and be needed by them.
        alone: jobs that share nothing.
        num_devices: equal ones, at least one.
        pass_work: what a pass costs besides its adapters.
    """

    adapters: Sequence[Job]
    alone: Sequence[Job]
    num_devices: int
    pass_work: float

    def jobs(self, passes: Mapping[str, Sequence[int]]) -> list[Job]:
        """Every job where these passes, by name, have the adapters at these places."""
        name_of = {self.adapters[place].name: name for name in passes for place in passes[name]}

        def renamed(job: Job) -> Job:
            needs = dict.fromkeys(name_of.get(need, need) for need in job.needs)
            return job._replace(needs=tuple(needs))

        together = [
            as_pass(name, [self.adapters[place] for place in places], self.pass_work)
            for name, places in passes.items()
        ]
        return [renamed(job) for job in (*together, *self.alone)]


def packed(task: Task, has_room: Callable[[Sequence[int], int], bool]) -> list[list[int]]:
    """The adapters of each pass, by their places; the longest pass comes first.

    Of the ways that it tries, it takes the one that ``scheduled`` ends first.

    Args:
        task: what there is to do. Jobs that need adapters come when devices are free again, so
            passes are made as if they were not there.
        has_room: whether a pass of some adapters, by their places, has memory for one more.
    """
    adapters = {adapter.name for adapter in task.adapters}
    chains = _Chains((*task.adapters, *task.alone), {})
    alone = [job for job in task.alone if not adapters & chains.before(job.needs)]
    first = task._replace(alone=alone)
    low = high = lower_bound(first)
    found = _filled(first, has_room, high)
    while found is None:
        low, high = high, 2 * high
        found = _filled(first, has_room, high)
    best, least = found, _makespan(task, found)
    for _ in range(_ROUNDS):
        if low == high:
            break
        middle = (low + high) / 2
        found = _filled(first, has_room, middle)
        if found is None:
            low = middle
            continue
        high = middle
        makespan = _makespan(task, found)
        if makespan < least:
            best, least = found, makespan
    return sorted(best, key=lambda each: -sum(task.adapters[place].work for place in each))


def _makespan(task: Task, passes: Sequence[Sequence[int]]) -> float:
    named = {f"pass {number}": places for number, places in enumerate(passes)}
    return scheduled(task.jobs(named), task.num_devices).makespan


class _Device:
    """A device that is being filled up to a limit."""

    def __init__(self) -> None:
        self.load = 0.0
        self.passes: list[list[int]] = []


def _filled(
    task: Task, has_room: Callable[[Sequence[int], int], bool], limit: float
) -> list[list[int]] | None:
    """The passes that first fit comes to, longest first; None: not all is done by the limit."""
    limit *= 1 + _ROUNDING
    items = [(job.work, -1) for job in task.alone]
    items += [(adapter.work, place) for place, adapter in enumerate(task.adapters)]
    items.sort(key=lambda item: -item[0])
    shortest = items[-1][0] if items else 0.0
    devices = [_Device() for _ in range(task.num_devices)]
    full = 0  # the first devices have no room for anything
    for work, place in items:
        while full < len(devices) and devices[full].load + shortest > limit:
            full += 1
        for device in devices[full:]:
            if device.load + work > limit:
                continue
            if place < 0:
                device.load += work
                break
            if device.passes and has_room(device.passes[-1], place):
                device.passes[-1].append(place)
                device.load += work
                break
            if device.load + work + task.pass_work <= limit:
                device.passes.append([place])
                device.load += work + task.pass_work
                break
        else:
            return None
    return [sorted(places) for device in devices for places in device.passes]


def scheduled(jobs: Sequence[Job], num_devices: int) -> Schedule:
    """When each job is done if a free device takes the one with the most work behind it.

    A job is taken as soon as it will not have to wait for what it needs.

    Args:
        jobs: whose needs are all among them, without a circle.
        num_devices: at least one.
    """
    chains = _Chains(jobs, {})
    places = {job.name: place for place, job in enumerate(jobs)}
    waits_for = {job.name: len(job.needs) for job in jobs}
    ends: dict[str, float] = {}
    later = [(0.0, places[job.name]) for job in jobs if not job.needs]  # heaps, as are the others
    ready: list[tuple[float, int]] = []
    free = [(0.0, device) for device in range(num_devices)]
    slots: list[Slot] = []
    while later or ready:
        now, device = heapq.heappop(free)
        while later and later[0][0] <= now:
            _, place = heapq.heappop(later)
            job = jobs[place]
            heapq.heappush(ready, (-job.work - chains.behind[job.name], place))
        if not ready:
            heapq.heappush(free, (later[0][0], device))
            continue
        job = jobs[heapq.heappop(ready)[1]]
        slots.append(Slot(job, device, now, now + job.work))
        heapq.heappush(free, (slots[-1].end, device))
        ends[job.name] = slots[-1].end
        for other in chains.needed_by[job.name]:
            waits_for[other.name] -= 1
            if not waits_for[other.name]:
                start = max(ends[need] for need in other.needs) - other.ahead
                heapq.heappush(later, (max(start, 0.0), places[other.name]))
    return Schedule(tuple(slots), num_devices)


class _Chains:
    """What of some jobs comes one after the other, however many devices there are.

    ``extra``: what a job costs besides its work, by name.
    """

    def __init__(self, jobs: Sequence[Job], extra: Mapping[str, float]) -> None:
        self._extra, self._jobs = extra, {job.name: job for job in jobs}

    @cached_property
    def needed_by(self) -> dict[str, list[Job]]:
        """The jobs that need each, by name."""
        needed_by: dict[str, list[Job]] = {name: [] for name in self._jobs}
        for job in self._jobs.values():
            for need in job.needs:
                needed_by[need].append(job)
        return needed_by

    @cached_property
    def order(self) -> list[Job]:
        """Each job after what it needs."""
        waits_for = {name: len(job.needs) for name, job in self._jobs.items()}
        order = [job for job in self._jobs.values() if not job.needs]
        for job in order:
            for other in self.needed_by[job.name]:
                waits_for[other.name] -= 1
                if not waits_for[other.name]:
                    order.append(other)
        return order

    def rest(self, job: Job) -> float:
        """What of a job comes after those that it needs."""
        return job.work - job.ahead + self._extra.get(job.name, 0.0)

    @cached_property
    def ends(self) -> dict[str, float]:
        """The earliest end of each job, by name."""
        ends: dict[str, float] = {}
        for job in self.order:
            needed = max((ends[need] for need in job.needs), default=0.0)
            ends[job.name] = max(needed, job.ahead) + self.rest(job)
        return ends

    @cached_property
    def behind(self) -> dict[str, float]:
        """The longest chain that can begin only when a job has ended, by name."""
        behind = dict.fromkeys(self._jobs, 0.0)
        for job in reversed(self.order):
            for need in job.needs:
                behind[need] = max(behind[need], self.rest(job) + behind[job.name])
        return behind

    def before(self, needs: Iterable[str]) -> set[str]:
        """Those jobs and all that must end before them."""
        found, left = set[str](), list(needs)
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self._jobs[name].needs
        return found


def lower_bound(task: Task) -> float:
    """A time before which no schedule is done, whatever shares a pass and whoever does what.

    It is the largest of these, for D devices, adapters of works a, jobs of works f, and a pass that
    costs c besides its adapters:

    - The least over P, the number of passes, of max((sum f + sum a + P c) / D, sum a / P + c):
      devices share all work at best evenly, and the longest pass is no shorter than the average.
    - The longest chain of jobs that need each other; a chain through an adapter has c.
    - The first of these over what must end before some job, and then the longest chain from it.
    - Of the k D + 1 longest jobs and adapters, some device does k + 1 or more: at least the
      shortest k + 1 of them, and c where an adapter must be among those.

    Memory is left out: where it limits passes, the bound holds all the more.
    """
    jobs = (*task.adapters, *task.alone)
    adapters = {adapter.name for adapter in task.adapters}
    chains = _Chains(jobs, dict.fromkeys(adapters, task.pass_work))
    after: dict[tuple[str, ...], float] = {}
    for job in jobs:
        if job.needs:
            chain = chains.rest(job) + chains.behind[job.name]
            after[job.needs] = max(after.get(job.needs, 0.0), chain)
    by_name = {job.name: job for job in jobs}

    def shared_out(names: Iterable[str]) -> float:
        return _shared_out([by_name[name] for name in names], adapters, task)

    return max(
        shared_out(by_name),
        max((end + chains.behind[name] for name, end in chains.ends.items()), default=0.0),
        max(
            (shared_out(chains.before(needs)) + rest for needs, rest in after.items()), default=0.0
        ),
        _of_longest(task),
    )


def _shared_out(jobs: Sequence[Job], adapters: set[str], task: Task) -> float:
    """The first part of ``lower_bound``."""
    shared = [job.work for job in jobs if job.name in adapters]
    in_passes, devices, cost = sum(shared), task.num_devices, task.pass_work
    alone = sum(job.work for job in jobs if job.name not in adapters)
    if not shared:
        return alone / devices
    # with more passes than devices the first term only grows, and is the larger one
    return min(
        max((alone + in_passes + number * cost) / devices, in_passes / number + cost)
        for number in range(1, min(len(shared), devices) + 1)
    )


def _of_longest(task: Task) -> float:
    """The last part of ``lower_bound``."""
    items = [(job.work, False) for job in task.alone]
    items += [(adapter.work, True) for adapter in task.adapters]
    items.sort(reverse=True)
    sums = [0.0, *accumulate(work for work, _ in items)]
    num_alone = [0, *accumulate(not is_adapter for _, is_adapter in items)]
    found = 0.0
    for more in range(1, (len(items) - 1) // task.num_devices + 1):
        size = more * task.num_devices + 1
        has_pass = num_alone[size] <= more
        found = max(found, sums[size] - sums[size - more - 1] + task.pass_work * has_pass)
    return found
