"""``until: decided`` on simulated studies: quarters of a plan, then what is worth its cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.decision_rule import is_decided, level_of_look, verdict
from benchmarks.search_policies import (
    COSTS,
    RANKS,
    TRAINING_IN_ITEMS,
    Answer,
    about,
    margins_of,
    worths_of,
)
from benchmarks.search_studies import Simulated
from rankwise.findings.decision import Choice
from rankwise.findings.odds import ITEM_FACTORS, Growths, chance_of_decision
from rankwise.findings.stats.blocks import StudyEvidence
from rankwise.findings.stats.truths import truths_of
from rankwise.records.judgement import Addition, Prospect
from rankwise.study.growing import NUM_LOOKS, Offer, next_growth
from rankwise.study.searches.policy import Progress, SearchTrial, Terms, TrialResult, evidence


class Stage(NamedTuple):
    """How large a study is: in-domain and retention items, and seeds."""

    num_items: int
    num_retention: int
    num_seeds: int


FIRST = Stage(1000, 1000, 1)
AVAILABLE = 4000
"""Items of each kind that the tasks have; the grid scores as many as the first stage."""


class Grown(NamedTuple):
    """An answer, how it came, and the number of looks."""

    answer: Answer
    stage: Stage
    num_looks: int
    is_decided: bool


def full_grid(study: Simulated, terms: Terms) -> Grown:
    """Every seed, and as many items as the first stage has, judged once."""
    stage = FIRST._replace(num_seeds=study.size.num_seeds)
    of = _evidence(study, stage, terms)
    return _grown(of, verdict(of, margins_of(terms), about(of)), stage, 1, terms)


def until_decided(study: Simulated, terms: Terms, first: Stage = FIRST) -> Grown:
    """Look at quarters of a plan, then grow it, until it is decided or nothing is likely to."""
    stage, shares = first, list[float]()
    while True:
        shares.append(min((len(shares) + 1) / NUM_LOOKS, 1.0))
        now = stage if shares[-1] == 1.0 else _part(first, shares[-1])
        of = _evidence(study, now, terms)
        choice = verdict(of, margins_of(terms), about(of), shares)
        if is_decided(choice):
            return _grown(of, choice, now, len(shares), terms)
        if shares[-1] < 1.0:
            continue
        stages = list(_stages(stage, study))
        level = level_of_look(len(RANKS), [*shares, 1.0])
        offers = _offers(of, stage, stages, study, terms, level)
        offer, _ = next_growth(offers)
        if offer is None:
            return _grown(of, choice, stage, len(shares), terms)
        stage = stages[offers.index(offer)][1]


def _part(stage: Stage, share: float) -> Stage:
    items, retention = (round(share * each) for each in (stage.num_items, stage.num_retention))
    return stage._replace(num_items=items, num_retention=retention)


def _grown(of: StudyEvidence, choice: Choice, stage: Stage, look: int, terms: Terms) -> Grown:
    values = worths_of(of, terms)
    best = int(values.argmax()) if values.max() > 0.0 else None
    found = best if choice.option is None else choice.option
    answer = Answer(choice.option, found, _cost(stage), tuple(range(len(RANKS))))
    return Grown(answer, stage, look, is_decided(choice))


def _cost(stage: Stage) -> float:
    """Of a study of this size with every rank, in trainings."""
    scoring = (stage.num_items + stage.num_retention) / TRAINING_IN_ITEMS
    return stage.num_seeds * sum(cost + scoring for cost in COSTS)


def _evidence(study: Simulated, stage: Stage, terms: Terms) -> StudyEvidence:
    rows: list[list[TrialResult]] = []
    for seed in range(stage.num_seeds):
        row: list[TrialResult] = []
        for place in range(len(RANKS)):
            progress = Progress(SearchTrial(place, study.rates[0], seed), 1.0)
            shown = study.shown(progress, on_test=True)
            assert shown is not None
            half = stage.num_retention // 2
            losses = tuple(task[:half] for task in shown.losses)
            row.append(TrialResult((shown.gains[0][: stage.num_items],), losses))
        rows.append(row)
    return evidence(rows, terms)


def _stages(stage: Stage, study: Simulated) -> Iterator[tuple[Addition, Stage, float | None]]:
    """Every growth: its kind, the stage after it, and the factor of the items."""
    for factor in ITEM_FACTORS:
        more, kept = round(factor * stage.num_items), round(factor * stage.num_retention)
        yield "in_domain", stage._replace(num_items=more), factor
        yield "retention", stage._replace(num_retention=kept), factor
        yield "items", stage._replace(num_items=more, num_retention=kept), factor
    for seeds in range(stage.num_seeds + 1, study.size.num_seeds + 1):
        yield "seeds", stage._replace(num_seeds=seeds), None


def _offers(
    of: StudyEvidence,
    now: Stage,
    stages: Sequence[tuple[Addition, Stage, float | None]],
    study: Simulated,
    terms: Terms,
    level: float,
) -> list[Offer]:
    truths, margins = truths_of(of, "rank"), margins_of(terms)
    offers: list[Offer] = []
    for add, then, factor in stages:
        if (
            then.num_items > study.size.num_test
            or then.num_retention > study.size.num_test_retention
        ):
            continue  # there are no more
        kept = then.num_retention / now.num_retention
        more = then.num_seeds - now.num_seeds
        growths = Growths((then.num_items / now.num_items,), (kept,) * 2, more)
        probability = chance_of_decision(of, truths, growths, margins, level)
        items = {"in_domain": then.num_items, "retention": then.num_retention}
        prospect = Prospect(
            add=add, factor=factor, num_items=items if factor else {},
            num_available=None,
            num_new_items=0, num_seeds=then.num_seeds,
            num_new_seeds=then.num_seeds - now.num_seeds, probability=probability,
        )  # fmt: skip
        offers.append(Offer(prospect, _cost(then) - _cost(now)))
    return offers
