"""What a search is: a policy that is told what trainings showed, and says what to train next.

A policy is a pure function of what is known. So a search that was killed goes on by asking again,
and the policies that studies use are the ones that benchmarks simulate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from rankwise.findings.odds import point_in
from rankwise.findings.stats.items import Floats
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


class Trial(NamedTuple):
    """A training that a search may ask for: a setting by its place, a learning rate and a seed."""

    setting: int
    learning_rate: float
    seed: int


class Progress(NamedTuple):
    """A trial after a share (0..1] of its optimizer steps; 1 is its end."""

    trial: Trial
    share: float


class Shown(NamedTuple):
    """What a trial showed on the validation items: differences from the base, item by item.

    ``gains`` has (n,) for each in-domain task, adapted - base and positive better; in points, or in
    nats where the task is scored by its loss. ``losses`` has (n,) in points for each retention
    task, base - adapted and positive worse; empty where retention is not measured. Every trial of a
    search answers the same items in the same order.
    """

    gains: tuple[Floats, ...]
    losses: tuple[Floats, ...] = ()


Known = Mapping[Progress, Shown | None]
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

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be trained for the search."""
        return not self.wanted

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials of the finalists."""
        return tuple(progress.trial for progress in self.finalists)


class Policy(Protocol):
    """Decides what to train next. Asked with the same knowledge, it always decides the same."""

    def decide(self, known: Known) -> Decision:
        """The next decision; everything that earlier decisions wanted is known."""
        ...


class Measures(NamedTuple):
    """How validation items are scored: the unit of the gains, and the metrics that decide."""

    unit: Unit = "points"
    in_domain: tuple[str, ...] = ()
    retention: tuple[str, ...] = ()


class Terms(NamedTuple):
    """On what terms settings are compared.

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
        return point_in(self.unit, self.delta)

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
