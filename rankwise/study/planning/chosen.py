"""Which models a study trains: all that its file lists, or those that a search has decided on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from rankwise.records.config.study import StudyConfig
from rankwise.records.grouping import grouped
from rankwise.records.study import PlannedRun
from rankwise.study.planning.runs import RunMaker, checkpoint_steps, stopped
from rankwise.study.searches.policies import Ladder, Narrow, early_stop
from rankwise.study.searches.policy import Decision, Measures, Policy, Progress, SearchTrial
from rankwise.study.searches.settings import searched, terms_of

TUNED_LABEL = "tuned"
"""The learning rate of runs whose rate was searched, as a label that all ranks share."""


class Chosen(NamedTuple):
    """The models of a study.

    Attributes:
        runs: that are compared on the test items.
        others: what a search decides by on validation items, or checkpoints of the runs.
        together: groups of models of which each is trained as far as it goes before the next;
            imported ones are in none.
    """

    runs: tuple[PlannedRun, ...]
    others: tuple[PlannedRun, ...]
    together: tuple[tuple[PlannedRun, ...], ...]


def all_of(config: StudyConfig, runs: Sequence[PlannedRun], beside: Sequence[PlannedRun]) -> Chosen:
    """Every run of a study file, its checkpoints, and what is trained beside: see ``Chosen``."""
    checkpoints = tuple(
        stopped(run, step).model_copy(update={"role": "checkpoint"})
        for run in runs
        for step in checkpoint_steps(run, config.train.score_checkpoints)
    )
    models = (*runs, *checkpoints, *beside)
    return Chosen(tuple(runs), checkpoints, tuple(map(tuple, _in_turn(models))))


def _in_turn(models: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Models in groups: those that go on from others come after these."""
    place: dict[str, int] = {}
    for model in models:  # a run comes behind the one that it goes on from
        place[model.name] = 0 if model.after is None else place[model.after.name] + 1
    groups = grouped((place[model.name], model) for model in models)
    return [groups[number] for number in sorted(groups)]


class Candidates:
    """Plans the models of one trained task that a search asks for.

    Args:
        config: of the study.
        maker: of the runs of the trained task.

    Attributes:
        settings: what the search chooses from.
        ends: a whole training of each setting, in their order.
    """

    def __init__(self, config: StudyConfig, maker: RunMaker) -> None:
        self._config, self._maker = config, maker
        self._is_tuned = config.train.learning_rate.tune
        among = searched(config)
        self.settings = [setting for setting, _ in among]
        self._trained_settings = [settings for _, settings in among]
        self._models: dict[Progress, PlannedRun] = {}
        firsts = [
            SearchTrial(n, of.rates[0], config.seeds[0]) for n, of in enumerate(self.settings)
        ]
        self.ends = [self.model(Progress(trial, 1.0)) for trial in firsts]

    def policy(self, measures: Measures) -> Policy:
        """The policy of the study file, for validation items that are scored so."""
        config, settings, search = self._config, self.settings, self._config.search
        if config.train.stop is not None:
            shares = [
                [
                    step / end.num_steps
                    for step in checkpoint_steps(end, config.train.score_checkpoints)
                ]
                for end in self.ends
            ]
            return partial(early_stop, settings, config.seeds, shares, config.train.stop)
        terms = terms_of(config, measures)
        if search.policy == "ladder":
            return Ladder(settings, config.seeds, terms, search.rungs, search.first_rank)
        narrows = search.policy == "narrow"
        return Narrow(settings, config.seeds, terms, search.rungs, narrows)

    def model(self, progress: Progress) -> PlannedRun:
        """A training as far as it has come."""
        if progress not in self._models:
            setting, rate, seed = progress.trial
            settings = self._trained_settings[setting]
            if isinstance(settings, int):
                run = self._maker.full(rate, settings, seed)
            else:
                # a rule is kept as it is: it gives the same rate
                changed = settings._replace(learning_rate=rate) if self._is_tuned else settings
                run = self._maker.lora(changed, seed)
            if self._is_tuned:
                run = run.model_copy(update={"rate_labels": (TUNED_LABEL,)})
            steps = checkpoint_steps(run, [progress.share]) if progress.share < 1.0 else ()
            self._models[progress] = stopped(run, steps[0]) if steps else run
        return self._models[progress]


def decided(
    candidates: Mapping[str, Candidates], decisions: Mapping[str, Sequence[Decision]]
) -> Chosen:
    """The models that the decisions of a search come to.

    Args:
        candidates: by trained task.
        decisions: by trained task, first to last.
    """
    runs: dict[str, PlannedRun] = {}
    for source, its_decisions in decisions.items():
        finalists = its_decisions[-1].finalists
        models = [candidates[source].model(progress) for progress in finalists]
        runs |= {model.name: model for model in models}
    by_source = [
        [[candidates[source].model(progress) for progress in each.wanted] for each in its_decisions]
        for source, its_decisions in decisions.items()
    ]
    searched: dict[str, PlannedRun] = {}
    together: list[tuple[PlannedRun, ...]] = []
    for wanted in itertools.zip_longest(*by_source, fillvalue=[]):
        group = {
            model.name: runs.get(model.name, model.as_candidate)
            for model in itertools.chain(*wanted)
            if model.name not in searched
        }
        searched |= group
        together.append(tuple(group.values()))
    together.append(tuple(run for run in runs.values() if run.name not in searched))
    return Chosen(
        runs=tuple(runs.values()),
        others=tuple(model for model in searched.values() if model.name not in runs),
        together=tuple(filter(None, together)),
    )
