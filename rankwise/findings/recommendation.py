"""Which rank to use, from the records of a study, or why the data do not say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.errors import RecordError
from rankwise.findings.accuracy import accuracy_reasons
from rankwise.findings.decision import Choice, Needed, choose, needed, sufficient_epsilon
from rankwise.findings.options import Option, OptionGains, Runs
from rankwise.findings.pairs import additional_items, compare, format_effects, run_record
from rankwise.findings.statements import FullGain, reasons, statement
from rankwise.findings.stats.estimates import default_margin, effective_items
from rankwise.findings.stats.items import Items
from rankwise.findings.stats.simultaneous import Bounds, StudyBounds, study_bounds
from rankwise.records import quantities
from rankwise.records.axes import SETTING
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import (
    Bound,
    PlannedRun,
    RankVerdict,
    Recommendation,
    StudyRecommendation,
    Unit,
)

BOOTSTRAP_SEED = 20260101
"""Fixed, so that the same results always give the same recommendation."""


class _Tasks(NamedTuple):
    in_domain: tuple[str, ...]
    retention: tuple[str, ...]
    unit: Unit
    left_out: tuple[str, ...]


class _Margins(NamedTuple):
    delta: float
    delta_is_derived: bool
    epsilon_points: float | None
    epsilon_is_derived: bool


def recommend(results: StudyResults) -> StudyRecommendation:
    """Apply the rule of docs/METHODS.md to a finished study, for each trained task.

    Raises:
        RecordError: models were scored on different items, or a score is missing.
    """
    return StudyRecommendation(
        by_train_task=tuple(recommend_for(part) for part in results.by_train_task)
    )


def recommend_for(results: TrainTaskResults) -> Recommendation:
    """The recommendation for one trained task.

    An option (a rank with its alpha, learning rate and target modules) is complete when every
    planned seed of it was trained and scored. One that is not, because a run diverged or is
    missing, is named in the reasons and takes no part. Full fine-tuning is compared and never
    recommended.
    """
    tasks = _judged_tasks(results)
    source = OptionGains(results)
    options, dropped = _qualified(source)
    margins = _margins(results, tasks, max(len(options), 1))
    bounds = _bounds(source, tasks, options) if options else None
    choice: Choice | None = None
    more = Needed(None, None, None)
    chosen: PlannedRun | None = None
    price: float | None = None
    enough: Option | None = None
    verdicts: tuple[RankVerdict, ...] = ()
    if bounds is not None:
        choice = choose(bounds, margins.delta, margins.epsilon_points)
        more = needed(bounds, choice, margins.delta, margins.epsilon_points)
        verdicts = tuple(_verdicts(source, tasks, options, bounds, choice))
        if choice.option is not None:
            chosen = options[choice.option].plan
        elif (found := sufficient_epsilon(bounds, margins.delta)) is not None:
            price, enough = found[0], options[found[1]]
    num_seeds, num_items = len(_seeds(results)), _num_items(results, tasks.in_domain)
    judged = Recommendation(
        train_task=results.train_task,
        **{name: getattr(chosen, name, None) for name in SETTING if name != "scaling"},
        statement="",
        reasons=(),
        outcome="cannot_tell" if choice is None else choice.outcome,
        unit=tasks.unit,
        **margins._asdict(),
        confidence=source.confidence,
        num_items_in_domain=num_items,
        num_seeds=num_seeds,
        num_items_needed=additional_items(more.in_domain_factor, num_items),
        num_retention_items_needed=additional_items(
            more.retention_factor, _num_items(results, tasks.retention)
        ),
        num_seeds_needed=None if more.seeds is None else (more.seeds - num_seeds) or None,
        sufficient_epsilon_points=price,
        sufficient_rank=None if enough is None else enough.rank,
        sufficient_label=None if enough is None else enough.label,
        verdicts=verdicts,
        comparisons=compare(results),
        format_effects=format_effects(results),
    )
    notes = (*dropped, *(f"{task} is scored in another unit and does not decide."
                         for task in tasks.left_out))  # fmt: skip
    full = tuple(_full_gains(source, tasks))
    parameters = tuple(option.plan.num_trainable_parameters for option in options)
    by_accuracy = accuracy_reasons(source, options, tasks.in_domain, tasks.retention)
    why = (*reasons(judged, full, parameters), *by_accuracy, *notes)
    return judged.model_copy(update={"statement": statement(judged), "reasons": why})


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


def _margins(results: TrainTaskResults, tasks: _Tasks, num_options: int) -> _Margins:
    config = results.study.config.recommendation

    def derived(names: Sequence[str]) -> float:
        sizes = [len(results.base.items[task].doc_ids) for task in names]
        return default_margin(effective_items(sizes), num_options, config.confidence)

    delta, epsilon = config.delta_points, config.epsilon_points
    derive_delta = tasks.unit == "points" and delta is None
    if tasks.unit == "nats":
        delta = config.delta_nats
    if delta is None:
        delta = derived(tasks.in_domain)
    if not tasks.retention:
        return _Margins(delta, derive_delta, None, False)
    if epsilon is None:
        return _Margins(delta, derive_delta, derived(tasks.retention), True)
    return _Margins(delta, derive_delta, epsilon, False)


def _bounds(source: OptionGains, tasks: _Tasks, options: Sequence[Option]) -> StudyBounds:
    """Simultaneous bounds over the complete options, in their order."""

    def by_option(task: str, sign: float) -> Items:
        gains = np.stack([source.gains(option.runs, task) for option in options], axis=1)
        return Items(sign * gains, source.item_size(task))

    return study_bounds(
        [by_option(task, 1.0) for task in tasks.in_domain],
        [by_option(task, -1.0) for task in tasks.retention],
        confidence=source.confidence,
        rng=BOOTSTRAP_SEED,
    )


def _verdicts(
    source: OptionGains,
    tasks: _Tasks,
    options: Sequence[Option],
    bounds: StudyBounds,
    choice: Choice,
) -> Iterator[RankVerdict]:
    for index, option in enumerate(options):
        losses = {task: float(-source.gains(option.runs, task).mean()) for task in tasks.retention}
        worst = max(losses, key=lambda task: losses[task]) if losses else None
        estimate, lower, upper = choice.shortfall[index]
        yield RankVerdict(
            label=option.label,
            **{name: getattr(option.plan, name) for name in SETTING},
            runs=tuple(run.name for run in option.runs),
            gain=_bound(bounds.gain, index),
            retention_loss=None if bounds.loss is None else _bound(bounds.loss, index),
            worst_retention_task=worst,
            worst_retention_loss=None if worst is None else losses[worst],
            shortfall=Bound(estimate=estimate, lower=lower, upper=upper),
            better_than_base=choice.better_than_base[index],
            keeps_enough=None if choice.keeps_enough is None else choice.keeps_enough[index],
            near_the_best=choice.near_the_best[index],
            qualifies=choice.qualifies[index],
        )


def _bound(bounds: Bounds, index: int) -> Bound:
    return Bound(
        estimate=float(bounds.estimate[index]),
        lower=float(bounds.lower[index]),
        upper=float(bounds.upper[index]),
    )


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
