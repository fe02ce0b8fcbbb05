"""A trained task's figures: gain and retention, score by rank, every task, and prose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rankwise.findings.models import ModelSummary
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Relation, Unit
from rankwise.report import cells
from rankwise.report.charts.intervals import Bar, BarPanel, interval_chart, short_names
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.plane import Plane, PlaneMark, front, plane_chart
from rankwise.report.charts.ranks import RankLine, RankMark, RankPanel, in_unit, rank_chart
from rankwise.report.parts import Drawing, Figure, thinned
from rankwise.report.summaries import RELATION_NAMES, Summaries

TRADE_OFF = "gain-and-retention"
"""The figure that stands on the card, and not among the others."""

MOST_TASKS, MOST_BARS = 8, 36
"""More tasks than this of one relation, or more bars of its runs on all of them, are too many
to read; the tasks with most loss are drawn, two at least."""

MOST_RUNS = 12
"""The most runs that are drawn. Of more, those with the first settings of each rank are drawn, and
where they have more bars than can be read, one of each rank; on the plane, regions would hide each
other."""


class _Overview(NamedTuple):
    results: TrainTaskResults
    recommendation: Recommendation
    summaries: Summaries

    @property
    def bars(self) -> str:
        others = cells.intervals(self.recommendation.confidence)
        return f"a rank's bars are the bounds of its verdict, others {others}"


def study_figures(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> tuple[Figure, ...]:
    """Every figure of a trained task that has something to draw, in its order."""
    study = _Overview(results, recommendation, summaries)
    made = (draw(study) for draw in (_trade_off, _by_rank, _by_task, _forgetting))
    return tuple(figure for figure in made if figure is not None)


def plane_of(
    marks: Sequence[PlaneMark],
    unit: Unit,
    epsilon_points: float | None,
    path: Sequence[int | None],
    confidence: float | None = None,
) -> Drawing:
    """Gain in-domain (up) against the change on retention tasks (right); the base is (0, 0)."""
    limit = None
    if epsilon_points is not None:
        limit = -epsilon_points, f"loss = ε ({quantities.score(epsilon_points, 'points')})"
    plane = Plane(
        "Change on retention tasks (points; left is forgotten)",
        f"In-domain gain ({cells.unit_name(unit)})",
        marks,
        has_origin=True,
        limit=limit,
        path=path,
        confidence=confidence,
    )
    return plane_chart([plane])


def change_mark(
    name: str, look: MarkStyle, label: str, gain: TaskMean, retention: TaskMean
) -> PlaneMark:
    """A model on that plane; ``label`` is it in words."""
    said = f"gain {cells.in_words(gain)}, retention change {cells.in_words(retention)}"
    return PlaneMark(name, look, retention, gain, f"{label}: {said}")


def _trade_off(study: _Overview) -> Figure | None:
    drawn = [
        (summary, gain, change)
        for summary in study.summaries
        if (gain := summary.gain) is not None and (change := summary.retention_change) is not None
    ]
    if not drawn:
        return None
    epsilon = study.recommendation.epsilon_points
    caption = (
        "Up gains more, right forgets less. Bars are intervals. Models on the line: no other gains "
        "more and forgets less."
    )
    confidence = None
    if len(drawn) <= MOST_RUNS:
        confidence = study.recommendation.confidence
        caption += " The ellipse covers both numbers together."
    if epsilon is not None:
        caption += " Left of the dashed line the loss is more than ε."
    if any(summary.is_recommended for summary, *_ in drawn):
        caption += " A ring marks the recommended model."
    marks = [
        change_mark(
            summary.kind_name,
            MarkStyle.of(summary.kind),
            summary.label,
            gain,
            change,
        )._replace(is_ringed=summary.is_recommended, model=summary.label)
        for summary, gain, change in drawn
    ]
    _, gain, change = drawn[0]
    kept = f"{quantities.count(change.num_examples)} retention items"
    kept += quantities.in_clusters(change.num_clusters)
    detail = f"{quantities.sample_size(gain, 'in-domain')} and {kept}; {study.bars}"
    points = [(change.estimate, gain.estimate) for _, gain, change in drawn] + [(0.0, 0.0)]
    path = [place if place < len(drawn) else None for place in front(points)]
    drawing = plane_of(marks, study.recommendation.unit, epsilon, path, confidence)
    return Figure(TRADE_OFF, "Gain against what is forgotten", caption, drawing, detail)


def _by_rank(study: _Overview) -> Figure | None:
    unit = study.recommendation.unit
    drawn = [
        (summary, score) for summary in study.summaries if (score := summary.in_domain) is not None
    ]
    marks = [
        RankMark(summary.kind, score, is_ringed=summary.is_recommended, name=summary.label)
        for summary, score in drawn
        if isinstance(summary.kind, int)
    ]
    if not marks:
        return None
    items = study.results.base.items
    in_domain = study.results.tasks["in_domain"]
    tasks = [task for task in in_domain if task in items and items[task].unit == unit]
    lines = [
        RankLine(str(summary.kind), summary.kind, score)
        for summary, score in drawn
        if not isinstance(summary.kind, int)
    ]
    caption = (
        f"Scored on {quantities.listed(tasks)}. Lines across are the untouched base and, dashed, "
        "full fine-tuning. Each interval is for one score. Models answer the "
        "same items, so they are compared by paired differences, which vary less: overlapping "
        "intervals here do not mean that two models are equal."
    )
    score = f"{'mean ' * (len(tasks) > 1)}{study.recommendation.in_domain_metric or 'score'}"
    kind = "points" if unit == "points" else "nats per token; lower is better"
    y_title, write = f"In-domain {score} ({kind})", in_unit(unit, signed=False)
    panel = RankPanel(y_title, marks, lines, write=write)
    bars = f"bars and bands are {cells.intervals(study.recommendation.confidence)}"
    detail = f"{quantities.sample_size(drawn[0][1], 'items')}; {bars}"
    title = "In-domain score by rank"
    return Figure("score-by-rank", title, caption, rank_chart([panel]), detail)


def _by_task(study: _Overview) -> Figure | None:
    relations: tuple[Relation, ...] = ("in_domain", "out_of_domain", "retention")
    units: tuple[Unit, ...] = ("points", "nats", "units")
    found = [_panel(study, relation, unit) for relation in relations for unit in units]
    panels = [panel for panel, _ in found if panel.bars]
    if not panels:
        return None
    caption = (
        "Right of zero is better than the base. Each interval is for one difference, "
        f"paired over the same items. Each relation has its own axis.{_more_runs(study)}"
    )
    for panel, num_left_out in found:
        if num_left_out:
            num_drawn = len({bar.group for bar in panel.bars})
            caption += (
                f" {panel.title}: the {num_drawn} tasks with the largest loss in any run "
                f"are drawn, {num_left_out} more are in the table."
            )
    detail = f"adapted {quantities.MINUS} base; {study.bars}"
    title = "Difference from the base on every task"
    return Figure("difference-by-task", title, caption, interval_chart(panels), detail)


def _forgetting(study: _Overview) -> Figure | None:
    panel, _ = _panel(study, "held_out_text", "nats")
    if not panel.bars:
        return None
    caption = (
        "Right of zero, the adapted model predicts general prose worse than the base. "
        f"An item is a passage; differences are paired over passages.{_more_runs(study)}"
    )
    intervals = cells.intervals(study.recommendation.confidence)
    detail = f"rise of the mean loss per token; bars are {intervals}"
    title = "Forgetting on held-out prose"
    return Figure("forgetting-on-prose", title, caption, interval_chart([panel]), detail)


def _panel(study: _Overview, relation: Relation, unit: Unit) -> tuple[BarPanel, int]:
    """The tasks of one relation, of many those with the largest loss in any run; how many more."""
    drawn = _drawn_runs(study)
    rows = [
        row
        for row in study.recommendation.comparisons
        if (row.relation, row.unit) == (relation, unit) and row.run in drawn
    ]
    num_runs = len({row.run for row in rows})
    worst: dict[str, float] = {}
    for row in rows:
        change = row.difference.estimate
        worst[row.task] = min(change, worst.get(row.task, change))
    most = min(MOST_TASKS, max(MOST_BARS // max(num_runs, 1), 2))
    kept = sorted(worst, key=lambda task: worst[task])[:most]
    is_prose = relation == "held_out_text"
    measured = {(row.run, row.task): row for row in rows}
    short = short_names(kept)
    bars = [
        Bar(
            f"{short[row.task]}\n{quantities.sample_size(row)}",
            summary.label,
            summary.kind,
            row.difference.negated() if is_prose else row.difference,
            "" if is_prose else row.task,
        )
        for task in worst
        if task in kept
        for summary in study.summaries
        if (row := measured.get((summary.name, task))) is not None
    ]
    title = "" if is_prose else quantities.capital(RELATION_NAMES[relation])
    x_title = f"{'Forgetting' if is_prose else 'Difference'} ({cells.unit_name(unit)})"
    return BarPanel(title, x_title, unit, bars), len(worst) - len(kept)


def _more_runs(study: _Overview) -> str:
    """How many runs are not among the bars."""
    more = sum(summary.run is not None for summary in study.summaries) - len(_drawn_runs(study))
    return f" {quantities.counted(more, 'more run')} are in the table." if more else ""


def _drawn_runs(study: _Overview) -> set[str]:
    """The names of all runs, or of the first settings of each rank, in every seed or in one."""
    shown = [summary for summary in study.summaries if summary.run is not None]
    if len(shown) > MOST_RUNS:
        first: dict[Kind, ModelSummary] = {}
        for summary in shown:
            first.setdefault(summary.kind, summary)
        shown = [each for each in shown if each.option == first[each.kind].option]
        if len(shown) > MOST_BARS:
            shown = thinned(list(first.values()), MOST_BARS)
    return {each.name for each in shown}
