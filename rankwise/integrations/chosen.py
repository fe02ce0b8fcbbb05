"""Which runs of a study are given away: the recommended ones, or one that is named."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.errors import ConfigError
from rankwise.records.recommendation import Recommendation
from rankwise.records.run_names import find_run
from rankwise.records.study import PlannedRun
from rankwise.study.conclusion import StudyOutcome


class ChosenRun(NamedTuple):
    """A run, and the recommendation of the task that it was trained on."""

    planned: PlannedRun
    recommendation: Recommendation
    is_recommended: bool


def chosen_runs(
    outcome: StudyOutcome, run: str | None, verb: str = "export"
) -> tuple[list[ChosenRun], list[str]]:
    """The recommended run of every trained task, and a sentence for each task that has none.

    Args:
        outcome: of the study.
        run: a run, as ``find_run`` takes it, to take instead.
        verb: what was asked for, which begins an error.

    Raises:
        ConfigError: there is no such run, or nothing is recommended; then the best bet is named.
    """
    study, parts = outcome.results.study, outcome.recommendation.by_train_task
    if run is not None:
        planned = find_run(study, run, verb)
        part = next(each for each in parts if each.train_task == planned.train_task)
        return [ChosenRun(planned, part, is_recommended=False)], []
    by_name = {planned.name: planned for planned in study.runs}
    chosen: list[ChosenRun] = []
    without: list[str] = []
    for part in parts:
        settled = part.recommended_run
        if settled is None:
            without.append(_nothing(part))
        else:
            chosen.append(ChosenRun(by_name[settled], part, is_recommended=True))
    if not chosen:
        raise ConfigError(verb, without)
    return chosen, without


def _nothing(part: Recommendation) -> str:
    """That nothing is recommended, and what can be exported all the same."""
    bet = part.best_bet
    instead = "name a run with --run"
    if bet is not None and bet.choice is None:
        instead = f"the best bet is not to fine-tune; {instead}"
    elif bet is not None:
        instead = f"the best bet is {bet.choice}: --run {part.best_bet_run}"
    return f"no rank is recommended for {part.train_task} ({part.outcome}); {instead}"
