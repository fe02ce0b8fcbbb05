"""The answer at a glance: what to use, what it costs, what else would do, and other margins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rankwise.findings.card import Alternative, Told, VerdictCard
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Interval
from rankwise.report import cells
from rankwise.report.facts import Facts
from rankwise.report.parts import Column, ReportSection, Sliders, Table, TitledTable, table

CARD_SECTION = "glance"


def card_section(
    card: VerdictCard, recommendation: Recommendation, seconds: Mapping[str, float]
) -> ReportSection:
    """The settings of the choice, tables of alternatives and advice, and sliders.

    ``seconds`` are those of every option's training, all seeds together.
    """
    remarks: list[str] = []
    if not card.is_settled:
        said = "do not fine-tune" if card.choice is None else card.choice
        odds = "" if card.probability is None else quantities.odds(card.probability)
        right = odds and f", right with a probability of {odds}"
        remarks.append(f"The best bet: {said}{right}.")
    return ReportSection(
        CARD_SECTION, "At a glance", remarks, tables=list(_tables(card, recommendation, seconds))
    )


def _tables(
    card: VerdictCard, recommendation: Recommendation, seconds: Mapping[str, float]
) -> Iterator[TitledTable]:
    if card.choice is not None:
        yield TitledTable("", _facts(card, seconds))
    if card.alternatives:
        yield TitledTable("Instead of it", _alternatives(card, recommendation, seconds))
    if card.told:
        columns: list[Column[Told]] = [
            Column("You may have been told", lambda row: row.advice),
            Column.text("Here", lambda row: row.here),
        ]
        caption = f"{cells.intervals(recommendation.confidence)}, paired over the same items."
        yield TitledTable("What others say", table(quantities.capital(caption), columns, card.told))
    if recommendation.verdicts:
        yield TitledTable(
            "If other margins matter to you", _conditions(recommendation), sliders(recommendation)
        )


def _facts(card: VerdictCard, seconds: Mapping[str, float]) -> Facts:
    facts = dict(card.settings)
    if card.gain is not None:
        facts["Gains in-domain"] = cells.in_words(card.gain)
    if card.retention is not None:
        facts["Retention tasks change by"] = cells.in_words(card.retention)
    if card.num_parameters and card.trainable_share is not None:
        parameters = quantities.parameters(card.num_parameters)
        facts["Trained weights"] = f"{parameters}, {quantities.share(card.trainable_share)} of full"
    if card.choice is not None and seconds.get(card.choice):
        full = [_times(each.label, card, seconds) for each in card.alternatives if not each.rank]
        of_full = f"; full fine-tuning: {full[0]} as long" if full and full[0] else ""
        facts["Training"] = f"{quantities.seconds(seconds[card.choice])}{of_full}"
    tied = [each.label for each in card.alternatives if each.is_tied]
    if tied:
        facts["By itself not told apart from it in-domain"] = quantities.listed(tied)
    return facts


def _times(label: str, card: VerdictCard, seconds: Mapping[str, float]) -> str | None:
    """In shares of the choice's time; None where nothing was timed."""
    own = seconds.get(card.choice or "", 0.0)
    return quantities.times(seconds[label] / own) if own and label in seconds else None


def _alternatives(
    card: VerdictCard, recommendation: Recommendation, seconds: Mapping[str, float]
) -> Table:
    columns: list[Column[Alternative]] = [
        Column("Option", lambda row: row.label),
        Column(
            "Gain",
            lambda row: cells.mean(row.gain),
            cells.measure(recommendation.unit, recommendation.in_domain_metric),
        ),
        Column.optional(
            "Retention",
            lambda row: cells.mean(row.retention),
            cells.measure("points", recommendation.retention_metric),
        ),
        Column.optional(
            "Trained weights",
            lambda row: None if row.weights_ratio is None else quantities.times(row.weights_ratio),
            "of the choice's",
        ),
        Column.optional(
            "Training time", lambda row: _times(row.label, card, seconds), "of the choice's"
        ),
    ]
    caption = (
        f"Every other option less {card.choice}, paired over the same items, "
        f"{cells.intervals(recommendation.confidence)}, each for one number by itself. Positive is "
        "better than the choice."
    )
    return table(caption, columns, card.alternatives)


def _conditions(recommendation: Recommendation) -> str:
    kept = ", that it loses less than ε on average and less than the ceiling on every task"
    kept = "" if recommendation.epsilon_points is None else kept
    return (
        f"An option qualifies where it is shown that it gains something{kept}, and that no rival "
        "gains δ more. The first that qualifies is recommended, smallest first."
    )


def sliders(recommendation: Recommendation) -> Sliders:
    """What the rule needs to judge again: bounds of every option, at the level that decides."""

    def ends(bounds: Iterable[Interval]) -> list[list[float]]:
        return [[bound.lower, bound.upper] for bound in bounds]

    verdicts = recommendation.verdicts
    losses = [each.retention_loss for each in verdicts if each.retention_loss is not None]
    worst = [each.worst_retention_loss for each in verdicts if each.worst_retention_loss]
    rule = {
        "labels": [each.label for each in verdicts],
        "has_base": recommendation.has_base,
        "gain": ends(each.gain for each in verdicts),
        "loss": ends(losses) if losses else None,
        "worst": ends(worst) if worst else None,
        "lead": [ends(each.leads) for each in verdicts],
    }
    margins = recommendation.delta, recommendation.epsilon_points, recommendation.worst_task_points
    return Sliders(rule, recommendation.unit, *margins)
