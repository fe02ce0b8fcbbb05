"""Units: every stage in one of them, the same in every process, and what they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.stages import stages
from rankwise.study.units import owners, units
from tests.support.command_line import rankwise
from tests.support.small_studies import write_study

SETTINGS = """
train: {task: [colours, sums], epochs: 1, max_examples: 8, precision: float32}
methods: {lora: {ranks: [2, 4]}}
evaluation: {held_out_text: [], limit: 4}
analysis: {null_draws: 1, head_prompts: 4}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("units"), tiny_model_folder, SETTINGS)


@pytest.fixture(scope="module")
def plan(file: Path) -> StudyPlan:
    return plan_study(load_config(file))


def test_each_stage_is_in_one_unit_in_its_order(plan: StudyPlan) -> None:
    graph = stages(plan.record)
    assert tuple(stage for unit in units(graph) for stage in unit.stages) == graph
    kinds = [unit.kind for unit in units(graph)]
    assert kinds == [
        *("base", "pass", "full", "full", "gauges", "gauges", "divergence", "divergence"),
        *("heads", "heads", "spectra", "spectra"),
    ]
    a_pass = units(graph)[1]
    tasks = plan.record.scored_tasks()
    assert [stage.name for stage in a_pass.stages] == ["training", *tasks]
    assert a_pass.work == sum(stage.work for stage in a_pass.stages)
    assert a_pass.memory_bytes == a_pass.stages[0].memory_bytes


def test_the_plan_lists_them_with_what_they_need(file: Path, plan: StudyPlan) -> None:
    graph = stages(plan.record)
    done = rankwise("plan", file, "--json", "--tokens-per-second", 100)
    listed = json.loads(done.stdout)["units"]
    assert [each["id"] for each in listed] == [unit.id for unit in units(graph)]
    base, a_pass, full, other = (each["id"] for each in listed[:4])
    needs = {each["id"]: each["needs"] for each in listed}
    assert needs[base] == []
    assert needs[a_pass] == needs[full] == [base]  # to be scored
    assert {*needs[listed[6]["id"]]} == {a_pass, full}
    assert {*needs[listed[8]["id"]]} == {a_pass, full}
    assert other not in needs[listed[8]["id"]]
    assert listed[1]["seconds"] == pytest.approx(listed[1]["work"] / 250)
    assert not any(each["is_finished"] for each in listed)


def test_their_ids_change_with_what_is_done_alone(file: Path, plan: StudyPlan) -> None:
    def ids(*overrides: str) -> list[str]:
        graph = stages(plan_study(load_config(file, overrides)).record)
        return [unit.id for unit in units(graph)]

    before = [unit.id for unit in units(stages(plan.record))]
    assert ids("recommendation.confidence=0.9") == before
    with_more = ids("methods.lora.ranks=[2,4,8]")
    assert with_more[0] == before[0]
    assert with_more[1] != before[1]
    assert with_more[2:4] == before[2:4]


def test_a_finished_unit_is_known_as_such(plan: StudyPlan, tmp_path: Path) -> None:
    all_units = units(stages(plan.record))
    described = all_units[0].described(owners(all_units), StudyFolder(tmp_path), None)
    assert (described["is_finished"], described["seconds"]) == (False, None)
