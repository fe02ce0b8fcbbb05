"""Lets models answer short prompts, and writes down what each wrote."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rankwise.records.behaviour import PROMPTS, Behaviour
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.stages import Model, ObserveBehaviour, model_name
from rankwise.tasks.questions import Scorer

TOGETHER = 16
"""The most adapters in memory at once: more would make room for fewer texts."""


def observe_behaviour(
    context: StudyContext, stage: ObserveBehaviour, models: Sequence[Model]
) -> None:
    """Let some models of a stage write; those that share the base, together.

    Raises:
        ModelError: weights cannot be read.
        StorageError: a record cannot be written.
    """
    context.tell.skipped(stage.work * (1 - len(models) / len(stage.models)))
    alone: list[PlannedRun] = []
    for start in range(0, len(models), TOGETHER):
        group = models[start : start + TOGETHER]
        runs = [model for model in group if model is not None]
        put_on = context.models.put_on(runs)
        together = [model for model in group if model is None or model in put_on]
        if together:
            _write(context, stage, context.models.scorer(), together)
        alone += [run for run in runs if run not in put_on]
    for model in alone:
        _write(context, stage, context.models.scorer_alone(model), [model], alone=True)


def _write(
    context: StudyContext,
    stage: ObserveBehaviour,
    scorer: Scorer,
    models: Sequence[Model],
    *,
    alone: bool = False,
) -> None:
    prompts = context.plan.behaviour
    asked = [None if model is None or alone else model.name for model in models]
    started = time.perf_counter()
    answers = scorer.generate(asked, prompts, context.tell.advanced)
    seconds = (time.perf_counter() - started) / len(models)
    for model, texts in zip(models, answers, strict=True):
        record = Behaviour(
            model=model_name(model),
            fingerprint=stage.fingerprint_of(model),
            prompts=tuple(prompt.text for prompt in PROMPTS),
            texts=tuple(each.text for each in texts),
            is_finished=tuple(each.is_finished for each in texts),
            score_seconds=seconds,
        )
        context.folder.write(stage.path_of(context.folder, model), record)
