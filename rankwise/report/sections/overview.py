"""A study's figures: which charts it has, what they are called, and what they show in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.models import ModelSummary
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Interval, Relation, Unit
from rankwise.report import cells
from rankwise.report.charts.intervals import IntervalMark, cut_name, interval_chart
from rankwise.report.charts.ranks import RankLine, RankMark, RankPanel, RankStyle, rank_chart
from rankwise.report.charts.theme import FONT_SIZE, INK
from rankwise.report.charts.trade_off import Point, trade_off_chart
from rankwise.report.parts import Chart, Figure
from rankwise.report.summaries import RELATION_NAMES, Summaries

MOST_PANELS, MOST_MARKS = 8, 36
"""More tasks than this of one relation, or more marks of its runs on all of them, are too many
to read; the tasks with most loss are drawn, two at least."""

MOST_RUNS = 12
"""Of more runs than this, those with the first settings of each rank are drawn."""

_ROOMY, _TIGHT, _MANY_RUNS = 21, 16, 6
_LONGEST_NAME = 40
_SCORE_HEIGHT = 330
_LETTERS = (70, 70)


class _Study(NamedTuple):
    results: TrainTaskResults
    recommendation: Recommendation
    summaries: Summaries

    @property
    def intervals(self) -> str:
        return f"{quantities.percent(self.recommendation.confidence)} intervals"

    @property
    def unit(self) -> Unit:
        return self.recommendation.unit


class _Panel(NamedTuple):
    """The differences of every run on one task."""

    task: str
    size: str
    unit: Unit
    changes: tuple[tuple[ModelSummary, Interval], ...]

    @property
    def title(self) -> str:
        return f"{self.task}, {self.size}"


class _Group(NamedTuple):
    """Panels that share an axis. ``title`` may be empty; ``left_out`` counts tasks not drawn."""

    title: str
    axis_title: str
    panels: tuple[_Panel, ...]
    left_out: int


def study_figures(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> tuple[Figure, ...]:
    """Every figure of a report, in its order; those that cannot be drawn say why."""
    study = _Study(results, recommendation, summaries)
    builders: tuple[Callable[[_Study], Figure], ...] = (_trade_off, _by_rank, _by_task, _forgetting)
    return tuple(builder(study) for builder in builders)


def _trade_off(study: _Study) -> Figure:
    name, title = "gain-and-retention", "Gain in-domain against change on retention tasks"
    drawn = [
        Point(summary, summary.retention_change, summary.gain)
        for summary in study.summaries
        if summary.retention_change is not None and summary.gain is not None
    ]
    if not drawn:
        reason = "the study has no retention task scored in points, or no run was scored on one"
        return Figure(name, title, f"Not drawn: {reason}.")
    epsilon = study.recommendation.epsilon_points
    caption = (
        "One mark for each run; the base is at the origin. Up is better in-domain, right is less "
        "forgetting. Each bar is the interval of one difference from the base, paired over the "
        "same items."
    )
    if epsilon is not None:
        caption += " Left of the dashed line the loss is more than ε."
    if any(summary.is_recommended for summary, *_ in drawn):
        caption += " A ring marks the recommended model."
    parts = [
        f"{summary.label}: gain {quantities.with_interval(gain, gain.unit)}, "
        f"retention change {quantities.with_interval(change, change.unit)}"
        for summary, change, gain in drawn
    ]
    _, change, gain = drawn[0]
    kept = f"{quantities.count(change.num_examples)} retention items"
    kept += quantities.in_clusters(change.num_clusters)
    sizes = f"{quantities.sample_size(gain, 'in-domain')} and {kept}"
    return Figure(
        name,
        title,
        caption,
        f"{'; '.join(parts)}.",
        trade_off_chart(drawn, study.unit, epsilon),
        f"{sizes}; bars are {study.intervals}",
        letters=_LETTERS,
    )


def _by_rank(study: _Study) -> Figure:
    name, title = "score-by-rank", "In-domain score by rank"
    drawn = [
        (summary, summary.in_domain) for summary in study.summaries if summary.in_domain is not None
    ]
    marks = [
        RankMark(summary.kind, score, summary.is_recommended)
        for summary, score in drawn
        if isinstance(summary.kind, int)
    ]
    if not marks:
        return Figure(name, title, "Not drawn: no LoRA run was scored in-domain.")
    items = study.results.base.items
    in_domain = study.results.tasks["in_domain"]
    tasks = [task for task in in_domain if task in items and items[task].unit == study.unit]
    what = _score_name(study.results, tasks, study.unit)
    lines = [
        RankLine(str(summary.kind), summary.kind, score)
        for summary, score in drawn
        if not isinstance(summary.kind, int)
    ]
    axis = alt.Axis(tickCount=6, format="d" if study.unit == "points" else ".2f")
    style = RankStyle(_SCORE_HEIGHT, mark_size=80, axis=axis, is_bold=True)
    caption = (
        f"Scored on {quantities.listed(tasks)}. Lines across are the untouched base and, dashed, "
        "full fine-tuning. Each interval is for one score. Models answer the "
        "same items, so they are compared by paired differences, which vary less: overlapping "
        "intervals here do not mean that two models are equal."
    )
    parts = [
        f"{summary.label} {quantities.with_interval(score, score.unit, signed=False)}"
        for summary, score in drawn
    ]
    return Figure(
        name,
        title,
        caption,
        f"{what}: {'; '.join(parts)}.",
        rank_chart([RankPanel(what, marks, lines)], style),
        f"{quantities.sample_size(drawn[0][1], 'items')}; bars and bands are {study.intervals}",
        letters=_LETTERS,
    )


def _by_task(study: _Study) -> Figure:
    name, title = "difference-by-task", "Difference from the base on every task"
    relations: tuple[Relation, ...] = ("in_domain", "out_of_domain", "retention")
    units: tuple[Unit, ...] = ("points", "nats")
    groups = [
        group
        for relation in relations
        for unit in units
        for group in _groups(study, relation, unit)
    ]
    if not groups:
        return Figure(name, title, "Not drawn: no run was scored.")
    caption = (
        "Right of zero is better than the base. Each interval is for one difference, "
        "paired over the same items. Each relation has its own axis."
    )
    more = sum(summary.run is not None for summary in study.summaries) - len(_drawn_runs(study))
    if more > 0:
        caption += f" {quantities.counted(more, 'more run')} are in the table."
    for group in groups:
        if group.left_out:
            caption += (
                f" {group.title}: the {len(group.panels)} tasks with the largest loss in any run "
                f"are drawn, {group.left_out} more are in the table."
            )
    detail = f"adapted {quantities.MINUS} base; bars are {study.intervals}"
    return Figure(name, title, caption, _in_words(groups), _chart(groups), detail, letters=_LETTERS)


def _forgetting(study: _Study) -> Figure:
    name, title = "forgetting-on-prose", "Forgetting on held-out prose"
    groups = list(_groups(study, "held_out_text", "nats"))
    if not groups:
        reason = "the study has no held-out text, or no run was scored on it"
        return Figure(name, title, f"Not drawn: {reason}.")
    caption = (
        "Right of zero, the adapted model predicts general prose worse than the base. "
        "An item is a passage; differences are paired over passages."
    )
    detail = f"rise of the mean loss per token; bars are {study.intervals}"
    return Figure(name, title, caption, _in_words(groups), _chart(groups), detail, letters=_LETTERS)


def _groups(study: _Study, relation: Relation, unit: Unit) -> Iterator[_Group]:
    """The panels of one relation, if any; of many tasks those with the largest loss in any run."""
    drawn = _drawn_runs(study)
    rows = [
        row
        for row in study.recommendation.comparisons
        if (row.relation, row.unit) == (relation, unit) and row.run in drawn
    ]
    if not rows:
        return
    is_prose = relation == "held_out_text"
    by_task: dict[str, dict[str, Interval]] = {}
    for row in rows:
        change = row.interval.negated() if is_prose else row.interval
        by_task.setdefault(row.task, {})[row.run] = change
    worst = {task: min(row.difference for row in rows if row.task == task) for task in by_task}
    num_panels = min(MOST_PANELS, max(MOST_MARKS // len({row.run for row in rows}), 2))
    kept = sorted(by_task, key=lambda task: worst[task])[:num_panels]
    sizes = {row.task: quantities.sample_size(row) for row in reversed(rows)}
    panels = tuple(
        _Panel(
            task,
            sizes[task],
            unit,
            tuple(
                (summary, changes[summary.name])
                for summary in study.summaries
                if summary.name in changes
            ),
        )
        for task, changes in by_task.items()
        if task in kept
    )
    yield _Group(
        "" if is_prose else quantities.capital(RELATION_NAMES[relation]),
        f"{'Forgetting' if is_prose else 'Difference'} ({cells.unit_name(unit)})",
        panels,
        len(by_task) - len(panels),
    )


def _drawn_runs(study: _Study) -> set[str]:
    """The names of all runs, or of the first settings of each rank, in every seed."""
    plans = [summary.run.planned for summary in study.summaries if summary.run is not None]
    if len(plans) <= MOST_RUNS:
        return {plan.name for plan in plans}
    labels = {summary.name: summary.option for summary in study.summaries}
    first: dict[int | None, str] = {}
    for plan in plans:
        first.setdefault(plan.rank, labels[plan.name])
    return {plan.name for plan in plans if labels[plan.name] == first[plan.rank]}


def _chart(groups: Sequence[_Group]) -> Chart:
    """Groups below each other, each with its own axis and a panel for each task."""
    charts: list[Any] = []
    for group in groups:
        short = [
            f"{cut_name(panel.task, _LONGEST_NAME, 15)}, {panel.size}" for panel in group.panels
        ]
        is_clear = len(set(short)) == len(short)
        titles = short if is_clear else [panel.title for panel in group.panels]
        marks = [
            IntervalMark.of(summary.kind, summary.label, change, title)
            for panel, title in zip(group.panels, titles, strict=True)
            for summary, change in panel.changes
        ]
        num_runs = len({mark.label for mark in marks})
        step = _ROOMY if num_runs <= _MANY_RUNS else _TIGHT
        chart = interval_chart(marks, group.axis_title, width=350, step=step, label_limit=150)
        if group.title:
            heading = alt.TitleParams(
                group.title, fontSize=FONT_SIZE + 1, color=INK.light, offset=6
            )
            chart = chart.properties(title=heading)
        charts.append(chart)
    return alt.vconcat(*charts)


def _in_words(groups: Sequence[_Group]) -> str:
    texts: list[str] = []
    for group in groups:
        for panel in group.panels:
            parts = [
                f"{summary.label} {quantities.with_interval(change, panel.unit)}"
                for summary, change in panel.changes
            ]
            heading = f"{group.title}, {panel.title}" if group.title else panel.title
            texts.append(f"{heading}: {'; '.join(parts)}.")
    return " ".join(texts)


def _score_name(results: TrainTaskResults, tasks: Sequence[str], unit: Unit) -> str:
    """The metric with its unit, for an axis."""
    metrics = {results.base.items[task].metric for task in tasks}
    name = metrics.pop() if len(metrics) == 1 else "score"
    mean = "mean " if len(tasks) > 1 else ""
    kind = "points" if unit == "points" else "nats per token; lower is better"
    return f"In-domain {mean}{name} ({kind})"
