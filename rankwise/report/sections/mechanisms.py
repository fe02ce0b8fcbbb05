"""The mechanisms on the page: does a low rank regularise, does a high one approach full?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rankwise.findings.agreement import AgreementWithFull
from rankwise.findings.mechanisms import MatchedPairs, TrainTaskMechanisms
from rankwise.findings.options import TaskMean
from rankwise.findings.trends import Answer, RankTrend, TrendOf
from rankwise.records import quantities
from rankwise.records.study import Interval
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.intervals import Bar, BarPanel, interval_chart
from rankwise.report.charts.ranks import RankLine, RankMark, RankPanel, in_unit, rank_chart
from rankwise.report.parts import Column, Figure, ReportSection, Shown, Table, shows

MOST_PAIRS = 16
"""More pairs than this are too many to draw; the others are in the table."""

# What is drawn; the table has more.
_MEASURES: tuple[tuple[str, str, Callable[[AgreementWithFull], TaskMean | None]], ...] = (
    ("Same outcome", "% of items", lambda row: row.same_outcome),
    ("Same option chosen", "% of items", lambda row: row.same_option),
    ("KL(full || model)", "nats per token", lambda row: row.kl),
)

# What is measured, and what the mechanism says of it.
_TRENDS: dict[TrendOf, tuple[str, str]] = {
    "train-test gap": ("gap between trained and test items", "rises: low ranks regularise"),
    "same outcome": ("same outcome as full fine-tuning", "rises: high ranks approach full"),
    "same option": ("same option as full fine-tuning", "rises: high ranks approach full"),
    "same next token": ("same most probable token", "rises: high ranks approach full"),
    "KL": ("KL(full || LoRA)", "falls: high ranks approach full"),
}

_ANSWERS: dict[Answer, str] = {
    "shown": "yes",
    "contradicted": "no, less",
    "undecided": "cannot tell",
}


@shows("mechanisms")
def mechanism_section(found: Sequence[TrainTaskMechanisms], *_: object) -> ReportSection:
    """What was found of each trained task in words, three charts, and every number."""
    about = [
        "The reference paper explains its findings by mechanisms; here they are tested. Each is "
        "shown, contradicted or undecided by the interval "
        f"({quantities.percent(found[0].confidence)}) of one paired difference. Exploratory: with "
        "many intervals some miss, and the recommendation does not rest on them.",
        *cells.of_one_seed(
            max((t.change.num_seeds for part in found for t in part.trends), default=0)
        ),
    ]
    return ReportSection.of("mechanisms", "Mechanisms", about, found, _shown, figures="mechanism")


def _shown(found: TrainTaskMechanisms) -> Iterator[Shown]:
    def measure(trend: RankTrend) -> Cell:
        unit = "nats" if trend.change.unit == "nats" else "points"
        return Cell(_TRENDS[trend.of][0], "", f"{unit}, {quantities.sample_size(trend.change)}")

    trends = Table.of(
        f"Trained on {found.train_task}: largest rank less smallest, on the same items.",
        found.trends,
        Column(measure, "Measure"),
        Column("smallest_rank", "From rank"),
        Column("largest_rank", "To rank"),
        Column("change", "Change"),
        Column(lambda trend: _TRENDS[trend.of][1], "The mechanism says", is_text=True),
        Column("answer", "The study"),
    )
    yield "From the smallest to the largest rank", trends
    yield from _gaps(found)
    if found.matched is not None:
        yield from _pairs(found, found.matched)
    yield from _agreement(found)


def _gaps(found: TrainTaskMechanisms) -> Iterator[Shown]:
    unit, gaps = found.unit, found.gaps
    table = Table.of(
        f"Trained on {found.train_task}, both against the base. The items are different ones, so "
        "the variances of both gains add.",
        gaps,
        Column("option.label", "Option"),
        Column("trained", "Gain on trained items", unit, cells.sized),
        Column("test", "Gain on test items", unit, cells.sized),
        Column("gap", "Gap", "trained − test", cells.in_unit(unit)),
        file="mechanism-gaps",
    )
    yield "Trained and test items", table
    marks = [
        RankMark(gap.option.rank, gap.gap, name=gap.option.label)
        for gap in gaps
        if gap.option.rank is not None
    ]
    if not marks:
        return
    full = [gap for gap in gaps if gap.option.rank is None]
    panel = RankPanel(
        f"Gain on trained − test ({cells.unit_name(unit)})",
        marks,
        [
            RankLine("full" if len(full) == 1 else f"full ({number})", "full", gap.gap)
            for number, gap in enumerate(full, start=1)
        ],
        has_zero=True,
        write=in_unit(unit),
    )
    test = gaps[0].test
    sizes = (
        f"{quantities.sample_size(gaps[0].trained, 'trained')} and "
        f"{quantities.count(test.num_examples)} test items"
        f"{quantities.in_clusters(test.num_clusters)}"
    )
    yield Figure(
        "gap",
        "Gap between trained and test items by rank",
        "How much more a model gains on trained items than on test items. The dashed line is full "
        "fine-tuning. Each bar or band is the interval of one gap; gaps share their items, so "
        "their differences, in the table, vary less.",
        rank_chart([panel]),
        _detail(found, sizes),
    )


def _pairs(found: TrainTaskMechanisms, matched: MatchedPairs) -> Iterator[Shown]:
    delta = quantities.amount(found.delta, found.unit)
    which = (
        f"Pairs whose in-domain gains are shown to be equal within δ = {delta}."
        if matched.match == "within delta"
        else f"No pair is shown to be equal within δ = {delta}; these cannot be told apart, which "
        "is weaker."
    )
    pairs = Table.of(
        f"Trained on {found.train_task}. {which} Paired over the same items.",
        matched.pairs,
        Column("option.label", "Lower rank"),
        Column("other.label", "Higher rank"),
        Column("gain", "In-domain", f"lower − higher, {found.unit}", cells.sized),
        Column("kept", "Retention", "lower − higher, points", cells.sized),
        Column("answer", "Does the lower keep more?", write=_ANSWERS),
        file="mechanism-pairs",
    ).behind(match=matched.match)
    yield "Kept at equal gain", pairs
    if not matched.pairs:
        return
    caption = (
        "Each pair has the same in-domain gain, as the table says how. Right of zero the lower "
        "rank keeps more of the retention tasks; colours are those of the lower rank."
    )
    caption += cells.more(len(matched.pairs) - MOST_PAIRS, "pairs are in the table")
    bars = [
        Bar(f"{pair.option.label}\nless {pair.other.label}", "", pair.option.kind, pair.kept)
        for pair in matched.pairs[:MOST_PAIRS]
    ]
    yield Figure(
        "kept",
        "Kept by the lower of two ranks of equal gain",
        caption,
        interval_chart([BarPanel("", "Kept more by the lower rank (points)", "points", bars)]),
        _detail(found, quantities.sample_size(matched.pairs[0].kept, "retention items")),
    )


def _agreement(found: TrainTaskMechanisms) -> Iterator[Shown]:
    def name(row: AgreementWithFull) -> str:
        """The base, an option's label, or full fine-tuning as the next seed of itself."""
        is_full = row.option is not None and row.option.rank is None
        return f"{row.label}, next seed" if is_full else row.label

    def score(mean: TaskMean | None) -> Cell:
        return cells.sized(mean, signed=False)

    table = Table.of(
        f"Trained on {found.train_task}, in-domain items, each seed against full fine-tuning of "
        "the same seed. The base is an update of zero; full fine-tuning against its next seed is "
        "as alike as two runs can be expected to be.",
        found.agreement,
        Column(name, "Model"),
        Column("same_outcome", "Same outcome", "% of items", score),
        Column("kappa", "Kappa", "beyond chance", partial(cells.written, write=quantities.ratio)),
        Column("same_option", "Same option", "% of items", score),
        Column("same_next_token", "Same next token", "%", score),
        Column("kl", "KL(full || model)", "nats per token", score),
        Column("label", file="option"),
        by=lambda row: f"Beside {row.reference.label}",
        file="mechanism-agreement",
    )
    yield "Agreement with full fine-tuning", table
    panels = list(_agreement_panels(found))
    if not panels:
        return
    caption = (
        "Every LoRA option against full fine-tuning of the same seed. The grey line is the base, "
        "an update of zero: agreement starts there."
    )
    if any(row.option is not None and row.option.rank is None for row in found.agreement):
        caption += " The dashed line is full fine-tuning against its own next seed."
    title = "Agreement with full fine-tuning by rank"
    yield Figure("agreement", title, caption, rank_chart(panels), _detail(found, "in-domain items"))


def _agreement_panels(found: TrainTaskMechanisms) -> Iterator[RankPanel]:
    """The panels of the measures that a LoRA option has."""
    for name, unit, measure in _MEASURES:
        rows = [(row, mean) for row in found.agreement if (mean := measure(row)) is not None]
        marks: list[RankMark] = []
        lines: list[RankLine] = []
        for row, mean in rows:
            if row.option is None:
                lines.append(RankLine("base", "base", mean))
            elif row.option.rank is None:
                lines.append(RankLine("next seed", "full", mean))
            else:
                marks.append(RankMark(row.option.rank, mean, name=row.option.label))
        if marks:
            heading = f"{name}, {quantities.sample_size(rows[0][1])}"
            yield RankPanel(unit, marks, lines, title=heading, write=_score_words)


def _score_words(mean: Interval | float) -> str:
    assert isinstance(mean, TaskMean)
    unit = "%" if mean.unit == "points" else "nats"
    bounds = quantities.score_interval(mean.lower, mean.upper, mean.unit)
    return f"{quantities.score(mean.estimate, mean.unit)} {unit} ({bounds})"


def _detail(found: TrainTaskMechanisms, sizes: str) -> str:
    return f"{sizes}; bars are {cells.intervals(found.confidence)}"
