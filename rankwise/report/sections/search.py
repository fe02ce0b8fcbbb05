"""How the runs were chosen: the decisions of a search, what they rest on, and learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.findings.tuning import RatePoint, TrainTaskRates
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.search import SearchRecord, Shown, TrainTaskSearch, ValidationMean
from rankwise.records.study import Interval, Unit
from rankwise.report import cells
from rankwise.report.charts.ranks import AxisMark, axis_chart
from rankwise.report.parts import (
    Cell,
    Column,
    Figure,
    ReportSection,
    TitledTable,
    TrainedTask,
    table,
)

POLICIES = {
    "race": "a race: all ranks together, and those that are ruled out stop",
    "ladder": "a ladder: one rank first, then larger if it underfits and smaller if it forgets",
    "grid": "every rank, each at a learning rate that was searched",
    "stop": "every rank, each stopped while it keeps enough",
    "none": "as the study file lists them",
}

_STDERRS = 2.0
"""Half the length of a bar, in standard errors."""

OWN = "own rate"


def search_section(results: StudyResults, rates: Sequence[TrainTaskRates]) -> ReportSection | None:
    """The decisions, a table of what trainings showed, and a chart of learning rates.

    None where the study file lists every run and nothing was added.
    """
    search = results.search
    if search is None:
        return None
    tasks = TrainedTask.each(search.by_train_task)
    return ReportSection(
        name="search",
        title="How the runs were chosen",
        remarks=list(_remarks(search, tasks, rates)),
        figures=[
            figure
            for found, task in TrainedTask.each(rates)
            for figure in task.figures("search", [_figure(found)] if found.common else [])
        ],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks if part.shown],
        files={"search.csv": cells.csv_text(_rows(search))} if tasks else {},
    )


def _remarks(
    search: SearchRecord,
    tasks: Sequence[tuple[TrainTaskSearch, TrainedTask]],
    rates: Sequence[TrainTaskRates],
) -> Iterator[str]:
    yield f"Runs are chosen by {POLICIES[search.policy]}."
    if tasks:
        yield (
            "Decisions rest on validation items, which are held out of the training split. The "
            "items of the verdict are answered by the runs that are left, and by no other."
        )
    for part, task in tasks:
        for decision in part.decisions:
            yield f"{task.before}{quantities.capital(decision.statement)}"
    yield from (found.statement for found in rates)
    for found in rates:
        if found.at_the_edge:
            yield (
                f"The best learning rate of {quantities.listed(found.at_the_edge)} is the smallest "
                "or the largest that was tried: a better one may lie beyond."
            )
    yield from (growth.statement for growth in search.growths)


def _figure(found: TrainTaskRates) -> Figure:
    one = f"all at {quantities.learning_rate(found.common[0].learning_rate)}"
    marks = [_mark(point, OWN) for point in found.own]
    marks += [_mark(point, one) for point in found.common]
    words = [
        f"rank {mark.rank}, {mark.value}: {quantities.change(mark.mean.estimate, found.unit)}"
        for mark in marks
    ]
    return Figure(
        "rates",
        "Gain on validation items: each rank at its own rate, and all at one",
        "Where the line of one rate is steep and that of own rates is flat, the effect of rank is "
        f"one of step size. {found.statement}",
        f"{'; '.join(words)}.",
        axis_chart(marks, [OWN, one], "learning rate", f"Gain ({cells.unit_name(found.unit)})"),
        f"after {quantities.percent(found.share)} of the steps, one seed, "
        f"{quantities.count(found.num_items)} items; bars are two standard errors",
        letters=(46, 64),
    )


def _mark(point: RatePoint, value: str) -> AxisMark[Interval]:
    return AxisMark("", point.rank, value, _interval(point.gain))


def _interval(mean: ValidationMean) -> Interval:
    reach = _STDERRS * mean.stderr
    return Interval(
        estimate=mean.estimate, lower=mean.estimate - reach, upper=mean.estimate + reach
    )


def _table(search: TrainTaskSearch) -> Any:
    reasons = _reasons(search)
    columns: list[Column[Shown]] = [
        Column("Setting", lambda row: Cell(row.setting, "", f"seed {row.seed}")),
        Column("Learning rate", lambda row: quantities.learning_rate(row.learning_rate)),
        Column("Trained", lambda row: quantities.percent(row.share), "of its steps"),
        Column("Gain", lambda row: _cell(row.gain, search.unit), f"{search.unit}, ± 2 errors"),
        Column(
            "Retention loss",
            lambda row: _cell(row.retention_loss, "points"),
            "points, ± 2 errors",
            is_shown=any(row.retention_loss is not None for row in search.shown),
        ),
        Column("Then", lambda row: reasons.get(row.run, ""), is_text=True),
    ]
    items = ", ".join(
        f"{quantities.count(number)} of {task}" for task, number in search.num_items.items()
    )
    caption = f"What trainings showed on the validation items ({items}), in order."
    return table(caption, columns, search.shown)


def _cell(mean: ValidationMean | None, unit: Unit) -> Cell | str:
    return "diverged" if mean is None else cells.interval(_interval(mean), unit)


def _reasons(search: TrainTaskSearch) -> dict[str, str]:
    """Run or checkpoint -> why it was trained no further, or that it is compared."""
    found: dict[str, str] = {}
    for decision in search.decisions:
        for ruling in decision.ruled_out:
            for shown in search.shown:
                is_rate = ruling.learning_rate in (None, shown.learning_rate)
                if shown.setting == ruling.setting and is_rate and shown.run not in found:
                    found[shown.run] = f"stopped: {ruling.reason}"
    last: dict[tuple[str, float, int], str] = {}
    for shown in search.shown:
        last[shown.setting, shown.learning_rate, shown.seed] = shown.run
    ended = {run: reason for run, reason in found.items() if run in last.values()}
    finalists = search.decisions[-1].finalists
    return ended | dict.fromkeys(finalists, "compared on the test items")


def _rows(search: SearchRecord) -> Iterator[dict[str, Any]]:
    """One row for everything that a training showed."""
    for part in search.by_train_task:
        for number, decision in enumerate(part.decisions):
            for shown in decision.shown:
                yield {
                    "train_task": part.train_task,
                    "decision": number,
                    "run": shown.run,
                    "setting": shown.setting,
                    "rank": shown.rank,
                    "learning_rate": shown.learning_rate,
                    "seed": shown.seed,
                    "share": shown.share,
                    "num_tokens": shown.num_tokens,
                    "unit": part.unit,
                    **_mean_row(shown.gain, "gain"),
                    **_mean_row(shown.retention_loss, "retention_loss"),
                }


def _mean_row(mean: ValidationMean | None, name: str) -> dict[str, Any]:
    return {
        name: None if mean is None else mean.estimate,
        f"{name}_stderr": None if mean is None else mean.stderr,
    }
