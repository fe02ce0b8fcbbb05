"""Forgotten, or only unformatted: lost items that come back when asked in the trained format.

An item is lost where the base is right and the adapted model wrong. A model that was trained to
answer in one format may still know the answer, and show it in that format alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankwise.findings.models import seeded_labels
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import pair_items, trained
from rankwise.findings.stats.estimates import wilson_interval
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import Interval


class LostItems(Record):
    """The items of one run on one retention task, judged by the task's own metric.

    ``share_back`` is the share of the lost items that the run has right in the trained format,
    with Wilson's interval; None where none was lost. ``kept_share`` is the same of the items that
    it kept: of a lost item no more can be expected. ``chance`` is what guessing would have right.
    """

    run: str
    label: str
    task: str
    scored_as: str
    num_lost: int
    num_back: int
    share_back: Interval | None
    num_kept: int
    num_kept_right: int
    chance: float | None

    @property
    def kept_share(self) -> float | None:
        """The share of kept items that are right in the trained format; None without any."""
        return self.num_kept_right / self.num_kept if self.num_kept else None


class TrainTaskLostItems(Record):
    """The lost items of one trained task's runs. Exploratory."""

    train_task: str
    confidence: float
    rows: tuple[LostItems, ...]
    statements: tuple[str, ...]


def lost_items(source: OptionGains) -> TrainTaskLostItems | None:
    """What comes back in the trained format; None where no retention task was scored in it.

    Tasks whose items are neither right nor wrong are left out.

    Raises:
        RecordError: models were scored on different items.
    """
    results = source.results.answered
    labels = seeded_labels(results.planned)
    rows = tuple(
        row
        for run in trained(results.runs)
        for task in results.tasks.get("retention", ())
        if (row := _lost(results, run, labels[run.name], task, source.confidence)) is not None
    )
    if not rows:
        return None
    return TrainTaskLostItems(
        train_task=results.train_task,
        confidence=source.confidence,
        rows=rows,
        statements=tuple(_statements(rows, source.confidence)),
    )


def _lost(
    results: TrainTaskResults, run: ModelResults, label: str, task: str, confidence: float
) -> LostItems | None:
    scored_as = results.trained_formats.get(task)
    if scored_as is None or task not in run.items or scored_as not in run.items:
        return None
    base, own = results.base.items[task], results.base.items[scored_as]
    if sorted(base.doc_ids) != sorted(own.doc_ids):
        return None  # other items: nothing can come back
    standard = pair_items(results.base, run, task, by_accuracy=True).outcomes
    there = pair_items(results.base, run, scored_as, by_accuracy=True).outcomes
    if standard is None or there is None:
        return None
    (before, after), (_, right_there) = standard, there
    lost, kept = before & ~after, before & after
    num_lost, num_back = int(lost.sum()), int((lost & right_there).sum())
    evaluation = results.base.evaluations.get(scored_as)
    return LostItems(
        run=run.name,
        label=label,
        task=task,
        scored_as=scored_as,
        num_lost=num_lost,
        num_back=num_back,
        share_back=_share(num_back, num_lost, confidence),
        num_kept=int(kept.sum()),
        num_kept_right=int((kept & right_there).sum()),
        chance=None if evaluation is None else evaluation.chance,
    )


def _share(number: int, total: int, confidence: float) -> Interval | None:
    """A share of items by Wilson's interval; None of no items."""
    if total == 0:
        return None
    lower, upper = wilson_interval(number, total, confidence)
    return Interval(estimate=number / total, lower=lower, upper=upper)


def _statements(rows: Sequence[LostItems], confidence: float) -> Iterator[str]:
    """One for each run that lost something, all its tasks together.

    An item that is only unformatted comes back as often as its task's kept ones are right there
    (surely, where none was kept), a forgotten one as often as guessing is. What is nearer to the
    first is called a loss of format. Where the kept ones are not shown to be right more often than
    guessing, in the trained format, nothing can be told.
    """
    for label in dict.fromkeys(row.label for row in rows):
        own = [row for row in rows if row.label == label]
        num_lost, num_back = sum(row.num_lost for row in own), sum(row.num_back for row in own)
        share = _share(num_back, num_lost, confidence)
        if share is None:
            continue
        kept = _mean_of_lost(own, lambda row: 1.0 if row.kept_share is None else row.kept_share)
        guessed = _mean_of_lost(own, lambda row: row.chance or 0.0)  # of generation, nothing is
        num_kept = sum(row.num_kept for row in own)
        kept_right = _share(sum(row.num_kept_right for row in own), num_kept, confidence)
        can_tell = kept_right is None or kept_right.lower > guessed
        answer = {
            1: "most of the loss is one of format",
            0: "whether most of the loss is one of format cannot be told",
            -1: "most of the loss is not one of format",
        }[share.sign((kept + guessed) / 2) if can_tell else 0]
        verb = "comes" if num_back == 1 else "come"
        bounds = f"{quantities.share(share.lower)} to {quantities.share(share.upper)}"
        yield (
            f"{quantities.capital(label)}: of {quantities.counted(num_lost, 'item')} that it lost "
            f"on retention tasks, {quantities.count(num_back)} {verb} back in the trained format "
            f"({quantities.share(share.estimate)}, {bounds}). As many as of the items that it kept "
            f"in these tasks would be {quantities.share(kept)}, and guessing has "
            f"{quantities.share(guessed)}: {answer}."
        )


def _mean_of_lost(rows: Sequence[LostItems], share_of: Callable[[LostItems], float]) -> float:
    """The mean over the lost items of what is expected of each item of a task."""
    return sum(share_of(row) * row.num_lost for row in rows) / sum(row.num_lost for row in rows)
