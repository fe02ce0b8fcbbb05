"""The heads of one run, one after another: exact effects on tasks, with the base as control."""

from __future__ import annotations

import io
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rankwise.engine.models.devices import STEP_TOKENS
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.findings.stats.correlation import rank_correlation
from rankwise.findings.stats.items import Floats
from rankwise.heads.answers import (
    ItemOptions,
    ItemValues,
    continuations,
    item_values,
    parts,
    questions,
)
from rankwise.heads.effects import head_effects
from rankwise.heads.interventions import Head
from rankwise.heads.scorer import Ablation, HeadScorer
from rankwise.heads.screen import ScreenedItem, expected_effects
from rankwise.records.files import write_atomically
from rankwise.records.fingerprints import fingerprint, head_effects_fingerprint
from rankwise.records.heads import HeadEffect, HeadMode, Screen, ScreenedHead, TaskHeadEffects
from rankwise.records.study import Interval, PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.observer import StageOutline
from rankwise.tasks.questions import LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import not_applied

_BLANK = LogLikelihood(0.0, False)


class HeadQuestion(NamedTuple):
    """What is done to the heads.

    Attributes:
        mode: ablation by zeros or by means.
        top: score only so many heads exactly, those of which the gradient expects most, unless all
            are scored already; None: all.
    """

    mode: HeadMode
    top: int | None = None


class HeadStudy:
    """Studies the heads of a run, task by task, and writes a record for each."""

    def __init__(self, context: StudyContext, run: PlannedRun, question: HeadQuestion) -> None:
        self._plan, self._folder, self._run = context.plan, context.folder, run
        self._context, self._models, self._tell = context, context.models, context.tell
        self._question = question

    def effects(self, tasks: Sequence[PreparedTask]) -> list[TaskHeadEffects]:
        """The effects on every task; what is there from an earlier call is not done again.

        Raises:
            ModelError: the heads of the model are not known.
            UnchangedOutputsError: an adapter did not change what the model says.
            TaskError: a task has no metric with a number per item.
        """
        question, run = self._question, self._run
        self._tell.planned(
            [StageOutline.of_run(task.name, "heads", run, 2.0 * task.num_items) for task in tasks]
        )
        records: list[TaskHeadEffects] = []
        for task in tasks:
            wanted, of_all = (
                head_effects_fingerprint(
                    self._plan.record,
                    run,
                    task=task.digest,
                    num_items=task.num_items,
                    metric=self._plan.record.config.evaluation.scored_by(task.name),
                    question=each._asdict(),
                    in_study=self._plan.record.task_fingerprints.get(task.name),
                )
                for each in (question, question._replace(top=None))
            )
            place = run.name, question.mode, task.name, task.num_items
            record = self._context.recorded(
                task.name,
                2.0 * task.num_items,
                self._folder.head_effects_file(*place),
                TaskHeadEffects,
                partial(self._effects_on, task, wanted),
                *(wanted, of_all),
            )
            records.append(record)
            shutil.rmtree(self._folder.head_parts_folder(*place), ignore_errors=True)
        return records

    def _effects_on(self, task: PreparedTask, wanted: str) -> TaskHeadEffects:
        started, items, question = time.perf_counter(), questions(task), self._question
        study, record = self._plan.record, self._folder.finished_run(self._run)
        model, adapter = self._models.adapted(self._run)
        scorer = HeadScorer(model, max_batch_tokens=self._plan.step_tokens)
        chosen, expected = (heads := scorer.heads), None
        if question.top is not None and question.top < len(heads):
            expected = self._expected(task, items, scorer)
            order = sorted(heads, key=lambda head: -abs(expected[head]))
            chosen = sorted(order[: question.top])
        num_heads = tuple(layout.num_heads for layout in scorer.layouts)
        own = self._answers(task, wanted, "run", scorer, adapter, chosen)
        if self._run.method == "full":
            del model, scorer  # it goes before the base comes
            scorer = HeadScorer(self._models.base(), max_batch_tokens=self._plan.step_tokens)
        base = self._answers(task, wanted, "base", scorer, None, chosen)
        if own[0] == base[0] and record is not None and not record.update_is_zero:
            raise not_applied(self._run.name, f"gives all {len(own[0])} texts exactly")
        metric, relations = (
            study.config.evaluation.scored_by(task.name),
            study.tasks[self._run.train_task],
        )
        values, base_values = (
            [item_values(task, items, one, metric) for one in answers] for answers in (own, base)
        )
        confidence = study.config.recommendation.confidence
        compared = partial(head_effects, chosen, confidence=confidence, num_candidates=len(heads))
        unit_size = 100.0 if values[0].unit == "points" else 0.0
        scores, answers = (
            compared(_effects(values, of), _effects(base_values, of), item_size=item_size)
            for of, item_size in (("values", unit_size), ("answer_nats", 0.0))
        )
        return TaskHeadEffects(
            model=self._run.name,
            fingerprint=wanted,
            mode=question.mode,
            task=task.name,
            task_fingerprint=study.task_fingerprints.get(task.name),
            relation=next((each for each in relations if task.name in relations[each]), None),
            metric=values[0].metric,
            unit=values[0].unit,
            num_items=task.num_items,
            confidence=confidence,
            num_heads=num_heads,
            base_score=base_values[0].score,
            adapted_score=values[0].score,
            base_answer_nats=float(base_values[0].answer_nats.mean()),
            adapted_answer_nats=float(values[0].answer_nats.mean()),
            scores=scores,
            answers=answers,
            screen=None if expected is None else _screen(expected, answers),
            score_seconds=time.perf_counter() - started,
        )

    def _answers(
        self,
        task: PreparedTask,
        wanted: str,
        which: Literal["run", "base"],
        scorer: HeadScorer,
        adapter: FrozenAdapter | None,
        heads: Sequence[Head],
    ) -> list[list[LogLikelihood]]:
        """The answers of a model as it is, and then with each head ablated.

        Every part of the items is kept as soon as it is scored.
        """
        asked = continuations(task)
        total = len(asked) * (len(heads) + 1)
        ablations = [Ablation(head) for head in heads]
        if self._question.mode == "ablate-mean":
            means = scorer.mean_outputs(asked, adapter)
            ablations = [Ablation(head, means[head]) for head in heads]
        folder = self._folder.head_parts_folder(
            self._run.name, self._question.mode, task.name, task.num_items
        )
        answers = [[_BLANK] * len(asked) for _ in range(len(heads) + 1)]
        # all heads of a layer share a step, which so many tokens fill
        most = self._plan.step_tokens // max(layout.num_heads for layout in scorer.layouts)
        for part in parts(task, most):
            kept = _ScoredPart(folder / f"{fingerprint([wanted, which, heads, part])[:16]}.npz")
            shape = len(answers), len(part)
            if (scored := kept.read(shape)) is not None:
                self._tell.skipped(task.num_items * len(part) / len(asked))
            else:
                scored = scorer.log_likelihoods(
                    [asked[number] for number in part],
                    ablations,
                    adapter,
                    lambda done: self._tell.advanced(task.num_items * done / total),
                )
                kept.write(scored)
            for row, of_part in zip(answers, scored, strict=True):
                for number, answer in zip(part, of_part, strict=True):
                    row[number] = answer
        return answers

    def _expected(
        self, task: PreparedTask, items: Sequence[ItemOptions], scorer: HeadScorer
    ) -> dict[Head, float]:
        """First-order effects on the run's model."""
        model, adapter = self._models.adapted(self._run)
        asked = continuations(task)
        choices = [
            ScreenedItem(tuple(asked[index] for index in item.options), item.right)
            for item in items
            if item.right is not None
        ]
        means = (
            scorer.mean_outputs(asked, adapter) if self._question.mode == "ablate-mean" else None
        )
        most = self._plan.record.config.evaluation.max_batch_tokens
        return expected_effects(
            model,
            scorer.layouts,
            choices,
            adapter,
            means,
            # a backward pass keeps the activations of every layer: no more than on a CPU
            max_batch_tokens=most or STEP_TOKENS["cpu"],
        )


class _ScoredPart(NamedTuple):
    """The answers of all heads to a part of the items, kept until the whole is written.

    A file that is damaged is scored again: the zip archive has checksums.
    """

    path: Path

    def read(self, shape: tuple[int, int]) -> list[list[LogLikelihood]] | None:
        """(heads + 1, requests); None if there is none of that shape."""
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as arrays:
                nats, is_greedy = arrays["nats"], arrays["is_greedy"]
        except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile):
            return None
        if nats.shape != shape or is_greedy.shape != shape:
            return None
        pairs = zip(nats.tolist(), is_greedy.tolist(), strict=True)
        return [[LogLikelihood(*each) for each in zip(*of, strict=True)] for of in pairs]

    def write(self, answers: Sequence[Sequence[LogLikelihood]]) -> None:
        content = io.BytesIO()
        np.savez(
            content,
            nats=np.array([[each.nats for each in row] for row in answers]),
            is_greedy=np.array([[each.is_greedy for each in row] for row in answers]),
        )
        write_atomically(self.path, content.getvalue())


def _effects(values: Sequence[ItemValues], of: str) -> Floats:
    """(heads, items): what each ablation changes of the first, the model as it is."""
    rows = np.stack([getattr(values_of_head, of) for values_of_head in values])
    return rows[1:] - rows[0]


def _screen(expected: Mapping[Head, float], answers: Sequence[HeadEffect]) -> Screen:
    """What the gradient expects of every head, and how that orders the heads that were scored."""
    exact = {Head(each.layer, each.head): each.effect.estimate for each in answers}
    heads = sorted(exact)
    rho = rank_correlation([expected[h] for h in heads], [exact[h] for h in heads])
    return Screen(
        heads=tuple(
            ScreenedHead(
                layer=head.layer, head=head.head, expected_nats=value, is_scored=head in exact
            )
            for head, value in sorted(expected.items())
        ),
        rank_correlation=None if rho is None else Interval(**rho._asdict()),
    )
