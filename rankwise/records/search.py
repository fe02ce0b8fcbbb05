"""``search.json``: what a search knew, what it decided, and why."""

from __future__ import annotations

from rankwise.records.base import Record, VersionedRecord
from rankwise.records.study import Interval, Unit


class SearchSetting(Record):
    """An option that a search chooses from, without its learning rate."""

    label: str
    rank: int | None
    """None for full fine-tuning."""


class Shown(Record):
    """What a training showed on the validation items when it had come so far.

    Both differences are means over tasks. Their bounds are two standard errors away, by the items
    alone.
    """

    run: str
    """Name of the run or checkpoint."""
    setting: str
    """Label of its setting."""
    rank: int | None
    learning_rate: float
    seed: int
    share: float
    """Share of its optimizer steps; 1 at the end."""
    num_tokens: int
    """Trained until here."""
    gain: Interval | None
    """Adapted - base in-domain, positive better; None: the training diverged."""
    retention_loss: Interval | None
    """Base - adapted in points, positive worse; None without retention tasks, or diverged."""


class SearchRuling(Record):
    """A setting, or one of its learning rates, that is trained no further."""

    setting: str
    learning_rate: float | None
    """None: the whole setting."""
    reason: str


class SearchDecision(Record):
    """One decision: what had been shown since the last one, and what follows from it."""

    statement: str
    """What was decided, and on what grounds."""
    shown: tuple[Shown, ...]
    ruled_out: tuple[SearchRuling, ...]
    wanted: tuple[str, ...]
    """Runs and checkpoints to train and to score next; empty: the search is over."""
    finalists: tuple[str, ...]
    """What is scored on the test items; empty before the search is over."""


class TrainTaskSearch(Record):
    """The search of the runs on one trained task."""

    train_task: str
    unit: Unit
    """The unit of the gains."""
    num_items: dict[str, int]
    """Validation items by the task that they stand for."""
    delta: float | None
    """In-domain difference that counts; None where the search does not use it."""
    epsilon_points: float | None
    settings: tuple[SearchSetting, ...]
    decisions: tuple[SearchDecision, ...]

    @property
    def shown(self) -> tuple[Shown, ...]:
        """Everything that trainings have shown, first to last."""
        return tuple(each for decision in self.decisions for each in decision.shown)


class GrowthDecision(Record):
    """A growth of an undecided study, or why it was not grown further."""

    statement: str
    limit: int | None
    """Items of each task, at most, after the growth; None: all."""
    num_seeds: int
    """Seeds after the growth."""
    share: float = 1.0
    """The share of each task's planned items that is scored after the growth (above 0, at most 1);
    below 1, the study is looked at before its plan is done."""
    probability: float | None
    """Predicted, that the grown study is decided; None where nothing is added, and where it goes on
    with its plan."""
    seconds_spent: float
    """The seconds of training and scoring before this was decided."""
    seconds_expected: float | None
    """Seconds that this growth takes; None where nothing is added any more."""

    @property
    def is_last(self) -> bool:
        """Whether nothing is added."""
        return self.seconds_expected is None


class SearchRecord(VersionedRecord, has_texts=False):
    """``search.json``; a search that was stopped decides the same again from the same scores."""

    policy: str
    """How runs were chosen: narrow, ladder, grid (tuned rates only), stop, or none."""
    by_train_task: tuple[TrainTaskSearch, ...]
    seconds: float = 0.0
    """The seconds of training and scoring what is not compared in the end."""
    growths: tuple[GrowthDecision, ...] = ()

    def of(self, train_task: str) -> TrainTaskSearch | None:
        """The search of one trained task; None if there was none."""
        return next((each for each in self.by_train_task if each.train_task == train_task), None)
