"""One seed of every setting, and the other seeds of those that may be the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rankwise.records import quantities
from rankwise.study.searches.policy import (
    Course,
    Decision,
    Known,
    Progress,
    Setting,
    Terms,
    follow,
    worth,
)
from rankwise.study.searches.tuning import Tuning


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
