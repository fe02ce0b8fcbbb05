"""The tables of a trained task."""

from __future__ import annotations

from rankwise.findings.models import task_score
from rankwise.findings.statements import HARDLY, growth
from rankwise.records import quantities
from rankwise.records.judgement import BestBet
from rankwise.records.recommendation import Comparison, FormatEffect, RankVerdict, Recommendation
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import MetricScore, Relation, State, TaskEvaluation
from rankwise.report import cells
from rankwise.report.parts import Cell, Column, Table
from rankwise.report.summaries import RELATION_NAMES, Summaries

_STATES: dict[State, str] = {"yes": "yes", "no": "no", "undecided": "cannot tell"}


def decision_table(recommendation: Recommendation) -> Table | None:
    """What each rank was judged on; None where no rank was."""
    if not recommendation.verdicts:
        return None
    unit = recommendation.unit
    is_alone = len(recommendation.verdicts) == 1
    ceiling = quantities.score(recommendation.worst_task_points or 0.0, "points")
    average = quantities.score(recommendation.epsilon_points or 0.0, "points")
    limit = f"at most ε = {average} on average, {ceiling} on any task"
    gained_in, kept_in = cells.measures(recommendation)

    several = f"These runs, averaged over up to {recommendation.num_seeds} seeds"
    one = "One seed was trained, so this is about these weights"
    seeds = one if recommendation.num_seeds == 1 else several

    def option(verdict: RankVerdict) -> Cell:
        alpha = quantities.alpha(verdict)
        return Cell(verdict.label, "", "" if alpha is None else f"alpha {alpha}")

    def behind(verdict: RankVerdict) -> Cell:
        return Cell("no other rank") if is_alone else cells.interval(verdict.shortfall, unit)

    def worst(verdict: RankVerdict) -> Cell:
        task = verdict.worst_retention_task or ""
        return cells.interval(verdict.worst_retention_loss, "points", note=task)

    return Table.of(
        f"{seeds}. By these bounds a wrong rank is recommended in at most "
        f"{quantities.percent(recommendation.looks[-1].alpha)} of studies, so they are wider than "
        "the intervals of single differences. The smallest rank that qualifies is recommended.",
        recommendation.verdicts,
        Column("Rank", option),
        Column("Gain", lambda row: cells.interval(row.gain, unit), gained_in),
        Column(
            "Better than base?",
            lambda row: row.better_than_base and _STATES[row.better_than_base],
            "gain above 0",
            is_text=True,
            is_optional=True,
        ),
        Column.optional(
            "Retention loss",
            lambda row: cells.interval(row.retention_loss, "points"),
            f"{kept_in}, on average",
        ),
        Column.optional("Worst task", worst, kept_in),
        Column(
            "Keeps enough?",
            lambda row: row.keeps_enough and _STATES[row.keeps_enough],
            limit,
            is_text=True,
            is_optional=True,
        ),
        Column("Behind the best other rank", behind, gained_in),
        Column.text(
            "Near the best?",
            lambda row: _STATES[row.near_the_best],
            f"behind by at most δ = {quantities.score(recommendation.delta, unit)}",
        ),
        Column.text("Qualifies?", lambda row: row.qualifies),
    )


def odds_table(recommendation: Recommendation, bet: BestBet) -> Table:
    """The best bet: how probable it is that each option is right."""
    epsilon = recommendation.epsilon_points
    near = quantities.amount(recommendation.delta, recommendation.unit)
    ceiling = quantities.score(recommendation.worst_task_points or 0.0, "points")
    limit = f"{quantities.amount(epsilon or 0.0, 'points')} on average, {ceiling} on any task"
    notes = {bet.choice: "best bet"}
    return Table.of(
        "How probably each column is true of these runs; near the best is meant among the options "
        "that keep enough. The last two columns are about the option on average over seeds, and "
        "about its next run; how far runs spread is known from other studies until seeds show it "
        "(docs/METHODS.md). The best bet is what the rule recommends, else the option that is most "
        f"probably right. No option helps and keeps enough: {quantities.odds(bet.none)}.",
        bet.options,
        Column("Option", lambda row: Cell(row.label, "", notes.get(row.label, ""))),
        Column("Better than base", lambda row: quantities.odds(row.better_than_base)),
        Column.optional(
            "Keeps enough",
            lambda row: None if epsilon is None else quantities.odds(row.keeps_enough),
            f"loses at most {limit}",
        ),
        Column("Near the best", lambda row: quantities.odds(row.near_the_best), f"within {near}"),
        Column("Right", lambda row: quantities.odds(row.right), "all of it"),
        Column("On average", lambda row: quantities.odds(row.right_on_average), "over seeds"),
        Column("Next run", lambda row: quantities.odds(row.right_next_run), "another seed"),
    )


def prospect_table(recommendation: Recommendation) -> Table:
    """What more items or seeds would do; without rows where it is decided, or none would help."""
    prospects = recommendation.prospects
    return Table.of(
        "The probability that the rule would recommend a rank, or reject every one.",
        prospects if any(each.probability >= HARDLY for each in prospects) else (),
        Column("Added", growth),
        Column("Would settle it", lambda row: quantities.odds(row.probability)),
    )


def measured_table(results: TrainTaskResults) -> Table:
    """Every task: how many items, by which metric, asked in which way."""
    rows = [
        (RELATION_NAMES[relation], results.base.evaluations[task])
        for relation, tasks in results.tasks.items()
        for task in tasks
        if task in results.base.evaluations
    ]
    units = {task: cells.unit_name(items.unit) for task, items in results.base.items.items()}

    models = (results.base, *results.runs)

    def num_cut(task: str) -> int:
        return max(m.evaluations[task].num_truncated for m in models if task in m.evaluations)

    return Table.of(
        "What every model was scored on. Chance is what guessing would score on average, in "
        "points. Cut are items that were too long for the model and lost their beginning.",
        rows,
        Column("Task", lambda row: row[1].task),
        Column.text("Relation", lambda row: row[0]),
        Column("Items", lambda row: cells.items(row[1].num_examples, row[1].limit)),
        Column.text("Metric", lambda row: Cell(_metric_name(row[1]), "", units[row[1].task])),
        Column("Chance", lambda row: cells.known(row[1].chance, _in_points)),
        Column.text("Kind", lambda row: row[1].output_type.replace("_", " ")),
        Column.text("Version", lambda row: row[1].task_version),
        Column("Few-shot", lambda row: str(row[1].num_fewshot), "examples"),
        Column.text("Chat template", lambda row: row[1].chat_template),
        Column("Cut", lambda row: num_cut(row[1].task), "items"),
    )


def _in_points(share: float) -> str:
    return quantities.score(100 * share, "points")


def _metric_name(evaluation: TaskEvaluation) -> str:
    """The name of the metric that decides."""
    return cells.metric_name(evaluation.decision_metric, evaluation.decision_filter)


_Metric = tuple[TaskEvaluation, MetricScore]


def metrics_table(results: TrainTaskResults, summaries: Summaries) -> Table:
    """Every metric of the tasks that have more than one."""
    rows: list[_Metric] = [
        (evaluation, score)
        for evaluation in results.base.evaluations.values()
        if evaluation.task not in results.study.validation_tasks(results.train_task)
        for score in evaluation.metrics
        if len(evaluation.metrics) > 1
    ]
    models = _models(results)

    def name(row: _Metric) -> Cell:
        evaluation, score = row
        decides = " (decides)" if score == evaluation.decision else ""
        better = "higher is better" if score.higher_is_better else "lower is better"
        metric = cells.metric_name(score.metric, score.filter)
        return Cell(evaluation.task, "", f"{metric}{decides}, {better}")

    def scored(model: ModelResults, row: _Metric) -> Cell | None:
        """The same metric of another model."""
        task, metric = row[0].task, row[1]
        for score in model.evaluations[task].metrics if task in model.evaluations else ():
            if (score.metric, score.filter) == (metric.metric, metric.filter):
                error = "" if score.stderr is None else f"± {score.stderr:.3f}"
                if score.num_examples != metric.num_examples:
                    error += f", {quantities.size(score.num_examples)}"
                return Cell(f"{score.value:.3f}", "", error)
        return None

    of_models: list[Column[_Metric]] = [
        Column(summary.label, lambda row, model=models[summary.name]: scored(model, row))
        for summary in summaries
        if models[summary.name].evaluations
    ]
    return Table.of(
        "Every metric of the tasks that have several, as the harness gives it, ± standard error.",
        rows,
        Column("Metric", name),
        Column("n", lambda row: row[1].num_examples),
        *of_models,
    )


def relation_table(
    results: TrainTaskResults,
    recommendation: Recommendation,
    summaries: Summaries,
    relation: Relation,
) -> Table:
    """Every run on every task of one relation."""
    labels = {summary.name: summary.label for summary in summaries}
    order, models = {name: place for place, name in enumerate(labels)}, _models(results)
    rows = [row for row in recommendation.comparisons if row.relation == relation]
    rows.sort(key=lambda row: order[row.run])
    is_prose = relation == "held_out_text"

    def change(row: Comparison) -> Cell:
        value = row.difference.negated() if is_prose else row.difference
        return cells.interval(value, row.unit)

    def kept(row: Comparison) -> str | None:
        right, wrong = row.num_kept_right, row.num_kept_wrong or 0
        return None if right is None else f"{quantities.count(right)} / {quantities.count(wrong)}"

    caption = (
        "Every run against the base, paired over the same items, with the bounds of its verdict or "
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
    return Table.grouped(
        caption,
        groups,
        Column("Run", lambda row: labels[row.run]),
        Column("Loss" if is_prose else "Score", _from_to, "base → adapted"),
        Column("Forgetting", change, "rise of the loss")
        if is_prose
        else Column("Difference", change),
        Column.optional("Learned", lambda row: row.num_learned, "items"),
        Column.optional("Forgotten", lambda row: row.num_forgotten, "items"),
        Column.optional("Kept", kept, "right / wrong"),
        Column.optional("McNemar p", lambda row: quantities.p_value(row.mcnemar_p_value), "exact"),
        Column.optional(
            "Options chosen", lambda row: _options(models[row.run], row.task), "% of items"
        ),
    )


def format_table(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> Table:
    """Tasks in the format of the training, compared with their standard format."""
    labels = {summary.name: summary.label for summary in summaries}
    order = {name: place for place, name in enumerate(labels)}
    models = _models(results)

    items = results.base.items
    ordered = sorted(recommendation.format_effects, key=lambda row: order[row.run])
    groups = [
        (task, f"also as {name}, {_task_detail(results, recommendation, name)}", own)
        for task, name in results.trained_formats.items()
        if (own := [effect for effect in ordered if effect.task == task])
    ]
    return Table.grouped(
        "Tasks whose standard format is not that of the training, scored in both. The standard "
        "format decides. Paired over the same items, "
        f"{quantities.percent(recommendation.confidence)} intervals, exploratory.",
        groups,
        Column("Run", lambda row: labels[row.run]),
        Column(
            "Standard format",
            lambda row: quantities.change(row.standard_difference, items[row.task].unit),
            "difference",
        ),
        Column("Trained format", _from_to, "base → adapted"),
        Column(
            "Trained format", lambda row: cells.interval(row.difference, row.unit), "difference"
        ),
        Column(
            "By format", lambda row: cells.interval(row.by_format, row.unit), "standard − trained"
        ),
        Column(
            "Options chosen",
            lambda row: _options(models[row.run], row.scored_as),
            "trained format, % of items",
        ),
    )


def _from_to(row: Comparison | FormatEffect) -> str:
    base, adapted = (quantities.score(own, row.unit) for own in (row.base_score, row.adapted_score))
    return f"{base} → {adapted}"


def _task_detail(results: TrainTaskResults, recommendation: Recommendation, task: str) -> str:
    """Such as: n = 300, acc, chance 25.0, base 50.0 (44.4 to 55.6)."""
    evaluation, items = results.base.evaluations[task], results.base.items[task]
    score = task_score(evaluation, items, recommendation.confidence)
    parts = [
        quantities.sample_size(score),
        f"{_metric_name(evaluation)} in {cells.unit_name(items.unit)}",
    ]
    if evaluation.chance is not None:
        parts.append(f"chance {_in_points(evaluation.chance)}")
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
