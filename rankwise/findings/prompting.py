"""A prompt instead of a training: the base with training rows in its prompt, beside the options.

Scored on the same items as all else, so paired with them. Exploratory: no verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rankwise.findings.comparison import Compared, Group, compare
from rankwise.findings.options import DecidingTasks, OptionGains, TaskMean, TrainTaskFinding
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import ModelResults
from rankwise.records.study import PromptedTask, Unit

GainsAsMuch = Literal["as much", "less", "undecided"]


class PromptRow(Compared):
    """One number of rows in the prompt, over all draws, which are its seeds; or against an option.

    ``context_tokens`` is what is read before the answer of an item on average, ``more_tokens`` that
    less what a prompt without rows reads (None where the study asks none). ``gains``: as much as
    ``against`` where the lead's lower bound is above -δ, less where its upper bound is below zero
    besides.
    """

    shots: int
    context_tokens: float
    more_tokens: float | None
    gains: GainsAsMuch | None = None


class TrainTaskPrompting(TrainTaskFinding):
    """The prompts of one trained task, few rows first, each against the base and every option.

    ``delta`` is in ``unit``.
    """

    unit: Unit
    delta: float
    rows: tuple[PromptRow, ...]

    @property
    def alone(self) -> tuple[PromptRow, ...]:
        """The prompts against the base."""
        return tuple(row for row in self.rows if row.lead is None)

    def beside(self, choice: str) -> str:
        """Whether the best prompt with rows gains what an option gains; empty if not known."""
        best = max(
            (row for row in self.alone if row.shots),
            key=lambda row: row.gain.estimate,
            default=None,
        )
        for row in self.rows:
            if best is not None and (row.shots, row.against) == (best.shots, choice):
                return _beside(row)
        return ""


def prompting(source: OptionGains, recommendation: Recommendation) -> TrainTaskPrompting | None:
    """Every prompt of a trained task; None where the study asks none on what decides."""
    results, unit = source.results, recommendation.unit
    prompted = results.study.prompted.get(results.train_task, ())
    known = {each.task for each in prompted}
    names = tuple(task for task in source.tasks("in_domain", unit) if task in known)
    if not names:
        return None
    tasks, by_shots = (
        DecidingTasks(names, (), unit),
        grouped((each.shots, each) for each in prompted),
    )
    tokens = {
        shots: sum(each.context_tokens for each in asked) / len(asked)
        for shots, asked in by_shots.items()
    }
    rows: list[PromptRow] = []
    for shots, asked in sorted(by_shots.items()):
        group = _as_models(source, shots, asked)
        paired = (1, len(group.runs))  # each draw with a seed
        options = [o for o in source.options if len(group.runs) == 1 or len(o.runs) in paired]
        for against in (None, *options):
            row = compare(
                PromptRow,
                source,
                tasks,
                group,
                against,
                shots=shots,
                context_tokens=tokens[shots],
                more_tokens=tokens[shots] - tokens[0] if 0 in tokens else None,
            )
            rows.append(row.model_copy(update={"gains": _gains(row.lead, recommendation.delta)}))
    return source.found(
        TrainTaskPrompting,
        unit=unit,
        delta=recommendation.delta,
        rows=tuple(rows),
        statements=tuple(map(_statement, (row for row in rows if row.lead is None))),
    )


def _as_models(source: OptionGains, shots: int, asked: Sequence[PromptedTask]) -> Group:
    """The base as it answers each draw is a model of its own."""
    items = source.results.prompted
    draws = grouped((each.seed, each) for each in asked)
    models = tuple(
        ModelResults(
            name=f"prompt {shots} {seed}",
            run=None,
            evaluations={},
            items={
                each.task: items[each.name].model_copy(update={"task": each.task}) for each in its
            },
        )
        for seed, its in draws.items()
    )
    examples = quantities.counted(shots, "example") if shots else "no example"
    return Group(f"{examples} in the prompt", None, models)


def _gains(lead: TaskMean | None, delta: float) -> GainsAsMuch | None:
    if lead is None:
        return None
    return "as much" if lead.lower > -delta else "less" if lead.upper < 0 else "undecided"


def _statement(row: PromptRow) -> str:
    more = "" if not row.more_tokens else f", {row.more_tokens:,.0f} more than without"
    gain = quantities.with_interval(row.gain, row.gain.unit)
    return (
        f"{quantities.capital(row.label)}: {gain} over the base; a question reads "
        f"{row.context_tokens:,.0f} tokens{more}."
    )


def _beside(row: PromptRow) -> str:
    assert row.lead is not None
    rows, lead = quantities.capital(row.label), quantities.with_interval(row.lead, row.lead.unit)
    if row.gains == "as much":
        return f"{rows} gain what {row.against} gains: {lead}."
    if row.gains == "less":
        return f"{rows} gain less than {row.against}: {lead}."
    return f"Whether {row.label} gain what {row.against} gains is not shown: {lead}."
