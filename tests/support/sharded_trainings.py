"""Trainings by several processes, each started by ``torch.distributed.run`` with this module.

Every process does the jobs of a file one after the other; the first one writes what came of each.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from rankwise.engine.training import loop as training
from rankwise.engine.training.loop import TrainingResult
from rankwise.engine.training.sharded import (
    Following,
    Leading,
    Processes,
    ShardedModel,
    ShardedTrainee,
    joined,
)
from rankwise.engine.training.trainees import StepMetrics, Trainee
from rankwise.errors import RecordError
from rankwise.records.config.training import TrainConfig
from tests.support.passes import Heard, Setting, config, planned

ROOT = Path(__file__).resolve().parents[2]


class Job(NamedTuple):
    """A training, and where its weights and losses go.

    Attributes:
        model: folder of the model.
        out: folder of what comes of it.
        train: options of ``config``.
        stop_at: the step after which it saves its state and ends; None: its end.
        state: to go on from, and to save.
        checkpointing: of gradients.
        max_tokens: of a micro-batch of one process.
        damages: a byte of that state before it goes on from it.
    """

    model: str
    out: str
    train: dict[str, Any]
    stop_at: int | None = None
    state: str | None = None
    checkpointing: bool = False
    max_tokens: int = 128
    damages: bool = False


def train_together(jobs: list[Job], folder: Path, count: int = 2) -> subprocess.Popen[str]:
    """Start ``count`` processes that do the jobs; their output is in ``folder``."""
    path = folder / "jobs.json"
    path.write_text(json.dumps([job._asdict() for job in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "-m", "tests.support.sharded_trainings", str(path)]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True
        )


class _Saving(Heard):
    """Saves the state at the step at which the training stops."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        super().stepped(trainee, metrics)
        if metrics.step == self._job.stop_at:
            assert self._job.state is not None
            trainee.save_state(Path(self._job.state))

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        super().reached(trainee, result)
        assert isinstance(trainee, ShardedTrainee)
        out = Path(self._job.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "losses.json").write_text(json.dumps([line.loss_nats for line in trainee.metrics]))
        (out / "norms.json").write_text(json.dumps([line.grad_norm for line in trainee.metrics]))
        (out / "moved.json").write_text(json.dumps(not trainee.is_zero_update))
        weights = {name: each.clone() for name, each in trainee.whole_weights().items()}
        save_file(weights, out / "weights.safetensors")


def _damage(state: Path) -> None:
    (path, *_) = sorted(state.parent.glob("training-shards-*/*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def do(job: Job, processes: Processes) -> None:
    """Train in this process."""
    setting, train = Setting(Path(job.model)), config(**job.train)
    assert isinstance(train, TrainConfig)
    sharded = ShardedModel(setting.folder, "float32", processes)
    examples = setting.examples(train)
    steps = training.num_optimizer_steps(len(examples), train, train.epochs[0])
    run = planned(steps, "full", name="full", epochs=train.epochs[0])
    marks = () if job.stop_at is None else (job.stop_at,)
    trainee = ShardedTrainee(run, examples, train, sharded, marks)
    following = Following(trainee, processes)
    if processes.leads:
        if job.state is not None and Path(job.state).exists():
            if job.damages:
                _damage(Path(job.state))
            with contextlib.suppress(RecordError):  # it begins anew
                trainee.load_state(Path(job.state))
        processes.tell(None)
    else:
        following.obey()
    training.train_pass(
        sharded.model,
        [trainee],
        bank=None,
        max_tokens=job.max_tokens,
        precision="float32",
        gradient_checkpointing=job.checkpointing,
        compile_layers=False,
        observer=Leading(_Saving(job), processes) if processes.leads else following,
        sharded=sharded,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    content = json.loads(Path(sys.argv[1]).read_text())
    with joined("cpu") as processes:
        for job in content:
            do(Job(**job), processes)
