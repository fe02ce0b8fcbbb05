"""How often the rule errs next to its margins, and how often it answers where it should."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from benchmarks.decision_studies import (
    CONFIDENCE,
    NUM_LOOKS,
    Cell,
    Rate,
    Truth,
    decide,
    draw_study,
    generator,
    is_decided,
    is_wrong,
    right_answers,
)
from rankwise.findings.looks import alpha_of_look
from rankwise.findings.stats.estimates import crossed_difference, default_margin, effective_items
from rankwise.findings.stats.items import POINTS
from rankwise.findings.stats.simultaneous import bounds_at, level_of_all

DRAWS = 1000  # of the bootstrap of bounds that hold at once
SIZES, DISCORDANCES, SEEDS = (300, 1319, 6000), (0.05, 0.10, 0.20), (1, 3, 5)
BEST_GAIN = 20.0
STATED_ITEMS, STATED_SEEDS, STATED_MARGIN = 6000, 5, 3.0  # of the accuracy in docs/METHODS.md
NOTHING = (0.0,) * 5


class Tally(NamedTuple):
    """Studies of a cell that were decided once.

    ``correct``: a rank that truly qualifies, or, where none does, the outcome that says why.
    ``smallest``: the same, and the rank is the smallest that truly qualifies.
    """

    wrong: Rate
    correct: Rate
    smallest: Rate
    cannot_tell: Rate
    coverage: dict[str, Rate]

    def __str__(self) -> str:
        coverage = " ".join(f"{name} {rate.share:.3f}" for name, rate in self.coverage.items())
        return (
            f"wrong {self.wrong} correct {self.correct.share:.3f} smallest "
            f"{self.smallest.share:.3f} cannot tell {self.cannot_tell.share:.3f} | {coverage}"
        )


def stress_truths(delta: float, epsilon: float) -> dict[str, Truth]:
    """Truths next to the margins."""

    def below_best(*deltas: float) -> tuple[float, ...]:
        return tuple(BEST_GAIN - delta * d for d in deltas)

    return {
        "all equal": Truth(below_best(0, 0, 0, 0, 0), NOTHING),
        "monotone": Truth(below_best(2, 1.5, 1.02, 0.5, 0), NOTHING),
        "plateau": Truth(below_best(1.02, 1.02, 0, 0, 0), NOTHING),
        "peak in the middle": Truth(below_best(1.02, 1.02, 0, 1.02, 1.02), NOTHING),
        "base best": Truth((0.0, 0.0, 0.0, 0.0, -2.0), NOTHING),
        "retention failing above a rank": Truth(
            below_best(1.02, 0.5, 0, 0, 0), (0.0, 0.0, 0.3 * epsilon, 1.02 * epsilon, 2 * epsilon)
        ),
    }


def plain_truths() -> dict[str, Truth]:
    """Truths that 6,000 items with margins of 3 points should tell apart."""
    return {
        "all equal": Truth((15.0,) * 5, NOTHING),
        "monotone": Truth((0.0, 5.0, 10.0, 15.0, 20.0), NOTHING),
        "plateau": Truth((5.0, 12.0, 18.0, 18.0, 18.0), NOTHING),
        "peak in the middle": Truth((6.0, 12.0, 18.0, 12.0, 6.0), NOTHING),
        "base best": Truth((-3.0, -4.0, -5.0, -6.0, -7.0), NOTHING),
        "retention failing above a rank": Truth(
            (8.0, 14.0, 16.0, 18.0, 20.0), (0.0, 0.0, 7.0, 9.0, 12.0)
        ),
    }


def stress_cells() -> list[Cell]:
    """Every scenario, discordance, size and number of seeds, with the derived margins."""
    cells: list[Cell] = []
    for num_items, discordance, seeds in itertools.product(SIZES, DISCORDANCES, SEEDS):
        margin = default_margin(num_items, 5, CONFIDENCE)
        for name, truth in stress_truths(margin, margin).items():
            cells.append(
                Cell(name, truth, margin, margin, discordance, num_items, num_items, seeds)
            )
    return cells


def plain_cells(num_seeds: int) -> list[Cell]:
    """Every plain scenario and discordance at the stated size and margins."""
    size, margin = STATED_ITEMS, STATED_MARGIN
    return [
        Cell(name, truth, margin, margin, discordance, size, size, num_seeds)
        for name, truth in plain_truths().items()
        for discordance in DISCORDANCES
    ]


def quickstart_cells() -> list[Cell]:
    """Three truly equal ranks, 300 in-domain items and two retention tasks of 200, one seed."""
    delta = default_margin(300, 3, CONFIDENCE)
    epsilon = default_margin(effective_items([200, 200]), 3, CONFIDENCE)
    truth = Truth((BEST_GAIN,) * 3, (0.0,) * 3)
    return [
        Cell("quickstart", truth, delta, epsilon, discordance, 300, 400, 1)
        for discordance in DISCORDANCES
    ]


def simulate(cell: Cell, studies: int, seed: int) -> Tally:
    """Draw and decide ``studies`` studies of one kind."""
    rng = generator(cell, seed)
    wrong = correct = smallest = undecided = 0
    covered: dict[str, int] = dict.fromkeys(("gain", "difference", "loss", "all at once"), 0)
    for _ in range(studies):
        study = draw_study(cell, rng)
        gain, loss = study.truth(cell)
        evidence = study.evidence()
        choice = decide(evidence, cell.delta, cell.epsilon)
        able = right_answers(gain, loss, cell.delta, cell.epsilon)
        wrong += is_wrong(choice, able)
        if choice.option is not None:
            correct += bool(able[choice.option])
            smallest += bool(able[choice.option]) and choice.option == int(np.argmax(able))
        elif not able.any():
            right = choice.outcome == ("no_evidence" if (gain <= 0).all() else "none_keeps_enough")
            correct += right
            smallest += right
        undecided += choice.outcome == "cannot_tell"
        for name, differences, truth in (
            ("gain", study.gains[:, 0], gain[0]),
            ("difference", study.gains[:, 2] - study.gains[:, 1], gain[2] - gain[1]),
            ("loss", study.losses[0][:, 1], loss[1]),
        ):
            lower, upper = crossed_difference(differences, item_size=POINTS).interval(CONFIDENCE)
            covered[name] += bool(lower <= truth <= upper)
        alpha = alpha_of_look(1, 1.0 - CONFIDENCE)
        bounds = bounds_at(evidence, level_of_all(evidence, alpha, rng, DRAWS))
        assert bounds.loss is not None
        best = int(np.argmax(np.where(loss <= cell.epsilon, gain, -np.inf)))
        covered["all at once"] += bool(
            (bounds.gain.lower <= gain).all()
            and (bounds.loss.upper >= loss).all()
            and bounds.loss.lower[best] <= loss[best]
            and (bounds.lead.lower[:, best] <= gain - gain[best] + 1e-9).all()
        )
    return Tally(
        wrong=Rate(wrong, studies),
        correct=Rate(correct, studies),
        smallest=Rate(smallest, studies),
        cannot_tell=Rate(undecided, studies),
        coverage={name: Rate(count, studies) for name, count in covered.items()},
    )


class LooksTally(NamedTuple):
    """Wrong at any look, and decided at the last at least."""

    wrong: Rate
    decided: Rate

    def __str__(self) -> str:
        return f"wrong at any of {NUM_LOOKS} looks {self.wrong} decided {self.decided.share:.3f}"


def look_cells() -> list[Cell]:
    """Studies as they are at their first look, with the margins that are kept from then on."""
    return [
        Cell(f"looks, {name}", truth, margin, margin, 0.20, num_items, num_items, seeds)
        for num_items in (100, 300)
        for margin in (default_margin(num_items, 5, CONFIDENCE),)
        for name, truth in stress_truths(margin, margin).items()
        for seeds in (1, 3)
        if name in ("plateau", "base best", "retention failing above a rank")
    ]


def simulate_looks(cell: Cell, studies: int, seed: int) -> LooksTally:
    """Every study is looked at, doubled, and looked at again, whatever it said."""
    rng = generator(cell, seed)
    most = 2 ** (NUM_LOOKS - 1)
    largest = cell._replace(
        num_items=most * cell.num_items, num_retention=most * cell.num_retention
    )
    wrong = decided = 0
    for _ in range(studies):
        study = draw_study(largest, rng)
        able = right_answers(*study.truth(cell), cell.delta, cell.epsilon)
        choices = [
            decide(
                study.first(
                    cell.num_items * 2**look, cell.num_retention * 2**look, cell.num_seeds
                ).evidence(),
                cell.delta,
                cell.epsilon,
                look + 1,
            )
            for look in range(NUM_LOOKS)
        ]
        wrong += any(is_wrong(choice, able) for choice in choices)
        decided += any(map(is_decided, choices))
    return LooksTally(Rate(wrong, studies), Rate(decided, studies))
