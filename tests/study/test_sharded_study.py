"""Trainings of a study by two processes: what one process writes, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rankwise.errors import LeaseLostError, ModelError, StorageError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun
from rankwise.records.study_file import load_config
from rankwise.study.context import StudyContext
from rankwise.study.observer import TrainingStep
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.stages import Train, stages
from rankwise.study.stopping import Stopped
from rankwise.study.work.training import train
from tests.support.observers import Silent

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch starts no processes"
)


class Following(Silent):
    """Does something after a step."""

    def __init__(self, at: int = 0) -> None:
        self.steps: list[TrainingStep] = []
        self._at = at

    def stepped(self, step: TrainingStep) -> None:
        is_first = all(step.step != each.step for each in self.steps)  # of a pass
        self.steps.append(step)
        if step.step == self._at and is_first:
            self.act()

    def act(self) -> None:
        """After the step ``at``."""


class Stopping(Following):
    """Sends this process a SIGTERM, as a scheduler does."""

    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Killing(Following):
    """Kills one of the two processes, at once."""

    killed_at = 0.0

    def act(self) -> None:
        parts = [
            process
            for process in psutil.Process().children(recursive=True)
            if "rankwise.study.work.part" in process.cmdline()
            and "torch.distributed.run" not in process.cmdline()
        ]
        assert len(parts) == 2
        self.killed_at = time.monotonic()
        parts[1].kill()


class Losing(Following):
    """The lease is another worker's after the step ``at``."""

    folder: StudyFolder | None = None

    def act(self) -> None:
        assert self.folder is not None
        self.folder.guard = self.refuse

    def refuse(self) -> None:
        raise LeaseLostError("planted. Go on.")


FULL = ("methods.lora=null", "methods.full={}")
# two ranks, one of which is saved on its way too, and dropout
LORA = ("methods.full=null", "train.score_checkpoints=[3]", "train.dropout=0.1")


def plan_of(study_file: Path, methods: Sequence[str], num_devices: int) -> StudyPlan:
    """A plan of a study whose only pass is dealt out to so many."""
    settings = [*methods, "train.max_grad_norm=0.5", "train.batch_size=3", "train.epochs=4"]
    plan = plan_study(load_config(study_file, settings))
    (planned,) = plan.record.passes
    assert planned.num_devices == 1
    passes = (planned.model_copy(update={"num_devices": num_devices}),)
    return dataclasses.replace(plan, record=plan.record.model_copy(update={"passes": passes}))


def trained(
    plan: StudyPlan, root: Path, observer: Following
) -> tuple[StudyFolder, tuple[PlannedRun, ...]]:
    """What training it leaves in a folder."""
    folder = StudyFolder(root)
    folder.write(folder.study_file, plan.record)
    if isinstance(observer, Losing):
        observer.folder = folder
    context = StudyContext.of(plan, folder, observer)
    stage = next(stage for stage in stages(plan.record) if isinstance(stage, Train))
    with context.signals.listening():
        train(context, stage, [run for run in stage.left(folder) if run is not None])
    return folder, stage.runs


def assert_equal(ours: Path, theirs: Path) -> None:
    """Two saved models are equal, file by file; weights to float32 rounding."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (ours, theirs)]
    assert names[0] == names[1]
    for name in names[0]:
        if not name.endswith(".safetensors"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
            continue
        weights, expected = (load_file(each / name) for each in (ours, theirs))
        assert weights.keys() == expected.keys()
        for key, values in expected.items():
            torch.testing.assert_close(weights[key], values, rtol=1e-4, atol=1e-5)


def assert_same_run(folder: StudyFolder, alone: StudyFolder, run: PlannedRun) -> None:
    """A run of both folders has the same steps, weights and record."""
    losses, expected = (each.read_losses(run.name) for each in (folder, alone))
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [loss for _, loss in losses] == pytest.approx([x for _, x in expected], rel=1e-5)
    assert_equal(folder.weights_folder(run), alone.weights_folder(run))
    ours, theirs = folder.finished_run(run), alone.finished_run(run)
    assert ours is not None
    assert theirs is not None
    measured = {"train_seconds", "peak_memory_bytes", "files", "final_loss_nats"}
    measured |= {"first_loss_nats", "provenance", "planned"}
    assert ours.planned.fingerprint == theirs.planned.fingerprint
    assert ours.model_dump(exclude=measured) == theirs.model_dump(exclude=measured)


@pytest.mark.parametrize("methods", [FULL, LORA], ids=["full", "lora"])
def test_equals_one_process_however_it_is_stopped(
    study_file: Path, tmp_path: Path, methods: Sequence[str]
) -> None:
    plan = plan_of(study_file, methods, 2)
    alone, runs = trained(plan_of(study_file, methods, 1), tmp_path / "alone", Following())
    root, folder = tmp_path / "together", StudyFolder(tmp_path / "together")
    whole = [run for run in runs if run.checkpoint_of is None]
    states = [folder.training_state_file(run) for run in whole]
    with pytest.raises(Stopped):
        trained(plan, root, Stopping(at=1))
    assert all(state.exists() for state in states)
    if methods == FULL:
        assert len(list(states[0].parent.glob("training-shards-*"))) == 1
    killing = Killing(at=len(folder.read_losses(whole[0].name)) + 1)
    with pytest.raises(ModelError, match=r"ended with 1: .*SIGKILL"):
        trained(plan, root, killing)
    # at once, and not after the two hours that a process waits for another
    assert time.monotonic() - killing.killed_at < 600
    trained(plan, root, Following())
    for state in states:
        assert sorted(state.parent.glob("training*")) == []
    for run in runs:
        assert_same_run(folder, alone, run)
    lines = alone.metrics_file(whole[0].name).read_text().splitlines()
    norms = [json.loads(line)["grad_norm"] for line in lines]
    assert min(norms) > 0.5  # every step was clipped


def test_without_the_lease_nothing_more_is_written(study_file: Path, tmp_path: Path) -> None:
    """The processes ask the one that has it; they train on until then, and end."""
    with pytest.raises(LeaseLostError):
        trained(plan_of(study_file, FULL, 2), tmp_path, Losing(at=1))
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    assert len(metrics.read_text().splitlines()) == 1
    assert [path.name for path in metrics.parent.iterdir()] == [metrics.name]


def test_a_folder_that_cannot_be_written_is_named(study_file: Path, tmp_path: Path) -> None:
    """As by one process: a full disk is no failure of a stage."""
    plan = plan_of(study_file, FULL, 2)
    (run,) = plan.record.runs
    StudyFolder(tmp_path).metrics_file(run.name).mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written: Is a directory"):
        trained(plan, tmp_path, Following())
