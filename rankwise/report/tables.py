"""The tables of a trained task."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.findings.models import task_score
from rankwise.findings.statements import HARDLY, growth
from rankwise.records import quantities
from rankwise.records.judgement import OptionOdds, Prospect
from rankwise.records.recommendation import Comparison, FormatEffect, RankVerdict, Recommendation
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import MetricScore, Relation, State, TaskEvaluation, Unit
from rankwise.report import cells
from rankwise.report.parts import Cell, Column, Table, grouped_table, table
from rankwise.report.summaries import RELATION_NAMES, Summaries

_STATES: dict[State, str] = {"yes": "yes", "no": "no", "undecided": "cannot tell"}


def decision_table(recommendation: Recommendation) -> Table | None:
    """What each rank was judged on; None where no rank was."""
    if not recommendation.verdicts:
        return None
    unit, epsilon = recommendation.unit, recommendation.epsilon_points
    is_alone = len(recommendation.verdicts) == 1
    limit = f"below ε = {quantities.score(epsilon or 0.0, 'points')} on average"
    limit += f", {quantities.score(recommendation.worst_task_points or 0.0, 'points')} on any task"
    measured = cells.measure(unit, recommendation.in_domain_metric)
    kept_in = cells.measure("points", recommendation.retention_metric)

    def worst(verdict: RankVerdict) -> Cell:
        task = verdict.worst_retention_task or ""
        return cells.interval(verdict.worst_retention_loss, "points", note=task)

    def better(verdict: RankVerdict) -> str | None:
        return verdict.better_than_base and _STATES[verdict.better_than_base]

    def keeps(verdict: RankVerdict) -> str | None:
        return verdict.keeps_enough and _STATES[verdict.keeps_enough]

    def option(verdict: RankVerdict) -> Cell:
        alpha = quantities.alpha(verdict)
        return Cell(verdict.label, "", "" if alpha is None else f"alpha {alpha}")

    def behind(verdict: RankVerdict) -> Cell:
        return Cell("no other rank") if is_alone else cells.interval(verdict.shortfall, unit)

    columns: list[Column[RankVerdict]] = [
        Column("Rank", option),
        Column("Gain", lambda verdict: cells.interval(verdict.gain, unit), measured),
        Column("Better than base?", better, "gain above 0", is_text=True, is_optional=True),
        Column.optional(
            "Retention loss",
            lambda verdict: cells.interval(verdict.retention_loss, "points"),
            f"{kept_in}, on average",
        ),
        Column.optional("Worst task", worst, kept_in),
        Column("Keeps enough?", keeps, limit, is_text=True, is_optional=True),
        Column("Behind the best other rank", behind, measured),
        Column.text(
            "Near the best?",
            lambda verdict: _STATES[verdict.near_the_best],
            f"behind by less than δ = {quantities.score(recommendation.delta, unit)}",
        ),
        Column.text("Qualifies?", lambda verdict: "yes" if verdict.qualifies else "no"),
    ]
    return table(_decision_caption(recommendation), columns, recommendation.verdicts)


def odds_table(recommendation: Recommendation) -> Table | None:
    """The best bet: how probable it is that each option is right; None where none is judged."""
    bet = recommendation.best_bet
    if bet is None:
        return None
    epsilon = recommendation.epsilon_points
    near = quantities.amount(recommendation.delta, recommendation.unit)
    limit = f"{quantities.amount(epsilon or 0.0, 'points')} on average, "
    limit += f"{quantities.score(recommendation.worst_task_points or 0.0, 'points')} on any task"
    notes = {bet.choice: "best bet"}
    columns: list[Column[OptionOdds]] = [
        Column("Option", lambda option: Cell(option.label, "", notes.get(option.label, ""))),
        Column("Better than base", lambda option: quantities.odds(option.better_than_base)),
        Column.optional(
            "Keeps enough",
            lambda option: None if epsilon is None else quantities.odds(option.keeps_enough),
            f"loses at most {limit}",
        ),
        Column(
            "Near the best", lambda option: quantities.odds(option.near_the_best), f"within {near}"
        ),
        Column("All of it", lambda option: quantities.odds(option.right)),
    ]
    caption = (
        "Probabilities that each option is so with any seed, from the scores and a prior that "
        "knows how much ranks differ elsewhere (docs/METHODS.md). Near the best is meant among the "
        "options that keep enough. The best bet is what the rule recommends, else the largest "
        "estimated gain after a price for what is lost beyond the margins."
    )
    return table(caption, columns, bet.options)


def prospect_table(recommendation: Recommendation) -> Table | None:
    """What more items or seeds would do; None where it is decided, or none would help."""
    if all(prospect.probability < HARDLY for prospect in recommendation.prospects):
        return None

    columns: list[Column[Prospect]] = [
        Column("Added", growth),
        Column("Would settle it", lambda prospect: quantities.odds(prospect.probability)),
    ]
    caption = "The probability that the rule would recommend a rank, or reject every one."
    return table(caption, columns, recommendation.prospects)


def _decision_caption(recommendation: Recommendation) -> str:
    seeds = (
        "Conditional on the one seed"
        if recommendation.num_seeds == 1
        else f"Averaged over {recommendation.num_seeds} seeds"
    )
    return (
        f"{seeds}. By these bounds a wrong rank is recommended in at most "
        f"{quantities.percent(recommendation.looks[-1].alpha)} of studies, so they are wider than "
        "the intervals of single differences. The smallest rank that qualifies is recommended."
    )


class _Measured(NamedTuple):
    """A task in its relation, with the base's evaluation."""

    relation: Relation
    evaluation: TaskEvaluation


def measured_table(results: TrainTaskResults) -> Table:
    """Every task: how many items, by which metric, asked in which way."""
    rows = [
        _Measured(relation, results.base.evaluations[task])
        for relation, tasks in results.tasks.items()
        for task in tasks
        if task in results.base.evaluations
    ]

    def metric(row: _Measured) -> Cell:
        unit = results.base.items[row.evaluation.task].unit
        return Cell(_metric_name(row.evaluation), "", cells.unit_name(unit))

    def num_cut(row: _Measured) -> int:
        evaluations = [m.evaluations.get(row.evaluation.task) for m in _models(results).values()]
        return max(each.num_truncated for each in evaluations if each is not None)

    def chance(row: _Measured) -> str | None:
        share = row.evaluation.chance
        return None if share is None else quantities.score(100 * share, "points")

    columns: list[Column[_Measured]] = [
        Column("Task", lambda row: row.evaluation.task),
        Column.text("Relation", lambda row: RELATION_NAMES[row.relation]),
        Column("Items", lambda row: cells.items(row.evaluation.num_examples, row.evaluation.limit)),
        Column.text("Metric", metric),
        Column("Chance", chance),
        Column.text("Kind", lambda row: row.evaluation.output_type.replace("_", " ")),
        Column.text("Version", lambda row: row.evaluation.task_version),
        Column("Few-shot", lambda row: str(row.evaluation.num_fewshot), "examples"),
        Column.text("Chat template", lambda row: "yes" if row.evaluation.chat_template else "no"),
        Column("Cut", num_cut, "items"),
    ]
    caption = (
        "What every model was scored on. Chance is what guessing would score on average, in "
        "points. Cut are items that were too long for the model and lost their beginning."
    )
    return table(caption, columns, rows)


def _metric_name(evaluation: TaskEvaluation) -> str:
    """Of the metric that decides."""
    return cells.metric_name(evaluation.decision_metric, evaluation.decision_filter)


_Metric = tuple[TaskEvaluation, MetricScore]


def metrics_table(results: TrainTaskResults, summaries: Summaries) -> Table | None:
    """Every metric of the tasks that have more than one; None if there is none."""
    rows: list[_Metric] = [
        (evaluation, score)
        for evaluation in results.base.evaluations.values()
        if evaluation.task not in results.study.validation_tasks(results.train_task)
        for score in evaluation.metrics
        if len(evaluation.metrics) > 1
    ]
    if not rows:
        return None
    models = _models(results)

    def name(row: _Metric) -> Cell:
        evaluation, score = row
        decides = " (decides)" if score == evaluation.decision else ""
        better = "higher is better" if score.higher_is_better else "lower is better"
        metric = cells.metric_name(score.metric, score.filter)
        return Cell(evaluation.task, "", f"{metric}{decides}, {better}")

    columns: list[Column[_Metric]] = [
        Column("Metric", name),
        Column("n", lambda row: row[1].num_examples),
    ]
    for summary in summaries:
        model = models[summary.name]
        if model.evaluations:
            columns.append(Column(summary.label, lambda row, of=model: _metric_cell(of, row)))
    caption = (
        "Every metric of the tasks that have several, as the harness gives it, ± standard error."
    )
    return table(caption, columns, rows)


def _metric_cell(model: ModelResults, row: _Metric) -> Cell | None:
    """The same metric of another model."""
    evaluation = model.evaluations.get(row[0].task)
    for score in () if evaluation is None else evaluation.metrics:
        if (score.metric, score.filter) == (row[1].metric, row[1].filter):
            error = "" if score.stderr is None else f"± {score.stderr:.3f}"
            if score.num_examples != row[1].num_examples:
                error += f", {quantities.size(score.num_examples)}"
            return Cell(f"{score.value:.3f}", "", error)
    return None


def relation_table(
    results: TrainTaskResults,
    recommendation: Recommendation,
    summaries: Summaries,
    relation: Relation,
) -> Table | None:
    """Every run on every task of one relation; None where there is no comparison."""
    labels = {summary.name: summary.label for summary in summaries}
    order, models = {name: place for place, name in enumerate(labels)}, _models(results)
    rows = [row for row in recommendation.comparisons if row.relation == relation]
    if not rows:
        return None
    rows.sort(key=lambda row: order[row.run])
    is_prose = relation == "held_out_text"

    def change(row: Comparison) -> Cell:
        value = recommendation.interval_of(row)
        return cells.interval(value.negated() if is_prose else value, row.unit)

    columns: list[Column[Comparison]] = [
        Column("Run", lambda row: labels[row.run]),
        Column(
            "Loss" if is_prose else "Score",
            lambda row: _from_to(row.base_score, row.adapted_score, row.unit),
            "base → adapted",
        ),
        Column("Forgetting", change, "rise of the loss")
        if is_prose
        else Column("Difference", change),
        Column.optional("Learned", lambda row: row.num_learned, "items"),
        Column.optional("Forgotten", lambda row: row.num_forgotten, "items"),
        Column.optional("Kept", _kept, "right / wrong"),
        Column.optional("McNemar p", lambda row: quantities.p_value(row.mcnemar_p_value), "exact"),
        Column.optional(
            "Options chosen", lambda row: _options(models[row.run], row.task), "% of items"
        ),
    ]
    caption = (
        "Every run against the base, paired over the same items, "
        f"{cells.intervals(recommendation.confidence)}. Exploratory"
    )
    has_counts = any(row.num_learned is not None for row in rows)
    caption += ": p values are not corrected." if has_counts else "."
    if any(models[row.run].items[row.task].scored is not None for row in rows):
        caption += " Where a run answered a part of the items, counts and options are of that part."
    groups = [
        (task, _task_detail(results, recommendation, task), own)
        for task in results.tasks[relation]
        if (own := [row for row in rows if row.task == task])
    ]
    return grouped_table(caption, columns, groups)


def format_table(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> Table | None:
    """Tasks in the format of the training, compared with their standard format; None without."""
    effects = recommendation.format_effects
    if not effects:
        return None
    labels = {summary.name: summary.label for summary in summaries}
    order = {name: place for place, name in enumerate(labels)}
    models = _models(results)

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
            lambda effect: _options(models[effect.run], effect.scored_as),
            "trained format, % of items",
        ),
    ]
    ordered = sorted(effects, key=lambda effect: order[effect.run])
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
    return f"{quantities.count(row.num_kept_right)} / {quantities.count(row.num_kept_wrong or 0)}"


def _task_detail(results: TrainTaskResults, recommendation: Recommendation, task: str) -> str:
    """Such as: n = 300, acc, chance 25.0, base 50.0 (44.4 to 55.6)."""
    evaluation, items = results.base.evaluations[task], results.base.items[task]
    score = task_score(evaluation, items, recommendation.confidence)
    parts = [
        quantities.sample_size(score),
        f"{_metric_name(evaluation)} in {cells.unit_name(items.unit)}",
    ]
    if evaluation.chance is not None:
        parts.append(f"chance {quantities.score(100 * evaluation.chance, 'points')}")
    parts.append(f"base {cells.mean(score, signed=False)}")
    options = _options(results.base, task)
    if options:
        parts.append(f"base's options {options} %")
    return ", ".join(parts)


def _models(results: TrainTaskResults) -> dict[str, ModelResults]:
    """The base and every run, by name."""
    return {model.name: model for model in (results.base, *results.runs)}


def _options(model: ModelResults, task: str) -> str | None:
    """The share of each option chosen, 25/24/26/25; None where there are none."""
    evaluation = model.evaluations.get(task)
    shares = None if evaluation is None else evaluation.predicted_shares
    return "/".join(f"{100 * value:.0f}" for value in shares or ()) or None
