"""Carries a search out: reads what trainings showed, asks the policy, and plans what it wants.

A policy always decides the same from the same scores. So nothing but the study's own records is
needed to go on with a search that was stopped: every decision so far is made again from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rankwise.errors import RecordError
from rankwise.findings.pairs import pair_items
from rankwise.findings.stats.items import Floats
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults
from rankwise.records.search import (
    SearchDecision,
    SearchRecord,
    SearchRuling,
    SearchSetting,
    Shown,
    TrainTaskSearch,
)
from rankwise.records.study import Interval, PlannedRun, Relation, StudyRecord, Unit
from rankwise.study.planning.chosen import Candidates
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.reading import left_of, read_model, unscored
from rankwise.study.searches import policy as searches
from rankwise.study.searches.policy import Decision, Measures, Progress
from rankwise.study.searches.settings import terms_of
from rankwise.study.times import furthest


class Search:
    """The search of a study, made again from its records whenever it is asked.

    Args:
        plan: of the study, at whatever decision.
        folder: of the study.
    """

    def __init__(self, plan: StudyPlan, folder: StudyFolder) -> None:
        assert plan.planner is not None
        self._planner, self._folder, self._study = plan.planner, folder, plan.record
        self._shown: dict[str, searches.TrialResult] = {}
        every = map(plan.record.validation_tasks, plan.record.tasks)
        self._tasks = [task for its in every for task in its]

    def plan(self) -> StudyPlan:
        """The plan after every decision that can be made now; ``search.json`` says how it came.

        Raises:
            RecordError: a score that was made cannot be read.
            StorageError: the folder cannot be written.
        """
        courses = {
            source: self._course(source, candidates)
            for source, candidates in self._planner.candidates.items()
        }
        plan = self._planner.plan({source: course.decisions for source, course in courses.items()})
        if any(len(course.decisions) > 1 for course in courses.values()):
            earlier = self._folder.read_if_there(self._folder.search_file, SearchRecord)
            record = SearchRecord(
                policy=policy_name(self._study),
                by_train_task=tuple(
                    self._record(source, course) for source, course in courses.items()
                ),
                seconds=self._seconds(plan.record),
                growths=() if earlier is None else earlier.growths,
            )
            self._folder.write(self._folder.search_file, record)
        return plan

    def tidy(self, plan: StudyPlan) -> None:
        """Remove the weights of what the search has dropped, once it is over.

        What was compared before, with other settings or ranks, is finished work and stays.

        Raises:
            RecordError: it left nothing to compare.
        """
        if not plan.record.runs:
            record = self._folder.read_if_there(self._folder.search_file, SearchRecord)
            parts = () if record is None else record.by_train_task
            why = " ".join(part.decisions[-1].statement for part in parts)
            raise RecordError(
                f"the search of {self._folder.root} has left no run to compare. {why} Its "
                f"course is in {self._folder.search_file}; lower the learning rates, or search "
                "nothing."
            )
        dropped = plan.record.of_role("searched")
        self._folder.give_up([model for model in dropped if not self._was_compared(model)])

    def _was_compared(self, model: PlannedRun) -> bool:
        """Whether a model has answered a task itself: candidates answer validation items."""
        tasks = self._study.tasks[model.train_task].get("in_domain", ())
        return any(self._folder.earlier_evaluation(model.name, task) for task in tasks)

    def _seconds(self, study: StudyRecord) -> float:
        """That candidates took; of several checkpoints of a training, the last has all steps."""
        ended = {run.name for run in study.runs}
        finished = [
            m for m in study.of_role("searched") if self._folder.finished_run(m) is not None
        ]
        trained = [
            record.train_seconds
            for model in furthest(finished)
            if model.training.name not in ended and (record := self._folder.finished_run(model))
        ]
        scored = [
            record.score_seconds
            for model in finished
            for task in study.tasks_of(model)
            if (record := self._folder.earlier_evaluation(model.name, task))
        ]
        return sum(trained) + sum(scored)

    def _course(self, source: str, candidates: Candidates) -> _Course:
        measures = self._measures(source)
        policy = candidates.policy(measures)
        known: dict[Progress, searches.TrialResult | None] = {}
        decisions = [policy(known)]
        while decisions[-1].wanted:
            models = {progress: candidates.model(progress) for progress in decisions[-1].wanted}
            lacks = (left_of(self._folder, self._study, of.as_candidate) for of in models.values())
            if any(lacks):
                break  # a model is not trained and scored on its validation items yet
            known |= {progress: self._shown_by(model) for progress, model in models.items()}
            decisions.append(policy(known))
        return _Course(candidates, measures, tuple(decisions), known)

    def _shown_by(self, model: PlannedRun) -> searches.TrialResult | None:
        """What a model showed on its validation items, read once; None where it diverged."""
        run = self._folder.finished_run(model)
        if run is None or run.status == "diverged":
            return None
        if model.name in self._shown:
            return self._shown[model.name]
        adapted = read_model(self._folder, self._study, model.as_candidate)
        by_relation = self._study.validation_items[model.train_task]

        def gains(relation: Relation) -> tuple[Floats, ...]:
            names = by_relation.get(relation, {})
            return tuple(pair_items(self._base, adapted, name).gain for name in names.values())

        losses = tuple(-values for values in gains("retention"))
        self._shown[model.name] = searches.TrialResult(gains("in_domain"), losses)
        return self._shown[model.name]

    @cached_property
    def _base(self) -> ModelResults:
        """What the base scored, on every validation item."""
        return read_model(self._folder, self._study, None, self._tasks)

    def _measures(self, source: str) -> Measures:
        """How the validation items are scored; in points until the base is scored."""
        # scores of a plan before are there until they are replaced
        if {*unscored(self._folder, self._study, None)} & {*self._tasks}:
            return Measures()
        items, by_relation = self._base.items, self._study.validation_items[source]

        def metrics(relation: Relation) -> tuple[str, ...]:
            return tuple(items[name].metric for name in by_relation.get(relation, {}).values())

        units = {items[name].unit for name in by_relation["in_domain"].values()}
        unit: Unit = "nats" if units == {"nats"} else "points"
        return Measures(unit, metrics("in_domain"), metrics("retention"))

    def _record(self, source: str, course: _Course) -> TrainTaskSearch:
        terms = terms_of(self._study.config, course.measures)
        settings, model_of = course.candidates.settings, course.candidates.model
        has_terms = self._study.config.train.stop is None
        items = self._study.validation_items[source]
        wanted_before = [(), *(decision.wanted for decision in course.decisions)]
        return TrainTaskSearch(
            train_task=source,
            unit=course.measures.unit,
            num_items={
                task: len(self._base.items[name].doc_ids)
                for names in items.values()
                for task, name in names.items()
            },
            delta=terms.delta if has_terms else None,
            epsilon_points=terms.epsilon if has_terms else None,
            settings=tuple(
                SearchSetting(label=setting.label, rank=setting.rank) for setting in settings
            ),
            decisions=tuple(
                SearchDecision(
                    statement=decision.statement,
                    shown=tuple(course.shown(each) for each in before),
                    ruled_out=tuple(
                        SearchRuling(
                            setting=settings[ruling.setting].label,
                            learning_rate=ruling.learning_rate,
                            reason=ruling.reason,
                        )
                        for ruling in decision.ruled_out
                    ),
                    wanted=tuple(model_of(each).name for each in decision.wanted),
                    finalists=tuple(model_of(each).name for each in decision.finalists),
                )
                for before, decision in zip(wanted_before, course.decisions, strict=False)
            ),
        )


class _Course(NamedTuple):
    """What a search chooses from and by, its decisions so far, and what was known for them."""

    candidates: Candidates
    measures: Measures
    decisions: tuple[Decision, ...]
    known: Mapping[Progress, searches.TrialResult | None]

    def shown(self, progress: Progress) -> Shown:
        """What a training had shown when it had come so far, as it is recorded."""
        model, shown = self.candidates.model(progress), self.known[progress]
        setting = self.candidates.settings[progress.trial.setting]
        return Shown(
            run=model.name,
            setting=setting.label,
            rank=setting.rank,
            learning_rate=progress.trial.learning_rate,
            seed=progress.trial.seed,
            share=progress.share,
            num_tokens=model.num_tokens,
            gain=None if shown is None else _mean(shown.gains),
            retention_loss=None if shown is None or not shown.losses else _mean(shown.losses),
        )


def policy_name(study: StudyRecord) -> str:
    """How the runs of a study are chosen, in a word."""
    config = study.config
    if config.train.stop is not None:
        return "stop"
    if config.search.policy is not None:
        return config.search.policy
    return "grid" if config.is_searched else "none"


def _mean(tasks: Sequence[Floats]) -> Interval:
    """Mean over the tasks' means, each counting the same, and two standard errors by items."""
    variances = [float(values.var(ddof=1)) / len(values) for values in tasks]
    mean = float(np.mean([values.mean() for values in tasks]))
    reach = 2.0 * (float(np.sqrt(np.sum(variances))) / len(tasks))
    return Interval(estimate=mean, lower=mean - reach, upper=mean + reach)
