"""A study's figures: which charts it has, what they are called, and what they show in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import altair as alt

from rankwise.findings.models import ModelSummary
from rankwise.records import quantities
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Comparison, Interval, Recommendation, Relation, Unit
from rankwise.report.charts.intervals import Group, Panel, interval_chart
from rankwise.report.charts.ranks import Point, score_by_rank_chart, trade_off_chart
from rankwise.report.charts.theme import theme
from rankwise.report.parts import Figure
from rankwise.report.summaries import Summaries

MOST_PANELS, MOST_MARKS = 8, 36
"""More tasks than this of one relation, or more marks of its runs on all of them, are too many
to read; the tasks with most loss are drawn, two at least."""

MOST_RUNS = 12
"""Of more runs than this, those with the first settings of each rank are drawn."""

RELATION_TITLES: dict[Relation, str] = {
    "in_domain": "In-domain",
    "out_of_domain": "Out-of-domain",
    "retention": "Retention",
    "held_out_text": "Held-out prose",
}

_SUBTITLE_WIDTH = 70


class _Study(NamedTuple):
    results: TrainTaskResults
    recommendation: Recommendation
    summaries: Summaries

    @property
    def confidence(self) -> str:
        return quantities.percent(self.recommendation.confidence)

    @property
    def unit(self) -> Unit:
        return self.recommendation.unit


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
        return Figure(name, title, f"Not drawn: {reason}.", "", None)
    _, change, gain = drawn[0]
    kept = f"{quantities.count(change.num_examples)} retention items"
    kept += quantities.in_clusters(change.num_clusters)
    sizes = f"{quantities.sample_size(gain, 'in-domain')} and {kept}"
    epsilon = study.recommendation.epsilon_points
    chart = trade_off_chart(
        drawn, study.unit, epsilon, _title(title, f"{sizes}; bars are {study.confidence} intervals")
    )
    caption = (
        "One mark for each run; the base is at the origin. Up is better in-domain, right is less "
        "forgetting. Each bar is the interval of one difference from the base, paired over the "
        "same items. "
    )
    if epsilon is not None:
        caption += "Left of the dashed line the loss is more than ε. "
    if any(summary.is_recommended for summary, *_ in drawn):
        caption += "A ring marks the recommended model."
    parts = [
        f"{summary.label}: gain {quantities.with_interval(gain, gain.unit)}, "
        f"retention change {quantities.with_interval(change, change.unit)}"
        for summary, change, gain in drawn
    ]
    return Figure(name, title, caption.strip(), f"{'; '.join(parts)}.", chart.configure(**theme()))


def _by_rank(study: _Study) -> Figure:
    name, title = "score-by-rank", "In-domain score by rank"
    drawn = [
        (summary, summary.in_domain) for summary in study.summaries if summary.in_domain is not None
    ]
    if not any(isinstance(summary.kind, int) for summary, _ in drawn):
        return Figure(name, title, "Not drawn: no LoRA run was scored in-domain.", "", None)
    items = study.results.base.items
    in_domain = study.results.tasks["in_domain"]
    tasks = [task for task in in_domain if task in items and items[task].unit == study.unit]
    what = _score_name(study.results, tasks, study.unit)
    size = quantities.sample_size(drawn[0][1], "items")
    subtitle = f"{size}; bars and bands are {study.confidence} intervals"
    chart = score_by_rank_chart(drawn, study.unit, what, _title(title, subtitle))
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
    return Figure(name, title, caption, f"{what}: {'; '.join(parts)}.", chart.configure(**theme()))


def _by_task(study: _Study) -> Figure:
    name, title = "difference-by-task", "Difference from the base on every task"
    relations: tuple[Relation, ...] = ("in_domain", "out_of_domain", "retention")
    groups = [
        group
        for relation in relations
        for unit in ("points", "nats")
        if (group := _group(study, relation, unit)) is not None
    ]
    if not groups:
        return Figure(name, title, "Not drawn: no run was scored.", "", None)
    chart = interval_chart(
        groups,
        _title(title, f"adapted {quantities.MINUS} base; bars are {study.confidence} intervals"),
    )
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
    return Figure(name, title, caption, _in_words(groups), chart.configure(**theme()))


def _forgetting(study: _Study) -> Figure:
    name, title = "forgetting-on-prose", "Forgetting on held-out prose"
    group = _group(study, "held_out_text", "nats")
    if group is None:
        reason = "the study has no held-out text, or no run was scored on it"
        return Figure(name, title, f"Not drawn: {reason}.", "", None)
    subtitle = f"rise of the mean loss per token; bars are {study.confidence} intervals"
    caption = (
        "Right of zero, the adapted model predicts general prose worse than the base. "
        "An item is a passage; differences are paired over passages."
    )
    chart = interval_chart([group], _title(title, subtitle))
    return Figure(name, title, caption, _in_words([group]), chart.configure(**theme()))


def _group(study: _Study, relation: Relation, unit: Unit) -> Group | None:
    """The panels of one relation; of many tasks those with the largest loss in any run."""
    drawn = _drawn_runs(study)
    rows = [
        row
        for row in study.recommendation.comparisons
        if (row.relation, row.unit) == (relation, unit) and row.run in drawn
    ]
    tasks = list(dict.fromkeys(row.task for row in rows))
    if not tasks:
        return None
    worst = {task: min(r.difference for r in rows if r.task == task) for task in tasks}
    num_panels = min(MOST_PANELS, max(MOST_MARKS // len({row.run for row in rows}), 2))
    kept = sorted(tasks, key=lambda task: worst[task])[:num_panels]
    panels = tuple(_panel(study, task, rows) for task in tasks if task in kept)
    prose = relation == "held_out_text"
    axis = "points" if unit == "points" else "nats per token"
    return Group(
        title="" if prose else RELATION_TITLES[relation],
        axis_title=f"Forgetting ({axis})" if prose else f"Difference ({axis})",
        panels=panels,
        left_out=len(tasks) - len(panels),
    )


def _drawn_runs(study: _Study) -> set[str]:
    """The names of all runs, or of the first settings of each rank, in every seed."""
    plans = [each.run.planned for each in study.summaries if each.run is not None]
    if len(plans) <= MOST_RUNS:
        return {plan.name for plan in plans}
    labels = {summary.name: summary.option for summary in study.summaries}
    first: dict[int | None, str] = {}
    for plan in plans:
        first.setdefault(plan.rank, labels[plan.name])
    return {plan.name for plan in plans if labels[plan.name] == first[plan.rank]}


def _panel(study: _Study, task: str, rows: Sequence[Comparison]) -> Panel:
    by_run = {row.run: row for row in rows if row.task == task}
    changes: list[tuple[ModelSummary, Interval]] = []
    for summary in study.summaries:
        if summary.name in by_run:
            row = by_run[summary.name]
            is_prose = row.relation == "held_out_text"
            changes.append((summary, row.interval.negated() if is_prose else row.interval))
    row = next(iter(by_run.values()))
    return Panel(task, quantities.sample_size(row), row.unit, tuple(changes))


def _in_words(groups: Sequence[Group]) -> str:
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


def _title(text: str, subtitle: str) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=textwrap.wrap(subtitle, _SUBTITLE_WIDTH))
