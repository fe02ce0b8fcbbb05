"""Lengths of answers: base and every model that is scored on test items answer short prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.records.answer_lengths import AnswerLengths
from rankwise.records.fingerprints import fingerprint
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.study.stages.stage import Graph, Model, OneRecord, Stage, fingerprint_in, model_name
from rankwise.tasks.short_prompts import short_prompts
from rankwise.tasks.training_rows import encoded

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext
    from rankwise.tasks.questions import Scorer

TOGETHER = 16
"""The most adapters in memory at once: more would make room for fewer texts."""


@dataclass(frozen=True)
class MeasureLengths(OneRecord):
    """Let the base and every model that is scored on test items answer short prompts."""

    kind = "answer_lengths"
    record = AnswerLengths
    file = "answer_lengths.json"
    field = "answer_lengths"
    made_by = "asking short prompts of"
    of_base = True
    slowness = 2.3
    """As measured in two studies of a model of 135M weights on two cores."""

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        if study.short_prompts_fingerprint is not None:
            models = (None, *study.tested)
            work, weights = study.num_tokens.short_prompts * len(models), study.weights_bytes
            # adapters are on the base
            yield cls.of(graph, "answer_lengths", models, work, memory_bytes=weights)

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        return fingerprint([fingerprint_in(study, model), study.short_prompts_fingerprint])

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """Let some models write; those that share the base, together."""
        context.tell.skipped(self.work * (1 - len(models) / len(self.models)))
        alone: list[PlannedRun] = []
        for start in range(0, len(models), TOGETHER):
            group = models[start : start + TOGETHER]
            runs = [model for model in group if model is not None]
            put_on = context.models.put_on(runs)
            together = [model for model in group if model is None or model in put_on]
            if together:
                self._write(context, context.models.scorer(), together)
            alone += [run for run in runs if run not in put_on]
        for model in alone:
            self._write(context, context.models.scorer_alone(model), [model], alone=True)

    def _write(
        self, context: StudyContext, scorer: Scorer, models: Sequence[Model], *, alone: bool = False
    ) -> None:
        asked = [None if model is None or alone else model.name for model in models]
        started = time.perf_counter()
        answers = scorer.generate(asked, context.plan.short_prompts, context.tell.advanced)
        seconds = (time.perf_counter() - started) / len(models)
        tokenizer, prompts = context.plan.tokenizer, short_prompts()
        for model, texts in zip(models, answers, strict=True):
            record = AnswerLengths(
                model=model_name(model),
                fingerprint=self.fingerprint_of(model),
                prompts=prompts,
                texts=tuple(each.text for each in texts),
                num_tokens=tuple(
                    len(encoded(tokenizer, each.text, add_special_tokens=False)) for each in texts
                ),
                is_finished=tuple(each.is_finished for each in texts),
                score_seconds=seconds,
            )
            context.folder.write(self.path_of(context.folder, model), record)
