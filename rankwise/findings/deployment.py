"""What a model keeps in the form in which it is deployed, and what the verdict's runs keep.

It is the rule by which a study judges retention (``decision.judge``): a loss that is shown to be
below the margin is kept, one that is shown to be above it is not, and in between nothing is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from rankwise.errors import DataError
from rankwise.findings.model_card import markdown_code, markdown_table, markdown_text
from rankwise.findings.pairs import (
    Pair,
    Scores,
    accuracy_difference,
    interval_of,
    pair_items,
    pair_scores,
    paired_test,
)
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import gives_an_error
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.deployment import (
    DeltaInForm,
    DeploymentCheck,
    FieldChange,
    FormRecord,
    FormScore,
    FormVerdict,
    JudgedForm,
    MeanDifference,
    Served,
    ServedItems,
    worst,
)
from rankwise.records.forms import AS_TRAINED
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import (
    MIN_ITEMS,
    FormResults,
    ModelResults,
    StudyResults,
    TrainTaskResults,
)
from rankwise.records.study import Interval, Relation, Unit

_VERDICTS: Mapping[FormVerdict, tuple[str, str]] = {
    "keeps": ("pass", "keeps enough"),
    "loses": ("fail", "loses too much"),
    "cannot_tell": ("not settled", "may lose too much: these items cannot show that it does not"),
}
"""The result of a check, and what a form does."""


class LossRule(NamedTuple):
    """How much may be lost, in the unit of a task, and how sure the answer must be.

    ``confidence`` is two-sided, 0..1. ``clauses`` are tasks that are judged each by itself, with
    what it may lose, in its unit; None: as much as the others.
    """

    points: float
    nats: float
    confidence: float
    clauses: Mapping[str, float | None] = MappingProxyType({})

    def margin(self, unit: Unit) -> float:
        """The acceptable loss on tasks in this unit."""
        return self.points if unit == "points" else self.nats


class FormWeights(NamedTuple):
    """The weights in a form; ``delta`` is None where nothing was merged."""

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
        DataError: both score 0 on all items of a clause: it would hold whatever an adapter does.
    """
    for task in rule.clauses:
        refuse_vacuous(task, reference, form)
    by_unit = reference.tasks_by_unit(task for task in reference.items if task not in rule.clauses)
    groups = [TaskGroup(unit, tasks, rule.margin(unit)) for unit, tasks in by_unit.items()]
    for task, margin in rule.clauses.items():
        unit = reference.items[task].unit
        groups.append(TaskGroup(unit, [task], margin or rule.margin(unit)))
    return judged_in_groups(reference, form, weights, groups, rule.confidence)


def refuse_vacuous(task: str, *models: ModelResults) -> None:
    """Refuse a clause on a task where none of these models scores anything.

    Raises:
        DataError: they score 0 on all items, so the clause would hold for any adapter.
    """
    scored = [model.items[task] for model in models]
    if scored[0].higher_is_better and not any(any(items.values) for items in scored):
        names = quantities.listed([model.name for model in models])
        raise DataError(
            f"{task}: {names} {'score' if len(models) > 1 else 'scores'} 0 on all "
            f"{quantities.counted(len(scored[0].values), 'item')}, so nothing can be lost there, "
            "and the clause would hold for any adapter. Choose rows that the base can do, or "
            "judge them otherwise."
        )


def judged_in_groups(
    reference: ModelResults,
    form: ModelResults,
    weights: FormWeights | FormRecord,
    groups: Sequence[TaskGroup],
    confidence: float,
) -> JudgedForm:
    """Compare a form with the reference on groups of tasks; see ``judged_form``.

    ``confidence`` is two-sided, of each interval for itself.
    """
    pairs = {task: pair_items(reference, form, task) for group in groups for task in group.tasks}
    means = tuple(
        judged_mean(group, [pairs[task] for task in group.tasks], confidence) for group in groups
    )
    verdict = worst([mean.verdict for mean in means])
    return JudgedForm(
        form=form.name,
        num_bytes=weights.num_bytes,
        verdict=verdict,
        means=means,
        scores=tuple(_score(reference, form, *each, confidence) for each in pairs.items()),
        delta=weights.delta,
        modules=weights.modules,
        statement=_statement(form.name, verdict, means, weights.delta)
        + _lost_alone(groups, pairs, confidence),
    )


def _lost_alone(groups: Sequence[TaskGroup], pairs: Mapping[str, Pair], confidence: float) -> str:
    """The tasks that are shown to lose more than their group may, which a mean may hide."""
    alone = [
        group._replace(tasks=[task])
        for group in groups
        if len(group.tasks) > 1
        for task in group.tasks
    ]
    level = 1.0 - (1.0 - confidence) / max(len(alone), 1)  # Bonferroni, over the tasks
    judged = [judged_mean(each, [pairs[each.tasks[0]]], level) for each in alone]
    lost = [
        f"{mean.tasks[0]}, {quantities.with_interval(mean.difference, mean.unit)}"
        for mean in judged
        if mean.verdict == "loses"
    ]
    return f" By itself a task loses more than that: {'; '.join(lost)}." if lost else ""


_MOST_ITEMS = 8
# Log-likelihoods that differ by less are equal: p(right) moves by half a point at most.
_EQUAL_NATS = 0.01


def ignored_adapter(served: Served) -> str:
    """That a server shows nothing of its adapter."""
    return (
        "It answers as the base does: of what the adapter changes its answers show "
        f"{quantities.share(max(round(served.adapter_share or 0.0, 2), 0.0))}. The server does not "
        "apply the adapter; check its options, and the model's name behind # in the URL."
    )


def judged_server(judged: JudgedForm, served: Served) -> JudgedForm:
    """A server's answers, judged as a form's are, with whether they are the adapter's."""
    flipped = {score.task: {*(score.gained or ()), *(score.lost or ())} for score in judged.scores}

    def with_flipped(task: ServedItems) -> ServedItems:
        differ = {*task.differ, *flipped.get(task.task, ())}
        return task.model_copy(update={"differ": tuple(sorted(differ))})

    tasks = tuple(map(with_flipped, served.tasks))
    served = served.model_copy(update={"tasks": tasks})
    number = sum(task.num_examples for task in tasks)
    nats = max((task.largest_nats or 0.0 for task in tasks), default=0.0)
    are_equal = not served.items_that_differ and nats < _EQUAL_NATS
    if served.ignores_adapter:
        said = ignored_adapter(served)
    elif not served.items_that_differ:
        said = f"the same answers to all {quantities.counted(number, 'item')}."
        said = f"Served equals scored, with {said}" if are_equal else quantities.capital(said)
    else:
        items = [f"{task.task} {each}" for task in tasks for each in task.differ]
        more = len(items) - _MOST_ITEMS
        named = [*items[:_MOST_ITEMS], *([f"{quantities.count(more)} more"] if more > 0 else [])]
        said = (
            f"Served differs from scored in {quantities.count(len(items))} of "
            f"{quantities.counted(number, 'item')}: {quantities.listed(named)}."
        )
    if any(task.largest_nats is not None for task in tasks):
        far = quantities.number(float(f"{nats:.2g}"))
        said += f" Log-likelihoods differ by {far} nats at most."
    verdict, statement = judged.verdict, f"{judged.statement} {said}"
    if served.ignores_adapter:
        verdict, statement = "loses", f"{judged.form}: {said}"
    elif are_equal and verdict == "cannot_tell":
        # the interval is that of few items, all of which are answered alike
        verdict, statement = "keeps", f"{judged.form}: {said}"
    return judged.model_copy(update={"served": served, "verdict": verdict, "statement": statement})


def field_changes(
    reference: ModelResults, form: ModelResults, confidence: float
) -> Iterator[FieldChange]:
    """How often each field of the right answers in JSON is right, where two items have it."""
    for task, items in reference.items.items():
        for field in items.fields:
            before, after = (_with_field(model, task, field) for model in (reference, form))
            if len(before.values) < MIN_ITEMS:
                continue
            pair = pair_scores(task, before, after, higher_is_better=True, in_points=True)
            if not gives_an_error(pair.items):
                continue
            test = paired_test(pair, confidence)
            yield FieldChange(
                form=form.name,
                task=task,
                field=field,
                num_examples=test.num_examples,
                reference_score=test.base_score,
                form_score=test.adapted_score,
                difference=interval_of(test.estimate, confidence),
            )


def _with_field(model: ModelResults, task: str, field: str) -> Scores:
    """A model's scores on the items whose right answer has the field."""
    items = model.items[task]
    rights = {place: own for place, own in enumerate(items.fields[field]) if own is not None}
    clusters = items.clusters
    return Scores(
        model.name,
        [items.doc_ids[place] for place in rights],
        [*rights.values()],
        None if clusters is None else [clusters[place] for place in rights],
    )


def verdict_of(difference: Interval, margin: float) -> FormVerdict:
    """Whether a difference is shown to be above minus the margin, or below; positive is better."""
    return ("loses", "cannot_tell", "keeps")[difference.sign(at=-margin) + 1]


def judged_mean(group: TaskGroup, pairs: Sequence[Pair], confidence: float) -> MeanDifference:
    """The mean difference over a group's tasks, given a pair for each, and whether it is a loss."""
    difference = interval_of(mean_over_tasks([pair.items for pair in pairs]), confidence)
    return MeanDifference(
        unit=group.unit,
        tasks=tuple(group.tasks),
        difference=difference,
        margin=group.margin,
        verdict=verdict_of(difference, group.margin),
        relation=group.relation,
    )


def _score(
    reference: ModelResults, form: ModelResults, task: str, pair: Pair, confidence: float
) -> FormScore:
    items, record = reference.items[task], reference.evaluations[task]
    test = paired_test(pair, confidence)
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
        where = f"over {quantities.counted(len(mean.tasks), task)}"
        if mean.relation is None and len(mean.tasks) == 1:
            where = f"on {mean.tasks[0]}"
        said.append(
            f"{quantities.with_interval(mean.difference, mean.unit)} {where}, where "
            f"{quantities.amount(mean.margin, mean.unit)} is acceptable"
        )
    text = f"{form} {_VERDICTS[verdict][1]}: {quantities.listed(said)}."
    if verdict == "cannot_tell":
        text += " More items would decide."
    if delta is None:
        return text
    return (
        f"{text} Its rounding is {quantities.ratio(delta.relative_error)} times as large as delta; "
        f"{quantities.share(delta.unchanged_share)} of delta's entries change nothing, and "
        f"{quantities.share(max(delta.kept_share, 0.0))} of delta is kept."
    )


MOST_CHANGED = 20
"""A report lists at most so many changed answers of a form; the record has all."""
_MOST_LETTERS = 200


def check_report(record: DeploymentCheck) -> str:
    """A check as Markdown, for a pull request: a line for each clause, and the changed answers."""
    result = quantities.capital(_VERDICTS[record.verdict][0])
    against = "its base" if record.reference == "base" else "itself as trained"
    compared = ("items", "score", record.reference, "difference")
    lines = [
        f"# {result}: {markdown_code(record.adapter)} against {against}",
        "",
        f"Base: {markdown_code(record.base)}. Differences are paired over the same items, with "
        f"intervals of {quantities.percent(record.confidence)}; positive is better.",
        "",
        *markdown_table(
            ("form", "on", *compared, "may lose", "result"),
            [row for form in record.forms for row in _clause_rows(form)],
        ),
    ]
    for form in record.forms:
        if form.served is not None:
            lines += ["", markdown_text(form.statement)]
    if record.fields:
        rows = [
            (
                change.form,
                change.task,
                change.field,
                quantities.count(change.num_examples),
                quantities.score(change.form_score, "points"),
                quantities.score(change.reference_score, "points"),
                quantities.with_interval(change.difference, "points"),
            )
            for change in record.fields
        ]
        lines += ["", *markdown_table(("form", "on", "field", *compared), rows)]
    for form in record.forms:
        changed = [answer for answer in record.changed if answer.form == form.form]
        if not changed:
            continue
        num_lost = sum(answer.is_lost for answer in changed)
        heading = ("", "task", "item", "asked", "right", record.reference, form.form)
        rows = [
            (
                "lost" if each.is_lost else "gained",
                each.task,
                str(each.doc_id),
                *map(_cut, (each.prompt, each.right, each.reference_answer, each.form_answer)),
            )
            for each in changed[:MOST_CHANGED]
        ]
        lines += [
            "",
            f"## Changed answers of {markdown_text(form.form)}: {num_lost} lost, "
            f"{len(changed) - num_lost} gained",
            "",
            *markdown_table(heading, rows),
        ]
        if len(changed) > MOST_CHANGED:
            lines += ["", f"{len(changed) - MOST_CHANGED} more are in the record."]
    return "\n".join([*lines, ""])


def _clause_rows(form: JudgedForm) -> Iterator[tuple[str, ...]]:
    by_task = {score.task: score for score in form.scores}
    # of a server more is known than how its scores differ
    is_known = form.served is not None and form.verdict != worst(
        [mean.verdict for mean in form.means]
    )
    for mean in form.means:
        scores = [by_task[task] for task in mean.tasks]
        values = [(score.form_score, score.reference_score) for score in scores]
        means = (statistics.fmean(of_model) for of_model in zip(*values, strict=True))
        yield (
            form.form,
            quantities.listed(mean.tasks),
            quantities.count(sum(score.num_examples for score in scores)),
            *(quantities.score(value, mean.unit) for value in means),
            quantities.with_interval(mean.difference, mean.unit),
            quantities.amount(mean.margin, mean.unit),
            _VERDICTS[form.verdict if is_known else mean.verdict][0],
        )


def _cut(text: str) -> str:
    """The end of a text on one line, where a prompt's question stands."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_LETTERS else f"… {line[-_MOST_LETTERS:]}"


POINTS_WITHOUT_MARGIN = 1.0
"""The acceptable loss where a study has no margin in points; `rankwise check --forms` has it."""


class DeployedRun(Record):
    """A run in its forms, each against the run as trained."""

    train_task: str
    run: str
    named: str
    """Its place in the verdict: recommended, the best bet, or named by an earlier verdict."""
    confidence: float
    """Confidence of every interval by itself, two-sided, 0..1."""
    forms: tuple[JudgedForm, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """A sentence for each form."""
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

    def judged(form: FormResults) -> JudgedForm:
        found = judged_in_groups(reference, form.scores, form.record, groups, part.confidence)
        return judged_server(found, form.record.served) if form.record.served else found

    return DeployedRun(
        train_task=part.train_task,
        run=run.name,
        named={part.best_bet_run: "the best bet", part.recommended_run: "recommended"}.get(
            run.name, "named by an earlier verdict"
        ),
        confidence=part.confidence,
        forms=tuple(judged(form) for form in by_form.values()),
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
