"""Passes and schedules, against every way that there is on small instances."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from rankwise.study.planning.schedule import (
    Job,
    Schedule,
    Task,
    lower_bound,
    packed,
    scheduled,
)

HasRoom = Callable[[Sequence[int], int], bool]


def anything(_group: Sequence[int], _place: int) -> bool:
    return True


def at_most(number: int) -> HasRoom:
    return lambda group, _: len(group) < number


def adapters(*works: float, needs: tuple[str, ...] = (), trained: float = 0.0) -> list[Job]:
    """``trained``: the share of their work that is done before what they need has ended."""
    return [Job(f"a{place}", work, needs, trained * work) for place, work in enumerate(works)]


def as_scheduled(task: Task, has_room: HasRoom = anything) -> Schedule:
    passes = packed(task, has_room)
    places = sorted(place for each in passes for place in each)
    assert places == list(range(len(task.adapters)))
    for each in passes:
        assert all(has_room(each[:end], each[end]) for end in range(1, len(each)))
    named = {f"pass {number}": each for number, each in enumerate(passes)}
    made = scheduled(task.jobs(named), task.num_devices)
    check(made)
    return made


def check(made: Schedule) -> None:
    """No device does two jobs at once, and none goes on before what it needs has ended."""
    ends = {slot.job.name: slot.end for slot in made.slots}
    for slot in made.slots:
        assert slot.end == pytest.approx(slot.start + slot.job.work)
        for need in slot.job.needs:
            assert ends[need] <= slot.start + slot.job.ahead + 1e-9
    for one, other in itertools.combinations(made.slots, 2):
        if one.device == other.device:
            assert one.end <= other.start + 1e-9 or other.end <= one.start + 1e-9


def partitions(places: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to part some places into groups."""
    if not places:
        yield []
        return
    first, *rest = places
    for parts in partitions(rest):
        yield [[first], *parts]
        for number, part in enumerate(parts):
            yield [*parts[:number], [first, *part], *parts[number + 1 :]]


def least_makespan(task: Task, has_room: HasRoom) -> float:
    """The optimum: every grouping, and every order in which jobs are begun as early as can be."""
    least = float("inf")
    for groups in partitions(range(len(task.adapters))):
        if any(
            not has_room(each[:end], each[end]) for each in groups for end in range(1, len(each))
        ):
            continue
        jobs = task.jobs({f"pass {number}": each for number, each in enumerate(groups)})
        for order in itertools.permutations(jobs):
            least = min(least, serial(order, task.num_devices))
    return least


def serial(order: Sequence[Job], num_devices: int) -> float:
    free, ends = [0.0] * num_devices, dict[str, float]()
    for job in order:
        if not ends.keys() >= set(job.needs):
            return float("inf")
        now = min(free)
        begins = max(now, max((ends[need] for need in job.needs), default=0.0) - job.ahead)
        ends[job.name] = free[free.index(now)] = begins + job.work
    return max(free)


def test_one_device_has_one_pass() -> None:
    task = Task(adapters(3, 1, 2), [Job("full", 4)], 1, pass_work=1)
    assert packed(task, anything) == [[0, 1, 2]]
    assert as_scheduled(task).makespan == lower_bound(task) == 3 + 1 + 2 + 1 + 4


def test_passes_are_as_even_as_can_be() -> None:
    task = Task(adapters(4, 3, 2, 1), [], 2, pass_work=1)
    assert packed(task, anything) == [[0, 3], [1, 2]]
    assert as_scheduled(task).makespan == lower_bound(task) == (10 + 2 * 1) / 2


def test_a_costly_pass_is_shared_though_devices_idle() -> None:
    task = Task(adapters(*[1.0] * 4), [Job("full", 14)], 4, pass_work=10)
    assert packed(task, anything) == [[0, 1, 2, 3]]  # done with the full one, and at no more cost
    made = as_scheduled(task)
    assert made.makespan == lower_bound(task) == 14
    assert made.held == 14 + 14


def test_passes_fill_what_others_leave() -> None:
    task = Task(adapters(*[1.0] * 6), [Job("full", 4), Job("half", 2)], 2, pass_work=0)
    made = as_scheduled(task)
    assert made.makespan == lower_bound(task) == 6


def test_memory_makes_more_passes() -> None:
    task = Task(adapters(1, 1, 1, 1, 1), [], 1, pass_work=1)
    assert sorted(map(len, packed(task, at_most(2)))) == [1, 2, 2]
    assert packed(task, lambda *_: False) == [[0], [1], [2], [3], [4]]


def test_a_pass_trains_while_the_base_is_scored() -> None:
    base = Job("base", 3)
    task = Task(adapters(4, 4, needs=("base",), trained=0.5), [base], 3, pass_work=0)
    made = as_scheduled(task)
    # 2 of training, then 1 of waiting unless it begins at 1; and 2 of scoring
    assert made.makespan == lower_bound(task) == 3 + 2
    alone = scheduled([base, Job("pass", 4, ("base",), 0.0)], 3)
    assert alone.makespan == 3 + 4


def test_what_needs_all_adapters_comes_last_and_counts_behind_them() -> None:
    heads = Job("heads", 5, ("a0", "a1"))
    task = Task(adapters(3, 1), [heads], 2, pass_work=1)
    made = as_scheduled(task)
    assert made.slots[-1].job.name == "heads"
    assert made.slots[-1].job.needs == ("pass 0", "pass 1")
    assert made.makespan == lower_bound(task) == 3 + 1 + 5


@pytest.mark.parametrize(
    ("works", "alone", "num_devices", "pass_work", "bound"),
    [
        # three of 4 and more for two devices: one has two
        ([], [5, 5, 4], 2, 1, 9),
        # of seven jobs of 1 for two devices one has four
        ([], [1] * 7, 2, 1, 4),
        # two of three adapters are done by one device, in a pass at least
        ([5, 5, 4], [], 2, 1, 10),
        # one pass of both costs 21, two on a device each 11
        ([10, 10], [], 2, 1, 11),
        # the least work is that of one pass, and then it is the longest
        ([1, 1], [], 2, 100, 101),
        ([], [], 3, 1, 0),
    ],
)
def test_bounds_by_hand(
    works: list[float], alone: list[float], num_devices: int, pass_work: float, bound: float
) -> None:
    jobs = [Job(f"f{place}", work) for place, work in enumerate(alone)]
    assert lower_bound(Task(adapters(*works), jobs, num_devices, pass_work)) == bound


def random_task(rng: random.Random) -> Task:
    def work() -> float:
        return rng.choice([1, 2, 3, 5, 8]) * rng.uniform(0.8, 1.2)

    base = [Job("base", work())] if rng.random() < 0.7 else []
    needs = tuple(job.name for job in base)
    tuned = adapters(*(work() for _ in range(rng.randint(1, 4))), needs=needs, trained=rng.random())
    others = [Job(f"f{place}", work(), needs) for place in range(rng.randint(0, 2))]
    some = tuple(job.name for job in rng.sample(tuned, rng.randint(1, len(tuned))))
    last = [Job("heads", work(), some)] if rng.random() < 0.5 else []
    return Task(tuned, [*base, *others, *last], rng.randint(1, 3), rng.choice([0.0, 0.5, 4.0]))


def test_the_bound_is_below_every_schedule_and_ours_is_not_far_above() -> None:
    rng = random.Random(5)
    over_optimum, below_optimum = [], []
    for _ in range(60):
        task, has_room = random_task(rng), at_most(rng.randint(1, 4))
        best = least_makespan(task, has_room)
        made = as_scheduled(task, has_room).makespan
        assert lower_bound(task) <= best * (1 + 1e-9)
        assert best <= made * (1 + 1e-9)
        over_optimum.append(made / best)
        below_optimum.append(lower_bound(task) / best)
    assert max(over_optimum) < 1.34
    assert sum(ratio < 1 + 1e-9 for ratio in over_optimum) > 40
    assert sum(ratio > 1 - 1e-9 for ratio in below_optimum) > 30


def test_large_instances_come_near_the_bound() -> None:
    rng = random.Random(2)
    for num_devices in (1, 8, 64):
        works = [rng.lognormvariate(0, 1) for _ in range(400)]
        base, heads = Job("base", 2.0), Job("heads", 1.0, ("a0", "a7"))
        full = [Job(f"f{place}", 6.0, ("base",), 5.0) for place in range(5)]
        tuned = adapters(*works, needs=("base",), trained=0.6)
        task = Task(tuned, [base, *full, heads], num_devices, 0.3)
        made = as_scheduled(task, at_most(40))
        assert made.makespan <= 1.05 * lower_bound(task)
