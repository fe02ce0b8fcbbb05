"""The kinds of studies that searches are simulated on, and what came of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import search_policies as policies
from benchmarks.decision_studies import CURVES, NUM_TASKS, Rate, Truth, generator, rank_curve
from benchmarks.search_policies import ALPHA, RANKS, Answer, Judged
from benchmarks.search_studies import Curve, Simulated, Size
from benchmarks.search_until import AVAILABLE, FIRST, Grown, full_grid, until_decided
from rankwise.findings.stats.items import Floats
from rankwise.study.searches.policies import Ladder, Narrow
from rankwise.study.searches.policy import SearchTrial, Terms

NUM_SEEDS = 3
RATE = (2e-4,)
RATES = (6.3e-5, 2e-4, 6.3e-4)

PUBLISHED = (
    (0.3, 1.1), (1.9, 1.2), (2.1, -2.2), (5.1, -1.3), (6.5, -1.2), (3.6, -6.7), (3.5, -10.3),
    (5.9, -7.2), (2.0, -2.8), (1.6, -0.7), (4.3, -7.4), (5.5, -9.4), (3.2, -4.5), (2.2, -0.1),
    (2.7, -5.1), (3.0, -5.4), (0.4, -2.4), (2.4, -0.5), (6.1, -3.9), (8.6, -6.1), (8.6, 4.4),
    (16.5, 13.1), (24.8, -5.8), (5.0, -12.7), (0.3, -2.3), (1.9, -4.6), (2.2, -1.7), (1.1, -0.1),
    (-2.3, -3.6), (2.6, 3.3), (3.6, -1.5), (7.7, -4.9), (10.5, -2.9), (5.0, -4.8), (1.5, -4.9),
    (4.6, 9.5), (9.3, 6.3), (14.9, -24.3), (14.3, -46.6), (3.7, -62.4), (3.5, -4.4), (-4.9, -20.1),
    (-1.2, 3.9), (0.1, -0.9), (3.2, -4.5), (-0.6, -18.3), (5.5, -18.8), (-7.6, -26.5),
    (-7.3, -24.7), (32.3, 28.5), (18.4, -68.2), (-0.9, -6.4), (0.4, -4.4), (0.9, -3.2),
    (0.4, -1.5), (-0.1, -1.4),
)  # fmt: skip
"""Rise and bend of 56 curves of lora-rank-scaling-glue.csv: accuracy in points over the logarithm
of the rank, -1/2 (smallest) to 1/2, by least squares."""

PUBLISHED_FORGETTING = 0.8
"""Points of loss for each doubling of the rank: 3.2 at rank 16 and 4.9 at 64 (arXiv:2405.09673)."""

DYNAMICS = ("alike", "large ranks start slower", "large ranks peak early")
ALL_FAMILIES = (*CURVES, "published")


class Kind(NamedTuple):
    """Validation items, and the margins that they are asked to decide by."""

    name: str
    num_items: int
    discordance: float
    is_p_right: bool
    margin: float

    @property
    def terms(self) -> Terms:
        """Both margins are the same."""
        return Terms(self.margin, self.margin, ALPHA)

    def size(self, num_test: int = 1000) -> Size:
        """As many retention items as in-domain ones."""
        return Size(
            self.num_items, self.num_items, num_test, num_test, NUM_SEEDS, self.discordance,
            self.is_p_right,
        )  # fmt: skip


KINDS = (
    Kind("p(right)", 400, 0.30, True, 4.0),
    Kind("accuracy", 500, 0.20, False, 5.0),
)


class Cell(NamedTuple):
    """Studies of one family of truths, or of one truth next to the margins."""

    family: str
    kind: Kind

    @property
    def is_stress(self) -> bool:
        """Whether the truth is the same in every study."""
        return self.family not in ALL_FAMILIES

    def __str__(self) -> str:
        return f"{self.family:31} {self.kind.name:9} n={self.kind.num_items} {self.kind.margin:g}"


def curve_cells() -> list[Cell]:
    """Plausible curves."""
    return [Cell(family, kind) for kind in KINDS for family in ALL_FAMILIES]


def stress_cells() -> list[Cell]:
    """Truths 2 % beyond a margin."""
    return [Cell(name, kind) for kind in KINDS for name in stress_truths(1.0)]


def draw_curve(cell: Cell, number: int, rng: np.random.Generator) -> Curve:
    """The truth of a study; how its ranks learn changes from study to study."""
    place = np.linspace(0.0, 1.0, len(RANKS))
    if cell.is_stress:
        truth = stress_truths(cell.kind.margin)[cell.family]
    elif cell.family == "published":
        truth = published_truth(rng)
    else:
        truth = rank_curve(cell.family, len(RANKS), rng)
    dynamics = DYNAMICS[number % len(DYNAMICS)]
    speed = 5.0 - 4.0 * place if dynamics == DYNAMICS[1] else np.full(len(RANKS), 3.0)
    late = 4.0 * place if dynamics == DYNAMICS[2] else np.zeros(len(RANKS))
    best_rate = rng.uniform(-0.6, 0.6) + rng.normal(0.0, 0.1, len(RANKS))
    return Curve(
        *(
            tuple(of.tolist())
            for of in (truth.gain, truth.losses.mean(axis=0), speed, late, best_rate)
        )
    )


def published_truth(rng: np.random.Generator) -> Truth:
    """One of the fitted curves, at any level, and a loss that grows with the rank."""
    place = np.linspace(-0.5, 0.5, len(RANKS))
    rise, bend = PUBLISHED[rng.integers(len(PUBLISHED))]
    shape = rise * place + bend * place**2
    gain = rng.uniform(0.0, 25.0) + shape - shape.max()
    forgetting = PUBLISHED_FORGETTING * np.exp(rng.normal(0.0, 0.5))
    loss = rng.normal(1.5, 1.0) + forgetting * np.arange(len(RANKS))
    return _truth(np.clip(gain, -15.0, 40.0), np.clip(loss, -5.0, 28.0))


def stress_truths(margin: float) -> dict[str, Truth]:
    """Truths 2 % beyond a margin."""
    nothing = np.zeros(len(RANKS))

    def below_best(*margins: float) -> Floats:
        return 20.0 - margin * np.array(margins)

    return {
        "all equal": _truth(below_best(0, 0, 0, 0, 0), nothing),
        "monotone": _truth(below_best(2, 1.5, 1.02, 0.5, 0), nothing),
        "plateau": _truth(below_best(1.02, 1.02, 0, 0, 0), nothing),
        "peak in the middle": _truth(below_best(1.02, 1.02, 0, 1.02, 1.02), nothing),
        "base best": _truth(np.array([0.0, 0.0, 0.0, 0.0, -2.0]), nothing),
        "retention failing above a rank": _truth(
            below_best(1.02, 0.5, 0, 0, 0), margin * np.array([0.0, 0.0, 0.3, 1.02, 2.0])
        ),
    }


def _truth(gain: Floats, loss: Floats) -> Truth:
    """The same loss on every task."""
    return Truth(gain, np.tile(loss, (NUM_TASKS, 1)))


class Tally(NamedTuple):
    """What came of a search on the studies of a cell."""

    judged: Sequence[Judged]

    def mean(self, what: str) -> float:
        """Of an attribute of ``findings.decision.Judged``."""
        return float(np.mean([getattr(of, what) for of in self.judged]))

    def rate(self, what: str) -> Rate:
        """How often."""
        return Rate(sum(getattr(of, what) for of in self.judged), len(self.judged))

    def __str__(self) -> str:
        return (
            f"agrees {self.mean('agrees'):.3f} near the best {self.mean('near_best'):.3f} cost "
            f"{self.mean('cost_share'):.3f} recommends {self.mean('is_recommended'):.3f} wrong "
            f"{self.mean('wrong'):.3f} (of trained {self.mean('wrong_of_trained'):.3f}) regret "
            f"{self.mean('regret'):.2f}"
        )


Tallies = dict[str, Tally]
Search = Callable[[Simulated, Terms], Answer]


def narrow(study: Simulated, terms: Terms) -> Answer:
    """The product's."""
    policy = Narrow(policies.settings(study.rates), range(NUM_SEEDS), terms)
    return policies.searched(policy, study, terms)


def ladder(study: Simulated, terms: Terms) -> Answer:
    """The product's."""
    policy = Ladder(policies.settings(study.rates), range(NUM_SEEDS), terms)
    return policies.searched(policy, study, terms)


SEARCHES: dict[str, Search] = {"grid": policies.grid, "narrow": narrow, "ladder": ladder}
BASELINES: dict[str, Search] = {
    "always 32": lambda study, terms: policies.always(32, study, terms),
    "always 16": lambda study, terms: policies.always(16, study, terms),
    "largest estimate": policies.largest_estimate,
}
PRUNER_SHARE = 10
"""One of so many studies is searched with optuna, which takes a second."""


def studies(cell: Cell, number: int, seed: int, num_test: int = 1000) -> Iterator[Simulated]:
    """The studies of a cell at one rate, the same whatever is done with them."""
    rng = generator(cell, seed)
    for each in range(number):
        curve = draw_curve(cell, each, rng)
        yield Simulated(curve, cell.kind.size(num_test), RATE, int(rng.integers(2**32)))


def simulate_searches(cell: Cell, number: int, seed: int) -> Tallies:
    """Every search and, on plausible curves, every baseline."""
    searches = SEARCHES if cell.is_stress else SEARCHES | BASELINES
    found: dict[str, list[Judged]] = {}
    for each, study in enumerate(studies(cell, number, seed)):
        terms = cell.kind.terms
        answers = {name: search(study, terms) for name, search in searches.items()}
        if not cell.is_stress and each % PRUNER_SHARE == 0 and policies.has_optuna():
            answers["WilcoxonPruner"] = policies.wilcoxon_pruner(study, terms)
        for name, answer in answers.items():
            judged = policies.judged(answer, answers["grid"], study.curve, terms)
            found.setdefault(name, []).append(judged)
    return {name: Tally(judged) for name, judged in found.items()}


def simulate_until(cell: Cell, number: int, seed: int) -> Tallies:
    """``until: decided`` against the full grid.

    With one seed the truth of an error is that of the run; ``of the rank`` holds every answer
    against the ranks' truth. ``from two seeds`` begins with two, so that it speaks of
    ranks; plausible curves only.
    """
    names = ("grid", "until", "until, of the rank", "until, from two seeds")
    found: dict[str, list[Judged]] = {name: [] for name in names}
    for study in studies(cell, number, seed, AVAILABLE):
        terms = cell.kind.terms
        grid, until = full_grid(study, terms), until_decided(study, terms)
        answers = [grid, until, until]
        if not cell.is_stress:
            answers.append(until_decided(study, terms, FIRST._replace(num_seeds=2)))
        for name, of in zip(names, answers, strict=False):
            judged = policies.judged(of.answer, grid.answer, study.curve, terms)
            if name == "until":
                judged = judged._replace(wrong=_is_wrong(until, study, terms))
            found[name].append(judged)
    return {name: Tally(judged) for name, judged in found.items() if judged}


def _is_wrong(until: Grown, study: Simulated, terms: Terms) -> bool:
    """By the truth that a verdict is about: the run's where there is one seed."""
    if until.answer.recommended is None:
        return False
    gain, loss = np.asarray(study.curve.gain), np.asarray(study.curve.loss)
    if until.stage.num_seeds == 1:
        gain, loss = gain + study.run_gain[0], loss + study.run_loss[0]
    return not policies.may_be(gain, loss, terms)[until.answer.recommended]


def tuned_cells() -> list[Cell]:
    """Every rank at its own rate."""
    return [Cell(family, KINDS[0]) for family in ("smooth", "published")]


def simulate_tuned(cell: Cell, number: int, seed: int) -> Tallies:
    """Narrow and ladder at tuned rates against the grid of the five rates they may come to."""
    rng = generator(cell, seed)
    found: dict[str, list[Judged]] = {}
    for each in range(number):
        curve = draw_curve(cell, each, rng)
        study = Simulated(curve, cell.kind.size(), RATES, int(rng.integers(2**32)))
        terms = cell.kind.terms
        grid = _tuned_grid(study, terms)
        for name, of in (
            ("grid", grid),
            ("narrow", _tuned(Narrow, study, terms)),
            ("ladder", _tuned(Ladder, study, terms)),
        ):
            found.setdefault(name, []).append(_judged_at_rates(of, grid, study, terms))
    return {name: Tally(judged) for name, judged in found.items()}


class _AtRates(NamedTuple):
    """An answer, and the rate of each rank that was left (by place)."""

    answer: Answer
    rates: dict[int, float]


def _tuned(policy: type[Narrow] | type[Ladder], study: Simulated, terms: Terms) -> _AtRates:
    of = policy(policies.settings(study.rates), range(NUM_SEEDS), terms)
    finalists, known = policies.run_policy(of, study)
    cost = policies.cost_of(known, finalists, study.size)
    rates = {trial.setting: trial.learning_rate for trial in finalists}
    return _AtRates(policies.answer(study, finalists, cost, terms), rates)


def _tuned_grid(study: Simulated, terms: Terms) -> _AtRates:
    """Five rates for every rank to the end with one seed, the best with the others."""
    rates = sorted({*RATES, *(float(f"{rate * 10**0.25:.3g}") for rate in RATES[:2])})
    first = [
        policies.Progress(SearchTrial(place, rate, 0), 1.0)
        for place, rate in itertools.product(range(len(RANKS)), rates)
    ]
    known = {progress: study.shown(progress) for progress in first}
    best: dict[int, float] = {}
    for place in range(len(RANKS)):
        worths = {
            progress.trial.learning_rate: policies.worth(shown, terms)
            for progress, shown in known.items()
            if shown is not None and progress.trial.setting == place
        }
        best[place] = max(worths, key=lambda rate: worths[rate])
    finalists = [SearchTrial(p, rate, s) for s in range(NUM_SEEDS) for p, rate in best.items()]
    others = [policies.Progress(trial, 1.0) for trial in finalists if trial.seed > 0]
    cost = policies.cost_of([*known, *others], finalists, study.size, num_scored=len(known))
    return _AtRates(policies.answer(study, finalists, cost, terms), best)


def _judged_at_rates(of: _AtRates, grid: _AtRates, study: Simulated, terms: Terms) -> Judged:
    """As ``judged``, the truth of each answer being that of its ranks at its rates."""

    def worth(each: _AtRates) -> float:
        place = each.answer.choice
        truth = None if place is None else study.truth(place, each.rates[place])
        return 0.0 if truth is None else truth[0] - 2.0 * max(0.0, truth[1] - terms.delta)

    judged = policies.judged(of.answer, grid.answer, study.curve, terms)
    regret = worth(grid) - worth(of)
    return judged._replace(agrees=regret <= terms.delta, regret=regret)


def pooled(cells: Iterable[tuple[Any, Tallies]], name: str) -> Tally:
    """A search's studies of all cells."""
    return Tally([of for _, tallies in cells if name in tallies for of in tallies[name].judged])
