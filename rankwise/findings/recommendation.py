"""Which rank to use, from the records of a study, or why the data do not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.errors import RecordError
from rankwise.findings.accuracy import accuracy_reasons
from rankwise.findings.best_bet import Betting, Rule, Sizes
from rankwise.findings.clusters import cluster_notes, num_clusters_of
from rankwise.findings.decision import Choice, choose, standings, sufficient_epsilon
from rankwise.findings.looks import alpha_of_look, with_look
from rankwise.findings.odds import point_in
from rankwise.findings.options import Option, OptionGains, Runs
from rankwise.findings.pairs import compare, format_effects, run_record
from rankwise.findings.statements import FullGain, reasons, statement
from rankwise.findings.stats.estimates import (
    P_RIGHT_VARIANCE_SHARE,
    default_margin,
    effective_items,
)
from rankwise.findings.stats.items import Items
from rankwise.findings.stats.simultaneous import (
    Bounds,
    StudyBounds,
    StudyEvidence,
    bounds_at,
    deciding_level,
    level_of_all,
    study_evidence,
)
from rankwise.records import quantities
from rankwise.records.axes import SETTING
from rankwise.records.judgement import (
    BestBet,
    Look,
    Margins,
    Outcome,
    Prospect,
    StudyLooks,
    TrainTaskLooks,
)
from rankwise.records.p_right import P_RIGHT
from rankwise.records.recommendation import (
    Bound,
    OptionBounds,
    RankVerdict,
    Recommendation,
    StudyRecommendation,
)
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import PlannedRun, Unit

BOOTSTRAP_SEED = 20260101
"""Fixed, so that the same results always give the same recommendation."""


class _Tasks(NamedTuple):
    in_domain: tuple[str, ...]
    retention: tuple[str, ...]
    unit: Unit
    left_out: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Those that decide."""
        return *self.in_domain, *self.retention


class _Judgement(NamedTuple):
    """What is concluded about the options that are complete."""

    choice: Choice
    verdicts: tuple[RankVerdict, ...]
    sufficient: tuple[float, Option] | None
    best_bet: BestBet
    prospects: tuple[Prospect, ...]


def recommend(results: StudyResults, earlier: StudyLooks | None = None) -> StudyRecommendation:
    """Apply the rule of docs/METHODS.md to a finished study, for each trained task.

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
    """What has to be known of this judgement when the study is judged again."""
    return StudyLooks(
        by_train_task=tuple(
            TrainTaskLooks(
                train_task=part.train_task,
                margins=Margins(
                    **{name: getattr(part, name) for name in Margins.model_fields},
                ),
                looks=part.looks,
            )
            for part in recommendation.by_train_task
        )
    )


def recommend_for(
    results: TrainTaskResults, earlier: TrainTaskLooks | None = None
) -> Recommendation:
    """The recommendation for one trained task.

    An option (a rank with its alpha, learning rate and target modules) is complete when every
    planned seed of it was trained and scored. One that is not, because a run diverged or is
    missing, is named in the reasons and takes no part. Full fine-tuning is compared and never
    recommended.
    """
    tasks = _judged_tasks(results)
    source = OptionGains(results)
    options, dropped = _qualified(source)
    margins = _margins(results, tasks, max(len(options), 1), earlier)
    look = _look(results, tasks, options)
    alpha = 1.0 - source.confidence
    looks = with_look(() if earlier is None else earlier.looks, look, alpha)
    judged = _judge(source, tasks, options, margins, looks[-1], alpha) if options else None
    outcome: Outcome = "cannot_tell" if judged is None else judged.choice.outcome
    chosen: PlannedRun | None = None
    if judged is not None and judged.choice.option is not None:
        chosen = options[judged.choice.option].plan
    enough = None if judged is None else judged.sufficient
    found = Recommendation(
        train_task=results.train_task,
        **{name: getattr(chosen, name, None) for name in SETTING if name != "scaling"},
        statement="",
        reasons=(),
        outcome=outcome,
        unit=tasks.unit,
        **margins.model_dump(),
        confidence=source.confidence,
        num_items_in_domain=_num_items(results, tasks.in_domain),
        num_clusters_in_domain=num_clusters_of(source, tasks.in_domain),
        num_seeds=len(_seeds(results)),
        looks=(*looks[:-1], looks[-1].model_copy(update={"outcome": outcome})),
        best_bet=None if judged is None else judged.best_bet,
        prospects=() if judged is None else judged.prospects,
        sufficient_epsilon_points=None if enough is None else enough[0],
        sufficient_rank=None if enough is None else enough[1].rank,
        sufficient_label=None if enough is None else enough[1].label,
        better_and_kept_by_full=_dominating_full(source, tasks, options),
        best_rate_at_edge=_rate_at_edge(source, tasks, options),
        verdicts=() if judged is None else judged.verdicts,
        comparisons=compare(results),
        format_effects=format_effects(results),
    )
    notes = (*dropped, *(f"{task} is scored in another unit and does not decide."
                         for task in tasks.left_out), *cluster_notes(source))  # fmt: skip
    full = tuple(_full_gains(source, tasks))
    parameters = tuple(option.plan.num_trainable_parameters for option in options)
    by_accuracy = accuracy_reasons(source, options, tasks.in_domain, tasks.retention)
    why = (*reasons(found, full, parameters), *by_accuracy, *notes)
    return found.model_copy(update={"statement": statement(found), "reasons": why})


def _judge(
    source: OptionGains,
    tasks: _Tasks,
    options: Sequence[Option],
    margins: Margins,
    look: Look,
    alpha: float,
) -> _Judgement:
    evidence = _evidence(source, tasks, options)
    count, epsilon = len(options), margins.epsilon_points
    bounds = bounds_at(evidence, deciding_level(count, look.alpha))
    at_once = bounds_at(evidence, level_of_all(evidence, look.alpha, BOOTSTRAP_SEED))
    choice = choose(bounds, margins.delta, epsilon)
    enough = (
        None if choice.option is not None else sufficient_epsilon(bounds, margins.delta, epsilon)
    )
    betting = Betting(evidence, options, point_in(tasks.unit, margins.delta))
    prospects: tuple[Prospect, ...] = ()
    if choice.outcome in ("cannot_tell", "no_evidence"):
        level = deciding_level(count, alpha_of_look(look.number + 1, alpha))
        rule = Rule(margins.delta, epsilon or 0.0, level)
        prospects = tuple(betting.prospects(_sizes(source.results, tasks), rule))
    return _Judgement(
        choice=choice,
        verdicts=tuple(_verdicts(source, tasks, options, bounds, at_once, choice, margins)),
        sufficient=None if enough is None else (enough[0], options[enough[1]]),
        best_bet=betting.best_bet(margins.delta, epsilon),
        prospects=prospects,
    )


def _look(results: TrainTaskResults, tasks: _Tasks, options: Sequence[Option]) -> Look:
    """What is judged now; its number and outcome are not known yet."""
    items = results.base.items
    return Look(
        number=1,
        alpha=0.0,
        metrics={task: items[task].metric for task in tasks.all},
        num_items={task: len(items[task].doc_ids) for task in tasks.all},
        seeds=_seeds(results),
        options=tuple(option.label for option in options),
        runs=tuple(run.name for option in options for run in option.runs),
        outcome="cannot_tell",
    )


def _sizes(results: TrainTaskResults, tasks: _Tasks) -> Sizes:
    def count(names: Sequence[str]) -> dict[str, int]:
        return {task: len(results.base.items[task].doc_ids) for task in names}

    def available(task: str) -> int | None:
        scored = results.base.evaluations.get(task)
        if scored is None or (scored.limit or 0) > scored.num_examples:
            return None if scored is None else scored.num_examples
        return scored.num_examples if scored.limit is None else scored.num_available

    return Sizes(
        in_domain=count(tasks.in_domain),
        retention=count(tasks.retention),
        available={task: available(task) for task in tasks.all},
        num_seeds=max(len(_seeds(results)), 1),
    )


def _judged_tasks(results: TrainTaskResults) -> _Tasks:
    """The tasks that decide: in-domain ones of one unit, retention ones scored in points."""
    in_domain = results.tasks.get("in_domain", ())
    retention = results.tasks.get("retention", ())
    if not in_domain:
        raise RecordError("the study has no in-domain task; name one in evaluation.in_domain")
    for task in (*in_domain, *retention):
        if task not in results.base.items:
            raise RecordError(f"the base was not scored on {task!r}; run the study again")
    unit = results.base.items[in_domain[0]].unit
    judged = tuple(t for t in in_domain if results.base.items[t].unit == unit)
    kept = tuple(t for t in retention if results.base.items[t].unit == "points")
    left_out = tuple(t for t in (*in_domain, *retention) if t not in (*judged, *kept))
    return _Tasks(judged, kept, unit, left_out)


def _seeds(results: TrainTaskResults) -> tuple[int, ...]:
    """The seeds that every option needs; those of the whole study where it has no LoRA run."""
    plans = [*results.planned, *(run_record(model).planned for model in results.runs)]
    lora = [plan for plan in plans if plan.method == "lora"]
    return tuple(sorted({plan.seed for plan in lora or plans if plan.seed is not None}))


def _qualified(source: OptionGains) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """LoRA's complete options, smallest first, and why others take no part."""
    seeds = _seeds(source.results)
    complete: list[Option] = []
    dropped: list[str] = []
    lora = [option for option in source.planned if option.plan.method == "lora"]
    for option in sorted(lora, key=_size):
        by_seed = {record.planned.seed: record for record in option.records}
        wanted: tuple[int | None, ...] = seeds
        if None in by_seed and len(seeds) <= 1:
            wanted = (None,)  # an imported adapter is compared with runs of one seed
        diverged = [seed for seed, record in by_seed.items() if record.status == "diverged"]
        missing = [seed for seed in wanted if seed not in by_seed]
        if not diverged and not missing:
            complete.append(option)
            continue
        what = [f"diverged with seed {_listed(diverged)}"] if diverged else []
        what += [f"has no run with seed {_listed(missing)}"] if missing else []
        name = quantities.capital(option.label)
        dropped.append(f"{name} {' and '.join(what)}, so it does not qualify.")
    return tuple(complete), tuple(dropped)


def _size(option: Option) -> tuple[int, float, float, float, tuple[str, ...], int, str]:
    """By which options are ordered, smallest first."""
    plan = option.plan
    if plan.rank is None or plan.alpha is None or plan.scaling is None:
        raise RecordError(f"run {plan.name} is a LoRA run without a rank or an alpha")
    rate, epochs = plan.learning_rate or 0.0, plan.epochs or 0
    return plan.rank, plan.alpha, plan.scaling, rate, plan.target_modules, epochs, option.label


def _margins(
    results: TrainTaskResults, tasks: _Tasks, num_options: int, earlier: TrainTaskLooks | None
) -> Margins:
    """As configured, else as derived when the study was first judged, else derived now.

    A margin that was derived for another metric is not one for this.
    """
    config = results.study.config.recommendation
    kept = None if earlier is None else earlier.margins

    def is_same_metric(names: Sequence[str]) -> bool:
        before = {} if earlier is None or not earlier.looks else earlier.looks[-1].metrics
        metrics = {task: results.base.items[task].metric for task in names}
        return all(before.get(task, metric) == metric for task, metric in metrics.items())

    def derived(names: Sequence[str]) -> float:
        items = [results.base.items[task] for task in names]
        sizes = [len(its.doc_ids) for its in items]
        # a task's variance falls with its items, so a smaller task counts more
        of_p_right = sum(1 / len(its.doc_ids) for its in items if its.metric == P_RIGHT)
        share = of_p_right / sum(1 / size for size in sizes)
        return default_margin(
            effective_items(sizes),
            num_options,
            config.confidence,
            1.0 - share * (1.0 - P_RIGHT_VARIANCE_SHARE),
        )

    delta = config.delta_nats if tasks.unit == "nats" else config.delta_points
    derive_delta = delta is None
    if delta is None:
        is_kept = kept is not None and kept.delta_is_derived and is_same_metric(tasks.in_domain)
        delta = kept.delta if kept is not None and is_kept else derived(tasks.in_domain)
    if not tasks.retention:
        epsilon, derive_epsilon = None, False
    else:
        epsilon, derive_epsilon = config.epsilon_points, config.epsilon_points is None
        is_kept = kept is not None and kept.epsilon_is_derived and is_same_metric(tasks.retention)
        if derive_epsilon and kept is not None and is_kept:
            epsilon = kept.epsilon_points
        if epsilon is None:
            epsilon = derived(tasks.retention)
    return Margins(
        delta=delta,
        delta_is_derived=derive_delta,
        epsilon_points=epsilon,
        epsilon_is_derived=derive_epsilon,
    )


def _evidence(source: OptionGains, tasks: _Tasks, options: Sequence[Option]) -> StudyEvidence:
    """The scores of the complete options, in their order."""

    def by_option(names: Sequence[str], sign: float) -> list[Items]:
        gains = [np.stack([source.gains(o.runs, task) for o in options], axis=1) for task in names]
        return source.items([sign * values for values in gains], names)

    return study_evidence(by_option(tasks.in_domain, 1.0), by_option(tasks.retention, -1.0))


def _verdicts(
    source: OptionGains,
    tasks: _Tasks,
    options: Sequence[Option],
    bounds: StudyBounds,
    at_once: StudyBounds,
    choice: Choice,
    margins: Margins,
) -> Iterator[RankVerdict]:
    together = choose(at_once, margins.delta, margins.epsilon_points)
    standing_of = standings(at_once, margins.delta, margins.epsilon_points)
    for index, (option, standing) in enumerate(zip(options, standing_of, strict=True)):
        by = standing.ruled_out_by
        losses = {task: float(-source.gains(option.runs, task).mean()) for task in tasks.retention}
        worst = max(losses, key=lambda task: losses[task]) if losses else None
        deciding = _bounds_of(bounds, choice, index)
        yield RankVerdict(
            label=option.label,
            **{name: getattr(option.plan, name) for name in SETTING},
            runs=tuple(run.name for run in option.runs),
            imported_as=option.plan.imported_as,
            gain=deciding.gain,
            retention_loss=deciding.retention_loss,
            worst_retention_task=worst,
            worst_retention_loss=None if worst is None else losses[worst],
            shortfall=deciding.shortfall,
            at_once=_bounds_of(at_once, together, index),
            better_than_base=choice.better_than_base[index],
            keeps_enough=None if choice.keeps_enough is None else choice.keeps_enough[index],
            near_the_best=choice.near_the_best[index],
            qualifies=choice.qualifies[index],
            leads=tuple(_bound(bounds.lead, index, other) for other in range(len(options))),
            worse_than=tuple(options[other].label for other in standing.worse_than),
            ruled_out_by=None if by is None else "retention" if by == index else options[by].label,
        )


def _bounds_of(bounds: StudyBounds, choice: Choice, index: int) -> OptionBounds:
    estimate, lower, upper = choice.shortfall[index]
    return OptionBounds(
        gain=_bound(bounds.gain, index),
        retention_loss=None if bounds.loss is None else _bound(bounds.loss, index),
        shortfall=Bound(estimate=estimate, lower=lower, upper=upper),
    )


def _bound(bounds: Bounds, *index: int) -> Bound:
    return Bound(
        estimate=float(bounds.estimate[index]),
        lower=float(bounds.lower[index]),
        upper=float(bounds.upper[index]),
    )


def _dominating_full(source: OptionGains, tasks: _Tasks, options: Sequence[Option]) -> str | None:
    """A full fine-tuning that gains more and loses less than every LoRA option.

    Of each option, both estimates say so, and one of the differences is shown.
    """
    if not tasks.retention or not options:
        return None
    for full in source.options:
        if full.plan.method != "full" or full.plan.imported_as is not None:
            continue
        pairs = [
            [source.difference(full, option, names) for names in (tasks.in_domain, tasks.retention)]
            for option in options
        ]
        if all(
            min(more.estimate for more in both) > 0 and max(more.lower for more in both) > 0
            for both in pairs
        ):
            return full.label
    return None


def _rate_at_edge(source: OptionGains, tasks: _Tasks, options: Sequence[Option]) -> float | None:
    """The learning rate of the option that gains most, if no rate beyond it was tried."""
    gains = [
        float(np.mean([source.gains(option.runs, task).mean() for task in tasks.in_domain]))
        for option in options
    ]
    if not options:
        return None
    best = options[int(np.argmax(gains))].plan
    # a rule gives every rank its own rate: only those of one rank were tried against each other
    rates = sorted(
        {
            option.plan.learning_rate or 0.0
            for option in options
            if (option.rank, option.plan.scaling, option.plan.target_modules, option.plan.epochs)
            == (best.rank, best.scaling, best.target_modules, best.epochs)
        }
    )
    is_edge = len(rates) > 1 and best.learning_rate in (rates[0], rates[-1])
    return best.learning_rate if is_edge else None


def _full_gains(source: OptionGains, tasks: _Tasks) -> Iterator[FullGain]:
    """Full fine-tuning by label, over its trained runs and the tasks that are judged."""

    def mean(runs: Runs, names: Sequence[str]) -> float:
        return float(np.mean([source.gains(runs, task).mean() for task in names]))

    for option in source.in_study_order(source.planned):
        runs = tuple(run for run in option.runs if run_record(run).status == "trained")
        if option.plan.method == "full" and option.plan.imported_as is None and runs:
            loss = -mean(runs, tasks.retention) if tasks.retention else None
            yield FullGain(option.label, mean(runs, tasks.in_domain), loss)


def _num_items(results: TrainTaskResults, tasks: Sequence[str]) -> int:
    return sum(len(results.base.items[task].doc_ids) for task in tasks)


def _listed(seeds: Sequence[int | None]) -> str:
    return ", ".join(str(seed) for seed in seeds)
