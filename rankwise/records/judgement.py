"""How a study was judged, each time: looks, odds, and what more data would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rankwise.records.base import Record, VersionedRecord

Outcome = Literal["recommended", "no_evidence", "none_helps", "none_keeps_enough", "cannot_tell"]
Addition = Literal["in_domain", "retention", "items", "seeds"]


class Look(Record):
    """One judgement of a study as it was then."""

    number: int
    """1 is the first."""
    share: float
    """The share of the planned items that it saw (above 0, at most 1); 1 where nothing was planned,
    and after the plan."""
    alpha: float
    """The share of wrong recommendations that this look may add (0..1)."""
    metrics: dict[str, str]
    """Task that decides -> metric."""
    num_items: dict[str, int]
    """Task that decides -> items."""
    num_scored: Mapping[str, int] = {}
    """The same of those that every run answered, of tasks that were not scored whole."""
    seeds: tuple[int, ...]
    options: tuple[str, ...]
    """Labels of the options that were judged."""
    runs: tuple[str, ...]
    """Their runs, whose names change with every setting."""
    outcome: Outcome
    labelled: dict[str, str] = Field(default_factory=dict)
    """Task that a person has labelled -> a hash of its corrected items; other labels are other
    data."""

    def is_of(self, other: Look) -> bool:
        """Whether both are of the same data, whatever was planned."""
        ours = {"number", "share", "alpha", "outcome"}
        return self.model_dump(exclude=ours) == other.model_dump(exclude=ours)


class TrainTaskLooks(Record):
    """The judgements of the runs that were trained on one task."""

    train_task: str
    looks: tuple[Look, ...]


class StudyLooks(VersionedRecord, has_texts=False):
    """``looks.json``: every judgement of a study."""

    by_train_task: tuple[TrainTaskLooks, ...]

    def of(self, train_task: str) -> TrainTaskLooks | None:
        """Those of one trained task; None where it was never judged."""
        return next((looks for looks in self.by_train_task if looks.train_task == train_task), None)

    def with_others(self, earlier: StudyLooks | None) -> StudyLooks:
        """The same, and what is known of trained tasks that the study does not have now.

        A task that comes back later was looked at all the same.
        """
        if earlier is None:
            return self
        others = [looks for looks in earlier.by_train_task if self.of(looks.train_task) is None]
        return self.model_copy(update={"by_train_task": (*self.by_train_task, *others)})


class OptionOdds(Record):
    """The probabilities (0..1) that statements about the runs of one option are true.

    The last two are about the option: an imported adapter, and a model without a rank, is used as
    it is, so there they are about the same runs.
    """

    label: str
    rank: int
    """0 where it has none."""
    better_than_base: float
    """1 without a base."""
    keeps_enough: float
    """Loses at most epsilon, and no task more than the ceiling; 1 without retention tasks."""
    near_the_best: float
    """Within delta of the best option that keeps enough."""
    right: float
    """All three."""
    right_on_average: float
    """All three, of the option on average over seeds."""
    right_next_run: float
    """All three, of its next run, and that this run is finished."""


class EpsilonOdds(Record):
    """The same question for another acceptable loss."""

    epsilon_points: float
    right: tuple[float, ...]
    """The odds of every option, in the order of ``BestBet.options``."""
    choice: str | None
    """What the rule recommends then, else what is likeliest right; None is not to fine-tune."""


class BestBet(Record):
    """What to do if one must decide now, with its odds; never in place of the verdict."""

    options: tuple[OptionOdds, ...]
    none: float
    """The probability that no option gains something and keeps enough."""
    choice: str | None
    """The label of what is recommended, else of what is likeliest to be right.

    None is not to fine-tune, where that is likelier.
    """
    by_epsilon: tuple[EpsilonOdds, ...]
    """Smallest epsilon first; empty without retention tasks."""

    def of(self, label: str) -> OptionOdds:
        """The odds of one option."""
        return next(option for option in self.options if option.label == label)

    @property
    def probability(self) -> float:
        """That the choice is right."""
        return self.none if self.choice is None else self.of(self.choice).right


class Prospect(Record):
    """A way to grow a study, and what it would do."""

    add: Addition
    """Items of the in-domain tasks, of the retention tasks, of both; or seeds."""
    factor: float | None
    """Growth of the items, all together; None for seeds."""
    num_items: dict[str, int]
    """Task -> items after the growth; the tasks that grow."""
    num_available: int | None
    """Items that these tasks have in all, at least as many; None where nobody recorded it."""
    num_new_items: int
    """The most that one task gets."""
    num_seeds: int
    """Seeds after the growth."""
    num_new_seeds: int
    """Seeds that are added."""
    probability: float
    """Probability that the study would be decided."""

    @property
    def cost(self) -> float:
        """Growth of the scoring, or for seeds of the training too, as a factor."""
        if self.factor is not None:
            return self.factor
        return self.num_seeds / (self.num_seeds - self.num_new_seeds)
