"""A training in processes of its own, one for each device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rankwise.engine.models.base import fetch_weights
from rankwise.records.study import PlannedPass, PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.observer import TrainingStep
from rankwise.study.started import Started

STOP = "stop"
"""Line by which the processes are asked to save and end; they end at once when the pipe closes."""

WRITE = "write"
"""What the first process asks before it writes, as it has no lease of its own, and the line by
which it is allowed."""


def train_in_processes(
    context: StudyContext, runs: Sequence[PlannedRun], planned: PlannedPass
) -> None:
    """Train the runs of a pass in one process for each device, and write what comes of it.

    The first of them writes into the study's folder, and asks this one before, which has the lease.
    This one only follows. A signal is passed on: the processes save the state at the end of the
    step.

    Raises:
        LeaseLostError: this worker was not heard of for too long; nothing more is written.
        ModelError: a process failed; with its last lines.
        MemoryError: a device has too little memory.
        StorageError: the folder cannot be written.
        Stopped: a signal came; the state is saved.
    """
    plan = context.plan
    weights = fetch_weights(plan.base)  # once, before several look for them
    sources = {run.name: run for run in context.study.runs}
    for run in runs:  # what they read is to be here: they know of no URL
        context.folder.saved_state(run.whole)
        if run.truncated_from is not None:
            context.folder.weights(sources[run.truncated_from.name])
    job = {
        "does": "training",
        "folder": str(context.folder.root),
        "base": [plan.base.name, str(weights), plan.base.fingerprint],
        "device": plan.device.type,
        "runs": [run.model_dump(mode="json") for run in runs],
        "pass": planned.model_dump(mode="json"),
        "examples": {run.train_task: plan.examples[run.train_task] for run in runs},
        "others": [(rows.model_dump(mode="json"), plan.others[rows]) for rows in plan.others],
    }
    with (
        context.signals.deferred(),
        contextlib.closing(Started(job, planned.num_devices)) as started,
    ):
        _follow(context, started)


def _follow(context: StudyContext, started: Started) -> None:
    """Tell what the processes do, until they have ended."""
    is_asked = False
    for event in started.events():
        if context.signals.is_pending and not is_asked:
            is_asked = True
            started.say(STOP)
        match event:
            case {"advanced": work}:
                context.tell.advanced(work)
            case {"skipped": work}:
                context.tell.skipped(work)
            case {"asks": _}:
                context.folder.guard()
                started.say(WRITE)
            case {"noted": text}:
                context.tell.noted(text)
            case {"stepped": step}:
                context.tell.stepped(TrainingStep(*step))
            case _:
                pass
