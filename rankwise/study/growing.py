"""A study that grows: what to pay for next, when to stop, and the settings with more in them.

Its planned items are scored in quarters, until a look settles the verdict; then items and seeds are
added. Every judgement is a look, and looks share the error (``findings.looks``), so any number of
growths may follow each other, chosen by whatever was seen. They are written into ``search.json``: a
study that was stopped goes on with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.errors import ConfigError, PlanError
from rankwise.findings.costs import StudyCost
from rankwise.records import quantities
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import RateRuleConfig
from rankwise.records.files import unless_damaged
from rankwise.records.folder import StudyFolder
from rankwise.records.judgement import Prospect
from rankwise.records.search import GrowthDecision, SearchRecord
from rankwise.records.study import StudyRecord
from rankwise.records.study_file import validated
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.observer import Decided, Observer
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.run import RunTerms, lead
from rankwise.study.searching import policy_name
from rankwise.study.unchanged import remember


class Extension(NamedTuple):
    """What to add: seeds, items per task, ranks, and learning rates of LoRA.

    Seeds and items are numbers of them, and a rate is a factor of the first of the study's.
    """

    num_seeds: int = 0
    num_items: int = 0
    ranks: tuple[int, ...] = ()
    rate_factors: tuple[float, ...] = ()


def extended(config: StudyConfig, extension: Extension) -> StudyConfig:
    """The config of a study with more seeds, items, ranks or learning rates.

    New seeds are the smallest whole numbers that the study does not have. Items are added to
    ``evaluation.limit``. Variants stay beside the ranks that they are beside.

    Raises:
        ConfigError: nothing is added, or the study cannot be extended so.
    """
    problems: list[str] = []
    if not any(extension):
        problems.append("nothing to add; give --seeds, --items, --ranks or --rate-factors")
    if min(extension.num_seeds, extension.num_items, *extension.ranks, 0) < 0:
        problems.append("a study is extended by whole numbers of at least 1")
    limit, lora = config.evaluation.limit, config.methods.lora
    if extension.num_items and limit is None:
        problems.append("--items: every item of every task is scored already (no limit is set)")
    if extension.ranks and lora is None:
        problems.append("--ranks: the study trains no LoRA rank; set methods.lora in its file")
    if extension.ranks and lora is not None and any(pair.rank for pair in lora.paired):
        problems.append("--ranks: the study pairs ranks with other settings in '_'; add them there")
    if extension.rate_factors and lora is None:
        problems.append("--rate-factors: the study trains no LoRA rank; set methods.lora")
    rates = config.train.learning_rate.lora
    new_rates = [_scaled(rates[0], factor) for factor in extension.rate_factors]
    problems += [
        f"--rate-factors: {quantities.number(factor)} times the first rate is in the study"
        for factor, rate in zip(extension.rate_factors, new_rates, strict=True)
        if rate in rates
    ]
    known = () if lora is None else lora.ranks
    problems += [f"--ranks: rank {r} is in the study" for r in extension.ranks if r in known]
    if problems:
        raise ConfigError(config.name, problems)
    data = config.model_dump(by_alias=True)
    unused = (seed for seed in itertools.count() if seed not in config.seeds)
    data["seeds"] = (*config.seeds, *itertools.islice(unused, extension.num_seeds))
    if limit is not None:
        data["evaluation"]["limit"] = limit + extension.num_items
    data["train"]["learning_rate"]["lora"] = (*rates, *new_rates)
    if extension.ranks:
        data["methods"]["lora"]["ranks"] = tuple(sorted((*known, *extension.ranks)))
        if config.methods.variants is not None:
            data["methods"]["variants"]["ranks"] = config.methods.variant_ranks
    return validated(StudyConfig, data, config.name)


def _scaled(rate: float | RateRuleConfig, factor: float) -> float | RateRuleConfig:
    """A learning rate times a factor, to six digits."""
    if isinstance(rate, RateRuleConfig):
        return rate.model_copy(update={"value": float(f"{rate.value * factor:.6g}")})
    return float(f"{rate * factor:.6g}")


NUM_LOOKS = 4
"""Looks at the planned items, each at as many more of them. With Lan and DeMets' spending a fifth
look saves little."""

LEAST_CHANCE = 0.1
"""A growth that decides with a smaller probability is not paid for."""


class Offer(NamedTuple):
    """A way to grow a study and what it costs, above 0, in any unit that all offers share."""

    prospect: Prospect
    cost: float


def next_growth(
    offers: Sequence[Offer],
    budget: float | None = None,
    written: Callable[[float], str] = "{:.3g}".format,
) -> tuple[Offer | None, str]:
    """The affordable growth with the largest probability of a decision per cost, and why.

    None: stop. The cheapest of equal ones. A growth that is likelier by little and dearer by much
    has to wait: if the cheaper one does not decide, it is judged again with what was learnt.

    Args:
        offers: every growth that is considered, from ``Betting.prospects``.
        budget: what may still be spent, in the unit of the costs; None without a limit.
        written: a cost in words.
    """
    able = [offer for offer in offers if offer.prospect.probability >= LEAST_CHANCE]
    if not able:
        chance = max((offer.prospect.probability for offer in offers), default=0.0)
        none = "Nothing that can be added is likely to decide: the largest probability is"
        return None, f"{none} {chance:.2f}."
    payable = [offer for offer in able if budget is None or offer.cost <= budget]
    if not payable:
        least = min(offer.cost for offer in able)
        spent = f"The budget is spent: {written(budget or 0.0)} left, {written(least)} needed."
        return None, spent
    best = max(payable, key=lambda offer: (offer.prospect.probability / offer.cost, -offer.cost))
    of = best.prospect
    what = (
        f"{of.num_new_seeds} more seeds"
        if of.num_new_seeds
        else f"{of.factor:.2g} times the items of {', '.join(of.num_items)}"
    )
    return best, f"Next: {what}, which decide with probability {of.probability:.2f}."


def run_to_verdict(
    config: StudyConfig,
    plan: Callable[[StudyConfig], StudyPlan],
    folder: StudyFolder,
    observer: Observer,
    terms: RunTerms | None = None,
) -> StudyOutcome:
    """Plan and run a study; with ``search.until`` or a budget, go on until nothing is to be gained.

    Such a study answers the items of its plan in ``NUM_LOOKS`` equal parts, and is judged after
    each; it ends with the first judgement that settles the verdict.

    Args:
        config: of the study, as it was written or as it has grown.
        plan: makes the plan of a config.
        folder: the study's folder.
        observer: is told the progress.
        terms: on which it is run; None: the usual ones.

    Raises:
        RankwiseError: see ``run_study``; a study that could be concluded once stays so.
    """
    asked, is_last = config, not config.search.grows
    config, share = (config, 1.0) if is_last else _grown_before(config, folder)
    planned = plan(config)  # a study that cannot be planned leaves no folder
    with folder.lock():
        while True:
            try:
                outcome = lead(
                    planned, folder, observer, terms or RunTerms(), share=share, is_last=is_last
                )
            except PlanError:
                if share == 1.0:
                    raise
                share += 1.0 / NUM_LOOKS  # by so few items, the base can do nothing of a set
                continue
            if is_last or outcome.failures:
                break
            decision = _decide(config, share, outcome)
            observer(Decided(decision.statement))
            record = outcome.results.search or SearchRecord(
                policy=policy_name(outcome.results.study), by_train_task=()
            )
            if record.growths[-1:] != (decision,):
                grown = record.model_copy(update={"growths": (*record.growths, decision)})
                folder.write(folder.search_file, grown)
            is_last = decision.is_last
            if is_last and not config.deploy:
                break
            before, config, share = config, _grown(config, decision), decision.share
            planned = planned if config == before else plan(config)
        if not outcome.failures:
            remember(folder, asked)
        return outcome


def _grown_before(config: StudyConfig, folder: StudyFolder) -> tuple[StudyConfig, float]:
    """A config as it is after all growths that are decided in its folder, and the items' share.

    What is scored already is not taken back: a study that was whole stays so.
    """
    record: SearchRecord | None = None
    study: StudyRecord | None = None
    with unless_damaged():
        record = folder.read_if_there(folder.search_file, SearchRecord)
    with unless_damaged():
        study = folder.read_if_there(folder.study_file, StudyRecord)
    shares = [1.0 / NUM_LOOKS, *([] if study is None else [study.share])]
    for growth in () if record is None else record.growths:
        config = _grown(config, growth)
        shares.append(growth.share)
    return config, max(shares)


def _grown(config: StudyConfig, growth: GrowthDecision) -> StudyConfig:
    """A config after a growth; one that has grown so far already stays as it is."""
    limit = config.evaluation.limit
    extension = Extension(
        num_seeds=max(growth.num_seeds - len(config.seeds), 0),
        num_items=0 if growth.limit is None or limit is None else max(growth.limit - limit, 0),
    )
    return extended(config, extension) if any(extension) else config


def _decide(config: StudyConfig, share: float, outcome: StudyOutcome) -> GrowthDecision:
    """What to add next, or why nothing; ``share`` of the planned items is scored."""
    results, cost = outcome.results, StudyCost.of(outcome.results)
    spent = cost.training + cost.scoring
    spent += 0.0 if results.search is None else results.search.seconds
    limit, num_seeds = config.evaluation.limit, len(config.seeds)
    budget = config.search.budget_seconds
    left = None if budget is None else max(budget - spent, 0.0)
    open_parts = [part for part in outcome.recommendation.by_train_task if part.prospects]
    offer, statement = None, "The study is decided."
    expected: float | None = None
    if open_parts and share < 1.0:
        following = min(share + 1.0 / NUM_LOOKS, 1.0)
        needed = max(cost.scoring * (following / share - 1.0), 1e-9)
        if left is None or needed <= left:
            share, expected = following, needed
            statement = f"Next: {quantities.percent(share)} of the planned items."
        else:
            why = f"{quantities.seconds(left)} left, {quantities.seconds(needed)} needed."
            statement = f"Not decided. The budget is spent: {why}"
    elif open_parts:
        offers = [
            Offer(prospect, max(cost.of_growth(prospect), 1e-9))
            for prospect in open_parts[0].prospects
            if _can_be_added(config, prospect)
        ]
        offer, statement = next_growth(offers, left, written=quantities.seconds)
        if offer is None:
            statement = f"Not decided. {statement}"
    chosen = None if offer is None else offer.prospect
    if chosen is not None:
        limit = None if limit is None else limit + chosen.num_new_items
    return GrowthDecision(
        statement=statement,
        limit=limit,
        num_seeds=num_seeds if chosen is None else chosen.num_seeds,
        share=share,
        probability=None if chosen is None else chosen.probability,
        seconds_spent=spent,
        seconds_expected=expected if offer is None else offer.cost,
    )


def _can_be_added(config: StudyConfig, prospect: Prospect) -> bool:
    """Items of all tasks where a limit holds some back; seeds where no policy chooses by them."""
    if prospect.num_new_seeds:
        return not config.is_searched
    is_all = prospect.add == ("items" if config.evaluation.has("retention") else "in_domain")
    return is_all and config.evaluation.limit is not None
