"""Units: every stage in one of them, the same in every process, and what they need."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankwise.engine.models.devices import Machine
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.agenda import Unit, longest_chains, owners, units
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.stages.graph import stages
from tests.support.command_line import rankwise
from tests.support.small_studies import write_study

SETTINGS = """
train: {task: [colours, sums], epochs: 1, max_examples: 8, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation: {held_out_text: [], limit: 4}
analysis: {null_draws: 1, head_prompts: 4, divergence: true}
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
    described = all_units[0].described(owners(all_units), StudyFolder(tmp_path))
    assert described["is_finished"] is False


def planted(name: str, work: float, *needs: str) -> Unit:
    """A unit of one stage."""
    stage: Any = SimpleNamespace(id=name, work=work, needs=needs)
    return Unit(name, (stage,))


def test_the_longest_chain_of_work_behind_each_is_counted() -> None:
    all_units = [
        planted("base", 3),
        planted("pass", 4, "base"),
        planted("full", 9, "base"),
        planted("divergence", 1, "pass", "full"),
        planted("imported", 5),
    ]

    def chains(of: list[Unit]) -> dict[str, float]:
        found = longest_chains(of)
        return {unit.kind: found[unit.id] for unit in of}

    after_base = {"pass": 4 + 1, "full": 9 + 1, "divergence": 1, "imported": 5}
    assert chains(all_units) == {"base": 3 + 9 + 1, **after_base}
    assert chains(all_units[1:]) == after_base  # what is done is not waited for


def test_several_devices_have_the_same_runs_in_more_passes(file: Path) -> None:
    machine, config = Machine(torch.device("cuda"), 80 * 10**9), load_config(file)
    one, three = (plan_study(config, machine=machine, num_workers=n).record for n in (1, 3))
    changed = {"passes": one.passes, "provenance": one.provenance}
    assert three.model_copy(update=changed) == one  # runs, fingerprints and everything else
    names = [sorted(name for each in study.passes for name in each.runs) for study in (one, three)]
    assert names[0] == names[1]
    assert len(three.passes) > len(one.passes)
