"""The race: all settings go together, and those that are not the answer stop on the way."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records import quantities
from rankwise.study.searches.comparison import evidence
from rankwise.study.searches.courses import Course, Journal, follow
from rankwise.study.searches.eliminations import Elimination, Look, eliminations
from rankwise.study.searches.policy import Decision, Known, Progress, Setting, Terms
from rankwise.study.searches.tuning import Tuning

RUNG_ALPHA = 0.05
"""The share of alpha of a look at a rung."""

FIRST_SEED_ALPHA = 0.7
"""The share of alpha of the look at the end of the first seed, where most is saved."""


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
    """A race on its course."""

    def __init__(self, race: Race, known: Known) -> None:
        self.race, self.journal = race, Journal()
        self.tuning = Tuning(
            race.settings, race.seeds, race.terms, next(iter(race.rungs), 0.0), known, self.journal
        )
        ranked = [place for place, of in enumerate(race.settings) if of.rank is not None]
        self.order = sorted(ranked, key=lambda place: race.settings[place].rank or 0)

    @property
    def left(self) -> list[int]:
        """All settings that are left."""
        return list(self.tuning.rates)

    @property
    def ranked(self) -> list[int]:
        """Those that are left and may be ruled out, smallest rank first."""
        return [place for place in self.order if place in self.tuning.rates]

    @property
    def is_decided(self) -> bool:
        """Whether no setting can be ruled out any more."""
        return not self.race.drops_settings or len(self.ranked) < 2

    def course(self) -> Course:
        """From the first rung to the finalists."""
        race, tuning = self.race, self.tuning
        for number, share in enumerate(race.rungs):
            going = [
                place
                for place in self.left
                if tuning.is_tuned(place) or (place in self.ranked and not self.is_decided)
            ]
            for wanted in tuning.to_rung(share, going):
                yield self.ask(wanted, share)
            self.look(share, 1, number)
        num_seeds, total = 0, len(race.seeds)
        while num_seeds < total:
            # what nothing hangs on any more is trained at once
            is_one_rate = all(len(rates) == 1 for rates in tuning.rates.values())
            then = total if self.is_decided and is_one_rate else num_seeds + 1
            seeds = range(num_seeds, then)
            wanted = [each for place in self.left for each in tuning.at(place, 1.0, seeds)]
            if wanted:
                yield self.ask(wanted, 1.0)
            if num_seeds == 0:
                tuning.keep(1.0, self.left, is_last=True)
            num_seeds = then
            tuning.drop_diverged(self.left, num_seeds)
            self.look(1.0, num_seeds, len(race.rungs) + num_seeds - 1)
        labels = ", ".join(race.settings[place].label for place in self.left) or "nothing"
        return self.journal.end(tuning.finalists(self.left), f"Left for the test items: {labels}.")

    def ask(self, wanted: Sequence[Progress], share: float) -> Decision:
        """A decision to train on."""
        labels = dict.fromkeys(self.race.settings[of.trial.setting].label for of in wanted)
        where = "the end" if share == 1.0 else f"{quantities.percent(share)} of the steps"
        trainings = "1 training goes" if len(wanted) == 1 else f"{len(wanted)} trainings go"
        return self.journal.ask(wanted, f"{trainings} on to {where}: {', '.join(labels)}.")

    def look(self, share: float, num_seeds: int, number: int) -> None:
        """Rule out what this look shows not to be the answer."""
        race, looked_at = self.race, self.ranked
        if self.is_decided:
            return
        columns = [
            [of for of in self.tuning.shown(place, share, num_seeds) if of is not None]
            for place in looked_at
        ]
        alpha = race.alpha_of(number)
        look = Look(share, num_seeds, len(race.seeds), alpha, len(self.order))
        of = evidence(list(zip(*columns, strict=True)), race.terms)
        for each in eliminations(of, look, race.terms):
            other = race.settings[looked_at[each.by]].label
            self.tuning.drop(looked_at[each.place], reason(each, other, look, race.terms))


def reason(of: Elimination, other: str, look: Look, terms: Terms) -> str:
    """Why a setting is ruled out, in words; ``other`` is by which one."""
    when = (
        f"after {quantities.percent(look.share)} of the steps"
        if look.share < 1.0
        else f"at the end of {look.num_seeds} of {look.all_seeds} seeds"
    )
    if of.ground == "forgets":
        return f"its retention loss is shown to be above {terms.acceptable} {when}"
    if of.ground == "behind":
        margin = terms.written(terms.delta / look.share)
        return f"it is shown to be more than {margin} below {other} {when}"
    if of.ground == "hopeless":
        return (
            f"it is likely below {other} {when}, and would not be shown within "
            f"{terms.margin} of it with all seeds"
        )
    return f"{other} is probably within {terms.margin} of the best that is left, {when}"
