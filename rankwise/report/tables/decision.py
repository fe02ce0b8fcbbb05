"""The tables of a report about ranks, tasks and metrics."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.findings.statements import growth
from rankwise.records import quantities
from rankwise.records.judgement import BestBet, EpsilonOdds, OptionOdds, Prospect
from rankwise.records.recommendation import RankVerdict, Recommendation
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import MetricScore, Relation, State, TaskEvaluation
from rankwise.report import cells
from rankwise.report.parts import Cell, Column, Table, table
from rankwise.report.summaries import RELATION_NAMES, Summaries

_STATES: dict[State, str] = {"yes": "yes", "no": "no", "undecided": "cannot tell"}


def decision_table(recommendation: Recommendation) -> Table | None:
    """What each rank was judged on; None where no rank was."""
    if not recommendation.verdicts:
        return None
    unit, epsilon = recommendation.unit, recommendation.epsilon_points
    is_alone, has_retention = len(recommendation.verdicts) == 1, epsilon is not None
    limit = f"loss below ε = {quantities.score(epsilon or 0.0, 'points')}"

    def rank(verdict: RankVerdict) -> Cell:
        return Cell(verdict.label, "", f"alpha {quantities.number(verdict.alpha)}")

    def loss(verdict: RankVerdict) -> Cell:
        return cells.interval(verdict.retention_loss, "points")

    def keeps(verdict: RankVerdict) -> str | None:
        return None if verdict.keeps_enough is None else _STATES[verdict.keeps_enough]

    def behind(verdict: RankVerdict) -> Cell:
        return Cell("no other rank") if is_alone else cells.interval(verdict.shortfall, unit)

    columns: list[Column[RankVerdict]] = [
        Column("Rank", rank),
        Column("Gain", lambda verdict: cells.interval(verdict.gain, unit), unit),
        Column(
            "Better than base?",
            lambda verdict: _STATES[verdict.better_than_base],
            "gain above 0",
            is_text=True,
        ),
        Column("Retention loss", loss, "points", is_shown=has_retention),
        Column("Keeps enough?", keeps, limit, is_text=True, is_shown=has_retention),
        Column("Behind the best other rank", behind, unit),
        Column(
            "Near the best?",
            lambda verdict: _STATES[verdict.near_the_best],
            f"behind by less than δ = {quantities.score(recommendation.delta, unit)}",
            is_text=True,
        ),
        Column("Qualifies?", lambda verdict: "yes" if verdict.qualifies else "no", is_text=True),
    ]
    return table(_decision_caption(recommendation), columns, recommendation.verdicts)


def odds_table(recommendation: Recommendation) -> Table | None:
    """The best bet: how probable it is that each option is right; None where none is judged."""
    bet = recommendation.best_bet
    if bet is None:
        return None
    unit, epsilon = recommendation.unit, recommendation.epsilon_points
    near = quantities.amount(bet.tolerance, unit)
    limit = quantities.amount(epsilon or 0.0, "points")
    columns: list[Column[OptionOdds]] = [
        Column("Option", lambda option: _bet_on(option, bet)),
        Column("Better than base", lambda option: quantities.odds(option.better_than_base)),
        Column(
            "Keeps enough",
            lambda option: quantities.odds(option.keeps_enough),
            f"loses at most {limit}",
            is_shown=epsilon is not None,
        ),
        Column(
            "Near the best",
            lambda option: quantities.odds(option.near_the_best),
            f"within {near}",
        ),
        Column("All of it", lambda option: quantities.odds(option.right)),
        Column(
            "Expected regret", lambda option: quantities.score(option.expected_regret, unit), unit
        ),
    ]
    caption = (
        "Probabilities that each option is so with any seed, from the scores and a prior that "
        "knows how much ranks differ elsewhere (docs/METHODS.md). Near the best is meant among the "
        "options that keep enough. Expected regret is how much less an option is worth than the "
        f"best choice on average, where a point of loss beyond ε costs {bet.price:g} points of "
        f"gain; not fine-tuning has {quantities.amount(bet.regret_of_base, unit)}."
    )
    return table(caption, columns, bet.options)


def _bet_on(option: OptionOdds, bet: BestBet) -> Cell:
    return Cell(option.label, "", "best bet" if option.label == bet.choice else "")


def epsilon_table(recommendation: Recommendation) -> Table | None:
    """The odds for other acceptable losses; None without retention tasks."""
    bet = recommendation.best_bet
    if bet is None or not bet.by_epsilon:
        return None

    def name(row: EpsilonOdds) -> Cell:
        own = row.epsilon_points == recommendation.epsilon_points
        return Cell(quantities.number(row.epsilon_points), "", "this study" if own else "")

    def odds_of(place: int, label: str) -> Column[EpsilonOdds]:
        return Column(label, lambda row: quantities.odds(row.right[place]))

    columns: list[Column[EpsilonOdds]] = [Column("ε", name, "points")]
    columns += [odds_of(place, option.label) for place, option in enumerate(bet.options)]
    columns.append(
        Column("Least regret", lambda row: row.choice or "do not fine-tune", is_text=True)
    )
    caption = (
        "The probability that each option is right, and the one with the least expected regret, "
        "for every retention loss that may be acceptable to you."
    )
    return table(caption, columns, bet.by_epsilon)


def prospect_table(recommendation: Recommendation) -> Table | None:
    """What more items or seeds would do; None where the study is decided."""
    if not recommendation.prospects:
        return None

    def name(prospect: Prospect) -> Cell:
        return Cell(growth(prospect))

    columns: list[Column[Prospect]] = [
        Column("Added", name),
        Column("Would settle it", lambda prospect: quantities.odds(prospect.probability)),
        Column(
            "Is worth, about",
            lambda prospect: quantities.score(prospect.value, recommendation.unit),
            recommendation.unit,
        ),
    ]
    caption = (
        "The probability that the rule would recommend a rank, or reject every one, and by how "
        "much the expected regret of the best bet would fall."
    )
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
    """A task in its relation, the base's evaluation, and the most items that were cut."""

    relation: Relation
    evaluation: TaskEvaluation
    metric: Cell
    num_cut: int


def measured_table(results: TrainTaskResults) -> Table:
    """Every task: how many items, by which metric, asked in which way."""
    rows = [
        _measured(results, relation, task)
        for relation, tasks in results.tasks.items()
        for task in tasks
        if task in results.base.evaluations
    ]

    def chance(row: _Measured) -> str | None:
        share = row.evaluation.chance
        return None if share is None else quantities.score(100 * share, "points")

    columns: list[Column[_Measured]] = [
        Column("Task", lambda row: row.evaluation.task),
        Column("Relation", lambda row: RELATION_NAMES[row.relation], is_text=True),
        Column("Items", lambda row: cells.items(row.evaluation.num_examples, row.evaluation.limit)),
        Column("Metric", lambda row: row.metric, is_text=True),
        Column("Chance", chance),
        Column("Kind", lambda row: row.evaluation.output_type.replace("_", " "), is_text=True),
        Column("Version", lambda row: row.evaluation.task_version, is_text=True),
        Column("Few-shot", lambda row: str(row.evaluation.num_fewshot), "examples"),
        Column(
            "Chat template",
            lambda row: "yes" if row.evaluation.chat_template else "no",
            is_text=True,
        ),
        Column("Cut", lambda row: cells.count(row.num_cut), "items"),
    ]
    caption = (
        "What every model was scored on. Chance is what guessing would score on average, in "
        "points. Cut are items that were too long for the model and lost their beginning."
    )
    return table(caption, columns, rows)


def _measured(results: TrainTaskResults, relation: Relation, task: str) -> _Measured:
    evaluation = results.base.evaluations[task]
    name = cells.metric_name(evaluation.decision_metric, evaluation.decision_filter)
    num_cut = max(
        model.evaluations[task].num_truncated
        for model in (results.base, *results.runs)
        if task in model.evaluations
    )
    metric = Cell(name, "", cells.unit_name(results.base.items[task].unit))
    return _Measured(relation, evaluation, metric, num_cut)


_Metric = tuple[TaskEvaluation, MetricScore]


def metrics_table(results: TrainTaskResults, summaries: Summaries) -> Table | None:
    """Every metric of the tasks that have more than one; None if there is none."""
    rows: list[_Metric] = [
        (evaluation, score)
        for evaluation in results.base.evaluations.values()
        for score in evaluation.metrics
        if len(evaluation.metrics) > 1
    ]
    if not rows:
        return None
    models = {model.name: model for model in (results.base, *results.runs)}

    def name(row: _Metric) -> Cell:
        evaluation, score = row
        decides = " (decides)" if score == evaluation.decision else ""
        better = "higher is better" if score.higher_is_better else "lower is better"
        metric = cells.metric_name(score.metric, score.filter)
        return Cell(evaluation.task, "", f"{metric}{decides}, {better}")

    columns: list[Column[_Metric]] = [
        Column("Metric", name),
        Column("n", lambda row: cells.count(row[1].num_examples)),
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
            return Cell(f"{score.value:.3f}", "", error)
    return None
