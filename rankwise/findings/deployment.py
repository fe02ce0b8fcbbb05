"""What a model keeps in the form in which it is deployed, and what the verdict's runs keep.

It is the rule by which a study judges retention (``decision.judge``): a loss that is shown to be
below the margin is kept, one that is shown to be above it is not, and in between nothing is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.findings.pairs import Pair, accuracy_difference, bound_of, pair_items, paired_test
from rankwise.findings.rows import Row, flat
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.deployment import (
    DeltaInForm,
    FormScore,
    FormVerdict,
    JudgedForm,
    MeanDifference,
    worst,
)
from rankwise.records.forms import AS_TRAINED
from rankwise.records.recommendation import Bound, Recommendation, StudyRecommendation
from rankwise.records.results import ModelResults, StudyResults, TrainTaskResults
from rankwise.records.study import Relation, Unit

_NAMES: Mapping[FormVerdict, str] = {
    "keeps": "keeps enough",
    "loses": "loses too much",
    "cannot_tell": "cannot be distinguished from one that loses too much",
}


class LossRule(NamedTuple):
    """How much may be lost, in the unit of a task, and how sure the answer must be.

    ``confidence`` is two-sided, 0..1.
    """

    points: float
    nats: float
    confidence: float

    def margin(self, unit: Unit) -> float:
        """Of tasks in this unit."""
        return self.points if unit == "points" else self.nats


class FormWeights(NamedTuple):
    """What a form makes of the weights; ``delta`` is None where nothing was merged."""

    num_bytes: int
    delta: DeltaInForm | None = None
    modules: tuple[DeltaInForm, ...] = ()


class TaskGroup(NamedTuple):
    """Tasks of one unit that are judged by their mean difference.

    Attributes:
        unit: of all of them.
        tasks: at least one.
        margin: how much may be lost, in their unit.
        relation: to what was trained, where a study says it.
    """

    unit: Unit
    tasks: Sequence[str]
    margin: float
    relation: Relation | None = None


def judged_form(
    reference: ModelResults, form: ModelResults, weights: FormWeights, rule: LossRule
) -> JudgedForm:
    """Compare a form with the reference on every task that the reference was scored on.

    Raises:
        RecordError: they were scored on other items, or a task has fewer than two.
    """
    by_unit = reference.tasks_by_unit(reference.items)
    groups = [TaskGroup(unit, tasks, rule.margin(unit)) for unit, tasks in by_unit.items()]
    return judged_in_groups(reference, form, weights, groups, rule.confidence)


def judged_in_groups(
    reference: ModelResults,
    form: ModelResults,
    weights: FormWeights,
    groups: Sequence[TaskGroup],
    confidence: float,
) -> JudgedForm:
    """Compare a form with the reference on groups of tasks; see ``judged_form``.

    ``confidence`` is two-sided, of each interval for itself.
    """
    means = tuple(
        _mean(group, [pair_items(reference, form, task) for task in group.tasks], confidence)
        for group in groups
    )
    verdict = worst([mean.verdict for mean in means])
    return JudgedForm(
        form=form.name,
        num_bytes=weights.num_bytes,
        verdict=verdict,
        means=means,
        scores=tuple(
            _score(reference, form, task, confidence) for group in groups for task in group.tasks
        ),
        delta=weights.delta,
        modules=weights.modules,
        statement=_statement(form.name, verdict, means, weights.delta),
    )


def verdict_of(difference: Bound, margin: float) -> FormVerdict:
    """Whether a difference is shown to be above minus the margin, or below; positive is better."""
    if difference.lower > -margin:
        return "keeps"
    return "loses" if difference.upper < -margin else "cannot_tell"


def _mean(group: TaskGroup, pairs: Sequence[Pair], confidence: float) -> MeanDifference:
    difference = bound_of(mean_over_tasks([pair.items for pair in pairs]), confidence)
    return MeanDifference(
        unit=group.unit,
        tasks=tuple(group.tasks),
        difference=difference,
        margin=group.margin,
        verdict=verdict_of(difference, group.margin),
        relation=group.relation,
    )


def _score(reference: ModelResults, form: ModelResults, task: str, confidence: float) -> FormScore:
    items, record = reference.items[task], reference.evaluations[task]
    test = paired_test(pair_items(reference, form, task), confidence)
    own_pair = pair_items(reference, form, task, by_accuracy=True)
    own = paired_test(own_pair, confidence)
    doc_ids, is_whole = np.sort(items.doc_ids), own.counts is not None
    return FormScore(
        task=task,
        task_version=record.task_version,
        metric=items.metric,
        unit=items.unit,
        higher_is_better=items.higher_is_better,
        num_fewshot=record.num_fewshot,
        chat_template=record.chat_template,
        limit=record.limit,
        reference_score=test.base_score,
        form_score=test.adapted_score,
        **test.values(FormScore),
        gained=tuple(doc_ids[own_pair.gain > 0].tolist()) if is_whole else None,
        lost=tuple(doc_ids[own_pair.gain < 0].tolist()) if is_whole else None,
        accuracy=items.accuracy and accuracy_difference(items.accuracy.metric, test, own),
    )


def _statement(
    form: str, verdict: FormVerdict, means: Sequence[MeanDifference], delta: DeltaInForm | None
) -> str:
    said: list[str] = []
    for mean in means:
        task = "task" if mean.relation is None else f"{mean.relation.replace('_', '-')} task"
        said.append(
            f"{quantities.with_interval(mean.difference, mean.unit)} over "
            f"{quantities.counted(len(mean.tasks), task)}, where "
            f"{quantities.amount(mean.margin, mean.unit)} is acceptable"
        )
    text = f"{form} {_NAMES[verdict]}: {quantities.listed(said)}."
    if verdict == "cannot_tell":
        text += " More items would decide."
    if delta is None:
        return text
    return (
        f"{text} Its rounding is {quantities.ratio(delta.relative_error)} times as large as delta; "
        f"{quantities.share(delta.unchanged_share)} of delta's entries change nothing, and "
        f"{quantities.share(max(delta.kept_share, 0.0))} of delta is kept."
    )


POINTS_WITHOUT_MARGIN = 1.0
"""May be lost where the study has no margin in points; that of ``rankwise check --forms``."""


class DeployedRun(Record):
    """A run in its forms, each against the run as trained."""

    train_task: str
    run: str
    named: str
    """What the study says of it: recommended, the best bet, or neither any more."""
    confidence: float
    """Of every interval, two-sided, 0..1; each holds for itself."""
    forms: tuple[JudgedForm, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What is said of each form."""
        return tuple(f"{self.run} ({self.named}), {form.statement}" for form in self.forms)


def deployed_runs(
    results: StudyResults, recommendation: StudyRecommendation
) -> tuple[DeployedRun, ...]:
    """Every run that was checked in a form, also one that an earlier verdict named.

    A relation to what was trained is judged by its mean over the tasks, by the study's own margins:
    epsilon for retention, delta for the others.
    """
    parts = [(results.of(part.train_task), part) for part in recommendation.by_train_task]
    return tuple(
        found
        for of_task, part in parts
        for run in of_task.runs
        if (found := _deployed(of_task, part, run)) is not None
    )


def _deployed(
    results: TrainTaskResults, part: Recommendation, run: ModelResults
) -> DeployedRun | None:
    by_form = {form.record.form: form for form in run.forms}
    trained = by_form.pop(AS_TRAINED, None)
    if not by_form or (trained is None and AS_TRAINED in results.study.forms):
        return None
    answers = {task: items.limited_to(items.doc_ids) for task, items in run.items.items()}
    reference = run.model_copy(update={"items": answers}) if trained is None else trained.scores
    groups = [
        TaskGroup(unit, tasks, _margin(results, part, relation, unit), relation)
        for relation, names in results.tasks.items()
        for unit, tasks in reference.tasks_by_unit(names).items()
    ]
    return DeployedRun(
        train_task=part.train_task,
        run=run.name,
        named={part.best_bet_run: "the best bet", part.recommended_run: "recommended"}.get(
            run.name, "named by an earlier verdict"
        ),
        confidence=part.confidence,
        forms=tuple(
            judged_in_groups(
                reference,
                form.scores,
                FormWeights(form.record.num_bytes, form.record.delta, form.record.modules),
                groups,
                part.confidence,
            )
            for form in by_form.values()
        ),
        warnings=tuple(warning for form in by_form.values() for warning in form.record.warnings),
    )


def _margin(
    results: TrainTaskResults, part: Recommendation, relation: Relation, unit: Unit
) -> float:
    if unit == part.unit and not (unit == "points" and relation == "retention"):
        return part.delta
    if unit == "nats":
        return results.study.config.recommendation.delta_nats
    return POINTS_WITHOUT_MARGIN if part.epsilon_points is None else part.epsilon_points


def deployment_rows(found: Sequence[DeployedRun], _: object) -> Iterator[Row]:
    """Every form of every run on every task."""
    for each in found:
        for form in each.forms:
            before = {"run": each.run, "form": form.form, "verdict": form.verdict}
            yield from (flat(score, **before) for score in form.scores)
