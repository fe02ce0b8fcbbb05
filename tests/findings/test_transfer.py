"""The cross-domain matrix: planted changes, domains, groups and alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from scipy import stats

from rankwise.findings.options import option_gains
from rankwise.findings.transfer import Transfer, TransferCell, transfer
from rankwise.records.study import PlannedRun
from tests.planted.grid import Relations, grid_run, planted_grid, relations

TASKS = {
    "sums": relations(["sums"], ["terms", "organs"], ["facts"]),
    "organs": relations(["organs"], ["sums", "terms"], ["facts"]),
}
DOMAINS = {"sums": "mathematics", "terms": "mathematics", "organs": "medicine"}
PLANS = [grid_run(task, rank) for task in TASKS for rank in (16, 8, None)]
CHANGES = {
    ("sums", "sums"): 0.20,
    ("sums", "terms"): 0.05,
    ("sums", "organs"): -0.10,
    ("sums", "facts"): -0.10,
    ("organs", "organs"): 0.10,
    ("organs", "sums"): -0.06,
    ("organs", "terms"): 0.0,
    ("organs", "facts"): 0.0,
}


def planted(
    plans: list[PlannedRun] = PLANS,
    tasks: Mapping[str, Relations] = TASKS,
    changes: Mapping[tuple[str, str], float] = CHANGES,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    domains: Mapping[str, str] = DOMAINS,
) -> Transfer | None:
    results = planted_grid(
        plans,
        tasks,
        lambda plan, task: 0.5 + (changes[plan.train_task, task] if plan else 0.0),
        sizes=400,
        groups=groups,
        domains=domains,
    )
    return transfer(option_gains(results))


def cell(
    found: Transfer | None, train_task: str, *tasks: str, label: str = "rank 8"
) -> TransferCell:
    assert found is not None
    (one,) = (
        each
        for each in found.cells
        if (each.train_task, each.label, each.tasks) == (train_task, label, tasks)
    )
    return one


def test_every_trained_task_stands_against_every_tested_one() -> None:
    found = planted()
    assert found is not None
    assert [row.name for row in found.rows] == ["sums", "organs"]
    assert [column.name for column in found.columns] == ["sums", "terms", "organs", "facts"]
    assert [column.domain for column in found.columns] == [
        "mathematics", "mathematics", "medicine", None,
    ]  # fmt: skip
    assert [option.label for option in found.options] == ["rank 8", "rank 16", "full fine-tuning"]
    assert len(found.cells) == 2 * 4 * 3
    for (train_task, task), change in CHANGES.items():
        one = cell(found, train_task, task)
        assert one.change.estimate == pytest.approx(100 * change)
        assert one.base_score.estimate == pytest.approx(50.0)
        assert one.change.num_examples == 400
        assert one.relation in TASKS[train_task]
        assert task in TASKS[train_task][one.relation]


def test_an_interval_is_that_of_one_paired_difference() -> None:
    one = cell(planted(), "sums", "organs")
    # 40 of 400 items are lost and none is won
    spread = 40 * 100.0**2 * (1 - 40 / 400) / 399
    stderr = math.sqrt((spread + 2 * 100.0**2 / 400) / 400)
    reach = float(stats.t.ppf(0.975, 399)) * stderr
    assert one.change.upper == pytest.approx(-10.0 + reach)
    assert one.change.lower < -10.0 - reach  # the tail of a skewed mean is longer on its side


def test_the_alarm_is_for_large_drops_out_of_domain() -> None:
    found = planted()
    assert cell(found, "sums", "organs").is_alarm  # -10 of 50, at least -6.9
    assert not cell(found, "organs", "sums").is_alarm  # -6 of 50, but at least -3.4 only
    assert not cell(found, "sums", "facts").is_alarm  # as large, and a matter of retention
    assert not cell(found, "sums", "sums").is_alarm


def test_a_domain_mean_leaves_out_what_was_trained_on() -> None:
    found = planted()
    assert found is not None
    means = {
        (each.train_task, each.domain): (each.tasks, each.change.estimate)
        for each in found.domain_means
        if each.label == "rank 8"
    }
    assert means["sums", "mathematics"] == (("terms",), pytest.approx(5.0))
    assert means["organs", "mathematics"] == (("sums", "terms"), pytest.approx(-3.0))
    # medicine has one task, and facts have no domain
    assert set(means) == {("sums", "mathematics"), ("organs", "mathematics")}


def test_many_tasks_of_one_group_are_one_column_unless_they_differ_in_relation() -> None:
    leaves = tuple(f"subject_{number}" for number in range(7))
    tasks = {
        "sums": relations(["sums"], ["organs", *leaves]),
        "organs": relations(["organs", leaves[6]], ["sums", *leaves[:6]]),
    }
    changes = {(train, leaf): 0.0 for train in tasks for leaf in leaves} | CHANGES
    changes["sums", leaves[0]] = 0.06
    found = planted(tasks=tasks, changes=changes, groups={"subjects": leaves})
    assert found is not None
    assert [column.name for column in found.columns] == [
        "sums", "organs", "subjects (6 tasks)", "subject_6",
    ]  # fmt: skip
    whole = cell(found, "sums", *leaves[:6])
    assert whole.change.estimate == pytest.approx(1.0)
    assert whole.change.num_examples == 2400
    assert cell(found, "organs", "subject_6").relation == "in_domain"
    assert cell(found, "sums", "subject_6").relation == "out_of_domain"


def test_one_trained_task_has_one_row_and_none_without_other_domains() -> None:
    tasks = {"sums": TASKS["sums"]}
    plans = [plan for plan in PLANS if plan.train_task == "sums"]
    found = planted(plans, tasks)
    assert found is not None
    assert [row.name for row in found.rows] == ["sums"]
    alone = {"sums": relations(["sums"], retention=["facts"])}
    assert planted(plans, alone) is None


def test_a_trained_group_has_the_domain_of_its_tasks() -> None:
    tasks = {"both": relations(["sums", "terms"], ["organs"])}
    changes = {("both", task): 0.0 for task in ("sums", "terms", "organs")}
    found = planted([grid_run("both", 8)], tasks, changes)
    assert found is not None
    assert found.rows[0].domain == "mathematics"
