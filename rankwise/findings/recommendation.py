"""Which rank to use, from the records of a study, or why the data do not say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.errors import RecordError
from rankwise.findings.decision import (
    Choice,
    Ends,
    Margins,
    Sufficient,
    ends,
    shortfall,
    standings,
    states,
    sufficient_margins,
)
from rankwise.findings.differences import comparisons, format_effects
from rankwise.findings.looks import alpha_of_look, with_look
from rankwise.findings.notes import item_notes, num_clusters_of
from rankwise.findings.odds import Betting, Sizes, point_in
from rankwise.findings.options import DecidingTasks, Option, OptionGains, Runs, decided_by
from rankwise.findings.pairs import run_record, trained
from rankwise.findings.statements import reasons, statement
from rankwise.findings.stats.blocks import RunRows, StudyEvidence
from rankwise.findings.stats.items import Floats, Items
from rankwise.findings.stats.truths import deciding_level, num_statements
from rankwise.records import quantities
from rankwise.records.axes import SETTING
from rankwise.records.fingerprints import fingerprint
from rankwise.records.judgement import BestBet, Look, Outcome, Prospect, StudyLooks, TrainTaskLooks
from rankwise.records.recommendation import RankVerdict, Recommendation, StudyRecommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import Interval, Relation, Unit, exact_rank


class _Conclusions(NamedTuple):
    """The conclusions about the options; the defaults are those without any."""

    outcome: Outcome = "cannot_tell"
    chosen: Option | None = None
    verdicts: tuple[RankVerdict, ...] = ()
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


def recommend_for(
    results: TrainTaskResults, earlier: TrainTaskLooks | None = None
) -> Recommendation:
    """The recommendation for one trained task.

    An option is a rank with its alpha, learning rate and target modules. It is judged by the runs
    that it has, any number of seeds; one of which a run diverged is never recommended. Full
    fine-tuning is compared and never recommended. Where models are known by their scores alone and
    none has a rank, every one is an option, the one that gains most first: no other order says
    which to take.
    """
    source = OptionGains(results)
    tasks = source.deciding_tasks(_deciding_unit(results))
    options, dropped = _judged_options(source, tasks)
    margins = _margins(results, tasks)
    look = _look(source, tasks, options)
    alpha = 1.0 - source.confidence
    count = num_statements(max(len(options), 1), has_base=margins.has_base)
    looks = with_look(() if earlier is None else earlier.looks, look, alpha, count)
    judged = _judge(source, tasks, options, margins, looks, alpha) if options else _Conclusions()
    plan = None if judged.chosen is None else judged.chosen.plan
    outcome, enough = judged.outcome, judged.sufficient
    first = None if enough is None else options[enough.option]
    found = Recommendation(
        train_task=results.train_task,
        **{name: getattr(plan, name, None) for name in SETTING if name != "scaling"},
        mean_rank=None if plan is None else plan.mean_rank,
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
        num_seeds=max((len(option.trained) for option in options), default=1),
        is_of_scores=results.study.scores is not None,
        has_base=results.study.has_base,
        looks=(*looks[:-1], looks[-1].model_copy(update={"outcome": outcome})),
        best_bet=judged.best_bet,
        prospects=judged.prospects,
        sufficient_epsilon_points=None if enough is None else enough.epsilon,
        sufficient_worst_task_points=None if enough is None else enough.ceiling,
        sufficient_rank=None if first is None else first.rank,
        sufficient_label=None if first is None else first.label,
        better_and_kept_by_full=_dominating_full(source, tasks, options),
        best_rate_at_edge=_rate_at_edge(source, tasks, options),
        verdicts=judged.verdicts,
        left_out=_left_out(results),
        untried=_untried(results),
        num_tasks_in_domain=len(tasks.in_domain),
        missing=() if results.study.scores is None else results.study.scores.missing,
        comparisons=tuple(comparisons(source, decided_by(judged.verdicts, tasks))),
        format_effects=tuple(format_effects(source)),
    )
    why = (
        *reasons(
            found,
            _full_gains(source, tasks),
            [option.plan.num_trainable_parameters for option in options],
        ),
        *_accuracy_reasons(source, options, tasks),
        *dropped,
        *item_notes(source),
    )
    return found.model_copy(update={"statement": statement(found), "reasons": why})


def evidence_of(
    source: OptionGains, tasks: DecidingTasks, options: Sequence[Option], margins: Margins
) -> StudyEvidence:
    """The scores of the options' finished runs on the tasks that decide."""

    def of(names: Sequence[str], sign: float) -> list[Items]:
        values: list[Floats] = [
            np.concatenate([sign * source.gains(option.trained, task) for option in options])
            for task in names
        ]
        return source.items(values, names)

    counts = [len(option.trained) for option in options]
    known = {run.name: run_record(run).planned.seed for option in options for run in option.trained}
    # a run of no known seed shares it with none
    unknown = itertools.count(-1, -1)
    seeds = [next(unknown) if seed is None else seed for seed in known.values()]
    rows = RunRows(np.repeat(np.arange(len(options)), counts), np.array(seeds))
    point = point_in(tasks.unit, margins.delta)
    gains, losses = of(tasks.in_domain, 1.0), of(tasks.retention, -1.0)
    return StudyEvidence(gains, losses, rows, point, is_share=tasks.unit == "points")


def _judge(
    source: OptionGains,
    tasks: DecidingTasks,
    options: Sequence[Option],
    margins: Margins,
    looks: Sequence[Look],
    alpha: float,
) -> _Conclusions:
    count = len(options)
    level = deciding_level(count, looks[-1].alpha, has_base=margins.has_base)
    betting = Betting(evidence_of(source, tasks, options, margins), options, margins, level)
    choice = betting.choice
    prospects: tuple[Prospect, ...] = ()
    if choice.outcome in ("cannot_tell", "no_evidence"):
        statements = num_statements(count, has_base=margins.has_base)
        next_alpha = alpha_of_look(looks, 1.0, alpha, statements)
        later = deciding_level(count, next_alpha, has_base=margins.has_base)
        prospects = tuple(betting.prospects(_sizes(source, tasks, options), later))
    enough = None
    if choice.option is None:
        enough = sufficient_margins(betting.adapters, margins, level, betting.is_finished)
    return _Conclusions(
        outcome=choice.outcome,
        chosen=None if choice.option is None else options[choice.option],
        verdicts=tuple(_verdicts(tasks, options, betting, choice)),
        sufficient=enough,
        best_bet=betting.best_bet(),
        prospects=prospects,
    )


def _look(source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]) -> Look:
    """A new look at the study; its number and its outcome are set later."""
    results, items = source.results, source.results.base.items
    models = (results.base, *results.runs)
    return Look(
        number=1,
        share=results.study.share,
        alpha=0.0,
        metrics={task: items[task].metric for task in tasks.all},
        num_items={task: len(items[task].doc_ids) for task in tasks.all},
        num_scored={t: source.num_scored(t) for t in tasks.all if source.scored(t) is not None},
        seeds=_seeds(results),
        options=tuple(option.label for option in options),
        runs=tuple(run.name for option in options for run in option.trained),
        outcome="cannot_tell",
        labelled={
            task: fingerprint([model.items[task].values for model in models if task in model.items])
            for task in tasks.all
            if task in results.base.labelled_tasks
        },
    )


def _sizes(source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]) -> Sizes:
    results = source.results
    sizes = {task: len(results.base.items[task].doc_ids) for task in tasks.all}

    def available(task: str) -> int | None:
        scored = results.base.evaluations.get(task)
        if scored is None or results.study.scores is not None:
            return None  # who gave the scores may have more items
        is_whole = scored.limit is None or scored.limit > scored.num_examples
        return scored.num_examples if is_whole else scored.num_available

    return Sizes(
        in_domain={task: sizes[task] for task in tasks.in_domain},
        retention={task: sizes[task] for task in tasks.retention},
        available={task: available(task) for task in tasks.all},
        num_seeds=max(len(option.trained) for option in options),
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


def judged_options(source: OptionGains, tasks: DecidingTasks) -> tuple[Option, ...]:
    """The options that may be recommended and have a finished run, smallest first.

    LoRA's; of scores that were given, those of models whose rank nobody said where none has one.
    """
    options = [option for option in source.planned if option.plan.method == "lora"]
    if not options and source.results.study.scores is not None:
        options = [option for option in source.planned if option.plan.role == "imported"]
    options = [option for option in options if option.trained]
    if all(option.rank is None for option in options):
        options.sort(key=lambda option: -_mean_gain(source, option.trained, tasks.in_domain))
    else:
        options.sort(key=_size)
    return tuple(options)


def _judged_options(
    source: OptionGains, tasks: DecidingTasks
) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """The options that are judged, and why other options and tasks take no part."""
    options = judged_options(source, tasks)
    labels = {option.label for option in options}
    dropped: list[str] = []
    for option in source.planned:
        if option.plan.method == "lora" and option.label not in labels:
            what = quantities.ended(option.diverged_seeds, option.reward_failed_seeds)
            what = what or "has no run"
            dropped.append(f"{quantities.capital(option.label)} {what}, so it is not judged.")
    scored_so: dict[Relation, str] = {
        "in_domain": "scored in another unit",
        "retention": "not scored in points",
    }
    dropped += [
        f"{task} is {scored}, so it does not decide."
        for relation, scored in scored_so.items()
        for task in source.results.tasks.get(relation, ())
        if task not in tasks.all
    ]
    return options, tuple(dropped)


def _left_out(results: TrainTaskResults) -> tuple[str, ...]:
    """The ranks that a search trained no further, and that are not compared."""
    if results.search is None:
        return ()
    ranks = {setting.label for setting in results.search.settings if setting.rank is not None}
    return tuple(
        ruling.setting
        for decision in results.search.decisions
        for ruling in decision.ruled_out
        if ruling.learning_rate is None and ruling.setting in ranks
    )


def _untried(results: TrainTaskResults) -> tuple[str, ...]:
    """The ranks that a search ended without training."""
    if results.search is None:
        return ()
    of = results.search
    shown = {each.setting for each in of.shown}
    ruled = {ruling.setting for decision in of.decisions for ruling in decision.ruled_out}
    return tuple(
        setting.label
        for setting in of.settings
        if setting.rank is not None and setting.label not in shown | ruled
    )


def _size(option: Option) -> tuple[float, float, float, float, tuple[str, ...], int, str]:
    """The size by which options are ordered, smallest first."""
    plan = option.plan
    rank, alpha, scaling = exact_rank(plan), plan.alpha or 0.0, plan.scaling or 0.0
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
            f"the scores on {quantities.listed(tasks.in_domain)} have their own unit, and "
            "recommendation.delta_units does not say which difference matters"
        )
    return Margins(
        delta=delta,
        epsilon=config.epsilon_for(kept) if kept else None,
        ceiling=config.ceiling_for(kept),
        has_base=results.study.has_base,
    )


def _only(metrics: Iterable[str]) -> str | None:
    different = set(metrics)
    return different.pop() if len(different) == 1 else None


def _verdicts(
    tasks: DecidingTasks, options: Sequence[Option], betting: Betting, choice: Choice
) -> Iterator[RankVerdict]:
    margins, level, truths = betting.margins, betting.level, betting.adapters
    evidence, now = betting.evidence, betting.now
    gain = ends(truths.gains, level)
    loss = None if truths.losses is None else ends(truths.losses, level)
    worst = None if truths.worst is None else ends(truths.worst, level)
    behind = shortfall(truths, margins)
    near, least = ends(behind, level), np.median(behind, axis=0)
    better, keeps, close = (states(p, level) for p in (now.better, now.keeps, now.near))
    named = _worst_tasks(evidence, tasks, level) if worst is not None else None
    standing = standings(evidence.in_domain, truths, now, margins, level)
    retention = evidence.retention
    for index, option in enumerate(options):
        by = standing[index].ruled_out_by
        yield RankVerdict(
            label=option.label,
            **{name: getattr(option.plan, name) for name in SETTING},
            mean_rank=option.plan.mean_rank,
            runs=tuple(run.name for run in option.trained),
            imported_as=option.plan.imported and option.plan.imported.label,
            gain=_bound(float(evidence.in_domain.mean[index]), gain, index),
            retention_loss=(
                _bound(float(retention.mean[index]), loss, index) if retention and loss else None
            ),
            worst_retention_task=named[index][0] if named else None,
            worst_retention_loss=(
                _bound(named[index][1], worst, index) if named and worst else None
            ),
            shortfall=_bound(float(least[index]), near, index),
            better_than_base=better[index] if margins.has_base else None,
            keeps_enough=None if loss is None else keeps[index],
            near_the_best=close[index],
            qualifies=betting.is_able[index],
            worse_than=tuple(options[other].label for other in standing[index].worse_than),
            ruled_out_by=None if by is None else "retention" if by == index else options[by].label,
            diverged_seeds=option.diverged_seeds,
            reward_failed_seeds=option.reward_failed_seeds,
        )


def _worst_tasks(
    evidence: StudyEvidence, tasks: DecidingTasks, level: float
) -> list[tuple[str | None, float]]:
    """Of each option the task that loses most, and its loss; None where it is not shown to lose."""
    assert evidence.retention is not None
    means = np.array([task.mean for task in evidence.tasks])  # (T, K)
    found: list[tuple[str | None, float]] = []
    for index, place in enumerate(means.argmax(axis=0).tolist()):
        task, loss = evidence.tasks[place], float(means[place, index])
        quantile = float(special.stdtrit(task.freedom, level))
        lower = loss - quantile * np.sqrt(task.covariance[index, index])
        found.append((tasks.retention[place] if lower > 0.0 else None, loss))
    return found


def _bound(estimate: float, of: Ends, index: int) -> Interval:
    return Interval(estimate=estimate, lower=float(of.lower[index]), upper=float(of.upper[index]))


def _dominating_full(
    source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]
) -> str | None:
    """A full fine-tuning that is shown to gain more and lose less than every LoRA option."""
    if not tasks.retention or not options:
        return None
    where = (tasks.in_domain, tasks.retention)

    def dominates(full: Option, option: Option) -> bool:
        both = (source.difference(full.runs, option.trained, names) for names in where)
        return all(more.lower > 0.0 for more in both)

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
    best = max(options, key=lambda each: _mean_gain(source, each.trained, tasks.in_domain)).plan
    # a rule gives every rank its own rate: only those of one rank were tried against each other
    but_rate = attrgetter("rank", "mean_rank", "scaling", "target_modules", "epochs")
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
            name: source.by_accuracy.change(option.trained, its)
            for name, its in where.items()
            if set(its) & set(judged)
        }
        changes = [f"{quantities.with_interval(m, m.unit)} {name}" for name, m in means.items()]
        parts.append(f"{option.label} {', '.join(changes)}")
    if parts:
        yield f"By accuracy, each interval on its own: {'; '.join(parts)}."
