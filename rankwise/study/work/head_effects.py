"""The heads of one run, one after another: exact effects on tasks, with the base as control."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from rankwise.engine.models.devices import STEP_TOKENS
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.errors import ModelError
from rankwise.findings.stats.correlation import rank_correlation
from rankwise.heads.answers import ItemOptions, ItemValues, continuations, item_values, questions
from rankwise.heads.effects import HeadScores, head_effects
from rankwise.heads.interventions import Head, adapted_heads
from rankwise.heads.scorer import Ablation, Graft, HeadScorer, Intervention, Reversion
from rankwise.heads.screen import Gating, ScreenedItem, expected_effects
from rankwise.records.fingerprints import head_effects_fingerprint
from rankwise.records.heads import HeadEffect, HeadMode, Screen, ScreenedHead, TaskHeadEffects
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.observer import StageOutline
from rankwise.study.planning.plan import metric_of
from rankwise.study.work.head_subjects import relation_of
from rankwise.tasks.questions import LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import not_applied


class HeadQuestion(NamedTuple):
    """What is done to the heads.

    Attributes:
        mode: ablation by zeros or by means, or reversion.
        keys_and_values: reversions also take out the rows of k and v of the head's group.
        top: score only so many heads exactly, those of which the gradient expects most, unless all
            are scored already; None: all.
    """

    mode: HeadMode
    keys_and_values: bool = False
    top: int | None = None


class _Side(NamedTuple):
    """One model's part: the scorer, its adapter if any, and the interventions on it."""

    scorer: HeadScorer
    adapter: FrozenAdapter | None
    interventions: Callable[[Sequence[Head]], list[Intervention]]


class HeadStudy:
    """Studies the heads of a run, task by task, and writes a record for each."""

    def __init__(self, context: StudyContext, run: PlannedRun) -> None:
        self._plan, self._folder, self._run = context.plan, context.folder, run
        self._context, self._models, self._tell = context, context.models, context.tell

    def effects(
        self, tasks: Sequence[PreparedTask], question: HeadQuestion
    ) -> list[TaskHeadEffects]:
        """The effects on every task; what is there from an earlier call is not done again.

        Raises:
            ModelError: the heads of the model are not known, or there is no delta to revert.
            UnchangedOutputsError: an adapter did not change what the model says.
            TaskError: a task has no metric with a number per item.
        """
        if question.mode == "revert" and self._run.method == "full":
            raise ModelError(
                f"{self._run.name} is a full fine-tuning: reversion takes a head's part of an "
                "adapter's delta out. Choose --mode ablate, or a run with an adapter."
            )
        records: list[TaskHeadEffects] = []
        self._tell.planned(
            [
                StageOutline.of_run(task.name, "heads", self._run, 2.0 * task.num_items)
                for task in tasks
            ]
        )
        for task in tasks:
            wanted = self._fingerprint(task, question)
            of_all = self._fingerprint(task, question._replace(top=None))
            path = self._folder.head_effects_file(
                self._run.name,
                question.mode,
                task.name,
                task.num_items,
                keys_and_values=question.keys_and_values,
            )
            record = self._context.recorded(
                task.name,
                2.0 * task.num_items,
                path,
                TaskHeadEffects,
                partial(self._effects_on, task, question, wanted),
                *(wanted, of_all),
            )
            records.append(record)
        return records

    def _fingerprint(self, task: PreparedTask, question: HeadQuestion) -> str:
        return head_effects_fingerprint(
            self._plan.record,
            self._run,
            task=task.digest,
            num_items=task.num_items,
            metric=metric_of(self._plan.record.config, task.name),
            question=question._asdict(),
            in_study=self._plan.record.task_fingerprints.get(task.name),
        )

    def _effects_on(
        self, task: PreparedTask, question: HeadQuestion, wanted: str
    ) -> TaskHeadEffects:
        started = time.perf_counter()
        items = questions(task)
        adapted = self._adapted(task, question)
        heads = self._heads(adapted, question)
        chosen, expected = heads, None
        if question.top is not None and question.top < len(heads):
            expected = self._screened(task, items, adapted, question)
            order = sorted(heads, key=lambda head: -abs(expected[head]))
            chosen = sorted(order[: question.top])
        num_heads = tuple(layout.num_heads for layout in adapted.scorer.layouts)
        own = self._answers(task, adapted, chosen)
        kept = adapted if self._run.method == "lora" else None
        del adapted  # a full fine-tuning's model goes before the base comes
        base = self._answers(task, self._base(task, question, kept), chosen)
        self._check_applied(own[0], base[0])
        values, base_values = ([self._values(task, items, one) for one in x] for x in (own, base))
        confidence = self._plan.record.config.recommendation.confidence
        less_control = question.mode != "revert"

        def compared(of: str, item_size: float) -> tuple[HeadEffect, ...]:
            return head_effects(
                chosen,
                _scores(values, of),
                _scores(base_values, of),
                item_size=item_size,
                confidence=confidence,
                num_candidates=len(heads),
                less_control=less_control,
            )

        answers = compared("answer_nats", 0.0)
        return TaskHeadEffects(
            model=self._run.name,
            fingerprint=wanted,
            mode=question.mode,
            keys_and_values=question.keys_and_values,
            task=task.name,
            task_fingerprint=self._plan.record.task_fingerprints.get(task.name),
            relation=relation_of(self._plan.record, self._run, task.name),
            metric=values[0].metric,
            unit=values[0].unit,
            num_items=task.num_items,
            confidence=confidence,
            num_heads=num_heads,
            num_candidates=len(heads),
            base_score=base_values[0].score,
            adapted_score=values[0].score,
            base_answer_nats=float(base_values[0].answer_nats.mean()),
            adapted_answer_nats=float(values[0].answer_nats.mean()),
            scores=compared("values", 100.0 if values[0].unit == "points" else 0.0),
            answers=answers,
            screen=None
            if expected is None
            else _screen(expected, {Head(e.layer, e.head): e.effect.estimate for e in answers}),
            score_seconds=time.perf_counter() - started,
        )

    def _heads(self, adapted: _Side, question: HeadQuestion) -> list[Head]:
        """The heads that there is something to do to."""
        if question.mode != "revert":
            return adapted.scorer.heads
        assert adapted.adapter is not None
        heads = adapted_heads(
            adapted.adapter.layers,
            adapted.scorer.layouts,
            keys_and_values=question.keys_and_values,
        )
        if not heads:
            raise ModelError(
                f"{self._run.name} adapts no rows that one head has to itself and no columns of "
                "the output projection: there is no head to revert. Choose --keys-and-values, or "
                "--mode ablate."
            )
        return heads

    def _adapted(self, task: PreparedTask, question: HeadQuestion) -> _Side:
        """The run's model under the interventions."""
        model, adapter = self._models.adapted(self._run)
        scorer = self._scorer(model)
        if question.mode == "revert":
            shared = question.keys_and_values
            return _Side(scorer, adapter, lambda heads: [Reversion(h, shared) for h in heads])
        return _Side(scorer, adapter, self._ablations(task, scorer, adapter, question))

    def _base(self, task: PreparedTask, question: HeadQuestion, adapted: _Side | None) -> _Side:
        """The base under the same ablations; a reversion's control is the head's delta alone.

        ``adapted`` is the side of a run whose model is the base with an adapter.
        """
        model = self._models.base()
        scorer = self._scorer(model) if adapted is None else adapted.scorer
        if question.mode == "revert":
            assert adapted is not None
            source, shared = adapted.adapter, question.keys_and_values
            assert source is not None
            return _Side(scorer, None, lambda heads: [Graft(h, source, shared) for h in heads])
        return _Side(scorer, None, self._ablations(task, scorer, None, question))

    def _scorer(self, model: object) -> HeadScorer:
        most = self._plan.step_tokens
        return HeadScorer(model, max_batch_tokens=most)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def _ablations(
        task: PreparedTask,
        scorer: HeadScorer,
        adapter: FrozenAdapter | None,
        question: HeadQuestion,
    ) -> Callable[[Sequence[Head]], list[Intervention]]:
        if question.mode == "ablate":
            return lambda heads: [Ablation(head) for head in heads]
        means = scorer.mean_outputs(continuations(task), adapter)
        return lambda heads: [Ablation(head, means[head]) for head in heads]

    def _answers(
        self, task: PreparedTask, side: _Side, heads: Sequence[Head]
    ) -> list[list[LogLikelihood]]:
        asked = continuations(task)
        total = len(asked) * (len(heads) + 1)
        return side.scorer.log_likelihoods(
            asked,
            side.interventions(heads),
            side.adapter,
            lambda done: self._tell.advanced(task.num_items * done / total),
        )

    def _values(
        self, task: PreparedTask, items: Sequence[ItemOptions], answers: Sequence[LogLikelihood]
    ) -> ItemValues:
        return item_values(task, items, answers, metric_of(self._plan.record.config, task.name))

    def _screened(
        self,
        task: PreparedTask,
        items: Sequence[ItemOptions],
        side: _Side,
        question: HeadQuestion,
    ) -> dict[Head, float]:
        """First-order effects on the run's model."""
        model, adapter = self._models.adapted(self._run)
        asked = continuations(task)
        choices = [
            ScreenedItem(tuple(asked[index] for index in item.options), item.right)
            for item in items
            if item.right is not None
        ]
        means = None
        if question.mode == "ablate-mean":
            means = side.scorer.mean_outputs(asked, adapter)
        gating = Gating(question.mode == "revert", means, question.keys_and_values)
        most = self._plan.record.config.evaluation.max_batch_tokens
        return expected_effects(
            model,
            side.scorer.layouts,
            choices,
            adapter,
            gating,
            # a backward pass keeps the activations of every layer: no more than on a CPU
            max_batch_tokens=most or STEP_TOKENS["cpu"],
        )

    def _check_applied(self, own: Sequence[LogLikelihood], base: Sequence[LogLikelihood]) -> None:
        record = self._folder.finished_run(self._run)
        if own == base and record is not None and not record.update_is_zero:
            raise not_applied(self._run.name, f"gives all {len(own)} texts exactly")


def _scores(values: Sequence[ItemValues], of: str) -> HeadScores:
    """First the model as it is, then by head."""
    rows = np.stack([getattr(values_of_head, of) for values_of_head in values])
    return HeadScores(rows[0], rows[1:])


def _screen(expected: dict[Head, float], exact: dict[Head, float]) -> Screen:
    heads = sorted(exact)
    correlation = rank_correlation([expected[h] for h in heads], [exact[h] for h in heads])
    return Screen(
        heads=tuple(
            ScreenedHead(
                layer=head.layer, head=head.head, expected_nats=value, is_scored=head in exact
            )
            for head, value in sorted(expected.items())
        ),
        rank_correlation=None if correlation is None else correlation.estimate,
        lower=None if correlation is None else correlation.lower,
        upper=None if correlation is None else correlation.upper,
    )
