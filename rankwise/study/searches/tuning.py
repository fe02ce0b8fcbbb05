"""Learning rates of a setting: which are tried, coarse to fine, and which are trained on.

The given rates are a factor of about the square root of ten apart. A best rate at the edge widens
the grid, at most twice on each side. Then the two half steps around the best one are tried. From
rung to rung the worse half stops, and at the end of the first seed one rate is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

from rankwise.records import quantities
from rankwise.study.searches.policy import (
    Decision,
    Known,
    Progress,
    Ruling,
    SearchTrial,
    Setting,
    Terms,
    TrialResult,
    worth,
)

FACTOR = math.sqrt(10.0)
"""Between the rates of the coarse grid; half steps are its square root."""

MOST_BEYOND = 2
"""Rates that are added beyond each edge."""

SAME_WITHIN = 0.05
"""Rates that differ by less than this share are one."""

Worth = float | None
"""The worth of a rate at a rung; None where its training diverged."""


def grid(
    given: Sequence[float], worth_of: Callable[[float], Worth]
) -> Generator[tuple[float, ...], None, tuple[tuple[float, ...], float | None]]:
    """Yields rates to try at the first rung, and goes on when they are tried.

    Returns the rates that were tried, from small to large; and the best one, where it is the
    smallest or the largest and no more are added.

    Args:
        given: at least one rate; a single one is not tuned.
        worth_of: of a rate that was tried.
    """
    rates = sorted(given)
    yield tuple(rates)
    if len(rates) == 1:
        return tuple(rates), None
    beyond = {0: 0, -1: 0}
    while True:
        best = best_rate({rate: worth_of(rate) for rate in rates})
        edge = next((side for side in beyond if rates[side] == best), None)
        if best is None or edge is None or beyond[edge] == MOST_BEYOND:
            break
        beyond[edge] += 1
        new = rounded(best * (FACTOR if edge else 1.0 / FACTOR))
        yield (new,)
        rates = sorted([*rates, new])
    if best is None:
        return tuple(rates), None
    steps = (rounded(best / math.sqrt(FACTOR)), rounded(best * math.sqrt(FACTOR)))
    steps = tuple(s for s in steps if all(abs(s / rate - 1.0) > SAME_WITHIN for rate in rates))
    if steps:
        yield steps
    rates = sorted([*rates, *steps])
    best = best_rate({rate: worth_of(rate) for rate in rates})
    return tuple(rates), best if best in (rates[0], rates[-1]) else None


def best_rate(worths: dict[float, Worth]) -> float | None:
    """The rate that is worth most, the smaller one of equals; None where all diverged."""
    kept = {rate: value for rate, value in worths.items() if value is not None}
    return max(kept, key=lambda rate: (kept[rate], -rate), default=None)


def better_half(worths: dict[float, Worth]) -> tuple[float, ...]:
    """The better half of the rates, rounded up, without those that diverged; small to large."""
    kept = {rate: value for rate, value in worths.items() if value is not None}
    ordered = sorted(kept, key=lambda rate: (-kept[rate], rate))
    return tuple(sorted(ordered[: math.ceil(len(worths) / 2)]))


def rounded(rate: float) -> float:
    """The rate with three significant digits, so that it can be read and named."""
    return float(f"{rate:.3g}")


class Tuning:
    """Trials of settings at the rates that are left; rates are compared with the first seed.

    What was ruled out and said since the last decision is in the next one.

    Args:
        settings: of the search; they are named by their places.
        seeds: of the search.
        terms: by which rates are worth more or less.
        rungs: shares of the steps; at the first the grids are widened and refined.
        known: what was trained so far.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        terms: Terms,
        rungs: Sequence[float],
        known: Known,
    ) -> None:
        self.settings, self.seeds, self.terms = settings, seeds, terms
        self.rungs, self.known = rungs, known
        self.rates = {place: setting.rates for place, setting in enumerate(settings)}
        self._rulings: list[Ruling] = []
        self._notes: list[str] = []

    def ask(self, wanted: Sequence[Progress], sentence: str) -> Decision:
        """A decision to train on."""
        return self._decision(wanted, (), sentence)

    def end(self, places: Sequence[int], sentence: str) -> Decision:
        """The decision that ends a search: these settings are compared, each at the rate left."""
        finalists = [each for place in places for each in self.at(place, 1.0, self.seeds)]
        return self._decision((), finalists, sentence)

    def _decision(
        self, wanted: Sequence[Progress], finalists: Sequence[Progress], sentence: str
    ) -> Decision:
        statement = " ".join([*self._notes, sentence])
        decision = Decision(tuple(wanted), tuple(finalists), tuple(self._rulings), statement)
        self._rulings, self._notes = [], []
        return decision

    def label(self, place: int) -> str:
        """The name of a setting."""
        return self.settings[place].label

    def is_tuned(self, place: int) -> bool:
        """Whether a setting began with several rates."""
        return len(self.settings[place].rates) > 1

    def at(self, place: int, share: float, seeds: Sequence[int]) -> list[Progress]:
        """Every rate that is left of a setting after a share of the steps."""
        trials = (SearchTrial(place, rate, seed) for seed in seeds for rate in self.rates[place])
        return [Progress(trial, share) for trial in trials]

    def to_rung(self, share: float, places: Sequence[int]) -> Iterator[list[Progress]]:
        """What is to be trained to a rung, step by step; then the worse rates stop."""
        if share == self.rungs[0]:
            yield from self._grids(places)
        else:
            yield [each for place in places for each in self.at(place, share, self.seeds[:1])]
        self.keep(share, places)

    def keep(self, share: float, places: Sequence[int]) -> None:
        """The better half of each setting's rates; at the end the best one."""
        for place in places:
            worths = {rate: self._worth(place, rate, share) for rate in self.rates[place]}
            best = best_rate(worths)
            if best is None:
                self.drop(place, "every training of it diverged")
                continue
            self.rates[place] = (best,) if share == 1.0 else better_half(worths)
            for rate, value in worths.items():
                if rate not in self.rates[place]:
                    better, when = quantities.learning_rate(best), quantities.percent(share)
                    reason = (
                        f"learning rate {better} was worth more after {when} of the steps"
                        if value is not None
                        else "its training diverged"
                    )
                    self._rulings.append(Ruling(place, rate, reason))

    def drop(self, place: int, reason: str) -> None:
        """Rule a setting out."""
        self._rulings.append(Ruling(place, None, reason))
        self._notes.append(f"{self.label(place)} is ruled out: {reason}.")
        del self.rates[place]

    def drop_diverged(self, places: Sequence[int]) -> None:
        """Rule out settings of which a training to the end diverged."""
        for place in places:
            if None in self.shown(place, self.seeds):
                self.drop(place, "a training of it diverged")

    def shown(self, place: int, seeds: Sequence[int]) -> list[TrialResult | None]:
        """What a setting showed at the end, at its best rate with the first seed."""
        best = best_rate({rate: self._worth(place, rate, 1.0) for rate in self.rates[place]})
        if best is None:
            return [None]
        return [self.known[Progress(SearchTrial(place, best, seed), 1.0)] for seed in seeds]

    def _grids(self, places: Sequence[int]) -> Iterator[list[Progress]]:
        """The grids of all settings side by side, as long as one of them wants more."""
        share, seed = self.rungs[0], self.seeds[0]
        grids = {
            place: grid(self.settings[place].rates, partial(self._worth, place, share=share))
            for place in places
        }
        while grids:
            wanted: list[Progress] = []
            for place, of in list(grids.items()):
                try:
                    rates = next(of)
                except StopIteration as end:
                    del grids[place]
                    self.rates[place], edge = end.value
                    if edge is not None:
                        self._notes.append(
                            f"The best learning rate of {self.label(place)} stayed at the edge of "
                            f"the grid: {quantities.learning_rate(edge)}."
                        )
                else:
                    wanted += [Progress(SearchTrial(place, rate, seed), share) for rate in rates]
            if wanted:
                yield wanted

    def _worth(self, place: int, rate: float, share: float) -> Worth:
        shown = self.known[Progress(SearchTrial(place, rate, self.seeds[0]), share)]
        return None if shown is None else worth(shown, self.terms)
