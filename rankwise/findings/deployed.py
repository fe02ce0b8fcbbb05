"""What the runs that a verdict names keep in the forms in which they are deployed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.deployment import FormWeights, TaskGroup, judged_in_groups
from rankwise.findings.rows import Row, flat
from rankwise.records.base import Record
from rankwise.records.deployment import JudgedForm
from rankwise.records.forms import AS_TRAINED
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import ModelResults, StudyResults, TrainTaskResults
from rankwise.records.study import Relation, Unit

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
    reference = run if trained is None else trained.scores
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
