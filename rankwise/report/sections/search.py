"""How the runs were chosen: the decisions of a search, what they rest on, and learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.tuning import TrainTaskRates
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.search import TrainTaskSearch
from rankwise.records.study import Interval, Unit
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.ranks import RankMark, RankPanel, in_unit, rank_chart
from rankwise.report.parts import Column, Figure, ReportSection, Shown, Table, shows

POLICIES = {
    "narrow": "one seed of every rank, then more seeds of the best one and its nearest rival",
    "ladder": "a ladder: one rank first, then larger if it underfits and smaller if it forgets",
    "grid": "every rank, each at a learning rate that was searched",
    "stop": "every rank, each stopped while it keeps enough",
    "none": "as the study file lists them",
}

OWN = "own rate"


@shows("rates")
def search_section(rates: Sequence[TrainTaskRates], results: StudyResults) -> ReportSection | None:
    """The decisions, a table of what trainings showed, and a chart of learning rates.

    None where the study file lists every run and nothing was added.
    """
    search = results.search
    if search is None:
        return None
    rates_of = {found.train_task: found for found in rates}

    def shown(part: TrainTaskSearch) -> Iterator[Shown]:
        yield from (quantities.capital(decision.statement) for decision in part.decisions)
        found = rates_of.get(part.train_task)
        if found is not None:
            yield found.statement
            if found.at_the_edge:
                yield (
                    f"The best learning rate of {quantities.listed(found.at_the_edge)} is the "
                    "smallest or the largest that was tried: a better one may lie beyond."
                )
            if found.common:
                yield _figure(found)
        yield _table(part)

    about = [f"Runs are chosen by {POLICIES[search.policy]}."]
    if search.by_train_task:
        about.append(
            "Decisions rest on validation items, which are held out of the training split. The "
            "items of the verdict are answered by the runs that are left, and by no other."
        )
    made = ReportSection.of(
        "search", "How the runs were chosen", about, search.by_train_task, shown
    )
    return made._replace(remarks=[*made.remarks, *(growth.statement for growth in search.growths)])


def _figure(found: TrainTaskRates) -> Figure:
    one = f"all at {quantities.learning_rate(found.common[0].learning_rate)}"
    marks = [
        RankMark(point.rank, point.gain, series)
        for series, points in ((OWN, found.own), (one, found.common))
        for point in points
    ]
    panel = RankPanel(
        f"Gain ({cells.unit_name(found.unit)})", marks, has_zero=True, write=in_unit(found.unit)
    )
    return Figure(
        "rates",
        "Gain on validation items: each rank at its own rate, and all at one",
        "Where the line of one rate is steep and that of own rates is flat, the effect of rank is "
        f"one of step size. {found.statement}",
        rank_chart([panel], [OWN, one], "learning rate"),
        f"after {quantities.percent(found.share)} of the steps, one seed, "
        f"{quantities.count(found.num_items)} items; bars are two standard errors",
    )


def _table(search: TrainTaskSearch) -> Table:
    reasons = _reasons(search)
    items = ", ".join(
        f"{quantities.count(number)} of {task}" for task, number in search.num_items.items()
    )
    return Table.of(
        f"What trainings showed on the validation items ({items}), in order.",
        search.shown,
        Column(lambda row: Cell(row.setting, "", f"seed {row.seed}"), "Setting"),
        Column("learning_rate", "Learning rate", write=quantities.learning_rate),
        Column("share", "Trained", "of its steps", quantities.percent),
        Column(lambda row: _cell(row.gain, search.unit), "Gain", f"{search.unit}, ± 2 errors"),
        Column(
            lambda row: row.retention_loss and _cell(row.retention_loss, "points"),
            "Retention loss",
            "points, ± 2 errors",
        ),
        Column(lambda row: reasons.get(row.run, ""), "Then", is_text=True),
        file="search",
        records=[
            ({"decision": number, "unit": search.unit}, shown)
            for number, decision in enumerate(search.decisions)
            for shown in decision.shown
        ],
    )


def _cell(mean: Interval | None, unit: Unit) -> Cell | str:
    return "diverged" if mean is None else cells.interval(mean, unit)


def _reasons(search: TrainTaskSearch) -> dict[str, str]:
    """Run or checkpoint -> why it was trained no further, or that it is compared."""
    found: dict[str, str] = {}
    last = {(s.setting, s.learning_rate, s.seed): s.run for s in search.shown}.values()
    for ruling in (ruling for decision in search.decisions for ruling in decision.ruled_out):
        for shown in search.shown:
            is_rate = ruling.learning_rate in (None, shown.learning_rate)
            if shown.setting == ruling.setting and is_rate and shown.run in last:
                found.setdefault(shown.run, f"stopped: {ruling.reason}")
    finalists = search.decisions[-1].finalists
    return found | dict.fromkeys(finalists, "compared on the test items")
