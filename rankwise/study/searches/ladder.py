"""The ladder (arXiv:2512.15634): one rank first, then one rank up or down at a time."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from rankwise.findings.stats.simultaneous import StudyBounds, bounds_at
from rankwise.records import quantities
from rankwise.study.searches.policy import (
    Course,
    Decision,
    Known,
    Setting,
    Shown,
    Terms,
    evidence,
    follow,
)
from rankwise.study.searches.tuning import Tuning

FIRST_RANK = 32  # of the paper


@dataclass(frozen=True)
class Ladder:
    """Trains one rank with all seeds, and goes on by what it showed.

    A rank *forgets* if the lower bound of its retention loss is above epsilon: then the next
    smaller one is trained. Else the next larger one is; the rank *underfits* if the larger leads
    by more than delta (lower bound): then the ladder goes on upward. Otherwise it stops. Either is
    *excluded* where the opposite bound is on the other side of the margin. Where one is neither
    shown nor excluded, the ladder stops for lack of evidence and says so.

    Args:
        settings: at least one with a rank; full fine-tuning takes no part.
        seeds: at least one; all are trained at each step, rates are tuned with the first.
        terms: alpha is shared by all statements of the longest way that is possible.
        rungs: at which learning rates are tuned where a setting has several.
        first_rank: the nearest rank of the settings, by ratio, is trained first.

    Raises:
        ValueError: no setting with a rank, or no seed.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    terms: Terms
    rungs: Sequence[float] = (0.25, 0.5)
    first_rank: int = FIRST_RANK

    def __post_init__(self) -> None:
        if not self.order or not self.seeds:
            raise ValueError("a ladder needs a rank and a seed")

    def rank(self, place: int) -> int:
        """Of a setting with a rank, by its place."""
        return self.settings[place].rank or 0

    @property
    def order(self) -> list[int]:
        """The settings with a rank, smallest first."""
        ranked = [place for place, of in enumerate(self.settings) if of.rank is not None]
        return sorted(ranked, key=self.rank)

    @property
    def start(self) -> int:
        """Where in that order the ladder begins."""
        ratios = [abs(math.log2(self.rank(place) / self.first_rank)) for place in self.order]
        return ratios.index(min(ratios))

    def __call__(self, known: Known) -> Decision:
        """The next decision."""
        return follow(_Climbing(self, known).course(), known)


class _Climbing(Tuning):
    """A ladder on its course."""

    def __init__(self, ladder: Ladder, known: Known) -> None:
        super().__init__(ladder.settings, ladder.seeds, ladder.terms, ladder.rungs, known)
        self.order, self.start = ladder.order, ladder.start

    @property
    def level(self) -> float:
        """One-sided, of every bound.

        On the way down each rank may forget; on the way up each may, and may underfit; and the
        last is compared with the base.
        """
        up, down = len(self.order) - 1 - self.start, self.start
        return 1.0 - self.terms.alpha / (2 + max(2 * up, down))

    def course(self) -> Course:
        """Up or down from the first rank."""
        order, step, margin = self.order, self.start, self.terms.margin
        yield from self.train(order[step])
        while self.fails(order[step]):
            if step == 0:
                if order[0] not in self.rates:
                    return self.end((), "No rank is left: the smallest one diverged.")
                says = f"{self.label(order[0])} forgets too: no rank from here up keeps enough."
                return self.end(order[:1], says)
            self.leave(order[step])
            step -= 1
            yield from self.train(order[step])
        went_down, rivals = step < self.start, list[int]()
        while not went_down and step + 1 < len(order):
            current, larger = order[step], order[step + 1]
            yield from self.train(larger)
            if self.fails(larger):
                self.leave(larger)
                break
            underfits = self.underfits(current, larger)
            if underfits < 1:
                rivals = [larger] if underfits == 0 else []
                if underfits == -1:
                    reason = f"{self.label(current)} is shown to be within {margin} of it"
                    self.drop(larger, reason)
                break
            reason = f"it underfits: {self.label(larger)} is shown to lead by more than {margin}"
            self.drop(current, reason)
            step += 1
        return self.stop_at(order[step], rivals)

    def train(self, place: int) -> Generator[Decision, None, None]:
        """A setting with all seeds; its rates are tuned first with the first seed."""
        label, seeds = self.label(place), self.seeds
        if self.is_tuned(place):
            for share in self.rungs:
                for wanted in self.to_rung(share, [place] if place in self.rates else []):
                    if wanted:
                        where, rates = quantities.percent(share), len(wanted)
                        yield self.ask(wanted, f"{label} is trained to {where} at {rates} rates.")
            if place in self.rates:
                yield self.ask(self.at(place, 1.0, seeds[:1]), f"{label} is trained to the end.")
                self.keep(1.0, [place])
            seeds = seeds[1:]
        if place in self.rates:
            if wanted := self.at(place, 1.0, seeds):
                num_seeds = len(self.seeds)
                yield self.ask(wanted, f"{label} is trained with {num_seeds} seeds.")
            self.drop_diverged([place])

    def fails(self, place: int) -> bool:
        """Whether a setting diverged, or is shown to forget."""
        return place not in self.rates or self.forgets(place) == 1

    def leave(self, place: int) -> None:
        """Rule out a setting that forgets; one that diverged is ruled out already."""
        if place in self.rates:
            epsilon = self.terms.acceptable
            reason = f"it forgets: its retention loss is shown to be above {epsilon}"
            self.drop(place, reason)

    def bounds(self, places: Sequence[int]) -> StudyBounds:
        """Of settings with all seeds."""
        columns: list[list[Shown]] = [
            [of for of in self.shown(place, self.seeds) if of is not None] for place in places
        ]
        of = evidence(list(zip(*columns, strict=True)), self.terms)
        return bounds_at(of, self.level)

    def forgets(self, place: int) -> int:
        """1 where it is shown that a setting forgets, -1 where it is excluded, else 0."""
        loss, epsilon = self.bounds([place]).loss, self.terms.epsilon
        if loss is None or epsilon is None:
            return -1
        return int(loss.lower[0] > epsilon) - int(loss.upper[0] < epsilon)

    def underfits(self, place: int, larger: int) -> int:
        """1 where it is shown that a larger one leads by more than delta, -1 excluded, else 0."""
        lead, delta = self.bounds([larger, place]).lead, self.terms.delta
        return int(lead.lower[0, 1] > delta) - int(lead.upper[0, 1] < delta)

    def stop_at(self, place: int, rivals: Sequence[int]) -> Decision:
        """Stop at a setting; rivals are larger ones that may lead by more than delta."""
        terms = self.terms
        says = [f"The ladder stops at {self.label(place)}."]
        lacking = [
            f"whether {self.label(rival)} leads by more than {terms.margin}" for rival in rivals
        ]
        if self.forgets(place) == 0:
            lacking.append(f"whether it loses more than {terms.acceptable} on retention")
        if lacking:
            says.append(
                f"It stops for lack of evidence: {' and '.join(lacking)} is neither shown nor "
                f"excluded."
            )
        if self.bounds([place]).gain.lower[0] <= 0.0:
            says.append(
                "It is not shown to be better than the base: not shown that fine-tuning helps."
            )
        says.append("Ranks that were not trained are not compared.")
        return self.end([place, *rivals], " ".join(says))
