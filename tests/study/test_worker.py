"""A worker of a cluster: it is sent the plan, keeps the base, and ends with a card that fails."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.devices import Machine
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.agenda import units
from rankwise.study.executors import local, task
from rankwise.study.executors.desk import Desk, Exchanged, Letter, UnitOffer, Worker, take_in
from rankwise.study.executors.task import Job, packed, work
from rankwise.study.observer import Noted, StageFailed, StageFinished
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.stages.graph import stages

cloudpickle = pytest.importorskip("cloudpickle")
WORKER = Worker("w", os.getpid(), "here", "node", None)


@pytest.fixture
def plan(study_file: Path) -> StudyPlan:
    few = ["evaluation.held_out_text=[]", "methods.full=null", "analysis.heads=false"]
    here = Machine(torch.device("cpu"), 10**11)
    return plan_study(load_config(study_file, [*few, "analysis.spectra=false"]), machine=here)


class Leader:
    """Whoever leads, as far as a worker needs it: offers all units, and takes in what they make."""

    def __init__(self, plan: StudyPlan, root: Path) -> None:
        folder = StudyFolder(root)
        folder.write(folder.study_file, plan.record)
        (root / ".leader").write_text("the leader")
        self.root, self.desk, self.letters = root, Desk(root, "the leader"), list[Letter]()
        self.offers = [
            UnitOffer(unit.id, tuple(run.name for run in unit.runs), (), 1)
            for unit in units(stages(plan.record))
        ]
        self.job = Job(packed(plan, cloudpickle), root, "the leader", root, False, None)

    def __call__(self, name: str, *given: Any) -> Any:
        told: Exchanged = self.desk.exchange(self.offers)
        self.offers = [offer for offer in self.offers if offer.unit not in told.ended]
        for letter in told.letters:
            take_in(self.root, letter)
        self.letters += told.letters
        return getattr(self.desk, name)(*given)

    @property
    def events(self) -> list[Any]:
        return [event for letter in self.letters for event in letter.events]


def test_a_plan_is_sent_without_documents_and_is_the_same(plan: StudyPlan) -> None:
    content = packed(plan, cloudpickle)
    sent: StudyPlan = pickle.loads(content)
    assert sent.record == plan.record
    assert sent.planner is None
    for name, prepared in plan.tasks.items():
        there = sent.tasks[name]
        assert there.requests == prepared.requests
        assert getattr(there.loaded.task, "dataset", None) is None
        assert there.first(2).digest == prepared.first(2).digest  # what judges is there
    assert plan.tasks["colours"].loaded.task.dataset is not None  # and stays here
    assert len(content) < len(cloudpickle.dumps(replace(plan, planner=None)))


def test_a_worker_does_all_units_on_one_base_and_plans_nothing(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, loaded = Leader(plan, tmp_path / "study"), list[Path]()
    load = task_models().load_frozen

    def counted(folder: Path, *given: Any) -> Any:
        loaded.append(folder)
        return load(folder, *given)

    monkeypatch.setattr(task_models(), "load_frozen", counted)
    monkeypatch.setattr("rankwise.study.planning.plan.plan_study", None)
    work(leader.job, WORKER, leader)
    leader("files", [])  # the last letters are taken in
    finished = [event.stage for event in leader.events if isinstance(event, StageFinished)]
    assert not [event for event in leader.events if isinstance(event, StageFailed)]
    assert len(leader.offers) == 0
    assert len(finished) == len(set(finished))
    graph, folder = stages(plan.record), StudyFolder(tmp_path / "study")
    assert {stage.id for stage in graph if stage.is_finished(folder)} == set(finished)
    assert loaded == [plan.base.folder]


def task_models() -> Any:
    import rankwise.study.context

    return rankwise.study.context


class EndedError(BaseException):
    """In place of the end of the process."""


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        ("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("Triton Error [CUDA]: an illegal memory access was encountered", True),
        ("CUDA error: out of memory", False),  # which is a stage that failed
        ("shape '[2]' is invalid for input of size 3", False),  # a defect is told as what it is
    ],
)
def test_a_card_that_fails_ends_the_process(
    plan: StudyPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
    ends: bool,
) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError(message)

    def end(code: int) -> None:
        assert code == 1
        raise EndedError

    monkeypatch.setattr(local, "do_unit", breaks)
    monkeypatch.setattr(task.os, "_exit", end)
    leader = Leader(plan, tmp_path / "study")
    with pytest.raises(EndedError if ends else RuntimeError):
        work(leader.job, WORKER, leader)
    leader("files", [])
    notes = [event.text for event in leader.events if isinstance(event, Noted)]
    assert [message.splitlines()[0] in note for note in notes] == [True] * ends
