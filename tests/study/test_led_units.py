"""Units that one process has begun and others do: in the right order, and the same records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import ModelError, StageFailedError, StudyMovedError, WorkerLostError
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.growing import do_unit_of, run_to_verdict
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.run import do_unit, run_study
from rankwise.study.shift import Shift
from rankwise.study.stages import stages
from rankwise.study.stopping import StopSignals
from rankwise.study.units import Unit, units, work_from
from rankwise.study.work.worker import Worker
from tests.support.observers import Recorder, Silent
from tests.support.small_studies import SEARCHED, write_study
from tests.support.study_contents import comparable

SETTINGS = """
train:
  task: colours
  epochs: 1
  max_examples: 16
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
methods: {lora: {ranks: [2, 4]}}
seeds: [0, 1]
evaluation: {out_of_domain: [], held_out_text: [], limit: 4}
analysis: {null_draws: 1, head_prompts: 4}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> StudyPlan:
    """Two ranks of two seeds in one pass, and two full fine-tunings."""
    file = write_study(tmp_path_factory.mktemp("led"), tiny_model_folder, SETTINGS)
    return plan_study(load_config(file), num_workers=2)


class Led:
    """An executor that has one unit after the other done, by a worker that follows."""

    def __init__(self, do: Callable[[str], None]) -> None:
        self._do = do
        self.kinds: list[str] = []

    def __call__(self, shift: Shift, signals: StopSignals) -> None:
        while waiting := shift.waiting():
            assert len(self.kinds) < 100, "it never ends"
            unit = next(each.unit for each in waiting if not each.until)
            self.kinds.append(unit.kind)
            self.take(shift, unit)

    def take(self, shift: Shift, unit: Unit) -> None:
        self._do(unit.id)


class Backwards(Led):
    """The last unit that could be begun comes first."""

    def __call__(self, shift: Shift, signals: StopSignals) -> None:
        while waiting := shift.waiting():
            assert len(self.kinds) < 100, "it never ends"
            unit = [each.unit for each in waiting if not each.until][-1]
            self.kinds.append(unit.kind)
            self.take(shift, unit)


def by(plan: StudyPlan, root: Path) -> Callable[[str], None]:
    """Does a unit as a worker that is led."""
    return lambda unit: do_unit(plan, StudyFolder(root), Silent(), unit, is_led=True)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory, plan: StudyPlan) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("one") / "study"
    run_study(plan, StudyFolder(root), Silent())
    return comparable(root)


def test_they_leave_the_records_of_one_process(
    plan: StudyPlan, of_one: dict[str, Any], tmp_path: Path
) -> None:
    root, observer = tmp_path / "study", Recorder()
    led = Led(by(plan, root))
    run_study(plan, StudyFolder(root), observer, executor=led)
    assert comparable(root) == of_one
    assert observer.stages == []  # who leads does nothing itself
    assert observer.done == 0  # and what others did is not left out
    assert led.kinds == [
        *("base", "pass", "full", "full", "gauges", "divergence", "divergence"),
        *("heads", "spectra"),
    ]
    assert not (root / ".workers").exists()


def test_who_leads_needs_no_card(plan: StudyPlan, tmp_path: Path) -> None:
    """It plans for the cluster's; where there is none here, nothing may ask it."""
    folder, wide = StudyFolder(tmp_path / "study"), replace(plan, device=torch.device("cuda"))

    def gives_up(shift: Shift, _: StopSignals) -> None:
        for waiting in shift.waiting():
            shift.give_up(waiting.unit, WorkerLostError("planted. Run again."))

    with pytest.raises(StageFailedError, match="planted"):
        run_study(wide, folder, Silent(), executor=gives_up)


def test_what_waits_for_the_base_is_asked_for_again(
    plan: StudyPlan, of_one: dict[str, Any], tmp_path: Path
) -> None:
    """A pass is trained before the base is scored, and comes again to be scored."""
    root = tmp_path / "study"
    led = Backwards(by(plan, root))
    run_study(plan, StudyFolder(root), Silent(), executor=led)
    assert comparable(root) == of_one
    assert led.kinds == [
        *("full", "full", "pass"),  # which leaves their scoring
        *("spectra", "heads", "divergence", "divergence", "gauges"),  # each begun once
        *("base", "full", "full", "pass"),
    ]


def test_a_unit_that_is_lost_is_recorded_and_the_rest_goes_on(
    plan: StudyPlan, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")

    class Loses(Led):
        def take(self, shift: Shift, unit: Unit) -> None:
            if unit.kind == "full" and self.kinds.count("full") == 1:
                shift.give_up(unit, WorkerLostError("planted. Run again."))
            else:
                super().take(shift, unit)

    observer = Recorder()
    outcome = run_study(plan, folder, observer, executor=Loses(by(plan, folder.root)))
    assert [(each.error, each.kind) for each in outcome.failures] == [
        ("WorkerLostError", "training")
    ]
    assert len(outcome.results.runs) == 5  # of six
    assert observer.done > 0  # what needed it is told as left out
    again = run_study(plan, folder, Silent())
    assert again.failures == ()


def test_what_fails_in_a_worker_is_not_begun_again(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, do = StudyFolder(tmp_path / "study"), Worker.do

    def fails(worker: Worker, stage: Any, models: Any) -> None:
        if stage.kind == "heads":
            raise ModelError("planted. Take it away.")
        do(worker, stage, models)

    monkeypatch.setattr(Worker, "do", fails)
    led = Led(by(plan, folder.root))
    outcome = run_study(plan, folder, Silent(), executor=led)
    assert [failure.kind for failure in outcome.failures] == ["heads"]
    assert led.kinds.count("heads") == 1


def test_nobody_follows_a_process_that_has_gone(plan: StudyPlan, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.write(folder.study_file, plan.record)
    base, *_ = units(stages(plan.record))
    with pytest.raises(StudyMovedError, match="has gone"):
        do_unit(plan, folder, Silent(), base.id, is_led=True)
    assert not (folder.root / "base").exists()
    assert not (folder.root / ".workers").exists()


@pytest.mark.parametrize("kind", ["search", "growing"])
def test_a_study_that_plans_more_is_led_through_all_of_it(
    kind: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Also where the search of one task is ahead of the other's: the plan is the leader's."""
    if kind == "search":
        settings = SEARCHED.replace("search: {", "search: {policy: narrow, ")
        settings = settings.replace("task: colours", "task: [colours, hues]")
        settings = settings.replace("full: 1e-3}", "full: 1e-3, tune: true}")
        settings += "methods: {lora: {ranks: [2, 4]}, full: null}\n"
    else:
        settings = SETTINGS.replace("seeds: [0, 1]\n", "") + "search: {until: decided}\n"
        settings += "deploy: [merged-bf16]\n"
    config = load_config(write_study(tmp_path, tiny_model_folder, settings))

    def run(root: Path, is_led: bool) -> dict[str, Any]:
        folder = StudyFolder(root)

        def plan(grown: StudyConfig) -> StudyPlan:
            return plan_study(grown, folder=folder)

        def do(unit: str) -> None:
            do_unit_of(config, plan, StudyFolder(root), Silent(), unit, is_led=True)

        led = Led(do) if is_led else None
        run_to_verdict(config, plan, folder, Silent(), executor=led)
        return comparable(root)

    one, led = run(tmp_path / "one", is_led=False), run(tmp_path / "led", is_led=True)
    assert one.keys() == led.keys()
    assert one["recommendation.json"] == led["recommendation.json"]
    names = [[run["name"] for run in each["study.json"]["runs"]] for each in (one, led)]
    assert names[0] == names[1]


def test_the_longest_chain_comes_first(plan: StudyPlan) -> None:
    all_units = units(stages(plan.record))
    chains = work_from(all_units)
    base, *others = all_units
    passes = [unit for unit in others if unit.kind in ("pass", "full")]
    ends = [unit for unit in others if unit not in passes]
    assert all(chains[unit.id] == unit.work for unit in ends)
    for unit in passes:
        own = {stage.id for stage in unit.stages}
        after = [each for each in ends if any(own & {*stage.needs} for stage in each.stages)]
        assert chains[unit.id] == unit.work + max(each.work for each in after)
    assert chains[base.id] == base.work + max(chains[unit.id] for unit in passes)
    # what is needed besides counts as done
    assert work_from(ends) == {unit.id: unit.work for unit in ends}
