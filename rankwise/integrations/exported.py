"""What an export of a study is made of: the runs that are given away, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from rankwise.errors import ConfigError
from rankwise.records import quantities
from rankwise.records.names import find_run
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import PlannedRun
from rankwise.study.conclusion import StudyOutcome


class Exported(NamedTuple):
    """A file of an export.

    Attributes:
        name: of the model, run or table that is in it.
        file: that was written.
        remarks: what it does not say, one sentence each.
        samples_files: that were written beside it, with a model's items.
    """

    name: str
    file: Path
    remarks: tuple[str, ...] = ()
    samples_files: tuple[Path, ...] = ()

    def moved(self, source: Path, target: Path) -> Exported:
        """The same files in another folder."""
        file, *samples = (
            target / path.relative_to(source) for path in (self.file, *self.samples_files)
        )
        return self._replace(file=file, samples_files=tuple(samples))


class ChosenRun(NamedTuple):
    """A run, and the recommendation of the task that it was trained on."""

    planned: PlannedRun
    recommendation: Recommendation
    how: Literal["recommended", "the best bet", "chosen by hand"]


def chosen_runs(outcome: StudyOutcome, run: str | None) -> tuple[list[ChosenRun], list[str]]:
    """The recommended run of every trained task, else its best bet, and what to know of it.

    Args:
        outcome: of the study.
        run: a run, as ``find_run`` takes it, to take instead.

    Raises:
        ConfigError: there is no such run, or for every task it is best not to fine-tune.
    """
    study, parts = outcome.results.study, outcome.recommendation.by_train_task
    if run is not None:
        planned = find_run(study, run, "export")
        part = next(each for each in parts if each.train_task == planned.train_task)
        return [ChosenRun(planned, part, "chosen by hand")], []
    by_name = {planned.name: planned for planned in study.runs}
    chosen: list[ChosenRun] = []
    remarks: list[str] = []
    for part in parts:
        settled, bet = part.recommended_run, part.best_bet_run
        name = settled or bet
        if name is None:
            remarks.append(
                f"nothing is recommended for {part.train_task}, and there is no best bet; "
                "name a run with --run"
            )
            continue
        chosen.append(ChosenRun(by_name[name], part, "recommended" if settled else "the best bet"))
        if settled is None and part.best_bet is not None:
            odds = quantities.odds(part.best_bet.of(part.best_bet.choice or "").right)
            remarks.append(f"{part.train_task} is not settled: {name} is the best bet ({odds})")
    if not chosen:
        raise ConfigError("export", remarks)
    return chosen, remarks
