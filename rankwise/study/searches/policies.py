"""The policies of searches: narrow, ladder (arXiv:2512.15634), and stopping early.

Narrow trains one seed of every setting, and the other seeds of those that may be the best. The
ladder trains one rank first, then one rank up or down at a time. Stopping early ends each training
at its last checkpoint that keeps enough of what the base knows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from rankwise.findings.decision import Ends, ends
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.truths import Truths, num_draws, truths_of
from rankwise.records import quantities
from rankwise.records.config.training import StopConfig
from rankwise.study.searches.policy import (
    Course,
    Decision,
    Known,
    Progress,
    Ruling,
    SearchTrial,
    Setting,
    Terms,
    TrialResult,
    evidence,
    follow,
    worth,
)
from rankwise.study.searches.tuning import Tuning

FIRST_RANK = 32  # of the paper


@dataclass(frozen=True)
class Narrow:
    """Trains every setting with the first seed, and the best ones with the others.

    The rank that is worth most on the validation items goes on, and so does the next best one if it
    is worth less by delta at most. Full fine-tuning goes on too. Learning rates are tuned with the
    first seed, rung by rung.

    Args:
        settings: at least one, with different labels.
        seeds: at least one; with one alone every setting is left.
        terms: by which settings are worth more or less.
        rungs: at which rates are tuned where a setting has several: shares of the steps, rising.
        narrows: False only tunes the rates, and every setting is trained with every seed.

    Raises:
        ValueError: no setting, or no seed.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    terms: Terms
    rungs: Sequence[float] = (0.25, 0.5)
    narrows: bool = True

    def __post_init__(self) -> None:
        if not self.settings or not self.seeds:
            raise ValueError("a search needs a setting and a seed")

    def __call__(self, known: Known) -> Decision:
        """The next decision."""
        return follow(self._course(known), known)

    def _course(self, known: Known) -> Course:
        tuning = Tuning(self.settings, self.seeds, self.terms, self.rungs, known)
        for share in self.rungs:
            tuned = [place for place in tuning.rates if tuning.is_tuned(place)]
            for wanted in tuning.to_rung(share, tuned):
                yield from self._asked(tuning, wanted, share)
        for seeds in (self.seeds[:1], self.seeds[1:]):
            wanted = [each for place in tuning.rates for each in tuning.at(place, 1.0, seeds)]
            yield from self._asked(tuning, wanted, 1.0)
            if self.seeds[0] in seeds:
                tuning.keep(1.0, [*tuning.rates])
                self._narrow(tuning)
        tuning.drop_diverged([*tuning.rates])
        left = [*tuning.rates]
        labels = ", ".join(map(tuning.label, left)) or "nothing"
        return tuning.end(left, f"Left for the test items: {labels}.")

    def _asked(
        self, tuning: Tuning, wanted: Sequence[Progress], share: float
    ) -> Iterator[Decision]:
        """A decision to train on, where anything is wanted."""
        labels = dict.fromkeys(tuning.label(of.trial.setting) for of in wanted)
        where = "the end" if share == 1.0 else f"{quantities.percent(share)} of the steps"
        trainings = "1 training goes" if len(wanted) == 1 else f"{len(wanted)} trainings go"
        if wanted:
            yield tuning.ask(wanted, f"{trainings} on to {where}: {', '.join(labels)}.")

    def _narrow(self, tuning: Tuning) -> None:
        """Rule out all ranks but the best one, and the next where that is within delta."""
        if not self.narrows or len(self.seeds) == 1:
            return
        worths = {
            place: worth(shown, self.terms)
            for place in tuning.rates
            if self.settings[place].rank is not None
            for shown in tuning.shown(place, self.seeds[:1])
            if shown is not None
        }
        ordered = sorted(worths, key=lambda place: -worths[place])
        for number, place in enumerate(ordered):
            behind = worths[ordered[0]] - worths[place]
            if number > 1 or behind > self.terms.delta:
                than = f"{self.terms.written(behind)} less than {tuning.label(ordered[0])}"
                tuning.drop(place, f"it was worth {than} with the first seed")


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
        """The rank of a setting that has one, by its place."""
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

    def truths(self, places: Sequence[int]) -> Truths:
        """What settings with all seeds may be worth: one seed as it is, several on average."""
        columns: list[list[TrialResult]] = [
            [of for of in self.shown(place, self.seeds) if of is not None] for place in places
        ]
        of = evidence(list(zip(*columns, strict=True)), self.terms)
        question = "adapters" if len(self.seeds) == 1 else "rank"
        return truths_of(of, question, num_draws(len(places), self.level))

    def ends(self, draws: Floats) -> Ends:
        """The bounds of draws at the ladder's level."""
        return ends(draws, self.level)

    def forgets(self, place: int) -> int:
        """1 where it is shown that a setting forgets, -1 where it is excluded, else 0."""
        losses, epsilon = self.truths([place]).losses, self.terms.epsilon
        if losses is None or epsilon is None:
            return -1
        lower, upper = self.ends(losses[:, 0])
        return int(lower > epsilon) - int(upper < epsilon)

    def underfits(self, place: int, larger: int) -> int:
        """1 where it is shown that a larger one leads by more than delta, -1 excluded, else 0."""
        gains, delta = self.truths([larger, place]).gains, self.terms.delta
        lower, upper = self.ends(gains[:, 0] - gains[:, 1])
        return int(lower > delta) - int(upper < delta)

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
        if self.ends(self.truths([place]).gains[:, 0]).lower <= 0.0:
            says.append(
                "It is not shown to be better than the base: not shown that fine-tuning helps."
            )
        says.append("Ranks that were not trained are not compared.")
        return self.end([place, *rivals], " ".join(says))


def early_stop(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    shares: Sequence[Sequence[float]],
    stop: StopConfig,
    known: Known,
) -> Decision:
    """Trains every setting and seed from checkpoint to checkpoint while it keeps enough.

    A training stops where the estimated loss on the retention validation items is above the
    limit, and the checkpoint before it is the run. If the first checkpoint loses too much, it
    is the run all the same: the verdict on test items says what it loses.

    Args:
        settings: that are trained, each at one rate.
        seeds: at least one.
        shares: of the steps (0..1) of each setting, after which it may end before its last step.
        stop: the limit.
        known: everything so far.

    Returns:
        The next checkpoint of every training that has kept enough so far.
    """
    wanted: list[Progress] = []
    ruled_out: list[Ruling] = []
    finalists: list[Progress] = []
    endings: list[str] = []
    limit = stop.retention_loss
    for seed, (place, setting) in itertools.product(seeds, enumerate(settings)):
        trial, label = SearchTrial(place, setting.rates[0], seed), f"{setting.label}, seed {seed}"
        its_shares = (*sorted({*shares[place]}), 1.0)
        reached = [share for share in its_shares if Progress(trial, share) in known]
        shown = {share: known[Progress(trial, share)] for share in reached}
        # at the first checkpoint where it diverged, or lost too much
        stopped = next(
            (share for share, of in shown.items() if of is None or _loss(of) > limit), None
        )
        if stopped is None and len(reached) < len(its_shares):
            wanted.append(Progress(trial, its_shares[len(reached)]))
        kept = [share for share in reached if stopped is None or share < stopped]
        for share in kept[-1:] or reached[-1:]:
            finalists.append(Progress(trial, share))
            endings.append(f"{label}: {quantities.percent(share)} of its steps")
        if stopped is not None and stopped == reached[-1]:
            at, of = quantities.percent(stopped), shown[stopped]
            reason = f"{label}: diverged before {at} of its steps"
            if of is not None:
                lost, most = (quantities.amount(n, "points") for n in (_loss(of), limit))
                reason = (
                    f"{label}: after {at} of its steps it loses {lost} on the retention "
                    f"validation items, more than {most}"
                )
            ruled_out.append(Ruling(place, None, reason))
    if wanted:
        share = quantities.percent(min(progress.share for progress in wanted))
        statement = f"{len(wanted)} trainings go on to {share} of their steps"
        return Decision(tuple(wanted), (), tuple(ruled_out), statement)
    return Decision((), tuple(finalists), tuple(ruled_out), "; ".join(endings))


def _loss(shown: TrialResult) -> float:
    """Mean over the retention tasks, in points; 0 without any."""
    losses = [float(task.mean()) for task in shown.losses]
    return sum(losses) / len(losses) if losses else 0.0
