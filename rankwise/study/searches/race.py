"""The race: all settings go together, and those that are shown not to be the answer stop."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from rankwise.study.searches.comparison import evidence, worth
from rankwise.study.searches.eliminations import Elimination, Look, eliminations
from rankwise.study.searches.policy import (
    Decision,
    Known,
    Progress,
    Ruling,
    Setting,
    Shown,
    Terms,
    Trial,
)
from rankwise.study.searches.rates import Grid, Worth, best_rate, better_half, grid
from rankwise.study.searches.replay import Course, follow

RUNG_ALPHA = 0.05
"""The share of alpha of a look at a rung."""

FIRST_SEED_ALPHA = 0.5
"""The share of alpha of the look at the end of the first seed, where most is saved."""

Asked = Generator[Decision, None, None]


class Race:
    """Trains every rate of every setting with the first seed, rung by rung, then the other seeds.

    At each planned look (rungs, the end of the first seed, the end of each other one) the worse
    rates of a setting stop, and settings are ruled out by ``eliminations``.

    Args:
        settings: at least one, with different labels.
        seeds: at least one; rates are tuned with the first.
        terms: on which settings are compared.
        rungs: shares of the steps before the end, rising.
        drops_settings: False only tunes the rates, and every setting is trained with every seed.

    Raises:
        ValueError: no setting, no seed, or rungs that do not rise between 0 and 1, or none
            of them where rates are tuned.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        terms: Terms,
        rungs: Sequence[float] = (0.25, 0.5),
        drops_settings: bool = True,
    ) -> None:
        if not settings or not seeds:
            raise ValueError("a race needs a setting and a seed")
        if list(rungs) != sorted(set(rungs)) or any(not 0.0 < share < 1.0 for share in rungs):
            raise ValueError("rungs are shares between 0 and 1, and rise")
        if not rungs and any(len(setting.rates) > 1 for setting in settings):
            raise ValueError("learning rates are tuned at rungs, and there is none")
        self.settings, self.seeds, self.terms = tuple(settings), tuple(seeds), terms
        self.rungs, self.drops_settings = tuple(rungs), drops_settings

    def decide(self, known: Known) -> Decision:
        """The next decision; see ``policy.Policy``."""
        return follow(_Running(self, known).course(), known)

    def alpha_of(self, place: int) -> float:
        """The part of alpha that a look may spend: rungs first, then the ends of the seeds."""
        num_rungs, num_seeds = len(self.rungs), len(self.seeds)
        left = 1.0 - RUNG_ALPHA * num_rungs
        first = FIRST_SEED_ALPHA if num_seeds > 1 else left
        if place < num_rungs:
            return RUNG_ALPHA * self.terms.alpha
        if place == num_rungs:
            return first * self.terms.alpha
        return (left - first) / (num_seeds - 1) * self.terms.alpha


class _Running:
    """A race on its course: which settings and rates are left, and what was just ruled out."""

    def __init__(self, race: Race, known: Known) -> None:
        self.race, self.known = race, known
        self.rates = {place: of.rates for place, of in enumerate(race.settings)}
        self.is_tuned = {place: len(of.rates) > 1 for place, of in enumerate(race.settings)}
        ranked = [place for place, of in enumerate(race.settings) if of.rank is not None]
        self.ranked = sorted(ranked, key=lambda place: race.settings[place].rank or 0)
        self.num_ranked = len(ranked)
        self.rulings: list[Ruling] = []
        self.notes: list[str] = []

    def course(self) -> Course:
        """From the first rung to the finalists."""
        race = self.race
        for place, share in enumerate(race.rungs):
            running = self.at_rungs()
            if running:
                yield from self.train_to(share, running, is_first=place == 0)
                self.look(share, 1, place)
        wanted = [progress for place in self.rates for progress in self.at(place, 1.0, 0)]
        if self.is_decided and not any(self.is_tuned.values()):
            wanted = [each for seed in range(len(race.seeds)) for place in self.rates
                      for each in self.at(place, 1.0, seed)]  # fmt: skip
        yield self.ask(wanted, "to the end")
        self.keep_rates(1.0, list(self.rates), is_last=True)
        self.look(1.0, 1, len(race.rungs))
        number = 1
        while number < len(race.seeds):
            last = len(race.seeds) if self.is_decided else number + 1
            seeds = range(number, last)
            yield self.ask([each for seed in seeds for place in self.rates
                            for each in self.at(place, 1.0, seed)], "to the end")  # fmt: skip
            number = last
            self.drop_diverged(number)
            self.look(1.0, number, len(race.rungs) + number - 1)
        return self.end()

    @property
    def is_decided(self) -> bool:
        """Whether no setting can be ruled out any more."""
        return not self.race.drops_settings or len(self.ranked) < 2

    def at_rungs(self) -> list[int]:
        """The settings that stop at the rungs: tuned ones, and those that may be ruled out."""
        return [
            place for place in self.rates
            if self.is_tuned[place] or (place in self.ranked and not self.is_decided)
        ]  # fmt: skip

    def at(self, place: int, share: float, seed: int) -> list[Progress]:
        """Every rate that is left of a setting, after a share of the steps."""
        return [self.progress(place, rate, share, seed) for rate in self.rates[place]]

    def progress(self, place: int, rate: float, share: float, seed: int = 0) -> Progress:
        """One trial; ``seed`` by its place."""
        return Progress(Trial(place, rate, self.race.seeds[seed]), share)

    def train_to(self, share: float, running: list[int], is_first: bool) -> Asked:
        """All rates to a rung; at the first one the grids are widened and refined."""
        while is_first:
            grids = {place: self.grid(place, share) for place in running}
            wanted = [
                self.progress(place, rate, share)
                for place, of in grids.items()
                for rate in of.missing
            ]
            self.rates |= {place: of.rates for place, of in grids.items()}
            if not wanted:
                for place, of in grids.items():
                    self.note_edge(place, of)
                break
            yield self.ask(wanted, f"to {share:.0%} of the steps")
        if not is_first:
            wanted = [each for place in running for each in self.at(place, share, 0)]
            yield self.ask(wanted, f"to {share:.0%} of the steps")
        self.keep_rates(share, running)

    def grid(self, place: int, share: float) -> Grid:
        """The rates of a setting at the first rung."""
        return grid(
            self.race.settings[place].rates,
            lambda rate: self.worth(place, rate, share),
            lambda rate: self.progress(place, rate, share) in self.known,
        )

    def note_edge(self, place: int, of: Grid) -> None:
        """Say that the best rate is the smallest or the largest of those that were tried."""
        if of.is_at_edge:
            best = best_rate(
                {rate: self.worth(place, rate, self.race.rungs[0]) for rate in of.rates}
            )
            label = self.race.settings[place].label
            self.notes.append(
                f"The best learning rate of {label} stayed at the edge of the grid: {best:g}."
            )

    def worth(self, place: int, rate: float, share: float) -> Worth:
        """Of a rate that is known with the first seed; None where it diverged."""
        shown = self.known[self.progress(place, rate, share)]
        return None if shown is None else worth(shown, self.race.terms)

    def best(self, place: int, rates: Sequence[float], share: float) -> float | None:
        """The rate that is worth most with the first seed; None where all diverged."""
        return best_rate({rate: self.worth(place, rate, share) for rate in rates})

    def keep_rates(self, share: float, running: Sequence[int], *, is_last: bool = False) -> None:
        """The better half of each setting's rates; at the end the best one."""
        for place in running:
            worths = {rate: self.worth(place, rate, share) for rate in self.rates[place]}
            best = best_rate(worths)
            if best is None:
                self.drop(place, "every training of it diverged")
                continue
            kept = (best,) if is_last else better_half(worths)
            for rate in worths:
                if rate not in kept:
                    why = "its training diverged" if worths[rate] is None else (
                        f"{best:g} was worth more after {share:.0%} of the steps"
                    )  # fmt: skip
                    self.rulings.append(Ruling(place, rate, why))
            self.rates[place] = kept

    def drop(self, place: int, reason: str) -> None:
        """Rule a setting out."""
        label = self.race.settings[place].label
        self.rulings.append(Ruling(place, None, f"{label}: {reason}"))
        self.notes.append(f"{label} is ruled out: {reason}.")
        del self.rates[place]
        if place in self.ranked:
            self.ranked.remove(place)

    def drop_diverged(self, num_seeds: int) -> None:
        """Rule out settings of which a seed diverged."""
        for place in list(self.rates):
            if any(shown is None for shown in self.shown(place, 1.0, num_seeds)):
                self.drop(place, "a training of it diverged")

    def shown(self, place: int, share: float, num_seeds: int) -> list[Shown | None]:
        """What a setting showed with each seed, at its best rate."""
        best = self.best(place, self.rates[place], share)
        if best is None:
            return [None]
        return [self.known[self.progress(place, best, share, seed)] for seed in range(num_seeds)]

    def look(self, share: float, num_seeds: int, number: int) -> None:
        """Rule out what this look shows not to be the answer."""
        race = self.race
        if self.is_decided:
            return
        rows = [
            [of for of in self.shown(place, share, num_seeds) if of is not None]
            for place in self.ranked
        ]
        look = Look(share, num_seeds, len(race.seeds), race.alpha_of(number), self.num_ranked)
        found = eliminations(evidence(list(zip(*rows, strict=True)), race.terms), look, race.terms)
        looked_at = list(self.ranked)
        for each in found:
            self.drop(looked_at[each.place], self.reason(each, looked_at, look))

    def reason(self, of: Elimination, looked_at: list[int], look: Look) -> str:
        """Why a setting is ruled out, in words."""
        terms, other = self.race.terms, self.race.settings[looked_at[of.by]].label
        when = (
            f"after {look.share:.0%} of the steps"
            if look.share < 1.0
            else f"at the end of {look.num_seeds} of {look.all_seeds} seeds"
        )
        if of.ground == "forgets":
            return f"its retention loss is shown to be above {terms.epsilon:g} {when}"
        if of.ground == "behind":
            margin = terms.delta / look.share
            return f"it is shown to be more than {margin:.3g} below {other} {when}"
        if of.ground == "hopeless":
            return (
                f"it is shown to be below {other} {when}, and more seeds are not expected to "
                f"show it within {terms.delta:g}"
            )
        return f"{other} is shown to be within {terms.delta:g} of all that are left {when}"

    def ask(self, wanted: Sequence[Progress], how_far: str) -> Decision:
        """A decision to train on; takes the rulings and notes since the last one."""
        labels = [self.race.settings[place].label for place in self.rates]
        settings = {progress.trial.setting for progress in wanted}
        seeds = {progress.trial.seed for progress in wanted}
        notes = [*self.notes, f"{len(wanted)} trainings go on {how_far}: {len(settings)} of "
                 f"{len(labels)} settings, {len(seeds)} seeds."]  # fmt: skip
        decision = Decision(tuple(wanted), (), tuple(self.rulings), " ".join(notes))
        self.rulings, self.notes = [], []
        return decision

    def end(self) -> Decision:
        """The decision that ends the race."""
        race = self.race
        finalists = tuple(
            progress.trial
            for place in self.rates
            for seed in range(len(race.seeds))
            for progress in self.at(place, 1.0, seed)
        )
        labels = [race.settings[place].label for place in self.ranked]
        outcome = f"Left for the test items: {', '.join(labels)}." if labels else "No rank is left."
        return Decision((), finalists, tuple(self.rulings), " ".join([*self.notes, outcome]))
