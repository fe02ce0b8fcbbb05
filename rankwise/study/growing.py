"""Runs a study, and where it asks for that extends it until its verdict is settled.

Every judgement is a look, and looks share the error (``findings.looks``), so it may be looked at
after every growth. Growths are written into ``search.json``: a study that was stopped goes on with
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.errors import RecordError
from rankwise.records import quantities
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_if_there
from rankwise.records.folder import StudyFolder
from rankwise.records.judgement import Prospect
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.search import GrowthDecision, SearchRecord
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.extension import Extension, extended
from rankwise.study.observer import Decided, Observer
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.run import Executor, Terms, lead
from rankwise.study.searches.growth import Offer, next_growth
from rankwise.study.searching import policy_name


def run_to_verdict(
    config: StudyConfig,
    plan: Callable[[StudyConfig], StudyPlan],
    folder: StudyFolder,
    observer: Observer,
    *,
    replace: bool = False,
    accept_new_stack: bool = False,
    executor: Executor | None = None,
) -> StudyOutcome:
    """Plan and run a study; with ``search.until`` or a budget, go on until nothing is to be gained.

    Args:
        config: of the study, as it was written or as it has grown.
        plan: makes the plan of a config.
        folder: the study's folder.
        observer: is told the progress.
        replace: see ``Terms``, as for the others.
        accept_new_stack: put scores beside those of another stack.
        executor: does the units.

    Raises:
        RankwiseError: see ``run_study``; a study that could be concluded once stays so.
    """
    terms = Terms(replace, accept_new_stack, executor)
    config, is_last = _grown_before(config, folder), not config.search.grows
    planned = plan(config)  # a study that cannot be planned leaves no folder
    with folder.lock():
        while True:
            outcome = lead(planned, folder, observer, terms, is_last=is_last)
            if is_last or outcome.failures:
                return outcome
            decision = _decide(config, outcome)
            observer(Decided(decision.statement))
            _write(folder, outcome, decision)
            is_last = decision.is_last
            if is_last and not config.deploy:
                return outcome
            config = _grown(config, decision)
            planned = plan(config)


def _grown_before(config: StudyConfig, folder: StudyFolder) -> StudyConfig:
    """A config as it is after all growths that are decided in its folder.

    What cannot be read is set aside when the study is run, and decided anew.
    """
    record: SearchRecord | None = None
    with contextlib.suppress(RecordError):
        record = read_if_there(folder.search_file, SearchRecord)
    for growth in () if record is None or not config.search.grows else record.growths:
        config = _grown(config, growth)
    return config


def _grown(config: StudyConfig, growth: GrowthDecision) -> StudyConfig:
    """A config after a growth; one that has grown so far already stays as it is."""
    limit = config.evaluation.limit
    extension = Extension(
        num_seeds=max(growth.num_seeds - len(config.seeds), 0),
        num_items=0 if growth.limit is None or limit is None else max(growth.limit - limit, 0),
    )
    return extended(config, extension) if any(extension) else config


def _decide(config: StudyConfig, outcome: StudyOutcome) -> GrowthDecision:
    """What to add next, or why nothing."""
    rate = _Seconds.of(outcome.results)
    limit, seeds = config.evaluation.limit, len(config.seeds)
    end = GrowthDecision(
        statement="",
        limit=limit,
        num_seeds=seeds,
        probability=None,
        seconds_spent=rate.spent,
        seconds_expected=None,
    )
    open_parts = [part for part in outcome.recommendation.by_train_task if part.prospects]
    if not open_parts:
        return end.model_copy(update={"statement": "The study is decided."})
    offers = [
        Offer(prospect, max(rate.of_growth(prospect), 1e-9))
        for prospect in open_parts[0].prospects
        if _can_be_added(config, prospect)
    ]
    budget = config.search.budget_seconds
    left = None if budget is None else max(budget - rate.spent, 0.0)
    step = next_growth(offers, left, written=quantities.seconds)
    if step.offer is None:
        return end.model_copy(update={"statement": f"Not decided. {step.statement}"})
    chosen = step.offer.prospect
    return GrowthDecision(
        statement=step.statement,
        limit=None if limit is None else limit + chosen.num_new_items,
        num_seeds=chosen.num_seeds,
        probability=chosen.probability,
        seconds_spent=rate.spent,
        seconds_expected=step.offer.cost,
    )


def _can_be_added(config: StudyConfig, prospect: Prospect) -> bool:
    """Items of all tasks where a limit holds some back; seeds where no policy chooses by them."""
    if prospect.num_new_seeds:
        return not config.is_searched
    is_all = prospect.add == ("items" if config.evaluation.retention else "in_domain")
    return is_all and config.evaluation.limit is not None


class _Seconds(NamedTuple):
    """What training and scoring took so far."""

    spent: float
    of_training: float
    """All runs together."""
    of_scoring: float
    """All runs and the base together."""
    num_items: int
    """Of the largest task."""
    num_seeds: int

    @classmethod
    def of(cls, results: StudyResults) -> _Seconds:
        """From the records of a study."""
        training = sum(run.run.train_seconds for run in results.runs if run.run is not None)
        models: Sequence[ModelResults] = (results.base, *results.runs)
        evaluations = [each for model in models for each in model.evaluations.values()]
        scoring = sum(each.score_seconds for each in evaluations)
        searched = 0.0 if results.search is None else results.search.seconds
        return cls(
            spent=training + scoring + searched,
            of_training=training,
            of_scoring=scoring,
            num_items=max(each.num_examples for each in evaluations),
            num_seeds=len(results.study.config.seeds),
        )

    def of_growth(self, prospect: Prospect) -> float:
        """Seconds that a growth takes."""
        if prospect.num_new_seeds:
            one = (self.of_training + self.of_scoring) / self.num_seeds
            return one * prospect.num_new_seeds
        return self.of_scoring * prospect.num_new_items / self.num_items


def _write(folder: StudyFolder, outcome: StudyOutcome, decision: GrowthDecision) -> None:
    record = outcome.results.search or SearchRecord(
        policy=policy_name(outcome.results.study), by_train_task=()
    )
    growths = (*record.growths, decision)
    if record.growths and record.growths[-1] == decision:
        return
    folder.write(folder.search_file, record.model_copy(update={"growths": growths}))
