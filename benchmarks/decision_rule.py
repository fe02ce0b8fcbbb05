"""How often the rule errs next to its margins, and how often it answers where it should."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.decision_studies import (
    NUM_TASKS,
    About,
    Family,
    Rate,
    Study,
    Truth,
    draw_study,
    generator,
    rank_curve,
    right_answers,
)
from rankwise.findings.decision import Choice, Margins, choose, ends, odds
from rankwise.findings.looks import alpha_of_look
from rankwise.findings.stats.blocks import StudyEvidence, crossed
from rankwise.findings.stats.items import Items
from rankwise.findings.stats.truths import deciding_level, num_draws, num_statements, truths_of
from rankwise.records.config.study import RecommendationConfig

CONFIDENCE = 0.95
LOOKS = (0.25, 0.5, 0.75, 1.0, 2.0, 4.0)
"""At a study, by the share of the planned items; after the plan it doubles."""
NUM_RANKS = 5
BEST_GAIN, BEYOND = 20.0, 1.002  # of a margin


PLAIN = Family("plain")
COLLAPSES = tuple(
    Family(f"collapse {share:.0%}", collapse=share, about=("rank",)) for share in (0.05, 0.1, 0.15)
)
TAILS = tuple(
    Family(f"heavy tails, {law}", law=law)
    for law in ("normal", "t3", "3 % lose 2, shared", "2 % lose 3, own", "lognormal")
)
DEPENDENT = (
    Family("near-duplicates", copies=5),
    Family("shared documents", in_domain=(0.5, 0.5), shares_documents=True),
)
FAMILIES = (
    PLAIN,
    Family("p(right)", law="p(right)"),
    Family("rough", ("rough",), about=()),
    *COLLAPSES,
    Family("failing runs", fails=0.1, about=("rank",)),
    Family("seed x rank", run_sd=(3.0, 2.0), grows=True, about=("rank",)),
    *TAILS,
    Family("floor", base=0.02, retained=0.2),
    Family("ceiling", base=0.78, retained=0.98),
    Family("unequal tasks", in_domain=(0.05, 0.35, 0.6), retention=(0.05, 0.1, 0.2, 0.4, 0.75)),
    *DEPENDENT,
    Family("wrong prior", ("wild",), base=0.2, run_sd=(4.0, 3.0), about=("rank",)),
)
LOST = Family("one task lost")

SIZES, SEEDS = (40, 300, 1000, 3000), (1, 2, 3, 5)
EDGES_AT: dict[About, tuple[tuple[int, int], ...]] = {
    "adapters": ((1, 40), (1, 300), (1, 1000), (1, 3000), (2, 3000), (5, 300)),
    "rank": ((3, 300), (3, 3000)),
}
"""(seeds, items) at which a verdict is judged where it is easiest to err. The rule promises nothing
of the rank on average, and its probability is held to what comes true (``odds``): of the rank, only
families whose runs differ from it are judged, to say how far."""

BAR, RECOUNT = 0.06, 6
"""An error rate whose bound is above the bar is counted again, in so many times as many studies."""

PLAUSIBLE_AT: tuple[tuple[About, int], ...] = (
    *(("adapters", seeds) for seeds in SEEDS[:2]),
    *(("rank", seeds) for seeds in SEEDS[1:]),
)

COLLAPSE_SEEDS = 3
"""With which the errors of collapsing runs have a bar."""

COVERED, COVERED_AT = ("gains of zero", "losses"), 300
"""Edges, and the number of items, at which coverage is counted too."""


def margins_of(family: Family) -> Margins:
    """The defaults."""
    config = RecommendationConfig()
    metrics = ["p_right" if family.law == "p(right)" else "acc"]
    delta = config.delta_nats if family.is_nats else config.delta_for(metrics)
    return Margins(delta, config.epsilon_for(metrics), config.ceiling_for(metrics))


class EdgeCell(NamedTuple):
    """A truth of a family where as many ranks as possible are wrong, by as little as possible.

    ``at`` are the verdicts, seeds and items at which it is judged.
    """

    family: Family
    edge: str
    truth: Truth
    at: tuple[tuple[About, int, int], ...]

    def __str__(self) -> str:
        return f"{self.family.name:31} {self.edge:17}"


class EdgeTally(NamedTuple):
    """Wrong recommendations by verdict, number of seeds and of items; single intervals' coverage.

    ``coverage`` is of intervals at 95 %: of a gain, a lead and a loss of each study.
    """

    wrong: dict[tuple[About, int, int], Rate]
    coverage: dict[tuple[About, int], Rate]

    @property
    def worst(self) -> float:
        """The largest upper bound of an error rate."""
        return max(rate.upper for rate in self.wrong.values())

    @property
    def least_covered(self) -> float:
        """The smallest coverage; 1 where it was not counted."""
        return min((rate.share for rate in self.coverage.values()), default=1.0)

    def __str__(self) -> str:
        rows = _table(self.wrong, SIZES)
        return f"wrong at most {self.worst:.3f}, covered {self.least_covered:.3f}{rows}"


def _table(rates: Mapping[tuple[About, int, int], Rate], sizes: Sequence[int]) -> str:
    """A row for each verdict and number of seeds, a column for each number of items."""
    rows = [f"\n    {'items':18}" + "".join(f"{size:>7}" for size in sizes)]
    for about, seeds in dict.fromkeys(key[:2] for key in rates):
        shares = [rates.get((about, seeds, size)) for size in sizes]
        cells = "".join(f"{'' if rate is None else str(rate):>7}" for rate in shares)
        rows.append(f"\n    {about:9} {seeds} seeds {cells}")
    return "".join(rows)


def edge_cells() -> list[EdgeCell]:
    """Every family at its margins, and one task that truly loses 20 points and more."""
    return [
        EdgeCell(family, *edge, tuple((about, *at) for at in EDGES_AT[about]))
        for family in (*FAMILIES, LOST)
        if family.about
        for about in family.about[:1]
        for edge in _edges(family)
    ]


def recount(cell: EdgeCell, tally: EdgeTally) -> EdgeCell | None:
    """What is counted again, of a cell with a bar; None where nothing is."""
    if "adapters" not in cell.family.about:
        return None
    above = tuple(key for key, rate in tally.wrong.items() if rate.upper > BAR)
    return cell._replace(at=above) if above else None


def recounted(
    first: Sequence[tuple[EdgeCell, EdgeTally]], again: Sequence[tuple[EdgeCell, EdgeTally]]
) -> list[tuple[EdgeCell, EdgeTally]]:
    """The first count, with those rates in place that were counted again, in fresh studies."""
    by_edge = {(cell.family, cell.edge): tally.wrong for cell, tally in again}
    return [
        (cell, tally._replace(wrong=tally.wrong | by_edge.get((cell.family, cell.edge), {})))
        for cell, tally in first
    ]


def _edges(family: Family) -> Iterator[tuple[str, Truth]]:
    margins = margins_of(family)
    best = np.full(NUM_RANKS, family.point * BEST_GAIN)
    nothing = np.zeros((NUM_TASKS, NUM_RANKS))
    if family == LOST:
        for points in (20, 30, 40):
            yield f"{points} points", Truth(best, np.array([[points], *[[-8.0]] * 4]) + nothing)
        return
    loss, delta = BEYOND * margins.epsilon_points, BEYOND * margins.delta
    # failures take all that was gained, and collapses all that may be lost
    if family.collapse:
        yield "losses", Truth(best, nothing + loss)
        return
    yield "gains of zero", Truth(0.0 * best, nothing)
    if family.fails:
        return
    yield "one rank is best", Truth(np.append(best[1:] - delta, best[:1]), nothing)
    if family.is_nats:
        return
    yield "losses", Truth(best, nothing + loss)
    gain = best - delta * np.array([1, 1, 0, 0, 0])
    yield "gains and losses", Truth(gain, nothing + loss * np.array([0, 0, 0, 1, 1]))
    one = nothing - min(margins.ceiling / NUM_TASKS, 90.0 - 90.0 * family.retained)
    one[0] = BEYOND * margins.ceiling
    yield "one task", Truth(best, one)


def simulate_edges(cell: EdgeCell, studies: int, seed: int) -> EdgeTally:
    """Each study is drawn at its largest and judged at every size and number of seeds.

    A verdict about adapters is judged where all runs are as their rank: the edge is theirs.
    """
    rng, margins = generator(cell, seed), margins_of(cell.family)
    able = right_answers(cell.truth, margins)
    wrong: Counter[tuple[About, int, int]] = Counter()
    covered: dict[tuple[About, int], list[bool]] = {}
    for about in cell.family.about:
        at = [(seeds, size) for what, seeds, size in cell.at if what == about]
        family = cell.family._replace(run_sd=(0.0, 0.0)) if about == "adapters" else cell.family
        for _ in range(studies if at else 0):
            most_seeds, most = (max(numbers) for numbers in zip(*at, strict=True))
            largest = draw_study(family, cell.truth, most, most_seeds, rng)
            for seeds, size in at:
                evidence = evidence_of(largest.first(size, seeds))
                wrong[about, seeds, size] += is_wrong(verdict(evidence, margins, about), able)
                if cell.edge in COVERED and size == COVERED_AT:
                    covered.setdefault((about, seeds), []).extend(
                        _covered(evidence, cell.truth, about)
                    )
    return EdgeTally(
        {key: Rate(wrong[key], studies) for key in cell.at},
        {key: Rate(sum(of), len(of)) for key, of in covered.items()},
    )


def _covered(evidence: StudyEvidence, truth: Truth, about: About) -> Iterator[bool]:
    truths = truths_of(evidence, about)
    assert truths.losses is not None
    gain, loss = truth.gain, truth.losses.mean(axis=0)
    for draws, true in (
        (truths.gains[:, 0], gain[0]),
        (truths.gains[:, 2] - truths.gains[:, 1], gain[2] - gain[1]),
        (truths.losses[:, 1], loss[1]),
    ):
        lower, upper = ends(draws, (1.0 + CONFIDENCE) / 2.0)
        yield bool(lower <= true <= upper)


def evidence_of(study: Study) -> StudyEvidence:
    """As the product reads the scores."""

    def rows(tasks: Sequence[Items]) -> list[Items]:
        # (m, K, n) to (m K, n): a row for each run
        return [
            task._replace(values=task.values.reshape(-1, task.values.shape[-1])) for task in tasks
        ]

    runs = crossed(*study.gains[0].values.shape[:2])
    gains, losses = rows(study.gains), rows(study.losses)
    return StudyEvidence(gains, losses, runs, study.point, is_share=study.point == 1.0)


def verdict(
    evidence: StudyEvidence, margins: Margins, about: About, shares: Sequence[float] = (1.0,)
) -> Choice:
    """The verdict at the last of some looks, as the product gives it; see ``alpha_of_look``."""
    count = evidence.num_options
    level = level_of_look(count, shares)
    return choose(odds(truths_of(evidence, about, num_draws(count, level)), margins), level)


def level_of_look(num_options: int, shares: Sequence[float] = (1.0,)) -> float:
    """One-sided, of the bounds that decide at the last look; without shares, at the whole plan."""
    looks = list[_Look]()
    for share in shares:
        alpha = alpha_of_look(looks, share, 1.0 - CONFIDENCE, num_statements(num_options))
        looks.append(_Look(share, alpha))
    return deciding_level(num_options, looks[-1].alpha)


class _Look(NamedTuple):
    share: float
    alpha: float


def is_decided(choice: Choice) -> bool:
    """Whether the study says what to do, or that no rank will do."""
    return choice.outcome in ("recommended", "none_helps", "none_keeps_enough")


def is_wrong(choice: Choice, able: NDArray[np.bool_]) -> bool:
    """Whether an option is recommended that may not be."""
    return choice.option is not None and not able[choice.option]


class PlausibleTally(NamedTuple):
    """Of plausible studies: decided and wrong, by verdict, number of seeds and of items.

    ``repeated``: of those with one seed that recommend a rank, the repeat does so too.
    """

    decided: dict[tuple[About, int, int], Rate]
    wrong: dict[tuple[About, int, int], Rate]
    repeated: dict[int, Rate]

    @property
    def seeds_ratio(self) -> float:
        """Decided about the adapters, with two seeds over one, over all sizes together."""
        two, one = (
            sum(rate.number for (about, m, _), rate in self.decided.items()
                if (about, m) == ("adapters", seeds))
            for seeds in (2, 1)
        )  # fmt: skip
        return two / max(one, 1)

    @property
    def least_rise(self) -> float:
        """The smallest change of the share that is decided, from a size to the next.

        Of both verdicts, all numbers of seeds together.
        """
        steps: list[float] = []
        for what in ("adapters", "rank"):
            by_size = [
                [rate.share for (about, _, n), rate in self.decided.items()
                 if (about, n) == (what, size)]
                for size in PLAUSIBLE_SIZES
            ]  # fmt: skip
            means = [float(np.mean(shares)) for shares in by_size]
            steps += [after - before for before, after in itertools.pairwise(means)]
        return min(steps)

    def __str__(self) -> str:
        worst = max(rate.upper for rate in self.wrong.values())
        repeated = " ".join(f"{rate} of {rate.studies}" for rate in self.repeated.values())
        rows = _table(self.decided, PLAUSIBLE_SIZES)
        return f"wrong at most {worst:.3f}, repeated {repeated}; decided:{rows}"


PLAUSIBLE_SIZES = (40, 100, 300, 1000, 3000)


def plausible_families() -> list[Family]:
    """Of collapses, those of the middle rate."""
    return [family for family in FAMILIES if family not in (COLLAPSES[0], COLLAPSES[2])]


def simulate_plausible(family: Family, studies: int, seed: int) -> PlausibleTally:
    """Each truth is drawn at its largest, twice, and judged at every size and number of seeds."""
    rng, margins = generator(family, seed), margins_of(family)
    decided: Counter[tuple[About, int, int]] = Counter()
    wrong: Counter[tuple[About, int, int]] = Counter()
    recommended: Counter[int] = Counter()
    repeated: Counter[int] = Counter()
    for number in range(studies):
        truth = rank_curve(family.curves[number % len(family.curves)], NUM_RANKS, rng)
        truth = truth._replace(gain=family.point * truth.gain)
        study, repeat = (draw_study(family, truth, SIZES[-1], SEEDS[-1], rng) for _ in range(2))
        for (what, seeds), size in itertools.product(PLAUSIBLE_AT, PLAUSIBLE_SIZES):
            part = study.first(size, seeds)
            choice = verdict(evidence_of(part), margins, what)
            able = right_answers(part.adapters if what == "adapters" else truth, margins)
            decided[what, seeds, size] += is_decided(choice)
            wrong[what, seeds, size] += is_wrong(choice, able)
            if seeds == 1 and choice.option is not None:
                again = verdict(evidence_of(repeat.first(size, 1)), margins, what)
                recommended[size] += 1
                repeated[size] += again.option == choice.option
    return PlausibleTally(
        {key: Rate(number, studies) for key, number in decided.items()},
        {key: Rate(number, studies) for key, number in wrong.items()},
        {size: Rate(repeated[size], recommended[size]) for size in PLAUSIBLE_SIZES},
    )


class AnswerCell(NamedTuple):
    """Truths that a study of this size should tell apart, or whose ranks are equal."""

    name: str
    truth: Truth
    margins: Margins
    num_items: int
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.name:31} n={self.num_items:<5} seeds={self.num_seeds}"


class AnswerTally(NamedTuple):
    """Studies about the adapters that are judged once.

    ``correct``: a rank that truly qualifies, or, where none does, the outcome that says why.
    ``smallest``: the same, and the rank is the smallest that truly qualifies.
    """

    correct: Rate
    smallest: Rate
    cannot_tell: Rate

    def __str__(self) -> str:
        return f"correct {self.correct} smallest {self.smallest} cannot tell {self.cannot_tell}"


STATED_ITEMS, STATED_SEEDS, STATED_MARGIN = 6000, 5, 3.0  # of the accuracy in docs/METHODS.md


def answer_cells() -> list[AnswerCell]:
    """Six truths with margins of 3 points, five seeds and one; three equal ranks, 300 items."""
    nothing = (0.0,) * 5
    truths = {
        "all equal": ((15.0,) * 5, nothing),
        "monotone": ((0.0, 5.0, 10.0, 15.0, 20.0), nothing),
        "plateau": ((5.0, 12.0, 18.0, 18.0, 18.0), nothing),
        "peak in the middle": ((6.0, 12.0, 18.0, 12.0, 6.0), nothing),
        "base best": ((-3.0, -4.0, -5.0, -6.0, -7.0), nothing),
        "some forget": ((8.0, 14.0, 16.0, 18.0, 20.0), (0.0, 0.0, 7.0, 9.0, 12.0)),
    }
    margins = Margins(STATED_MARGIN, STATED_MARGIN, 3.0 * STATED_MARGIN)

    def truth(gain: tuple[float, ...], loss: tuple[float, ...]) -> Truth:
        return Truth(np.array(gain), np.array([loss] * NUM_TASKS))

    cells = [
        AnswerCell(name, truth(*of), margins, STATED_ITEMS, seeds)
        for name, of in truths.items()
        for seeds in (STATED_SEEDS, 1)
    ]
    equal = truth((BEST_GAIN,) * 3, (0.0,) * 3)
    return [*cells, AnswerCell(QUICKSTART, equal, margins_of(PLAIN), 300, 1)]


QUICKSTART = "quickstart, equal ranks"


def simulate_answers(cell: AnswerCell, studies: int, seed: int) -> AnswerTally:
    """Draw and judge."""
    rng = generator(cell, seed)
    correct = smallest = undecided = 0
    for _ in range(studies):
        study = draw_study(PLAIN, cell.truth, cell.num_items, cell.num_seeds, rng)
        choice = verdict(evidence_of(study), cell.margins, "adapters")
        able = right_answers(study.adapters, cell.margins)
        if choice.option is not None:
            correct += bool(able[choice.option])
            smallest += bool(able[choice.option]) and choice.option == int(np.argmax(able))
        elif not able.any():
            is_base_best = (study.adapters.gain <= 0).all()
            none_helps = ("no_evidence", "none_helps")
            right = choice.outcome in (none_helps if is_base_best else ("none_keeps_enough",))
            correct += right
            smallest += right
        undecided += choice.outcome == "cannot_tell"
    return AnswerTally(*(Rate(count, studies) for count in (correct, smallest, undecided)))


class LookCell(NamedTuple):
    """A study with so many items planned, whose truth is at an edge."""

    edge: str
    num_items: int
    about: About
    num_seeds: int

    def __str__(self) -> str:
        return f"looks, {self.edge:24} n={self.num_items:<5} seeds={self.num_seeds}"


class LookTally(NamedTuple):
    """Wrong at any look, and decided at the last at least."""

    wrong: Rate
    decided: Rate

    def __str__(self) -> str:
        return f"wrong at any of {len(LOOKS)} looks {self.wrong} decided {self.decided}"


def look_cells() -> list[LookCell]:
    """Edges of plain studies."""
    verdicts: tuple[tuple[About, int], ...] = (("adapters", 1), ("rank", 3))
    return [
        LookCell(edge, 400, *of)
        for edge in ("gains of zero", "one rank is best", "losses")
        for of in verdicts
    ]


def shares_of_looks() -> list[list[float]]:
    """The shares that each look and those before it saw."""
    shares = [min(share, 1.0) for share in LOOKS]
    return [shares[: place + 1] for place in range(len(shares))]


def simulate_looks(cell: LookCell, studies: int, seed: int) -> LookTally:
    """Every study is looked at in quarters, doubled, and looked at again, whatever it said."""
    rng, margins = generator(cell, seed), margins_of(PLAIN)
    family = PLAIN if cell.about == "rank" else PLAIN._replace(run_sd=(0.0, 0.0))
    truth = dict(_edges(PLAIN))[cell.edge]
    able = right_answers(truth, margins)
    sizes = [round(share * cell.num_items) for share in LOOKS]
    wrong = decided = 0
    for _ in range(studies):
        study = draw_study(family, truth, sizes[-1], cell.num_seeds, rng)
        choices = [
            verdict(evidence_of(study.first(size, cell.num_seeds)), margins, cell.about, shares)
            for size, shares in zip(sizes, shares_of_looks(), strict=True)
        ]
        wrong += any(is_wrong(choice, able) for choice in choices)
        decided += any(map(is_decided, choices))
    return LookTally(Rate(wrong, studies), Rate(decided, studies))
