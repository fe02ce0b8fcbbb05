"""What a time is enough for, on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import typer

from rankwise.cli.application import note
from rankwise.errors import ConfigError
from rankwise.records import quantities
from rankwise.records.config.study import StudyConfig
from rankwise.records.fields import seconds_of

if TYPE_CHECKING:
    from rankwise.engine.models.devices import Machine
    from rankwise.study.budgets import Fitted, Smaller
    from rankwise.study.planning.plan import StudyPlan


def given_seconds(text: str) -> float:
    """Seconds of a time of the command line, such as 10m."""
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def measured_rate(plan: StudyPlan) -> float | None:
    """Tokens that this machine scores in a second, after a note that it is measured.

    None: how long a study of this base takes here is remembered from the last one.
    """
    from rankwise.study.budgets import scoring_rate
    from rankwise.study.speeds import remembered_speeds

    if remembered_speeds(plan.record):
        return None
    note("measuring how fast this machine reads the model ...")
    return scoring_rate(plan)


def told_lines(plan: StudyPlan) -> Iterator[str]:
    """The smallest differences that a study of this size detects."""
    from rankwise.findings.statements import detected
    from rankwise.study.budgets import resolution

    able = resolution(plan)
    if able.in_domain is not None:
        yield f"detectable in-domain: {detected(able.in_domain)}"
    else:
        margin = plan.record.config.recommendation.delta_nats
        yield (
            "detectable in-domain: differences of the loss, paired by row; less than "
            f"{margin:g} nats per token counts as equal"
        )
    if able.retention is not None:
        yield f"detectable on retention: {detected(able.retention)}"


def budget_lines(found: Fitted[Smaller], budget: float) -> Iterator[str]:
    """What of a study fits into a time, and what it then detects."""
    changes = shlex.join(found.choice.overrides)
    within, takes = quantities.seconds(budget), quantities.seconds(found.seconds)
    if not found.fits:
        yield f"in {within}: not even the smallest fits, which takes about {takes} ({changes})"
    elif changes:
        yield f"in {within}: fits with {changes}, about {takes}"
    else:
        yield f"in {within}: fits as it is, about {takes}"
    yield from told_lines(found.plan)


def affordable_here(
    config: StudyConfig,
    planned: StudyPlan,
    budget: float,
    rate: float | None,
    machine: Machine | None,
) -> Fitted[Smaller]:
    """What fits into a time; ``rate`` is of LoRA training, None: as remembered or measured here.

    Raises:
        ConfigError: the study has a search, whose budget is set by ``search.budget``.
    """
    if config.is_open:
        problem = "--budget: a search decides as it goes what is trained; set search.budget instead"
        raise ConfigError("plan", [problem])
    from rankwise.study.budgets import affordable
    from rankwise.study.planning.plan import plan_study
    from rankwise.study.times import TRAINING_WORK

    scored = measured_rate(planned) if rate is None else rate * TRAINING_WORK["lora"]
    again = partial(plan_study, report=note, machine=machine)
    return affordable(config, planned, budget, scored, again)
