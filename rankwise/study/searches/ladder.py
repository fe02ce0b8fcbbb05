"""The ladder (arXiv:2512.15634): one rank first, then one rank up or down at a time."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from rankwise.findings.stats.simultaneous import StudyBounds, bounds_at
from rankwise.records import quantities
from rankwise.study.searches.policy import (
    Course,
    Decision,
    Journal,
    Known,
    Setting,
    Shown,
    Terms,
    evidence,
    follow,
)
from rankwise.study.searches.tuning import Tuning, first_rung

FIRST_RANK = 32  # of the paper


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
        ValueError: no setting with a rank, no seed, or rates to be tuned and no rung.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        terms: Terms,
        rungs: Sequence[float] = (0.25, 0.5),
        first_rank: int = FIRST_RANK,
    ) -> None:
        if all(setting.rank is None for setting in settings) or not seeds:
            raise ValueError("a ladder needs a rank and a seed")
        self.settings, self.seeds, self.terms = tuple(settings), tuple(seeds), terms
        self.rungs, self.first_rung = tuple(rungs), first_rung(settings, rungs)
        ranked = [place for place, of in enumerate(settings) if of.rank is not None]
        self.order = sorted(ranked, key=self.rank)
        self.start = min(
            range(len(self.order)),
            key=lambda step: (abs(math.log2(self.rank(self.order[step]) / first_rank)), step),
        )

    def rank(self, place: int) -> int:
        """Of a setting with a rank, by its place."""
        return self.settings[place].rank or 0

    def decide(self, known: Known) -> Decision:
        """The next decision; see ``policy.Policy``."""
        return follow(_Climbing(self, known).course(), known)

    @property
    def level(self) -> float:
        """One-sided, of every bound.

        On the way down each rank may forget; on the way up each may, and may underfit; and the
        last is compared with the base.
        """
        up, down = len(self.order) - 1 - self.start, self.start
        return 1.0 - self.terms.alpha / (2 + max(2 * up, down))


class _Climbing:
    """A ladder on its course."""

    def __init__(self, ladder: Ladder, known: Known) -> None:
        self.ladder, self.journal = ladder, Journal()
        self.tuning = Tuning(
            ladder.settings, ladder.seeds, ladder.terms, ladder.first_rung, known, self.journal,
        )  # fmt: skip

    def course(self) -> Course:
        """Up or down from the first rank."""
        order, step = self.ladder.order, self.ladder.start
        margin = self.ladder.terms.margin
        yield from self.train(order[step])
        while self.fails(order[step]):
            if step == 0:
                return self.end_below(order[0])
            self.leave(order[step])
            step -= 1
            yield from self.train(order[step])
        went_down, rivals = step < self.ladder.start, list[int]()
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
                    self.tuning.drop(larger, reason)
                break
            reason = f"it underfits: {self.label(larger)} is shown to lead by more than {margin}"
            self.tuning.drop(current, reason)
            step += 1
        return self.end(order[step], rivals)

    def label(self, place: int) -> str:
        """The name of a setting."""
        return self.ladder.settings[place].label

    def train(self, place: int) -> Generator[Decision, None, None]:
        """A setting with all seeds; its rates are tuned first with the first seed."""
        tuning, label, seeds = self.tuning, self.label(place), self.ladder.seeds
        first = 0
        if tuning.is_tuned(place):
            for share in self.ladder.rungs:
                going = [place] if place in tuning.rates else []
                for wanted in tuning.to_rung(share, going):
                    if wanted:
                        where, rates = quantities.percent(share), len(wanted)
                        yield self.journal.ask(
                            wanted, f"{label} is trained to {where} at {rates} rates."
                        )
            if place in tuning.rates:
                yield self.journal.ask(
                    tuning.at(place, 1.0, [0]), f"{label} is trained to the end."
                )
                tuning.keep(1.0, [place], is_last=True)
            first = 1
        if place in tuning.rates:
            wanted = tuning.at(place, 1.0, range(first, len(seeds)))
            if wanted:
                yield self.journal.ask(wanted, f"{label} is trained with {len(seeds)} seeds.")
            tuning.drop_diverged([place], len(seeds))

    def fails(self, place: int) -> bool:
        """Whether a setting diverged, or is shown to forget."""
        return place not in self.tuning.rates or self.forgets(place) == 1

    def leave(self, place: int) -> None:
        """Rule out a setting that forgets; one that diverged is ruled out already."""
        if place in self.tuning.rates:
            epsilon = self.ladder.terms.acceptable
            reason = f"it forgets: its retention loss is shown to be above {epsilon}"
            self.tuning.drop(place, reason)

    def bounds(self, places: Sequence[int]) -> StudyBounds:
        """Of settings with all seeds."""
        columns: list[list[Shown]] = [
            [of for of in self.tuning.shown(place, 1.0, len(self.ladder.seeds)) if of is not None]
            for place in places
        ]
        of = evidence(list(zip(*columns, strict=True)), self.ladder.terms)
        return bounds_at(of, self.ladder.level)

    def forgets(self, place: int) -> int:
        """1 where it is shown that a setting forgets, -1 where it is excluded, else 0."""
        loss, epsilon = self.bounds([place]).loss, self.ladder.terms.epsilon
        if loss is None or epsilon is None:
            return -1
        return int(loss.lower[0] > epsilon) - int(loss.upper[0] < epsilon)

    def underfits(self, place: int, larger: int) -> int:
        """1 where it is shown that a larger one leads by more than delta, -1 excluded, else 0."""
        lead, delta = self.bounds([larger, place]).lead, self.ladder.terms.delta
        return int(lead.lower[0, 1] > delta) - int(lead.upper[0, 1] < delta)

    def end(self, place: int, rivals: Sequence[int]) -> Decision:
        """Stop at a setting; rivals are larger ones that may lead by more than delta."""
        label, terms = self.label(place), self.ladder.terms
        says = [f"The ladder stops at {label}."]
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
        return self.journal.end(self.tuning.finalists([place, *rivals]), " ".join(says))

    def end_below(self, place: int) -> Decision:
        """Stop at the smallest setting, which forgets or diverged."""
        if place not in self.tuning.rates:
            return self.journal.end((), "No rank is left: the smallest one diverged.")
        return self.journal.end(
            self.tuning.finalists([place]),
            f"{self.label(place)} forgets too: no rank from here up keeps enough.",
        )
