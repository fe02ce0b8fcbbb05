"""Retention by group and by subject: planted means over tasks and over items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from scipy import stats

from rankwise.findings.options import OptionGains
from rankwise.findings.retention import ALL, RetentionLine, TrainTaskRetention, retention_groups
from tests.planted.grid import grid_run, planted_grid, relations

SIZES = {"sums": 100, "law": 100, "art": 300, "logic": 200}
CHANGES = {"law": [-0.10], "art": [-0.02], "logic": [0.0]}


def planted(
    changes: Mapping[str, Sequence[float]] = CHANGES,
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> TrainTaskRetention | None:
    """Rank 8 and full fine-tuning; one change for each seed, and full's is twice as large."""
    num_seeds = len(next(iter(changes.values())))
    plans = [grid_run("sums", rank, seed=s) for rank in (8, None) for s in range(num_seeds)]
    return retention_groups(
        OptionGains(
            planted_grid(
                plans,
                {"sums": relations(["sums"], retention=list(changes))},
                lambda plan, task: (
                    0.8
                    if plan is None or task == "sums"
                    else 0.8 + changes[task][plan.seed or 0] * (1 if plan.rank else 2)
                ),
                sizes=SIZES,
                groups=groups,
            ).of("sums")
        )
    )


def line(found: TrainTaskRetention | None, name: str) -> RetentionLine:
    assert found is not None
    (one,) = (each for each in (*found.groups, *found.subjects) if each.name == name)
    return one


def item_variance(num_lost: int, size: int) -> float:
    """Of the mean over items in points, where so many are lost and none is won."""
    spread = num_lost * 100.0**2 * (1 - num_lost / size) / (size - 1)
    return (spread + 2 * 100.0**2 / size) / size


def test_a_group_is_the_mean_over_its_tasks_and_beside_it_that_over_items() -> None:
    found = planted(groups={"humanities": ("law", "art", "dance"), "lonely": ("logic",)})
    assert found is not None
    assert [each.name for each in found.groups] == [ALL, "humanities"]
    assert [each.name for each in found.subjects] == ["law", "art", "logic"]
    group = line(found, "humanities")
    assert group.tasks == ("law", "art")
    assert group.base_score.estimate == pytest.approx(80.0)
    assert group.base_score.num_examples == 400
    lora, full = group.changes
    assert (lora.label, full.label) == ("rank 8", "full fine-tuning")
    assert lora.change.estimate == pytest.approx((-10.0 - 2.0) / 2)
    assert lora.by_items is not None
    assert lora.by_items.estimate == pytest.approx((-10.0 * 100 - 2.0 * 300) / 400)
    assert full.change.estimate == pytest.approx(-12.0)
    every = line(found, ALL).changes[0].change
    assert every.estimate == pytest.approx((-10.0 - 2.0 + 0.0) / 3)
    assert (every.num_tasks, every.num_examples) == (3, 600)


def test_the_variances_of_tasks_add() -> None:
    found = planted(groups={"humanities": ("law", "art")})
    parts = [item_variance(10, 100) / 4, item_variance(6, 300) / 4]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 99 + parts[1] ** 2 / 299)
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))
    change = line(found, "humanities").changes[0].change
    assert change.upper == pytest.approx(-6.0 + reach)
    assert change.lower <= -6.0 - reach
    weighted = line(found, "humanities").changes[0].by_items
    assert weighted is not None
    parts = [item_variance(10, 100) / 16, item_variance(6, 300) * 9 / 16]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 99 + parts[1] ** 2 / 299)
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))
    assert weighted.upper == pytest.approx(-4.0 + reach)


def test_what_a_seed_does_to_one_task_it_may_undo_in_another() -> None:
    found = planted({"law": [-0.10, -0.06], "art": [-0.02, -0.06]})
    law, both = line(found, "law").changes[0].change, line(found, ALL).changes[0].change
    assert law.num_seeds == both.num_seeds == 2
    assert law.estimate == pytest.approx(-8.0)
    assert both.estimate == pytest.approx(-6.0)
    # by seed the mean over both tasks is -6 and -6: no variance of the seeds is left
    items = [[100.0] * 6 + [50.0] * 4 + [0.0] * 90, [100.0] * 6 + [50.0] * 12 + [0.0] * 282]
    variance = 0.0
    for values in items:
        mean = sum(values) / len(values)
        spread = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        variance += (spread + 2 * 100.0**2 / len(values)) / len(values) / 4
    assert both.upper - both.estimate == pytest.approx(1.97 * math.sqrt(variance), rel=0.01)
    # for one task alone two seeds say little: their quantile is 12.7
    assert law.upper - law.estimate > 12.0


def test_a_group_of_everything_is_named_once_and_one_task_has_one_mean() -> None:
    found = planted({"law": [-0.1], "art": [0.0]}, groups={"everything": ("law", "art")})
    assert found is not None
    assert [each.name for each in found.groups] == [f"everything, {ALL}"]
    assert all(change.by_items is None for each in found.subjects for change in each.changes)


def test_one_retention_task_is_no_group() -> None:
    assert planted({"law": [-0.1]}) is None
