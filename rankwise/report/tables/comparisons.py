"""Every run against the base on every task of one relation, as text."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.findings.models import task_score
from rankwise.records import quantities
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Comparison, FormatEffect, Recommendation, Relation
from rankwise.report.parts import EMPTY, Cell, Heading, RowGroup, Table
from rankwise.report.summaries import Summaries, interval_cell, mean_cell
from rankwise.report.tables.decision import metric_name


class _Shown(NamedTuple):
    """Which columns a table of comparisons has."""

    counts: bool
    holm: bool
    ratio: bool
    options: bool
    prose: bool


def relation_table(
    results: TrainTaskResults,
    recommendation: Recommendation,
    summaries: Summaries,
    relation: Relation,
) -> Table | None:
    """Every run on every task of one relation; None where there is no comparison."""
    rows = [row for row in recommendation.comparisons if row.relation == relation]
    if not rows:
        return None
    labels = {summary.name: summary.label for summary in summaries}
    order = list(labels)
    rows.sort(key=lambda row: order.index(row.run))
    shows = _Shown(
        counts=any(row.num_learned is not None for row in rows),
        holm=any(row.holm_p_value is not None for row in rows),
        ratio=any(row.retention_ratio is not None for row in rows),
        options=any(_options(results, row.run, row.task) for row in rows),
        prose=relation == "held_out_text",
    )
    groups = tuple(
        RowGroup(
            task,
            _task_detail(results, recommendation, task),
            tuple(
                _comparison_cells(results, row, labels[row.run], shows)
                for row in rows
                if row.task == task
            ),
        )
        for task in results.tasks[relation]
        if any(row.task == task for row in rows)
    )
    caption = _relation_caption(relation, recommendation, shows)
    return Table(caption, _comparison_headings(shows), groups)


def format_table(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> Table | None:
    """Tasks in the format of the training, compared with their standard format; None without."""
    effects = recommendation.format_effects
    if not effects:
        return None
    labels = {summary.name: summary.label for summary in summaries}
    groups = tuple(
        RowGroup(
            task,
            f"also as {name}, {_task_detail(results, recommendation, name)}",
            tuple(
                _format_cells(effect, labels[effect.run], results)
                for effect in sorted(effects, key=lambda each: list(labels).index(each.run))
                if effect.task == task
            ),
        )
        for task, name in results.trained_formats.items()
    )
    headings = (
        Heading("Run"),
        Heading("Standard format", "difference"),
        Heading("Trained format", "base → adapted"),
        Heading("Trained format", "difference"),
        Heading("By format", "standard − trained"),
        Heading("Options chosen", "trained format, % of items"),
    )
    confidence = quantities.percent(recommendation.confidence)
    caption = (
        "Tasks whose standard format is not that of the training, scored in both. The standard "
        f"format decides. Paired over the same items, {confidence} intervals, exploratory."
    )
    return Table(caption, headings, groups)


def _format_cells(effect: FormatEffect, label: str, results: TrainTaskResults) -> tuple[Cell, ...]:
    unit, part = effect.unit, effect.by_format
    pair = (effect.base_score, effect.adapted_score)
    return (
        Cell(label),
        Cell(quantities.change(effect.standard_difference, results.base.items[effect.task].unit)),
        Cell(" → ".join(quantities.score(value, unit) for value in pair)),
        interval_cell(effect.interval, unit),
        EMPTY if part is None else interval_cell(part, unit),
        Cell(_options(results, effect.run, effect.scored_as) or quantities.NOT_MEASURED),
    )


def _comparison_headings(shows: _Shown) -> tuple[Heading, ...]:
    headings = [Heading("Run"), Heading("Loss" if shows.prose else "Score", "base → adapted")]
    headings.append(
        Heading("Forgetting", "rise of the loss") if shows.prose else Heading("Difference")
    )
    if shows.counts:
        headings += [
            Heading("Learned", "items"),
            Heading("Forgotten", "items"),
            Heading("Kept", "right / wrong"),
            Heading("McNemar p", "exact"),
        ]
    if shows.holm:
        headings.append(Heading("Holm p", "confirmatory"))
    if shows.ratio:
        headings.append(Heading("Retention ratio", "above chance"))
    if shows.options:
        headings.append(Heading("Options chosen", "% of items"))
    return tuple(headings)


def _comparison_cells(
    results: TrainTaskResults, row: Comparison, label: str, shows: _Shown
) -> tuple[Cell, ...]:
    pair = (
        quantities.score(row.base_score, row.unit),
        quantities.score(row.adapted_score, row.unit),
    )
    change = row.interval
    cells = [
        Cell(label),
        Cell(" → ".join(pair)),
        interval_cell(change.negated() if shows.prose else change, row.unit),
    ]
    if shows.counts:
        cells += _count_cells(row)
    if shows.holm:
        p_value = row.holm_p_value
        cells.append(Cell("exploratory") if p_value is None else Cell(quantities.p_value(p_value)))
    if shows.ratio:
        cells.append(_ratio_cell(row))
    if shows.options:
        cells.append(Cell(_options(results, row.run, row.task) or quantities.NOT_MEASURED))
    return tuple(cells)


def _count_cells(row: Comparison) -> list[Cell]:
    counts = (row.num_learned, row.num_forgotten, row.num_kept_right, row.num_kept_wrong)
    learned, forgotten, right, wrong = (
        quantities.NOT_MEASURED if number is None else quantities.count(number) for number in counts
    )
    kept = right if row.num_kept_right is None else f"{right} / {wrong}"
    return [
        Cell(learned),
        Cell(forgotten),
        Cell(kept),
        Cell(quantities.p_value(row.mcnemar_p_value)),
    ]


def _ratio_cell(row: Comparison) -> Cell:
    ratio = row.retention_ratio
    if ratio is None:
        return EMPTY
    if ratio.estimate is None or ratio.lower is None or ratio.upper is None:
        return Cell(quantities.NOT_MEASURED, "", ratio.reason or "")
    return Cell(
        quantities.ratio(ratio.estimate),
        f"{quantities.ratio(ratio.lower)} to {quantities.ratio(ratio.upper)}",
    )


def _relation_caption(relation: Relation, recommendation: Recommendation, shows: _Shown) -> str:
    confidence = quantities.percent(recommendation.confidence)
    text = f"Every run against the base, paired over the same items, {confidence} intervals."
    if shows.holm:
        text += (
            " Each rank against the base in-domain is the confirmatory family, whose p values are "
            "corrected by Holm's method; everything else is exploratory."
        )
    else:
        text += " Exploratory: p values are not corrected." if shows.counts else " Exploratory."
    if shows.ratio:
        text += (
            " The retention ratio, (adapted − chance) / (base − chance), is shown and decides "
            "nothing."
        )
    return text


def _task_detail(results: TrainTaskResults, recommendation: Recommendation, task: str) -> str:
    """Such as: n = 300, acc, chance 25.0, base 50.0 (44.4 to 55.6)."""
    evaluation, items = results.base.evaluations[task], results.base.items[task]
    score = task_score(evaluation, items, recommendation.confidence)
    parts = [
        quantities.sample_size(score),
        f"{metric_name(evaluation.decision_metric, evaluation.decision_filter)} in "
        + ("points" if items.unit == "points" else "nats per token"),
    ]
    if evaluation.chance is not None:
        parts.append(f"chance {quantities.score(100 * evaluation.chance, 'points')}")
    parts.append(f"base {mean_cell(score, signed=False)}")
    options = _options(results, results.base.name, task)
    if options:
        parts.append(f"base's options {options} %")
    return ", ".join(parts)


def _options(results: TrainTaskResults, model: str, task: str) -> str:
    """The share of each option chosen: 25/24/26/25."""
    for each in (results.base, *results.runs):
        if each.name == model and task in each.evaluations:
            shares = each.evaluations[task].predicted_shares
            return "/".join(f"{100 * value:.0f}" for value in shares or ())
    return ""
