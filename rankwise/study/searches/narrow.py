"""One seed of every setting, and the other seeds of those that may be the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.records import quantities
from rankwise.study.searches.policy import (
    Course,
    Decision,
    Journal,
    Known,
    Progress,
    Setting,
    Terms,
    follow,
    worth,
)
from rankwise.study.searches.tuning import Tuning, first_rung


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
        ValueError: no setting, no seed, or rates to be tuned and no rung.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        terms: Terms,
        rungs: Sequence[float] = (0.25, 0.5),
        narrows: bool = True,
    ) -> None:
        if not settings or not seeds:
            raise ValueError("a search needs a setting and a seed")
        self.settings, self.seeds, self.terms = tuple(settings), tuple(seeds), terms
        self.rungs, self.first_rung = tuple(rungs), first_rung(settings, rungs)
        self.narrows = narrows and len(seeds) > 1

    def decide(self, known: Known) -> Decision:
        """The next decision; see ``policy.Policy``."""
        return follow(self._course(known), known)

    def _course(self, known: Known) -> Course:
        journal, every = Journal(), range(len(self.seeds))
        tuning = Tuning(self.settings, self.seeds, self.terms, self.first_rung, known, journal)
        for share in self.rungs:
            tuned = [place for place in tuning.rates if tuning.is_tuned(place)]
            for wanted in tuning.to_rung(share, tuned):
                yield from self._asked(journal, wanted, share)
        for seeds in (every[:1], every[1:]):
            wanted = [of for place in tuning.rates for of in tuning.at(place, 1.0, seeds)]
            yield from self._asked(journal, wanted, 1.0)
            if 0 in seeds:
                tuning.keep(1.0, [*tuning.rates], is_last=True)
                self._narrow(tuning)
        tuning.drop_diverged([*tuning.rates], len(self.seeds))
        left = [*tuning.rates]
        labels = ", ".join(self.settings[place].label for place in left) or "nothing"
        return journal.end(tuning.finalists(left), f"Left for the test items: {labels}.")

    def _asked(
        self, journal: Journal, wanted: Sequence[Progress], share: float
    ) -> Iterator[Decision]:
        """A decision to train on, where anything is wanted."""
        labels = dict.fromkeys(self.settings[of.trial.setting].label for of in wanted)
        where = "the end" if share == 1.0 else f"{quantities.percent(share)} of the steps"
        trainings = "1 training goes" if len(wanted) == 1 else f"{len(wanted)} trainings go"
        if wanted:
            yield journal.ask(wanted, f"{trainings} on to {where}: {', '.join(labels)}.")

    def _narrow(self, tuning: Tuning) -> None:
        """Rule out all ranks but the best one, and the next where that is within delta."""
        if not self.narrows:
            return
        worths = {
            place: worth(shown, self.terms)
            for place in tuning.rates
            if self.settings[place].rank is not None
            for shown in tuning.shown(place, 1.0, 1)
            if shown is not None
        }
        ordered = sorted(worths, key=lambda place: -worths[place])
        for number, place in enumerate(ordered):
            behind = worths[ordered[0]] - worths[place]
            if number > 1 or behind > self.terms.delta:
                than = f"{self.terms.written(behind)} less than {self.settings[ordered[0]].label}"
                tuning.drop(place, f"it was worth {than} with the first seed")
