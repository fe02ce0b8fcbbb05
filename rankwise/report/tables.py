"""The tables of a trained task."""

from __future__ import annotations

from functools import cache, partial

from rankwise.findings.models import task_score
from rankwise.findings.statements import HARDLY, growth
from rankwise.records import quantities
from rankwise.records.judgement import BestBet
from rankwise.records.recommendation import Comparison, FormatEffect, RankVerdict, Recommendation
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import MetricScore, Relation, State, TaskEvaluation
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.parts import Column, Table
from rankwise.report.summaries import RELATION_NAMES, Summaries

STATES: dict[State, str] = {"yes": "yes", "no": "no", "undecided": "cannot tell"}
"""Whether something is shown."""


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
        Column(option, "Rank"),
        Column("gain", "Gain", gained_in, cells.in_unit(unit)),
        Column("better_than_base", "Better than base?", "gain above 0", STATES),
        Column(
            "retention_loss", "Retention loss", f"{kept_in}, on average", cells.in_unit("points")
        ),
        Column(worst, "Worst task", kept_in),
        Column("keeps_enough", "Keeps enough?", limit, STATES),
        Column(behind, "Behind the best other rank", gained_in),
        Column(
            "near_the_best",
            "Near the best?",
            f"behind by at most δ = {quantities.score(recommendation.delta, unit)}",
            STATES,
        ),
        Column("qualifies", "Qualifies?"),
        file="ranks",
    ).behind(train_task=recommendation.train_task)


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
        Column(lambda row: Cell(row.label, "", notes.get(row.label, "")), "Option"),
        Column("better_than_base", "Better than base", write=quantities.odds),
        Column(
            lambda row: None if epsilon is None else quantities.odds(row.keeps_enough),
            "Keeps enough",
            f"loses at most {limit}",
        ),
        Column("near_the_best", "Near the best", f"within {near}", quantities.odds),
        Column("right", "Right", "all of it", quantities.odds),
        Column("right_on_average", "On average", "over seeds", quantities.odds),
        Column("right_next_run", "Next run", "another seed", quantities.odds),
    )


def prospect_table(recommendation: Recommendation) -> Table:
    """What more items or seeds would do; without rows where it is decided, or none would help."""
    prospects = recommendation.prospects
    return Table.of(
        "The probability that the rule would recommend a rank, or reject every one.",
        prospects if any(each.probability >= HARDLY for each in prospects) else (),
        Column(growth, "Added"),
        Column("probability", "Would settle it", write=quantities.odds),
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
        Column("1.task", "Task"),
        Column("0", "Relation"),
        Column(lambda row: cells.items(row[1].num_examples, row[1].limit), "Items"),
        Column(
            lambda row: Cell(_metric_name(row[1]), "", units[row[1].task]), "Metric", is_text=True
        ),
        Column("1.chance", "Chance", write=_in_points),
        Column(lambda row: row[1].output_type.replace("_", " "), "Kind", is_text=True),
        Column("1.task_version", "Version"),
        Column("1.num_fewshot", "Few-shot", "examples"),
        Column("1.chat_template", "Chat template"),
        Column(lambda row: num_cut(row[1].task), "Cut", "items"),
    )


def _in_points(share: float) -> str:
    return quantities.score(100 * share, "points")


def _metric_name(evaluation: TaskEvaluation) -> str:
    """The name of the metric that decides."""
    return cells.metric_name(evaluation.decision_metric, evaluation.decision_filter)


_ASKED = ("task", "task_version", "num_fewshot", "chat_template", "chance")
_Metric = tuple[TaskEvaluation, MetricScore]


def metrics_table(results: TrainTaskResults, summaries: Summaries) -> Table:
    """Every metric of the tasks that have more than one; in files of all tasks."""
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

    of_models: list[Column] = [
        Column(lambda row, model=models[summary.name]: scored(model, row), summary.label)
        for summary in summaries
        if models[summary.name].evaluations
    ]
    return Table.of(
        "Every metric of the tasks that have several, as the harness gives it, ± standard error.",
        rows,
        Column(name, "Metric"),
        Column("1.num_examples", "n"),
        *of_models,
        file="scores",
        records=[
            (
                {"model": model.name, **{name: getattr(own, name) for name in _ASKED}},
                {"decides": score == own.decision},
                score,
            )
            for model in models.values()
            for own in model.evaluations.values()
            for score in own.metrics
        ],
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
    rows.sort(key=lambda row: (results.tasks[relation].index(row.task), order[row.run]))
    is_prose = relation == "held_out_text"
    detail = cache(partial(_task_detail, results, recommendation))

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
    return Table.of(
        caption,
        rows,
        Column("run", "Run", write=labels),
        Column(_from_to, "Loss" if is_prose else "Score", "base → adapted"),
        Column(change, "Forgetting", "rise of the loss")
        if is_prose
        else Column(change, "Difference"),
        Column("num_learned", "Learned", "items"),
        Column("num_forgotten", "Forgotten", "items"),
        Column(kept, "Kept", "right / wrong"),
        Column("mcnemar_p_value", "McNemar p", "exact", quantities.p_value),
        Column(lambda row: _options(models[row.run], row.task), "Options chosen", "% of items"),
        by=lambda row: (row.task, detail(row.task)),
        file="differences",
    )


def format_table(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> Table:
    """Tasks in the format of the training, compared with their standard format."""
    labels = {summary.name: summary.label for summary in summaries}
    places = [[*results.trained_formats], [*labels]]
    models, items = _models(results), results.base.items

    def place(row: FormatEffect) -> tuple[int, int]:
        return places[0].index(row.task), places[1].index(row.run)

    detail = cache(partial(_task_detail, results, recommendation))
    return Table.of(
        "Tasks whose standard format is not that of the training, scored in both. The standard "
        "format decides. Paired over the same items, "
        f"{quantities.percent(recommendation.confidence)} intervals, exploratory.",
        sorted(recommendation.format_effects, key=place),
        Column("run", "Run", write=labels),
        Column(
            lambda row: quantities.change(row.standard_difference, items[row.task].unit),
            "Standard format",
            "difference",
        ),
        Column(_from_to, "Trained format", "base → adapted"),
        Column(
            lambda row: cells.interval(row.difference, row.unit), "Trained format", "difference"
        ),
        Column(
            lambda row: cells.interval(row.by_format, row.unit), "By format", "standard − trained"
        ),
        Column(
            lambda row: _options(models[row.run], row.scored_as),
            "Options chosen",
            "trained format, % of items",
        ),
        by=lambda row: (row.task, f"also as {row.scored_as}, {detail(row.scored_as)}"),
        file="formats",
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
