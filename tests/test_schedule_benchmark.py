"""The benchmark of schedules: failures by hand, and a small run of all of it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable

import pytest

from benchmarks import schedule
from benchmarks.schedule_failures import Trouble, simulated
from benchmarks.schedule_studies import SHAPES, Setting, planned, study_of

TROUBLE = Trouble(failures_per_hour=0.01, repair=500, lease=60, save_every=300, load=10)


class Failures(random.Random):
    """Says after how long devices fail, in the order in which they ask; then never."""

    def __init__(self, *after: float) -> None:
        super().__init__(0)
        self._after: Iterable[float] = iter(after)

    def expovariate(self, lambd: float = 1.0) -> float:
        assert lambd == pytest.approx(0.01 / 3600)
        return next(iter(self._after), math.inf)


def test_without_failures_passes_go_longest_first() -> None:
    calm = TROUBLE._replace(failures_per_hour=0.0)
    done = simulated([100, 300, 200], 2, calm)
    assert done == (10 + 200 + 10 + 100, 600 + 3 * 10, 0, 0)


def test_a_failed_device_loses_what_was_not_saved() -> None:
    # 990 seconds done of which 900 are saved; it is back at 1500 and loads again
    done = simulated([3600], 1, TROUBLE, Failures(1000))
    assert done.makespan == 1500 + 10 + 2700
    assert done.lost == 10 + 90
    assert done.worked == 1000 + 2710
    assert done.num_failures == 1


def test_another_device_goes_on_when_the_lease_has_run_out() -> None:
    done = simulated([3600], 2, TROUBLE, Failures(1000))
    assert done.makespan == 1000 + 60 + 10 + 2700


def test_a_device_that_failed_idle_is_not_there_before_its_repair() -> None:
    # device 1 has nothing to do and fails at 900; both are away until 1400
    done = simulated([3600], 2, TROUBLE, Failures(1000, 900))
    assert done.makespan == 1400 + 10 + 2700
    assert done.num_failures == 1


def test_a_failure_while_loading_loses_no_work() -> None:
    done = simulated([3600], 1, TROUBLE, Failures(4))
    assert done.makespan == 504 + 3610
    assert done.lost == 4


def test_memory_limits_the_passes_of_a_card() -> None:
    setting = Setting(SHAPES["8B"], (512,), 20, (1e6,), 1e5, 1e4, has_full=False)
    study = study_of(setting, 1)
    plan = planned(study)
    largest = max(map(len, plan.passes))
    # 18 bytes for each of the 537 million weights of an adapter
    assert largest == setting.shape.room // (18 * 8 * 512 * 4096 * 32)
    assert len(plan.passes) == math.ceil(20 / largest) > 1


def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    schedule.main(["--instances", "12", "--runs", "60", "--devices", "10"])
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert 1 <= summary["makespan_over_bound_median"] <= summary["makespan_over_bound_max"] < 1.5
    rows = summary["with_failures"]
    numbers = [row["num_passes"] for row in rows.values()]
    assert numbers[0] == 10 < numbers[1] < numbers[2] <= 40
    for row in rows.values():
        assert row["makespan_hours"] >= row["makespan_hours_without_failures"]
    assert "| cards | runs | passes | hours | at best | card-hours | at work | disk |" in said.err
