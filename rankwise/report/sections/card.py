"""The first screen of a trained task, and what else would do: other options, and other margins."""

from __future__ import annotations

import math
from functools import partial

from rankwise.findings.card import CardRow, RuleDraws, VerdictCard
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.parts import (
    Column,
    ReportSection,
    Sliders,
    Table,
    TitledTable,
    titled,
)
from rankwise.report.tables import odds_table, prospect_table

_MOST_ROWS, _MOST_IN_TERMINAL = 6, 5
"""The most rows of a card: the table of all runs, and ``--json``, have all. With five a card has 12
lines in the terminal; that some are left out is a row too."""


def card_table(
    card: VerdictCard,
    recommendation: Recommendation,
    results: StudyResults | TrainTaskResults,
    *,
    has_scores: bool = True,
) -> Table:
    """Every option against the base, or of many the choice and those that gain most.

    The terminal shows the scores and the base too (``has_scores``), for which a phone has no room,
    and fewer rows. What only a training knows is left out where nothing was trained here.
    """
    has_base = results.study.has_base
    choice = "use this" if card.is_settled else "best bet"
    unit = recommendation.unit
    all_rows = [row for row in card.rows if has_scores or row.runs]
    most = _MOST_IN_TERMINAL if has_scores else _MOST_ROWS
    most -= has_scores and len(all_rows) > most
    rows = sorted(
        all_rows,
        key=lambda row: (row.is_choice, row.gain.estimate if row.runs else math.inf),
        reverse=True,
    )[:most]

    def short(mean: TaskMean | None, row: CardRow) -> str | None:
        """+30.0 ±6.6: the longer side of the interval, which a row has room for."""
        if mean is None or not row.runs:
            return None
        side = max(mean.upper - mean.estimate, mean.estimate - mean.lower)
        estimate = quantities.change(mean.estimate, mean.unit)
        return f"{estimate} ±{quantities.score(side, mean.unit)}"

    trained: list[Column] = [
        Column("num_parameters", "Weights", "trained", quantities.parameters),
        Column(lambda row: row.train_seconds or None, "Training", write=quantities.seconds),
    ]
    if results.study.scores is not None:  # nothing was trained here
        trained = [
            Column("num_learned", "Learned", "items"),
            Column("num_forgotten", "Forgotten", "items"),
        ]
    gained_in, kept_in = cells.measures(recommendation)
    scores: list[Column] = [
        Column("score", "Score", gained_in, partial(quantities.score, unit=unit)),
        Column("accuracy", "Accuracy", "%", partial(quantities.score, unit="points")),
    ]
    beside = "Changes from the base" if has_base else "Differences from the mean of the models"
    made = Table.of(
        f"{beside}; ± is the longer side of the interval.",
        [row for row in all_rows if row in rows],
        Column(lambda row: Cell(row.label, "", choice * row.is_choice, row.is_choice), "Option"),
        *(scores if has_scores else ()),
        Column(
            lambda row: short(row.gain, row), "Gain" if has_base else "Over the mean", gained_in
        ),
        Column(lambda row: short(row.retention, row), "Change in retention", kept_in),
        *trained,
    )
    if len(rows) == len(all_rows):
        return made
    return made.and_more(len(all_rows) - len(rows))


def alternative_section(card: VerdictCard, recommendation: Recommendation) -> ReportSection | None:
    """Other options beside the choice, and advice from elsewhere; None where there is neither."""
    intervals = cells.intervals(recommendation.confidence)
    gained_in, kept_in = cells.measures(recommendation)
    own = sum(row.num_parameters for row in card.rows if row.is_choice)

    def weights(row: CardRow) -> str | None:
        return quantities.times(row.num_parameters / own) if row.num_parameters and own else None

    options = Table.of(
        f"Every other option less {card.choice}, paired over the same items, {intervals}, each for "
        "one number by itself. Positive is better than the choice.",
        card.alternatives,
        Column("label", "Option"),
        Column("lead", "Gain", gained_in),
        Column("retention_lead", "Retention", kept_in),
        Column(weights, "Trained weights", "of the choice's"),
    )
    advice = Table.of(
        f"{quantities.capital(intervals)}, paired over the same items.",
        card.advice,
        Column("advice", "Common advice"),
        Column("here", "Here"),
    )
    tables = titled({"": options, "What others say": advice})
    title = f"Instead of {card.choice}"
    return ReportSection("alternatives", title, tables=tables, is_folded=True) if tables else None


def margin_section(recommendation: Recommendation, draws: RuleDraws | None) -> ReportSection | None:
    """Sliders and a dial for other margins, and the odds; None where no rank was judged."""
    if not recommendation.verdicts:
        return None
    kept = ", that it loses at most ε on average and at most the ceiling on every task"
    kept = "" if recommendation.epsilon_points is None else kept
    conditions = (
        f"An option qualifies where it is shown that it gains something{kept}, and that no other "
        "that keeps enough gains over δ more. The smallest that qualifies is recommended."
    )
    sliders = None if draws is None else Sliders(draws, recommendation)
    tables = [TitledTable("", conditions, sliders)]
    bet = recommendation.best_bet
    if bet is not None and bet.by_epsilon:
        said = (
            "The probability that each option is right, and the best bet, for every average "
            "retention loss that may be acceptable to you; δ and the ceiling for single tasks are "
            "the study's."
        )
        tables.append(TitledTable("How much may be forgotten?", said, recommendation))
    if bet is not None:
        tables.append(TitledTable("The best bet", odds_table(recommendation, bet)))
    tables += titled({"What would settle it": prospect_table(recommendation)})
    title = "If other margins matter to you"
    return ReportSection("margins", title, tables=tables, is_folded=True)
