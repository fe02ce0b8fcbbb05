"""A full fine-tuning of a study by two processes: what one process writes, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rankwise.errors import LeaseLostError, ModelError
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
        self.steps.append(step)
        if step.step == self._at:
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


def plan_of(study_file: Path, num_devices: int) -> StudyPlan:
    """A plan of a study whose full fine-tuning is dealt out to so many."""
    settings = ["methods.lora=null", "methods.full={}", "train.max_grad_norm=0.5"]
    plan = plan_study(load_config(study_file, [*settings, "train.batch_size=3"]))
    (planned,) = plan.record.passes
    assert planned.num_devices == 1
    passes = (planned.model_copy(update={"num_devices": num_devices}),)
    return dataclasses.replace(plan, record=plan.record.model_copy(update={"passes": passes}))


def trained(plan: StudyPlan, root: Path, observer: Following) -> tuple[StudyFolder, PlannedRun]:
    """What training it leaves in a folder."""
    folder = StudyFolder(root)
    folder.write(folder.study_file, plan.record)
    if isinstance(observer, Losing):
        observer.folder = folder
    context = StudyContext.of(plan, folder, observer)
    stage = next(stage for stage in stages(plan.record) if isinstance(stage, Train))
    with context.signals.listening():
        train(context, stage, [run for run in stage.left(folder) if run is not None])
    return folder, stage.runs[0]


def assert_equal(ours: Path, theirs: Path) -> None:
    """Two saved models are equal, file by file; weights to float32 rounding."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (ours, theirs)]
    assert names[0] == names[1]
    for name in names[0]:
        if name != "model.safetensors":
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    weights, expected = (load_file(each / "model.safetensors") for each in (ours, theirs))
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=1e-4, atol=1e-5)


def test_equals_one_process_however_it_is_stopped(study_file: Path, tmp_path: Path) -> None:
    plan = plan_of(study_file, 2)
    alone, run = trained(plan_of(study_file, 1), tmp_path / "alone", Following())
    root = tmp_path / "together"
    with pytest.raises(Stopped):
        trained(plan, root, Stopping(at=1))
    folder = StudyFolder(root)
    state = folder.training_state_file(run)
    assert state.exists()
    assert len(list(state.parent.glob("training-shards-*"))) == 1
    killing = Killing(at=len(folder.read_losses(run.name)) + 1)
    with pytest.raises(ModelError, match=r"ended with 1: .*SIGKILL"):
        trained(plan, root, killing)
    # at once, and not after the two hours that a process waits for another
    assert time.monotonic() - killing.killed_at < 600
    following = Following()
    trained(plan, root, following)
    assert not state.exists()
    assert not list(state.parent.glob("training-shards-*"))
    losses, expected = (each.read_losses(run.name) for each in (folder, alone))
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [loss for _, loss in losses] == pytest.approx([x for _, x in expected], rel=1e-5)
    lines = alone.metrics_file(run.name).read_text().splitlines()
    norms = [json.loads(line)["grad_norm"] for line in lines]
    assert min(norms) > 0.5  # every step was clipped
    assert_equal(folder.weights_folder(run), alone.weights_folder(run))
    ours, theirs = folder.finished_run(run), alone.finished_run(run)
    assert ours is not None
    assert theirs is not None
    measured = {"train_seconds", "peak_memory_bytes", "files", "final_loss_nats"}
    measured |= {"first_loss_nats", "provenance", "planned"}
    assert ours.planned.fingerprint == theirs.planned.fingerprint
    assert ours.model_dump(exclude=measured) == theirs.model_dump(exclude=measured)


def test_without_the_lease_nothing_more_is_written(study_file: Path, tmp_path: Path) -> None:
    """The processes ask the one that has it; they train on until then, and end."""
    with pytest.raises(LeaseLostError):
        trained(plan_of(study_file, 2), tmp_path, Losing(at=1))
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    assert len(metrics.read_text().splitlines()) == 1
    assert [path.name for path in metrics.parent.iterdir()] == [metrics.name]
