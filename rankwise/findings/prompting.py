"""A prompt instead of a training: the base with training rows in its prompt, beside the options.

Scored on the same items as all else, so paired with them. Exploratory: no verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rankwise.findings.options import OptionGains, Runs, TaskMean
from rankwise.findings.rows import Row, flat
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import ModelResults
from rankwise.records.study import Unit

GainsAsMuch = Literal["as much", "less", "undecided"]


class PromptBeside(Record):
    """A prompt less an option, paired by item, and by draw and seed.

    It gains as much where the lower bound is above -δ, less where the upper bound is below zero
    besides.
    """

    label: str
    rank: int | None
    difference: TaskMean
    gains: GainsAsMuch


class PromptRow(Record):
    """One number of rows in the prompt, over all draws.

    ``gain`` is over the base as the study asks it; ``context_tokens`` is what is read before the
    answer of an item on average, ``more_tokens`` that less what a prompt without rows reads (None
    where the study asks none).
    """

    shots: int
    num_draws: int
    context_tokens: float
    more_tokens: float | None
    gain: TaskMean
    beside: tuple[PromptBeside, ...]


class TrainTaskPrompting(Record):
    """The prompts of one trained task, few rows first; ``delta`` is in ``unit``."""

    train_task: str
    unit: Unit
    delta: float
    confidence: float
    rows: tuple[PromptRow, ...]
    statements: tuple[str, ...]

    @property
    def best(self) -> PromptRow | None:
        """What gains most, of the prompts with rows."""
        rows = [row for row in self.rows if row.shots]
        return max(rows, key=lambda row: row.gain.estimate, default=None)


def prompting(source: OptionGains, recommendation: Recommendation) -> TrainTaskPrompting | None:
    """Every prompt of a trained task; None where the study asks none on what decides."""
    results, unit = source.results, recommendation.unit
    prompted = results.study.prompted.get(results.train_task, ())
    known = {each.task for each in prompted}
    tasks = [task for task in source.tasks("in_domain", unit) if task in known]
    if not tasks:
        return None
    by_shots = grouped((each.shots, each) for each in prompted)
    rows: list[PromptRow] = []
    statements: list[str] = []
    without: float | None = None
    for shots, asked in sorted(by_shots.items()):
        draws = grouped((each.seed, each) for each in asked)
        models = tuple(  # the base as it answers each draw is a model of its own
            ModelResults(
                name=f"prompt {shots} {seed}",
                run=None,
                evaluations={},
                items={
                    each.task: results.prompted[each.name].model_copy(update={"task": each.task})
                    for each in its
                },
            )
            for seed, its in draws.items()
        )
        read = [each.context_tokens for its in draws.values() for each in its]
        tokens = sum(read) / len(read)
        without = without if shots else tokens
        row = PromptRow(
            shots=shots,
            num_draws=len(models),
            context_tokens=tokens,
            more_tokens=None if without is None else tokens - without,
            gain=source.change(models, tasks),
            beside=tuple(_beside(source, models, tasks, recommendation.delta)),
        )
        rows.append(row)
        examples = quantities.counted(shots, "example") if shots else "No example"
        more = "" if not row.more_tokens else f", {row.more_tokens:,.0f} more than without"
        statements.append(
            f"{examples} in the prompt: {quantities.with_interval(row.gain, unit)} over the base; "
            f"a question reads {tokens:,.0f} tokens{more}."
        )
    return TrainTaskPrompting(
        train_task=results.train_task,
        unit=unit,
        delta=recommendation.delta,
        confidence=source.confidence,
        rows=tuple(rows),
        statements=tuple(statements),
    )


def _beside(
    source: OptionGains, models: Runs, tasks: Sequence[str], delta: float
) -> Iterator[PromptBeside]:
    """The prompts less every option that they can be paired with."""
    for option in source.options:
        if len(option.runs) in (1, len(models)) or len(models) == 1:
            difference = source.difference(models, option.runs, tasks)
            gains: GainsAsMuch = "less" if difference.upper < 0 else "undecided"
            if difference.lower > -delta:
                gains = "as much"
            yield PromptBeside(
                label=option.label, rank=option.rank, difference=difference, gains=gains
            )


def beside_the_choice(row: PromptRow, choice: str, unit: Unit) -> str:
    """Whether a prompt gains what an option gains, in a sentence; empty where that is not known."""
    found = next((each for each in row.beside if each.label == choice), None)
    if found is None:
        return ""
    rows = f"{quantities.counted(row.shots, 'example')} in the prompt"
    lead = quantities.with_interval(found.difference, unit)
    if found.gains == "as much":
        return f"{quantities.capital(rows)} gain what {choice} gains: {lead}."
    if found.gains == "less":
        return f"{quantities.capital(rows)} gain less than {choice}: {lead}."
    return f"Whether {rows} gain what {choice} gains is not shown: {lead}."


def prompt_rows(found: Sequence[TrainTaskPrompting], _: object) -> Iterator[Row]:
    """Every prompt, and every prompt beside an option."""
    for part in found:
        for row in part.rows:
            yield flat(row, train_task=part.train_task, against="base")
            for each in row.beside:
                yield flat(each, train_task=part.train_task, shots=row.shots, against=each.label)
