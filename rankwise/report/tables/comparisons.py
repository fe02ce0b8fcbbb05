"""Every run against the base on every task of one relation."""

from __future__ import annotations

from rankwise.findings.models import task_score
from rankwise.records import quantities
from rankwise.records.recommendation import Comparison, FormatEffect, Recommendation
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Relation, Unit
from rankwise.report import cells
from rankwise.report.parts import Cell, Column, Table, grouped_table
from rankwise.report.summaries import Summaries


def relation_table(
    results: TrainTaskResults,
    recommendation: Recommendation,
    summaries: Summaries,
    relation: Relation,
) -> Table | None:
    """Every run on every task of one relation; None where there is no comparison."""
    labels = {summary.name: summary.label for summary in summaries}
    order = list(labels)
    rows = [row for row in recommendation.comparisons if row.relation == relation]
    if not rows:
        return None
    rows.sort(key=lambda row: order.index(row.run))
    is_prose = relation == "held_out_text"
    has_counts = any(row.num_learned is not None for row in rows)
    has_holm = any(row.holm_p_value is not None for row in rows)
    has_ratio = any(row.retention_ratio is not None for row in rows)

    def change(row: Comparison) -> Cell:
        return cells.interval(row.interval.negated() if is_prose else row.interval, row.unit)

    def chosen(row: Comparison) -> str | None:
        return _options(results, row.run, row.task) or None

    columns: list[Column[Comparison]] = [
        Column("Run", lambda row: labels[row.run]),
        Column(
            "Loss" if is_prose else "Score",
            lambda row: _from_to(row.base_score, row.adapted_score, row.unit),
            "base → adapted",
        ),
        Column("Forgetting", change, "rise of the loss", is_shown=is_prose),
        Column("Difference", change, is_shown=not is_prose),
        Column("Learned", lambda row: cells.count(row.num_learned), "items", is_shown=has_counts),
        Column(
            "Forgotten", lambda row: cells.count(row.num_forgotten), "items", is_shown=has_counts
        ),
        Column("Kept", _kept, "right / wrong", is_shown=has_counts),
        Column("McNemar p", _mcnemar_p, "exact", is_shown=has_counts),
        Column("Holm p", _holm_p, "confirmatory", is_shown=has_holm),
        Column("Retention ratio", _ratio, "above chance", is_shown=has_ratio),
        Column("Options chosen", chosen, "% of items", is_shown=any(map(chosen, rows))),
    ]
    caption = _relation_caption(recommendation, has_counts, has_holm, has_ratio)
    groups = [
        (task, _task_detail(results, recommendation, task), own)
        for task in results.tasks[relation]
        if (own := [row for row in rows if row.task == task])
    ]
    return grouped_table(caption, columns, groups)


def _relation_caption(
    recommendation: Recommendation, has_counts: bool, has_holm: bool, has_ratio: bool
) -> str:
    text = (
        "Every run against the base, paired over the same items, "
        f"{quantities.percent(recommendation.confidence)} intervals."
    )
    if has_holm:
        text += (
            " Each rank against the base in-domain is the confirmatory family, whose p values are "
            "corrected by Holm's method; everything else is exploratory."
        )
    else:
        text += " Exploratory: p values are not corrected." if has_counts else " Exploratory."
    if has_ratio:
        text += (
            " The retention ratio, (adapted − chance) / (base − chance), is shown and decides "
            "nothing."
        )
    return text


def format_table(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> Table | None:
    """Tasks in the format of the training, compared with their standard format; None without."""
    effects = recommendation.format_effects
    if not effects:
        return None
    labels = {summary.name: summary.label for summary in summaries}

    def standard(effect: FormatEffect) -> str:
        unit = results.base.items[effect.task].unit
        return quantities.change(effect.standard_difference, unit)

    columns: list[Column[FormatEffect]] = [
        Column("Run", lambda effect: labels[effect.run]),
        Column("Standard format", standard, "difference"),
        Column(
            "Trained format",
            lambda effect: _from_to(effect.base_score, effect.adapted_score, effect.unit),
            "base → adapted",
        ),
        Column(
            "Trained format",
            lambda effect: cells.interval(effect.interval, effect.unit),
            "difference",
        ),
        Column(
            "By format",
            lambda effect: cells.interval(effect.by_format, effect.unit),
            "standard − trained",
        ),
        Column(
            "Options chosen",
            lambda effect: _options(results, effect.run, effect.scored_as) or None,
            "trained format, % of items",
        ),
    ]
    ordered = sorted(effects, key=lambda effect: list(labels).index(effect.run))
    groups = [
        (
            task,
            f"also as {name}, {_task_detail(results, recommendation, name)}",
            [effect for effect in ordered if effect.task == task],
        )
        for task, name in results.trained_formats.items()
    ]
    caption = (
        "Tasks whose standard format is not that of the training, scored in both. The standard "
        "format decides. Paired over the same items, "
        f"{quantities.percent(recommendation.confidence)} intervals, exploratory."
    )
    return grouped_table(caption, columns, groups)


def _from_to(base: float, adapted: float, unit: Unit) -> str:
    return f"{quantities.score(base, unit)} → {quantities.score(adapted, unit)}"


def _kept(row: Comparison) -> str | None:
    if row.num_kept_right is None:
        return None
    wrong = cells.count(row.num_kept_wrong).value
    return f"{quantities.count(row.num_kept_right)} / {wrong}"


def _mcnemar_p(row: Comparison) -> str:
    return quantities.p_value(row.mcnemar_p_value)


def _holm_p(row: Comparison) -> str:
    return "exploratory" if row.holm_p_value is None else quantities.p_value(row.holm_p_value)


def _ratio(row: Comparison) -> Cell | None:
    ratio = row.retention_ratio
    if ratio is None:
        return None
    if ratio.estimate is None or ratio.lower is None or ratio.upper is None:
        return Cell(quantities.NOT_MEASURED, "", ratio.reason or "")
    return Cell(
        quantities.ratio(ratio.estimate),
        f"{quantities.ratio(ratio.lower)} to {quantities.ratio(ratio.upper)}",
    )


def _task_detail(results: TrainTaskResults, recommendation: Recommendation, task: str) -> str:
    """Such as: n = 300, acc, chance 25.0, base 50.0 (44.4 to 55.6)."""
    evaluation, items = results.base.evaluations[task], results.base.items[task]
    score = task_score(evaluation, items, recommendation.confidence)
    metric = cells.metric_name(evaluation.decision_metric, evaluation.decision_filter)
    parts = [quantities.sample_size(score), f"{metric} in {cells.unit_name(items.unit)}"]
    if evaluation.chance is not None:
        parts.append(f"chance {quantities.score(100 * evaluation.chance, 'points')}")
    parts.append(f"base {cells.mean(score, signed=False)}")
    options = _options(results, results.base.name, task)
    if options:
        parts.append(f"base's options {options} %")
    return ", ".join(parts)


def _options(results: TrainTaskResults, model: str, task: str) -> str:
    """The share of each option chosen: 25/24/26/25."""
    for scored in (results.base, *results.runs):
        if scored.name == model and task in scored.evaluations:
            shares = scored.evaluations[task].predicted_shares
            return "/".join(f"{100 * value:.0f}" for value in shares or ())
    return ""
