"""Trainings by several processes, each started by ``torch.distributed.run`` with this module.

Every process does the jobs of a file one after the other; the first one writes what came of each.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from safetensors.torch import save_file

from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.training import loop as training
from rankwise.engine.training import sharded as sharded_training
from rankwise.engine.training.loop import TrainingResult
from rankwise.engine.training.sharded import (
    Following,
    Leading,
    Processes,
    ReplicatedTrainee,
    ShardedModel,
    ShardedTrainee,
    joined,
)
from rankwise.engine.training.states import UnusableStateError
from rankwise.engine.training.trainees import AdapterTrainee, Beside, StepMetrics, Trainee
from rankwise.errors import DivergedError, RecordError
from rankwise.records.config.mitigations import MitigationConfig
from rankwise.records.config.training import TrainConfig
from tests.support.passes import Heard, Setting, config, planned

ROOT = Path(__file__).resolve().parents[2]


class Job(NamedTuple):
    """A training, and where its weights and losses go.

    Attributes:
        model: folder of the model.
        out: folder of what comes of it.
        train: options of ``config``.
        adapters: options of ``adapter`` for each of a pass; empty: a full fine-tuning.
        stop_at: the step after which it saves its state and ends; None: its end.
        state: to go on from, and to save.
        checkpointing: of gradients.
        max_tokens: of a micro-batch of one process.
        damages: a byte of that state before it goes on from it.
        is_hidden: whether the first process alone can read that state.
    """

    model: str
    out: str
    train: dict[str, Any]
    adapters: tuple[dict[str, Any], ...] = ()
    stop_at: int | None = None
    state: str | None = None
    checkpointing: bool = False
    max_tokens: int = 128
    damages: bool = False
    is_hidden: bool = False


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


def adapter(setting: Setting, train: TrainConfig, **options: Any) -> AdapterTrainee:
    """A LoRA run with these options; ``mitigation`` is as in a study file.

    It is held to the base on its own rows, the learned tokens of which are not learned again.
    """
    arm = options.pop("mitigation", None)
    held = [example._replace(num_loss_tokens=0) for example in setting.examples(train)]
    mitigation = None if arm is None else MitigationConfig.model_validate(arm)
    return setting.trainee(train, beside=Beside(held=held), mitigation=mitigation, **options)


class _Saving(Heard):
    """Saves the states at the step at which the training stops."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        super().stepped(trainee, metrics)
        if metrics.step == self._job.stop_at:
            trainee.save_state(state_of(self._job, trainee))

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        super().reached(trainee, result)
        assert isinstance(trainee, ShardedTrainee | AdapterTrainee)
        if isinstance(trainee, ShardedTrainee):
            weights = {name: each.clone() for name, each in trainee.whole_weights().items()}
            has_moved = not trainee.is_zero_update
        else:
            weights = {"adapter": trainee.adapter.weights.detach().clone()}
            has_moved = not trainee.adapter.is_zero_update
        self._write(trainee, moved=has_moved)
        save_file(weights, Path(self._job.out) / f"{trainee.run.name}.safetensors")

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        super().diverged(trainee, error)
        self._write(trainee, error=str(error))

    def _write(self, trainee: Trainee, **more: Any) -> None:
        lines = [line.model_dump() for line in trainee.metrics]
        out = Path(self._job.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{trainee.run.name}.json").write_text(json.dumps({"lines": lines, **more}))


def state_of(job: Job, trainee: Trainee) -> Path:
    """Where a training's state is."""
    assert job.state is not None
    return Path(job.state).with_name(f"{trainee.run.name}-{Path(job.state).name}")


def _damage(state: Path) -> None:
    (path, *_) = sorted(state.parent.glob("*-shards-*/*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _refuse(_: Path) -> NoReturn:
    raise UnusableStateError("it is damaged")


def _trainees(job: Job, sharded: ShardedModel, train: TrainConfig) -> list[Any]:
    setting, marks = Setting(Path(job.model)), () if job.stop_at is None else (job.stop_at,)
    if job.adapters:

        def make(run: Any, rows: Any, train: Any, adapter: Any, _: Any, *others: Any) -> Any:
            processes = sharded.processes
            return ReplicatedTrainee(processes, run, rows, train, adapter, marks, *others)

        return [adapter(setting, train, make=make, **options) for options in job.adapters]
    examples = setting.examples(train)
    steps = training.num_optimizer_steps(len(examples), train, train.epochs[0])
    run = planned(steps, "full", name="full", epochs=train.epochs[0])
    return [ShardedTrainee(run, examples, train, sharded, marks)]


def do(job: Job, processes: Processes) -> None:
    """Train in this process."""
    train = config(**job.train)
    is_lora = bool(job.adapters)
    sharded = ShardedModel(Path(job.model), "float32", processes, is_frozen=is_lora)
    trainees = _trainees(job, sharded, train)
    following = Following(trainees, processes)
    if job.is_hidden and not processes.leads:
        sharded_training.read_state = _refuse
    if processes.leads:
        for trainee in trainees:
            if job.state is not None and state_of(job, trainee).exists():
                if job.damages:
                    _damage(state_of(job, trainee))
                with contextlib.suppress(RecordError):  # it begins anew
                    trainee.load_state(state_of(job, trainee))
        processes.tell(None)
    else:
        following.obey()
    layers = dict.fromkeys(name for each in trainees if is_lora for name in each.adapter.factors)
    with adapted(sharded.model, list(layers)) as bank:
        training.train_pass(
            sharded.model,
            trainees,
            bank=bank if is_lora else None,
            max_tokens=job.max_tokens,
            precision="float32",
            gradient_checkpointing=job.checkpointing,
            compile_layers=False,
            observer=Leading(_Saving(job), processes) if processes.leads else following,
            sharded=sharded,
        )
    of_each = processes.gathered([each.adapter.weights.tolist() for each in trainees if is_lora])
    assert all(weights == of_each[0] for weights in of_each)  # to the last bit


if __name__ == "__main__":
    torch.set_num_threads(1)
    content = json.loads(Path(sys.argv[1]).read_text())
    with joined("cpu") as processes:
        for job in content:
            do(Job(**job), processes)
