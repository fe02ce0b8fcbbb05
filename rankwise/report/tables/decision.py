"""The tables of a report about ranks, tasks and metrics, as text."""

from __future__ import annotations

from rankwise.records import quantities
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import RankVerdict, Recommendation, Relation, State
from rankwise.report.parts import EMPTY, Cell, Heading, RowGroup, Table
from rankwise.report.summaries import RELATION_NAMES, Summaries, interval_cell

_STATES: dict[State, str] = {"yes": "yes", "no": "no", "undecided": "cannot tell"}


def decision_table(recommendation: Recommendation) -> Table | None:
    """What each rank was judged on; None where no rank was."""
    if not recommendation.verdicts:
        return None
    unit, confidence = recommendation.unit, quantities.percent(recommendation.confidence)
    epsilon = recommendation.epsilon_points
    headings = [
        Heading("Rank"),
        Heading("Gain", unit),
        Heading("Better than base?", "gain above 0"),
    ]
    if epsilon is not None:
        headings += [
            Heading("Retention loss", "points"),
            Heading("Keeps enough?", f"loss below ε = {quantities.score(epsilon, 'points')}"),
        ]
    headings += [
        Heading("Behind the best other rank", unit),
        Heading(
            "Near the best?",
            f"behind by less than δ = {quantities.score(recommendation.delta, unit)}",
        ),
        Heading("Qualifies?"),
    ]
    seeds = (
        "Conditional on the one seed"
        if recommendation.num_seeds == 1
        else f"Averaged over {recommendation.num_seeds} seeds"
    )
    caption = (
        f"{seeds}. The bounds hold for all ranks at once at "
        f"{confidence}, so they are wider than the intervals of single differences. The smallest "
        "rank that qualifies is recommended."
    )
    rows = tuple(_verdict_cells(verdict, recommendation) for verdict in recommendation.verdicts)
    texts = (2, 4, 6, 7) if epsilon is not None else (2, 4, 5)
    return Table(caption, tuple(headings), (RowGroup("", "", rows),), (0, *texts))


def measured_table(results: TrainTaskResults) -> Table:
    """Every task: how many items, by which metric, asked in which way."""
    headings = ("Task", "Relation", "Items", "Metric", "Chance", "Kind", "Version")
    titles = [Heading(title) for title in headings]
    titles += [Heading("Few-shot", "examples"), Heading("Chat template"), Heading("Cut", "items")]
    rows = tuple(
        _measured_cells(results, relation, task)
        for relation, tasks in results.tasks.items()
        for task in tasks
        if task in results.base.evaluations
    )
    return Table(
        "What every model was scored on. Chance is what guessing would score on average, in "
        "points. Cut are items that were too long for the model and lost their beginning.",
        tuple(titles),
        (RowGroup("", "", rows),),
        (0, 1, 3, 5, 6, 8),
    )


def metrics_table(results: TrainTaskResults, summaries: Summaries) -> Table | None:
    """Every metric of the tasks that have more than one; None if there is none."""
    models = {model.name: model for model in (results.base, *results.runs)}
    scored = [
        (models[summary.name], summary.label)
        for summary in summaries
        if models[summary.name].evaluations
    ]
    rows: list[tuple[Cell, ...]] = []
    for task, evaluation in results.base.evaluations.items():
        if len(evaluation.metrics) < 2:
            continue
        for score in evaluation.metrics:
            decides = " (decides)" if score == evaluation.decision else ""
            better = "higher is better" if score.higher_is_better else "lower is better"
            rows.append(
                (
                    Cell(task, "", f"{metric_name(score.metric, score.filter)}{decides}, {better}"),
                    Cell(quantities.count(score.num_examples)),
                    *(_metric_cell(model, task, score.metric, score.filter) for model, _ in scored),
                )
            )
    if not rows:
        return None
    headings = (Heading("Metric"), Heading("n"), *(Heading(label) for _, label in scored))
    caption = (
        "Every metric of the tasks that have several, as the harness gives it, ± standard error."
    )
    return Table(caption, headings, (RowGroup("", "", tuple(rows)),))


def metric_name(metric: str, filter_name: str) -> str:
    """exact_match, strict-match; the filter only where there is one."""
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def _verdict_cells(verdict: RankVerdict, recommendation: Recommendation) -> tuple[Cell, ...]:
    unit = recommendation.unit
    cells = [
        Cell(verdict.label, "", f"alpha {quantities.number(verdict.alpha)}"),
        interval_cell(verdict.gain, unit),
        Cell(_STATES[verdict.better_than_base]),
    ]
    if recommendation.epsilon_points is not None:
        loss, state = verdict.retention_loss, verdict.keeps_enough
        cells += [
            EMPTY if loss is None else interval_cell(loss, "points"),
            EMPTY if state is None else Cell(_STATES[state]),
        ]
    alone = len(recommendation.verdicts) == 1
    cells += [
        Cell("no other rank") if alone else interval_cell(verdict.shortfall, unit),
        Cell(_STATES[verdict.near_the_best]),
        Cell("yes" if verdict.qualifies else "no"),
    ]
    return tuple(cells)


def _measured_cells(results: TrainTaskResults, relation: Relation, task: str) -> tuple[Cell, ...]:
    evaluation = results.base.evaluations[task]
    unit = results.base.items[task].unit
    limit = "" if evaluation.limit is None else f"the first {quantities.count(evaluation.limit)}"
    chance = evaluation.chance
    cut = max(
        model.evaluations[task].num_truncated
        for model in (results.base, *results.runs)
        if task in model.evaluations
    )
    return (
        Cell(task),
        Cell(RELATION_NAMES[relation]),
        Cell(quantities.count(evaluation.num_examples), "", limit),
        Cell(
            metric_name(evaluation.decision_metric, evaluation.decision_filter),
            "",
            "points" if unit == "points" else "nats per token",
        ),
        EMPTY if chance is None else Cell(quantities.score(100 * chance, "points")),
        Cell(evaluation.output_type.replace("_", " ")),
        Cell(evaluation.task_version),
        Cell(str(evaluation.num_fewshot)),
        Cell("yes" if evaluation.chat_template else "no"),
        Cell(quantities.count(cut)),
    )


def _metric_cell(model: ModelResults, task: str, metric: str, filter_name: str) -> Cell:
    evaluation = model.evaluations.get(task)
    for score in () if evaluation is None else evaluation.metrics:
        if (score.metric, score.filter) == (metric, filter_name):
            error = "" if score.stderr is None else f"± {score.stderr:.3f}"
            return Cell(f"{score.value:.3f}", "", error)
    return EMPTY
