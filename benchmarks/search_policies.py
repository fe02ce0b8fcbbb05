"""Searches on simulated studies: what each one trains, what it costs, and what it then says."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.decision_rule import CONFIDENCE, verdict
from benchmarks.decision_studies import About, Truth, right_answers
from benchmarks.search_studies import Curve, Simulated, Size
from rankwise.findings import odds
from rankwise.findings.decision import Margins
from rankwise.findings.stats.blocks import StudyEvidence
from rankwise.findings.stats.items import Floats
from rankwise.study.searches.policy import (
    Known,
    Policy,
    Progress,
    SearchTrial,
    Setting,
    Terms,
    TrialResult,
    evidence,
    worth,
)

RANKS = (8, 16, 32, 64, 128)
ALPHA = 1.0 - CONFIDENCE
TRAINING_IN_ITEMS = 18_000
"""A training costs as many forward passes as scoring so many items.

2,000 rows, three epochs, and a step that costs three forward passes.
"""


class Answer(NamedTuple):
    """What a search ends with: ranks by their places in ``RANKS``; None is not to fine-tune.

    ``recommended`` is the rule's on the test items, and None where it recommends nothing. Then
    ``choice`` is the finalist that is worth most on them, or None where none is worth anything.
    ``trained`` are the places that were trained to the end with every seed.
    """

    recommended: int | None
    choice: int | None
    cost: float
    trained: tuple[int, ...]


COSTS = tuple(1.0 + rank / 1000.0 for rank in RANKS)
"""Of a training: a larger rank costs a little more."""


def settings(rates: Sequence[float]) -> list[Setting]:
    """The ranks, each at these rates."""
    return [Setting(f"rank {rank}", rank, tuple(rates)) for rank in RANKS]


def run_policy(policy: Policy, study: Simulated) -> tuple[tuple[SearchTrial, ...], Known]:
    """Do what a policy wants until it is over."""
    known: dict[Progress, TrialResult | None] = {}
    while True:
        decision = policy(known)
        if not decision.wanted:
            return tuple(trial for trial, _ in decision.finalists), known
        known |= {progress: study.shown(progress) for progress in decision.wanted}


def cost_of(
    known: Iterable[Progress],
    finalists: Sequence[SearchTrial],
    size: Size,
    num_scored: int | None = None,
) -> float:
    """Of everything that was trained and scored, in trainings of a rank of size 0.

    Everything known was scored on the validation items, or ``num_scored`` of it; the finalists are
    scored on the test items.
    """
    share: dict[SearchTrial, float] = {}
    known = list(known)
    for progress in known:
        share[progress.trial] = max(share.get(progress.trial, 0.0), progress.share)
    trained = sum(COSTS[trial.setting] * part for trial, part in share.items())
    num_scored = len(known) if num_scored is None else num_scored
    scored = num_scored * (size.num_items + size.num_retention)
    scored += len(finalists) * (size.num_test + size.num_test_retention)
    return trained + scored / TRAINING_IN_ITEMS


def on_test(
    study: Simulated, finalists: Sequence[SearchTrial], terms: Terms
) -> StudyEvidence | None:
    """What finalists with the same seeds show on the test items, smallest rank first."""
    places = sorted({trial.setting for trial in finalists})
    if not places:
        return None
    by_seed: dict[int, dict[int, SearchTrial]] = {}
    for trial in finalists:
        by_seed.setdefault(trial.seed, {})[trial.setting] = trial
    rows: list[list[TrialResult]] = []
    for trials in by_seed.values():
        row = [study.shown(Progress(trials[place], 1.0), on_test=True) for place in places]
        rows.append([shown for shown in row if shown is not None])
    return evidence(rows, terms)


def answer(study: Simulated, finalists: Sequence[SearchTrial], cost: float, terms: Terms) -> Answer:
    """The verdict on the test items at a first look, and what to do if there is none."""
    places = sorted({trial.setting for trial in finalists})
    of = on_test(study, finalists, terms)
    if of is None:
        return Answer(None, None, cost, ())
    choice = verdict(of, margins_of(terms), about(of))
    if choice.option is not None:
        found = places[choice.option]
        return Answer(found, found, cost, tuple(places))
    values = worths_of(of, terms)
    best = int(values.argmax())
    return Answer(None, places[best] if values[best] > 0.0 else None, cost, tuple(places))


def about(of: StudyEvidence) -> About:
    """What the verdict is about: one seed as it is, several on average."""
    return "adapters" if of.rows.counts.max() == 1 else "rank"


def margins_of(terms: Terms) -> Margins:
    """What the terms ask of the rule; no single task has a ceiling here."""
    return Margins(terms.delta, terms.epsilon)


def may_be(gain: Floats, loss: Floats, terms: Terms) -> NDArray[np.bool_]:
    """Which of K ranks with these truths may be recommended."""
    return right_answers(Truth(gain, loss[None]), margins_of(terms))


def worths_of(of: StudyEvidence, terms: Terms) -> Floats:
    """(K,) estimated: gain less the price of loss beyond epsilon."""
    if of.retention is None or terms.epsilon is None:
        return of.in_domain.mean
    return odds.worth(of.in_domain.mean, of.retention.mean, margins_of(terms), terms.point)


def searched(policy: Policy, study: Simulated, terms: Terms) -> Answer:
    """Search on the validation items, then judge the finalists on the test items."""
    finalists, known = run_policy(policy, study)
    cost = cost_of(known, finalists, study.size)
    return answer(study, finalists, cost, terms)._replace(trained=_trained(known, study.size))


def _trained(known: Known, size: Size) -> tuple[int, ...]:
    seeds: dict[int, set[int]] = {}
    for progress in known:
        if progress.share == 1.0:
            seeds.setdefault(progress.trial.setting, set()).add(progress.trial.seed)
    return tuple(sorted(place for place, of in seeds.items() if len(of) == size.num_seeds))


def all_trials(
    rate: float, num_seeds: int, places: Iterable[int] = range(len(RANKS))
) -> list[SearchTrial]:
    """Every seed of these ranks."""
    return [SearchTrial(place, rate, seed) for seed in range(num_seeds) for place in places]


def grid(study: Simulated, terms: Terms) -> Answer:
    """Every rank with every seed at the only rate; no validation items are needed."""
    finalists = all_trials(study.rates[0], study.size.num_seeds)
    trained = [Progress(trial, 1.0) for trial in finalists]
    return answer(study, finalists, cost_of(trained, finalists, study.size, num_scored=0), terms)


def always(rank: int, study: Simulated, terms: Terms) -> Answer:
    """One rank with every seed."""
    place = RANKS.index(rank)
    finalists = all_trials(study.rates[0], study.size.num_seeds, [place])
    trained = [Progress(trial, 1.0) for trial in finalists]
    cost = cost_of(trained, finalists, study.size, num_scored=0)
    return answer(study, finalists, cost, terms)._replace(choice=place)


def largest_estimate(study: Simulated, terms: Terms) -> Answer:
    """Every rank with one seed; the one that is worth most on the validation items goes on."""
    first = all_trials(study.rates[0], 1)
    known = {Progress(trial, 1.0): study.shown(Progress(trial, 1.0)) for trial in first}
    values = [worth(shown, terms) for shown in known.values() if shown is not None]
    finalists = all_trials(study.rates[0], study.size.num_seeds, [int(np.argmax(values))])
    more = [Progress(trial, 1.0) for trial in finalists if trial.seed > 0]
    cost = cost_of([*known, *more], finalists, study.size, num_scored=len(known))
    return answer(study, finalists, cost, terms)


def has_optuna() -> bool:
    """Whether the pruner can be run."""
    return importlib.util.find_spec("optuna") is not None


def wilcoxon_pruner(study: Simulated, terms: Terms, block: int = 10) -> Answer:
    """Optuna's pruner: ranks in turn, seed by seed; pruned against the best one so far.

    What is paired are means over blocks of validation items, for optuna is slow with thousands of
    steps, each less the price of the run's retention loss beyond epsilon.

    Raises:
        ImportError: optuna is not installed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    search = optuna.create_study(direction="maximize", pruner=pruner)
    known: dict[Progress, TrialResult | None] = {}
    means: dict[int, float] = {}
    for place in range(len(RANKS)):
        trial, values = search.ask(), list[float]()
        for seed in range(study.size.num_seeds):
            progress = Progress(SearchTrial(place, study.rates[0], seed), 1.0)
            shown = study.shown(progress)
            assert shown is not None
            known[progress] = shown
            penalty = float(shown.gains[0].mean()) - worth(shown, terms)
            for number, value in enumerate(shown.gains[0].reshape(-1, block).mean(axis=1)):
                values.append(float(value) - penalty)
                trial.report(values[-1], seed * 10_000 + number)
            if trial.should_prune():
                break
        else:
            means[place] = float(np.mean(values))
        search.tell(trial, float(np.mean(values)))
    best = max(means, key=lambda place: means[place])
    finalists = all_trials(study.rates[0], study.size.num_seeds, [best])
    return answer(study, finalists, cost_of(known, finalists, study.size), terms)


class Judged(NamedTuple):
    """One answer against the truth of the ranks.

    Attributes:
        agrees: its true worth is at most delta below that of the grid's choice.
        near_best: the same of the best choice that there is, not fine-tuning among them.
        wrong: a rank is recommended that may not be (METHODS, "Checked by simulation").
        wrong_of_trained: the same with the ranks that were trained alone.
        is_recommended: whether the rule recommends.
        cost_share: of the grid's.
        regret: true worth below the best choice, in points.
    """

    agrees: bool
    near_best: bool
    wrong: bool
    wrong_of_trained: bool
    is_recommended: bool
    cost_share: float
    regret: float


def judged(of: Answer, grid_answer: Answer, curve: Curve, terms: Terms) -> Judged:
    """Hold an answer against the truth."""
    gain, loss = np.asarray(curve.gain), np.asarray(curve.loss)
    worths: Mapping[int | None, float] = {
        None: 0.0,
        **dict(enumerate(odds.worth(gain, loss, margins_of(terms), 1.0).tolist())),
    }
    most, mine = max(worths.values()), worths[of.choice]
    wrong = wrong_of_trained = False
    if of.recommended is not None:
        wrong = not may_be(gain, loss, terms)[of.recommended]
        places = sorted({*of.trained, of.recommended})
        able = may_be(gain[places], loss[places], terms)
        wrong_of_trained = not able[places.index(of.recommended)]
    return Judged(
        agrees=mine >= worths[grid_answer.choice] - terms.delta,
        near_best=mine >= most - terms.delta,
        wrong=wrong,
        wrong_of_trained=wrong_of_trained,
        is_recommended=of.recommended is not None,
        cost_share=of.cost / grid_answer.cost,
        regret=most - mine,
    )
