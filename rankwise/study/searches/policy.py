"""What a search is: a policy that is told what trainings showed, and says what to train next.

A policy is a pure function of what is known. So a search that was killed goes on by asking again,
and the policies that studies use are the ones that benchmarks simulate.

A course reads of what is known only what it asked for before, so following it again over the same
knowledge leads to the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.findings import odds
from rankwise.findings.decision import Margins
from rankwise.findings.stats.blocks import StudyEvidence, crossed
from rankwise.findings.stats.items import Floats, Items, item_size
from rankwise.records import quantities
from rankwise.records.study import Unit


class Setting(NamedTuple):
    """An option that a search may train, without its learning rate.

    Attributes:
        label: its name in sentences, such as "rank 16".
        rank: None for full fine-tuning, which is tuned and never ruled out.
        rates: learning rates to begin with, from small to large; one where it is not tuned.
    """

    label: str
    rank: int | None
    rates: tuple[float, ...]


class SearchTrial(NamedTuple):
    """A training that a search may ask for: a setting by its place, a learning rate and a seed."""

    setting: int
    learning_rate: float
    seed: int


class Progress(NamedTuple):
    """A trial after a share (0..1] of its optimizer steps; 1 is its end."""

    trial: SearchTrial
    share: float


class TrialResult(NamedTuple):
    """What a trial showed on the validation items: differences from the base, item by item.

    ``gains`` has (n,) for each in-domain task, adapted - base and positive better; in points, or in
    nats where the task is scored by its loss. ``losses`` has (n,) in points for each retention
    task, base - adapted and positive worse; empty where retention is not measured. Every trial of a
    search answers the same items in the same order.
    """

    gains: tuple[Floats, ...]
    losses: tuple[Floats, ...] = ()


Known = Mapping[Progress, TrialResult | None]
"""All that was trained and scored so far; None: the training has diverged."""


class Ruling(NamedTuple):
    """A setting, or one learning rate of it, that is trained no further, and why, in a sentence."""

    setting: int
    learning_rate: float | None
    reason: str


class Decision(NamedTuple):
    """What a policy wants next.

    Attributes:
        wanted: to be trained (from where each was left) and scored on the validation items. Empty:
            the search is over.
        finalists: what is scored on the test items, mostly ends of trials; filled when it is over.
        ruled_out: what this decision takes out.
        statement: what was decided and on what grounds, for people.
    """

    wanted: tuple[Progress, ...]
    finalists: tuple[Progress, ...]
    ruled_out: tuple[Ruling, ...]
    statement: str


Policy = Callable[[Known], Decision]
"""Decides what to train next; everything that earlier decisions wanted is known. Asked with the
same knowledge, it always decides the same."""


class Measures(NamedTuple):
    """How validation items are scored: the unit of the gains, and the metrics that decide."""

    unit: Unit = "points"
    in_domain: tuple[str, ...] = ()
    retention: tuple[str, ...] = ()


class Terms(NamedTuple):
    """The terms on which settings are compared.

    Attributes:
        delta: in-domain difference that counts, in the unit of the gains, above 0.
        epsilon: acceptable retention loss in points; None where retention is not measured.
        alpha: probability, over the whole search, of ruling out wrongly; 0..1.
        unit: of the gains.
    """

    delta: float
    epsilon: float | None
    alpha: float
    unit: Unit = "points"

    @property
    def point(self) -> float:
        """What a point of retention loss counts in the unit of the gains."""
        return odds.point_in(self.unit, self.delta)

    def written(self, gain: float) -> str:
        """A difference of gains in words, such as 4.0 points."""
        return quantities.amount(gain, self.unit)

    @property
    def margin(self) -> str:
        """Delta in words."""
        return self.written(self.delta)

    @property
    def acceptable(self) -> str:
        """The acceptable retention loss in words."""
        return quantities.amount(self.epsilon or 0.0, "points")


Course = Generator[Decision, None, Decision]
"""Yields what is wanted, in order; returns the decision that ends the search."""


def follow(course: Course, known: Known) -> Decision:
    """The first decision of a course that asks for something unknown, or its last one.

    Args:
        course: a fresh one.
        known: everything so far. Of a decision that is known in part, the missing part is wanted.
    """
    try:
        while True:
            decision = next(course)
            missing = tuple(progress for progress in decision.wanted if progress not in known)
            if missing:
                return decision._replace(wanted=missing)
    except StopIteration as end:
        last: Decision = end.value
        return last


def evidence(shown: Sequence[Sequence[TrialResult]], terms: Terms) -> StudyEvidence:
    """The evidence of K settings with the same m seeds, paired by item.

    Args:
        shown: m rows of K, all on the same items and tasks.
        terms: retention takes part where they have an epsilon.
    """

    def stacked(kind: str, is_share: bool) -> list[Items]:
        num_tasks = len(getattr(shown[0][0], kind))
        values: list[Floats] = [
            np.array([getattr(of, kind)[task] for row in shown for of in row])
            for task in range(num_tasks)
        ]
        return [Items(task, item_size(task, in_points=is_share)) for task in values]

    losses = [] if terms.epsilon is None else stacked("losses", True)
    rows = crossed(len(shown), len(shown[0]))
    is_share = terms.unit == "points"
    gains = stacked("gains", is_share)
    return StudyEvidence(gains, losses, rows, terms.point, is_share=is_share)


def worth(shown: TrialResult, terms: Terms) -> float:
    """What a trial is worth, by the price of the best bet; macro-means over tasks."""
    gain = float(np.mean([task.mean() for task in shown.gains]))
    if terms.epsilon is None or not shown.losses:
        return gain
    loss = float(np.mean([task.mean() for task in shown.losses]))
    return float(odds.worth(gain, loss, Margins(terms.delta, terms.epsilon), terms.point))
