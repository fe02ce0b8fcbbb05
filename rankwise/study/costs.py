"""What a stage of a study costs: its work in scored tokens, and bytes of the disk."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records.study import PlannedRun, StudyRecord

ANALYSIS_WORK = 1500.0
"""Work of decomposing all adapted matrices of a run once, in scored tokens: measured on small
models. Only the time left is estimated from it."""

TRAINING_WORK = {"lora": 2.5, "full": 4.0}
"""Work of a trained token, in scored tokens: a backward pass, and for full fine-tuning the
gradients of all weights. Only times are estimated from it, and work is shared out by it."""

PASS_WORK = {"cpu": 2_000.0, "cuda": 400_000.0}
"""Work of a pass besides its models, in scored tokens, by kind of device: the base is loaded and
looked at, and first kernels are made. On one core a model of 135M weights was loaded in the time
of 1,400 tokens; the rest is assumed. So is what holds on a card: as long as bfloat16 weights take
at 1 GB per second, in which a third of an H100's peak scores so many tokens, whatever the size."""

_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
_MOMENTS_BYTES = {"adamw": 8, "adamw_8bit": 2}  # of both, per weight

TOKEN_BYTES = 8
"""Of a samples file per scored token: its text, and the answers beside it."""


def weight_bytes(run: PlannedRun) -> int:
    """Of a stored weight of a run; an adapter's are float32."""
    return _WEIGHT_BYTES["float32" if run.full is None else run.full.weights]


def state_bytes(run: PlannedRun) -> int:
    """Of a saved state of training, per trained weight: it and its two moments."""
    return weight_bytes(run) + _MOMENTS_BYTES["adamw" if run.full is None else run.full.optimizer]


def stored_bytes(run: PlannedRun) -> int:
    """Of a run's weights in the study folder; an imported checkpoint stays where it is."""
    if run.imported_from is not None and run.method == "full":
        return 0
    return run.num_trainable_parameters * weight_bytes(run)


def furthest(models: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Of runs and checkpoints, the last one of each training: the others are passed on its way."""
    by_steps = sorted(models, key=lambda model: model.num_steps)
    return tuple({model.training.name: model for model in by_steps}.values())


def training_work(models: Sequence[PlannedRun]) -> float:
    """Work of training some runs and checkpoints; those of one training are trained once."""
    return sum(model.num_tokens * TRAINING_WORK[model.method] for model in furthest(models))


def scoring_work(study: StudyRecord, model: PlannedRun | None) -> float:
    """Work of scoring a model on everything that a study scores it on; None: the base."""
    return float(sum(study.num_tokens.scored.get(task, 0) for task in study.tasks_of(model)))
