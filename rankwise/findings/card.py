"""What a reader wants to know in ten seconds: what to use, what it costs, what else would do.

It adds nothing to the recommendation but comparisons with the setting that is recommended, or
with the best bet where none is. What clocks say is left to the page: findings stay the same.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from rankwise.findings.axes import TrainTaskAxes
from rankwise.findings.comparison import Compared, Group, compare
from rankwise.findings.decision import Margins
from rankwise.findings.options import DecidingTasks, Option, OptionGains, Runs
from rankwise.findings.prompting import TrainTaskPrompting
from rankwise.findings.recommendation import evidence_of, judged_options
from rankwise.findings.statements import headline, next_command, still_possible
from rankwise.findings.stats.truths import RESOLUTION, deciding_level, num_draws, truths_of
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import is_rslora


class Advice(NamedTuple):
    """Advice from elsewhere: who gives it, for which ranks, and whether alpha is twice the rank."""

    source: str
    ranks: tuple[int, ...] = ()
    has_double_alpha: bool = False


# As their documentation had it in November 2026.
ADVICE = (
    Advice("PEFT's default: rank 8", (8,)),
    Advice("Unsloth's guide: rank 16 or 32", (16, 32)),
    Advice("TRL's LoRA Without Regret: rank 256", (256,)),
    Advice("Many recipes: alpha = 2r", has_double_alpha=True),
)


MOST_DRAWN = 12
"""Of more options the page has no sliders: their draws would be megabytes."""

MOST_VALUES = 1 << 19
"""Draws times options, at most, for the same reason: an early look is judged by many draws."""


class CardRow(Compared):
    """An option against the base, or the base itself; it leads the choice by what its leads say.

    ``score`` is over the in-domain tasks that decide, in the unit of the gains; ``accuracy`` is the
    same in points of accuracy, where p(right) decides.
    """

    runs: tuple[str, ...]
    """Names of its runs over all seeds; none of the base, which gains exactly 0."""
    is_choice: bool
    score: float
    accuracy: float | None
    num_learned: int | None = None
    """Items that it has right and the base has wrong; None of several runs or tasks, and where an
    item is neither right nor wrong."""
    num_forgotten: int | None = None
    """Items that it has wrong and the base has right."""


class CheckedAdvice(Record):
    """A piece of advice, and what this study says of it; what it does not try is left out."""

    advice: str
    here: str


class RuleDraws(Record):
    """What the rule needs to judge again under other margins: draws of what K options are worth.

    ``gains``, ``losses`` and ``worst`` are draws by options: whole numbers of ``num_bytes``,
    little-endian, in base64. Gains are in parts of ``step`` of the recommendation's unit, losses in
    hundredths of a point; losses are None where retention was not measured.
    """

    labels: tuple[str, ...]
    has_base: bool
    level: float
    is_finished: tuple[bool, ...]
    step: float
    num_bytes: int
    gains: str
    losses: str | None
    worst: str | None


class VerdictCard(Record):
    """The choice of one trained task; ``choice`` is None where not fine-tuning is the best bet.

    ``is_settled``: it is recommended; otherwise it is the best bet, and ``probability`` says how
    likely it is right.
    """

    train_task: str
    is_settled: bool
    choice: str | None
    probability: float | None
    headline: str = ""
    """The verdict in a line."""
    rows: tuple[CardRow, ...] = ()
    """Every option, in the study's order."""
    remark: str = ""
    """What matters beside the rank; empty where nothing does."""
    command: str = ""
    """What to do next."""
    settings: dict[str, str] = Field(default_factory=dict)
    advice: tuple[CheckedAdvice, ...] = ()
    draws: RuleDraws | None = None
    """None of more than ``MOST_DRAWN`` options, or ``MOST_VALUES`` draws of them, and where a
    margin is next to nothing beside the gains."""

    @property
    def alternatives(self) -> tuple[CardRow, ...]:
        """The other options that were trained here, or scored, beside the choice."""
        return tuple(row for row in self.rows if row.lead is not None)


def verdict_card(
    source: OptionGains,
    recommendation: Recommendation,
    axes: TrainTaskAxes | None = None,
    prompting: TrainTaskPrompting | None = None,
) -> VerdictCard | None:
    """The card of a trained task; None where no option could be judged.

    Args:
        source: the options of the trained task.
        recommendation: of the same task.
        axes: what was found of it, for what more rows gain.
        prompting: what was found of it, for what a prompt gains.
    """
    bet = recommendation.best_bet
    if bet is None:
        return None
    settled = recommendation.chosen
    label = bet.choice if settled is None else settled.label
    chosen = next((option for option in source.options if option.label == label), None)
    tasks = source.deciding_tasks(recommendation.unit)

    def row(models: Option | Group, against: Option | None = None, **own: Any) -> CardRow:
        own |= _scores(source, models.runs, tasks.in_domain)
        return compare(CardRow, source, tasks, models, against, **own)

    rows = tuple(
        row(
            option,
            None if option is chosen or option.plan.imported else chosen,
            runs=tuple(run.name for run in option.runs),
            is_choice=option is chosen,
            **_counts(recommendation, tasks, option),
        )
        for option in source.options
    )
    if recommendation.has_base:
        base = source.results.base
        rows = row(Group("base", None, (base,)), runs=(), is_choice=label is None), *rows
    return VerdictCard(
        train_task=recommendation.train_task,
        is_settled=settled is not None,
        choice=label,
        probability=None if settled else bet.probability,
        headline=headline(recommendation),
        rows=rows,
        remark=_remark(recommendation, label, axes, prompting),
        command=next_command(recommendation),
        settings={} if chosen is None else _settings(chosen),
        advice=() if chosen is None else tuple(_checked(source, chosen, rows)),
        draws=_rule_draws(source, tasks, recommendation),
    )


def _counts(recommendation: Recommendation, tasks: DecidingTasks, option: Option) -> dict[str, Any]:
    """The items that the only run of an option learned and forgot on the only task."""
    if len(option.runs) != 1 or len(tasks.in_domain) != 1:
        return {}
    where = option.runs[0].name, tasks.in_domain[0]
    found = next(each for each in recommendation.comparisons if (each.run, each.task) == where)
    return {"num_learned": found.num_learned, "num_forgotten": found.num_forgotten}


def _scores(source: OptionGains, models: Runs, tasks: Sequence[str]) -> dict[str, Any]:
    """The mean score of some models over tasks, and in accuracy where p(right) decides."""

    def mean(of: OptionGains) -> float:
        values = [of.pair(model, task).adapted.mean() for model in models for task in tasks]
        return float(np.mean(values))

    items = source.results.base.items
    has_accuracy = any(items[task].accuracy is not None for task in tasks)
    return {
        "score": mean(source),
        "accuracy": mean(source.by_accuracy) if has_accuracy else None,
    }


def _rule_draws(
    source: OptionGains, tasks: DecidingTasks, recommendation: Recommendation
) -> RuleDraws | None:
    options = judged_options(source, tasks)
    if len(options) > MOST_DRAWN:
        return None
    margins = Margins(
        recommendation.delta,
        recommendation.epsilon_points,
        recommendation.worst_task_points or math.inf,
        recommendation.has_base,
    )
    evidence = evidence_of(source, tasks, options, margins)
    alpha = recommendation.looks[-1].alpha
    level = deciding_level(len(options), alpha, has_base=margins.has_base)
    number = num_draws(len(options), level)
    if number * len(options) > MOST_VALUES:
        return None
    truths = truths_of(evidence, "adapters", number)
    step = evidence.point / RESOLUTION
    whole = [
        None if draws is None else np.round(draws * scale)
        for draws, scale in zip(truths, (1.0 / step, RESOLUTION, RESOLUTION), strict=True)
    ]
    most = max(float(np.abs(draws).max()) for draws in whole if draws is not None)
    if most > np.iinfo(np.int32).max:  # a margin that no slider sets: far below the errors
        return None
    kind = "<i2" if most <= np.iinfo(np.int16).max else "<i4"
    gains, losses, worst = (
        "" if draws is None else base64.b64encode(draws.astype(kind).tobytes()).decode("ascii")
        for draws in whole
    )
    return RuleDraws(
        labels=tuple(option.label for option in options),
        has_base=margins.has_base,
        level=level,
        is_finished=tuple(not option.diverged_seeds for option in options),
        step=step,
        num_bytes=np.dtype(kind).itemsize,
        gains=gains,
        losses=losses or None,
        worst=worst or None,
    )


def _remark(
    recommendation: Recommendation,
    choice: str | None,
    axes: TrainTaskAxes | None,
    prompting: TrainTaskPrompting | None,
) -> str:
    """What rank does not decide, what more rows gain, and whether a prompt would do."""
    said: list[str] = []
    if (full := recommendation.better_and_kept_by_full) is not None:
        said.append(
            f"{quantities.capital(full)} gains more and forgets less than every rank: rank is not "
            "the bottleneck."
        )
    elif possible := still_possible(recommendation):
        said.append(f"{possible}.")
    said.append((axes and axes.of_rows) or "")
    if prompting is not None and choice is not None:
        said.append(prompting.beside(choice))
    return " ".join(filter(None, said))


def _settings(option: Option) -> dict[str, str]:
    plan = option.plan
    settings = {"Rank": None if plan.rank is None else quantities.rank_value(plan)}
    settings["Alpha"] = quantities.alpha(plan)
    rate, epochs = plan.learning_rate, plan.epochs
    settings["Learning rate"] = None if rate is None else quantities.learning_rate(rate)
    settings["Target modules"] = quantities.modules(plan.target_modules) or None
    settings["Epochs"] = None if epochs is None else str(epochs)
    if plan.is_part:
        settings["Stopped"] = f"at step {quantities.steps(plan)}"
    return {name: value for name, value in settings.items() if value is not None}


def _checked(
    source: OptionGains, chosen: Option, rows: Sequence[CardRow]
) -> Iterator[CheckedAdvice]:
    """Each piece of advice that the study tried, beside what was measured at its rank."""
    beside = {row.label: row for row in rows if row.lead is not None}
    for advice in ADVICE:
        ranked = [o for o in source.options if o.rank and o.plan.role != "imported"]
        uniform = [option for option in ranked if option.plan.mean_rank is None]
        options = [option for option in uniform if option.rank in advice.ranks]
        if advice.has_double_alpha:
            plain = [option for option in ranked if not is_rslora(option.plan)]
            options = [option for option in plain if option.plan.alpha == 2 * (option.rank or 0)]
        if any(option.label == chosen.label for option in options):
            here = "that is the choice here" if advice.ranks else "the choice has it"
        else:
            # of alpha only what has the choice's rank speaks
            tried = [
                beside[option.label]
                for option in options
                if option.label in beside and (advice.ranks or option.rank == chosen.rank)
            ]
            here = "; ".join(
                f"{each.label} {_more_or_less(each)} than the choice" for each in tried
            )
        if here:
            yield CheckedAdvice(advice=advice.source, here=here)


def _more_or_less(row: CardRow) -> str:
    """How much more or less one setting gains and keeps than another.

    Such as: gains 3.1 points less (...) and keeps 0.2 points more (...).
    """
    parts: list[str] = []
    for verb, mean in (("gains", row.lead), ("keeps", row.retention_lead)):
        if mean is not None:
            amount = quantities.amount(abs(mean.estimate), mean.unit)
            bounds = quantities.change_interval(mean.lower, mean.upper, mean.unit)
            more = "more" if mean.estimate > 0 else "less"
            parts.append(f"{verb} {amount} {more} ({bounds})")
    return " and ".join(parts)
