"""Which rank to use, from the records of a study, or why the data do not say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from rankwise.errors import RecordError
from rankwise.findings.decision import (
    Choice,
    Margins,
    Sufficient,
    choose,
    standings,
    sufficient_margins,
)
from rankwise.findings.differences import compare, format_effects
from rankwise.findings.looks import alpha_of_look, with_look
from rankwise.findings.notes import item_notes, num_clusters_of
from rankwise.findings.odds import Betting, Sizes, point_in
from rankwise.findings.options import DecidingTasks, Option, OptionGains, Runs
from rankwise.findings.pairs import run_record, trained
from rankwise.findings.statements import reasons, statement
from rankwise.findings.stats.detectable import Detectable, TaskSize, detectable
from rankwise.findings.stats.items import Items
from rankwise.findings.stats.simultaneous import (
    Bounds,
    StudyBounds,
    StudyEvidence,
    WorstTask,
    bounds_at,
    deciding_level,
    level_of_all,
    study_evidence,
)
from rankwise.records import quantities
from rankwise.records.axes import SETTING
from rankwise.records.judgement import BestBet, Look, Outcome, Prospect, StudyLooks, TrainTaskLooks
from rankwise.records.p_right import P_RIGHT
from rankwise.records.recommendation import (
    AdapterVerdict,
    Bound,
    RankVerdict,
    Recommendation,
    StudyRecommendation,
)
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import Unit


class _Conclusions(NamedTuple):
    """The conclusions about the complete options; the defaults are those without any."""

    outcome: Outcome = "cannot_tell"
    chosen: Option | None = None
    verdicts: tuple[RankVerdict, ...] = ()
    these_adapters: AdapterVerdict | None = None
    sufficient: Sufficient | None = None
    best_bet: BestBet | None = None
    prospects: tuple[Prospect, ...] = ()


def recommend(results: StudyResults, earlier: StudyLooks | None = None) -> StudyRecommendation:
    """Apply the rule of docs/methods/rule.md to a finished study, for each trained task.

    Args:
        results: of the study as it is now.
        earlier: how it was judged before, if it was.

    Raises:
        RecordError: models were scored on different items, or a score is missing.
    """
    return StudyRecommendation(
        by_train_task=tuple(
            recommend_for(part, None if earlier is None else earlier.of(part.train_task))
            for part in results.by_train_task
        )
    )


def looks_of(recommendation: StudyRecommendation) -> StudyLooks:
    """The part of a recommendation that the study's next judgement needs."""
    return StudyLooks(
        by_train_task=tuple(
            TrainTaskLooks(train_task=part.train_task, looks=part.looks)
            for part in recommendation.by_train_task
        )
    )


def has_margin(results: TrainTaskResults) -> bool:
    """Whether δ is known: scores in a unit of their own have no default."""
    unit = _deciding_unit(results)
    return unit != "units" or results.study.config.recommendation.delta_units is not None


def recommend_for(
    results: TrainTaskResults, earlier: TrainTaskLooks | None = None
) -> Recommendation:
    """The recommendation for one trained task.

    An option (a rank with its alpha, learning rate and target modules) is complete when every
    planned seed of it was trained and scored. One that is not, because a run diverged or is
    missing, is named in the reasons and takes no part. Full fine-tuning is compared and never
    recommended. Where models are known by their scores alone and none has a rank, every one is an
    option, the one that gains most first: no other order says which to take.
    """
    source = OptionGains(results)
    tasks = source.deciding_tasks(_deciding_unit(results))
    options, dropped = _qualified(source, tasks)
    margins = _margins(results, tasks)
    look = _look(source, tasks, options)
    alpha = 1.0 - source.confidence
    looks = with_look(() if earlier is None else earlier.looks, look, alpha)
    judged = (
        _judge(source, tasks, options, margins, looks[-1], alpha) if options else _Conclusions()
    )
    plan = None if judged.chosen is None else judged.chosen.plan
    outcome, enough = judged.outcome, judged.sufficient
    first = None if enough is None else options[enough.option]
    found = Recommendation(
        train_task=results.train_task,
        **{name: getattr(plan, name, None) for name in SETTING if name != "scaling"},
        statement="",
        reasons=(),
        outcome=outcome,
        unit=tasks.unit,
        in_domain_metric=_only(look.metrics[task] for task in tasks.in_domain),
        retention_metric=_only(look.metrics[task] for task in tasks.retention),
        retention_tasks=tasks.retention,
        delta=margins.delta,
        epsilon_points=margins.epsilon,
        worst_task_points=margins.ceiling if tasks.retention else None,
        confidence=source.confidence,
        num_items_in_domain=sum(len(results.base.items[task].doc_ids) for task in tasks.in_domain),
        num_clusters_in_domain=num_clusters_of(source, tasks.in_domain),
        num_seeds=max(len(_seeds(results)), 1),
        is_of_scores=results.study.scores is not None,
        has_base=results.study.has_base,
        looks=(*looks[:-1], looks[-1].model_copy(update={"outcome": outcome})),
        these_adapters=judged.these_adapters,
        best_bet=judged.best_bet,
        prospects=judged.prospects,
        sufficient_epsilon_points=None if enough is None else enough.epsilon,
        sufficient_worst_task_points=None if enough is None else enough.ceiling,
        sufficient_rank=None if first is None else first.rank,
        sufficient_label=None if first is None else first.label,
        better_and_kept_by_full=_dominating_full(source, tasks, options),
        best_rate_at_edge=_rate_at_edge(source, tasks, options),
        verdicts=judged.verdicts,
        comparisons=tuple(compare(source)),
        format_effects=tuple(format_effects(source)),
    )
    why = (
        *reasons(
            found,
            _full_gains(source, tasks),
            [option.plan.num_trainable_parameters for option in options],
            _detectable(source, tasks, margins, len(options)),
        ),
        *_accuracy_reasons(source, options, tasks),
        *dropped,
        *item_notes(source),
    )
    return found.model_copy(update={"statement": statement(found), "reasons": why})


def _judge(
    source: OptionGains,
    tasks: DecidingTasks,
    options: Sequence[Option],
    margins: Margins,
    look: Look,
    alpha: float,
) -> _Conclusions:
    point = point_in(tasks.unit, margins.delta)

    def by_option(names: Sequence[str], sign: float) -> list[Items]:
        gains = [np.stack([source.gains(o.runs, task) for o in options], axis=1) for task in names]
        return source.items([sign * values for values in gains], names)

    in_domain, losses = by_option(tasks.in_domain, 1.0), by_option(tasks.retention, -1.0)
    evidence, count = study_evidence(in_domain, losses, point), len(options)
    bounds = bounds_at(evidence, deciding_level(count, look.alpha))
    level = level_of_all(count, look.alpha, has_retention=evidence.retention is not None)
    at_once = bounds_at(evidence, level)
    choice = choose(bounds, margins)
    betting = Betting(evidence, options, margins, point)
    prospects: tuple[Prospect, ...] = ()
    if choice.outcome in ("cannot_tell", "no_evidence"):
        later = deciding_level(count, alpha_of_look(look.number + 1, alpha))
        prospects = tuple(betting.prospects(_sizes(source.results, tasks), later))
    return _Conclusions(
        outcome=choice.outcome,
        chosen=None if choice.option is None else options[choice.option],
        verdicts=tuple(_verdicts(tasks, options, bounds, at_once, choice, margins)),
        these_adapters=_these_adapters(evidence, options, margins, look.alpha),
        sufficient=None if choice.option is not None else sufficient_margins(bounds, margins),
        best_bet=betting.best_bet(bounds),
        prospects=prospects,
    )


def _these_adapters(
    evidence: StudyEvidence, options: Sequence[Option], margins: Margins, alpha: float
) -> AdapterVerdict | None:
    """The rule about the runs that were trained; None where the verdict is about them."""
    if evidence.in_domain.num_seeds == 1:
        return None
    bounds = bounds_at(evidence.of_these_runs, deciding_level(len(options), alpha))
    choice = choose(bounds, margins)
    place = choice.option
    return AdapterVerdict(
        outcome=choice.outcome,
        label=None if place is None else options[place].label,
        rank=None if place is None else options[place].rank,
        gain=None if place is None else _bound(bounds.gain, place),
        retention_loss=None if place is None or bounds.loss is None else _bound(bounds.loss, place),
    )


def _look(source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]) -> Look:
    """A new look at the study; its number and its outcome are set later."""
    results, items = source.results, source.results.base.items
    return Look(
        number=1,
        alpha=0.0,
        metrics={task: items[task].metric for task in tasks.all},
        num_items={task: len(items[task].doc_ids) for task in tasks.all},
        num_scored={t: source.num_scored(t) for t in tasks.all if source.scored(t) is not None},
        seeds=_seeds(results),
        options=tuple(option.label for option in options),
        runs=tuple(run.name for option in options for run in option.runs),
        outcome="cannot_tell",
    )


def _sizes(results: TrainTaskResults, tasks: DecidingTasks) -> Sizes:
    sizes = {task: len(results.base.items[task].doc_ids) for task in tasks.all}

    def available(task: str) -> int | None:
        scored = results.base.evaluations.get(task)
        if scored is None:
            return None
        is_whole = scored.limit is None or scored.limit > scored.num_examples
        return scored.num_examples if is_whole else scored.num_available

    return Sizes(
        in_domain={task: sizes[task] for task in tasks.in_domain},
        retention={task: sizes[task] for task in tasks.retention},
        available={task: available(task) for task in tasks.all},
        num_seeds=max(len(_seeds(results)), 1),
    )


def _deciding_unit(results: TrainTaskResults) -> Unit:
    """The unit of the first in-domain task; only in-domain tasks in this unit decide."""
    in_domain = results.tasks.get("in_domain", ())
    if not in_domain:
        raise RecordError("the study has no in-domain task; name one in evaluation.in_domain")
    for task in (*in_domain, *results.tasks.get("retention", ())):
        if task not in results.base.items:
            raise RecordError(f"the base was not scored on {task!r}; run the study again")
    return results.base.items[in_domain[0]].unit


def _seeds(results: TrainTaskResults) -> tuple[int, ...]:
    """The seeds that every option needs; those of the whole study where it has no LoRA run."""
    plans = [*results.planned, *(run_record(model).planned for model in results.runs)]
    lora = [plan for plan in plans if plan.method == "lora"]
    return tuple(sorted({plan.seed for plan in lora or plans if plan.seed is not None}))


def _qualified(
    source: OptionGains, tasks: DecidingTasks
) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """LoRA's complete options, smallest first, and why other options and tasks take no part."""
    seeds = _seeds(source.results)
    complete: list[Option] = []
    dropped: list[str] = []
    options = [option for option in source.planned if option.plan.method == "lora"]
    if not options and source.results.study.scores is not None:
        options = [option for option in source.planned if option.plan.role == "imported"]
    for option in sorted(options, key=_size):
        by_seed = {record.planned.seed: record for record in option.records}
        wanted: tuple[int | None, ...] = seeds
        if None in by_seed and len(seeds) <= 1:
            wanted = (None,)  # an imported adapter is compared with runs of one seed
        diverged = [seed for seed, record in by_seed.items() if record.status == "diverged"]
        missing = [seed for seed in wanted if seed not in by_seed]
        if option.runs and not diverged and not missing:
            complete.append(option)
            continue
        what = [] if option.runs or missing else ["has no run"]
        what += [f"diverged with seed {', '.join(map(str, diverged))}"] if diverged else []
        what += [f"has no run with seed {', '.join(map(str, missing))}"] if missing else []
        name = quantities.capital(option.label)
        dropped.append(f"{name} {' and '.join(what)}, so it does not qualify.")
    if all(option.rank is None for option in complete):
        complete.sort(key=lambda option: -_mean_gain(source, option.runs, tasks.in_domain))
    dropped += [
        f"{task} is scored in another unit, so it does not decide."
        for relation in ("in_domain", "retention")
        for task in source.results.tasks.get(relation, ())
        if task not in tasks.all
    ]
    return tuple(complete), tuple(dropped)


def _size(option: Option) -> tuple[int, float, float, float, tuple[str, ...], int, str]:
    """The size by which options are ordered, smallest first."""
    plan = option.plan
    rank, alpha, scaling = plan.rank or 0, plan.alpha or 0.0, plan.scaling or 0.0
    rate, epochs = plan.learning_rate or 0.0, plan.epochs or 0
    return rank, alpha, scaling, rate, plan.target_modules, epochs, option.label


def _mean_gain(source: OptionGains, runs: Runs, tasks: Sequence[str]) -> float:
    """The mean over the runs, and over the tasks, each counting the same."""
    return float(np.mean([source.gains(runs, task).mean() for task in tasks]))


def _margins(results: TrainTaskResults, tasks: DecidingTasks) -> Margins:
    """The configured margins, else the defaults of the metrics that decide."""
    config, items = results.study.config.recommendation, results.base.items
    in_domain = [items[task].metric for task in tasks.in_domain]
    kept = [items[task].metric for task in tasks.retention]
    delta = config.delta_for(in_domain)
    if tasks.unit != "points":
        delta = config.delta_nats if tasks.unit == "nats" else config.delta_units
    if delta is None:
        raise RecordError(
            f"the scores on {quantities.listed(tasks.in_domain)} have their own unit; say "
            "which difference matters in it: --delta, or recommendation.delta_units"
        )
    return Margins(
        delta=delta,
        epsilon=config.epsilon_for(kept) if kept else None,
        ceiling=config.ceiling_for(kept),
        has_base=results.study.has_base,
    )


def _detectable(
    source: OptionGains, tasks: DecidingTasks, margins: Margins, num_options: int
) -> Detectable | None:
    """The in-domain difference that a study of this size detects; None if not in points.

    Of items that were answered in part, those count that were: how alike the runs are is not known
    beforehand.
    """
    if tasks.unit != "points" or not num_options:
        return None
    items = source.results.base.items
    sizes = [
        TaskSize(source.num_scored(task), items[task].metric == P_RIGHT) for task in tasks.in_domain
    ]
    return detectable(sizes, num_options, source.confidence, margins.delta)


def _only(metrics: Iterable[str]) -> str | None:
    different = set(metrics)
    return different.pop() if len(different) == 1 else None


def _verdicts(
    tasks: DecidingTasks,
    options: Sequence[Option],
    bounds: StudyBounds,
    at_once: StudyBounds,
    choice: Choice,
    margins: Margins,
) -> Iterator[RankVerdict]:
    worst, better = bounds.worst, choice.better_than_base
    for index, (option, standing) in enumerate(
        zip(options, standings(at_once, margins), strict=True)
    ):
        by = standing.ruled_out_by
        estimate, lower, upper = choice.shortfall[index]
        yield RankVerdict(
            label=option.label,
            **{name: getattr(option.plan, name) for name in SETTING},
            runs=tuple(run.name for run in option.runs),
            imported_as=option.plan.imported and option.plan.imported.label,
            gain=_bound(bounds.gain, index),
            retention_loss=None if bounds.loss is None else _bound(bounds.loss, index),
            worst_retention_task=None if worst is None else tasks.retention[worst.place[index]],
            worst_retention_loss=None if worst is None else _bound(worst, index),
            shortfall=Bound(estimate=estimate, lower=lower, upper=upper),
            better_than_base=None if better is None else better[index],
            keeps_enough=None if choice.keeps_enough is None else choice.keeps_enough[index],
            near_the_best=choice.near_the_best[index],
            qualifies=choice.qualifies[index],
            leads=tuple(_bound(bounds.lead, index, other) for other in range(len(options))),
            worse_than=tuple(options[other].label for other in standing.worse_than),
            ruled_out_by=None if by is None else "retention" if by == index else options[by].label,
        )


def _bound(bounds: Bounds | WorstTask, *index: int) -> Bound:
    return Bound(
        estimate=float(bounds.estimate[index]),
        lower=float(bounds.lower[index]),
        upper=float(bounds.upper[index]),
    )


def _dominating_full(
    source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]
) -> str | None:
    """A full fine-tuning that gains more and loses less than every LoRA option.

    Of each option, both estimates say so, and one of the differences is shown.
    """
    if not tasks.retention or not options:
        return None
    where = (tasks.in_domain, tasks.retention)

    def dominates(full: Option, option: Option) -> bool:
        both = [source.difference(full.runs, option.runs, names) for names in where]
        return min(more.estimate for more in both) > 0 and max(more.lower for more in both) > 0

    for full in source.options:
        is_own = full.plan.method == "full" and full.plan.role != "imported"
        if is_own and all(dominates(full, option) for option in options):
            return full.label
    return None


def _rate_at_edge(
    source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]
) -> float | None:
    """The learning rate of the option that gains most, if no rate beyond it was tried."""
    if not options:
        return None
    best = max(options, key=lambda each: _mean_gain(source, each.runs, tasks.in_domain)).plan
    # a rule gives every rank its own rate: only those of one rank were tried against each other
    but_rate = attrgetter("rank", "scaling", "target_modules", "epochs")
    alike = [option.plan for option in options if but_rate(option.plan) == but_rate(best)]
    rates = {plan.learning_rate or 0.0 for plan in alike}
    is_edge = len(rates) > 1 and best.learning_rate in (min(rates), max(rates))
    return best.learning_rate if is_edge else None


def _full_gains(source: OptionGains, tasks: DecidingTasks) -> Iterator[str]:
    """Sentences on the gain and loss of full fine-tuning over its trained runs, without bounds."""
    for option in source.in_study_order(source.planned):
        runs = trained(option.runs)
        if option.plan.method == "full" and option.plan.role != "imported" and runs:
            gain = quantities.amount(_mean_gain(source, runs, tasks.in_domain), tasks.unit)
            text = f"{quantities.capital(option.label)}, for comparison only: gain {gain}"
            if tasks.retention:
                loss = -_mean_gain(source, runs, tasks.retention)
                text += f"; retention loss {quantities.amount(loss, 'points')}"
            yield f"{text}."


def _accuracy_reasons(
    source: OptionGains, options: Sequence[Option], tasks: DecidingTasks
) -> Iterator[str]:
    """Which tasks p(right) decides on, and what each option gains and loses by accuracy.

    The intervals hold one at a time. Nothing is said where p(right) decides on no task.
    """
    items = source.results.base.items
    judged = [task for task in tasks.all if items[task].accuracy is not None]
    if not judged:
        return
    yield (
        f"On {quantities.listed(judged)}, points are of p(right): the probability of the right "
        "option among the options, times 100."
    )
    where = {"in-domain": tasks.in_domain, "on retention": tasks.retention}
    parts: list[str] = []
    for option in options:
        means = {
            name: source.by_accuracy.change(option.runs, its)
            for name, its in where.items()
            if set(its) & set(judged)
        }
        changes = [f"{quantities.with_interval(m, m.unit)} {name}" for name, m in means.items()]
        parts.append(f"{option.label} {', '.join(changes)}")
    if parts:
        yield f"By accuracy, each interval on its own: {'; '.join(parts)}."
