"""The mechanisms on the page: does a low rank regularise, does a high one approach full?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rankwise.findings.agreement import AgreementWithFull
from rankwise.findings.mechanisms import MatchedPair, TrainTaskMechanisms, TrainTestGap
from rankwise.findings.models import BASE_LABEL
from rankwise.findings.options import TaskMean
from rankwise.findings.trends import Answer, RankTrend, TrendOf
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.intervals import IntervalMark, interval_chart
from rankwise.report.charts.ranks import RankLine, RankMark, RankPanel, rank_chart
from rankwise.report.charts.theme import FONT_SIZE
from rankwise.report.parts import (
    Cell,
    Chart,
    Column,
    Figure,
    ReportSection,
    Table,
    TrainedTask,
    grouped_table,
    table,
)

MOST_PAIRS = 16
"""More pairs than this are too many to draw; the others are in the table."""

_ONE_LINE, _TWO_LINES, _LETTERS = 22, 36, 34

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


def mechanism_section(found: Sequence[TrainTaskMechanisms]) -> ReportSection:
    """For each trained task what was found in words, three charts, and every number.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    remarks = [
        "The reference paper explains its findings by mechanisms; here they are tested. Each is "
        "shown, contradicted or undecided by the interval "
        f"({quantities.percent(found[0].confidence)}) of one paired difference. Exploratory: with "
        "many intervals some miss, and the recommendation does not rest on them."
    ]
    for part, task in tasks:
        for sentence in part.statements:
            shown = sentence[:1].lower() + sentence[1:] if task.is_named else sentence
            remarks.append(f"{task.before}{shown}")
    if {trend.num_seeds for part in found for trend in part.trends} == {1}:
        remarks.append("With one seed, all of this is conditional on that seed.")
    for part, task in tasks:
        if not part.agreement:
            remarks.append(
                f"Agreement was not measured{task.after}: no full fine-tuning of that seed."
            )
        if part.matched is None:
            remarks.append(
                f"What is kept was not compared{task.after}: the study has no retention task."
            )
        remarks += cells.left_out(part.left_out, task.after)
    files = {
        "mechanism-gaps.csv": cells.csv_text(_gap_rows(found)),
        "mechanism-pairs.csv": cells.csv_text(_pair_rows(found)),
        "mechanism-agreement.csv": cells.csv_text(_agreement_rows(found)),
    }
    return ReportSection(
        name="mechanisms",
        title="Mechanisms",
        remarks=remarks,
        figures=[
            figure for part, task in tasks for figure in task.figures("mechanism", _figures(part))
        ],
        tables=[shown for part, task in tasks for shown in task.tables(_tables(part))],
        files={name: text for name, text in files.items() if text.strip()},
    )


def _tables(found: TrainTaskMechanisms) -> Iterator[tuple[str, Table]]:
    if found.trends:
        yield "From the smallest to the largest rank", _trend_table(found)
    if found.gaps:
        yield "Trained and test items", _gap_table(found)
    if found.matched is not None and found.matched.pairs:
        yield "Kept at equal gain", _pair_table(found)
    if found.agreement:
        yield "Agreement with full fine-tuning", _agreement_table(found)


def _trend_table(found: TrainTaskMechanisms) -> Table:
    def measure(trend: RankTrend) -> Cell:
        unit = "nats" if trend.unit == "nats" else "points"
        return Cell(_TRENDS[trend.of][0], "", f"{unit}, {quantities.sample_size(trend)}")

    columns: list[Column[RankTrend]] = [
        Column("Measure", measure),
        Column("From rank", lambda trend: quantities.count(trend.smallest_rank)),
        Column("To rank", lambda trend: quantities.count(trend.largest_rank)),
        Column("Change", lambda trend: cells.interval(trend.change, trend.unit)),
        Column("The mechanism says", lambda trend: _TRENDS[trend.of][1], is_text=True),
        Column("The study", lambda trend: trend.answer, is_text=True),
    ]
    caption = f"Trained on {found.train_task}: largest rank less smallest, on the same items."
    return table(caption, columns, found.trends)


def _gap_table(found: TrainTaskMechanisms) -> Table:
    unit = found.unit
    columns: list[Column[TrainTestGap]] = [
        Column("Option", lambda gap: gap.option.label),
        Column("Gain on trained items", lambda gap: cells.mean(gap.trained, has_size=True), unit),
        Column("Gain on test items", lambda gap: cells.mean(gap.test, has_size=True), unit),
        Column("Gap", lambda gap: cells.interval(gap.gap, unit), "trained − test"),
    ]
    caption = (
        f"Trained on {found.train_task}, both against the base. The items are different ones, so "
        "the variances of both gains add."
    )
    return table(caption, columns, found.gaps)


def _gap_rows(found: Sequence[TrainTaskMechanisms]) -> Iterator[dict[str, Any]]:
    for part in found:
        for gap in part.gaps:
            yield {
                "train_task": part.train_task,
                "option": gap.option.label,
                "rank": gap.option.rank,
                "unit": part.unit,
                **cells.csv_row(gap.trained, "trained", cells.SIZE),
                **cells.csv_row(gap.test, "test", cells.SIZE),
                **cells.csv_row(gap.gap, "gap"),
            }


def _pair_table(found: TrainTaskMechanisms) -> Table:
    assert found.matched is not None
    columns: list[Column[MatchedPair]] = [
        Column("Lower rank", lambda pair: pair.option.label),
        Column("Higher rank", lambda pair: pair.other.label, is_text=True),
        Column(
            "In-domain",
            lambda pair: cells.mean(pair.gain, has_size=True),
            f"lower − higher, {found.unit}",
        ),
        Column(
            "Retention", lambda pair: cells.mean(pair.kept, has_size=True), "lower − higher, points"
        ),
        Column("Does the lower keep more?", lambda pair: _ANSWERS[pair.answer], is_text=True),
    ]
    delta = quantities.amount(found.delta, found.unit)
    which = (
        f"Pairs whose in-domain gains are shown to be equal within δ = {delta}."
        if found.matched.match == "within delta"
        else f"No pair is shown to be equal within δ = {delta}; these cannot be told apart, which "
        "is weaker."
    )
    caption = f"Trained on {found.train_task}. {which} Paired over the same items."
    return table(caption, columns, found.matched.pairs)


def _pair_rows(found: Sequence[TrainTaskMechanisms]) -> Iterator[dict[str, Any]]:
    for part in found:
        if part.matched is None:
            continue
        for pair in part.matched.pairs:
            yield {
                "train_task": part.train_task,
                "option": pair.option.label,
                "other": pair.other.label,
                "match": part.matched.match,
                "unit": part.unit,
                **cells.csv_row(pair.gain, "gain", cells.SIZE),
                **cells.csv_row(pair.kept, "kept", cells.SIZE),
                "answer": pair.answer,
            }


def _agreement_table(found: TrainTaskMechanisms) -> Table:
    def score(mean: TaskMean | None) -> Cell:
        return cells.mean(mean, signed=False, has_size=True)

    columns: list[Column[AgreementWithFull]] = [
        Column("Model", _model_name),
        Column("Same outcome", lambda row: score(row.same_outcome), "% of items"),
        Column("Kappa", lambda row: cells.written(row.kappa, quantities.ratio), "beyond chance"),
        Column("Same option", lambda row: score(row.same_option), "% of items"),
        Column("Same next token", lambda row: score(row.same_next_token), "%"),
        Column("KL(full || model)", lambda row: score(row.kl), "nats per token"),
    ]
    caption = (
        f"Trained on {found.train_task}, in-domain items, each seed against full fine-tuning of "
        "the same seed. The base is an update of zero; full fine-tuning against its next seed is "
        "as alike as two runs can be expected to be."
    )
    by_reference: dict[str, list[AgreementWithFull]] = {}
    for row in found.agreement:
        by_reference.setdefault(row.reference.label, []).append(row)
    groups = [(f"Beside {label}", "", rows) for label, rows in by_reference.items()]
    return grouped_table(caption, columns, groups)


def _agreement_rows(found: Sequence[TrainTaskMechanisms]) -> Iterator[dict[str, Any]]:
    for part in found:
        for row in part.agreement:
            yield {
                "train_task": part.train_task,
                "option": BASE_LABEL if row.option is None else row.option.label,
                "reference": row.reference.label,
                "num_seeds": row.num_seeds,
                **cells.csv_row(row.same_outcome, "same_outcome_percent", cells.SIZE),
                **cells.csv_row(row.kappa, "kappa"),
                **cells.csv_row(row.same_option, "same_option_percent", cells.SIZE),
                **cells.csv_row(row.same_next_token, "same_next_token_percent", cells.SIZE),
                **cells.csv_row(row.kl, "kl_nats", cells.SIZE),
            }


def _model_name(row: AgreementWithFull) -> str:
    """The base, an option's label, or full fine-tuning as the next seed of itself."""
    if row.option is None:
        return BASE_LABEL
    return f"{row.option.label}, next seed" if row.option.rank is None else row.option.label


def _figures(found: TrainTaskMechanisms) -> Iterator[Figure]:
    if any(gap.option.rank is not None for gap in found.gaps):
        yield _gap_figure(found)
    if found.matched is not None and found.matched.pairs:
        yield _pair_figure(found, found.matched.pairs)
    if any(row.option is not None and row.option.rank is not None for row in found.agreement):
        yield _agreement_figure(found)


def _figure(
    found: TrainTaskMechanisms,
    name: str,
    title: str,
    sizes: str,
    caption: str,
    words: Sequence[str],
    chart: Chart,
) -> Figure:
    detail = f"{sizes}; bars are {quantities.percent(found.confidence)} intervals"
    described = f"{'; '.join(words)}."
    return Figure(name, title, caption, described, chart, detail, letters=(60, 64))


def _gap_figure(found: TrainTaskMechanisms) -> Figure:
    first = found.gaps[0]
    sizes = (
        f"{quantities.sample_size(first.trained, 'trained')} and "
        f"{quantities.count(first.test.num_examples)} test items"
        f"{quantities.in_clusters(first.test.num_clusters)}"
    )
    caption = (
        "How much more a model gains on trained items than on test items. The dashed line is full "
        "fine-tuning. Each bar or band is the interval of one gap; gaps share their items, so "
        "their differences, in the table, vary less."
    )
    words = [
        f"{gap.option.label} {quantities.with_interval(gap.gap, found.unit)}" for gap in found.gaps
    ]
    full = [gap for gap in found.gaps if gap.option.rank is None]
    panel = RankPanel(
        f"Gain on trained − test ({cells.unit_name(found.unit)})",
        [RankMark(gap.option.rank, gap.gap) for gap in found.gaps if gap.option.rank is not None],
        [
            RankLine("full" if len(full) == 1 else f"full ({number})", "full", gap.gap)
            for number, gap in enumerate(full, start=1)
        ],
        zero=True,
    )
    title = "Gap between trained and test items by rank"
    return _figure(found, "gap", title, sizes, caption, words, rank_chart([panel]))


def _pair_figure(found: TrainTaskMechanisms, pairs: Sequence[MatchedPair]) -> Figure:
    drawn = pairs[:MOST_PAIRS]
    caption = (
        "Each pair has the same in-domain gain, as the table says how. Right of zero the lower "
        "rank keeps more of the retention tasks; colours are those of the lower rank."
    )
    if len(pairs) > len(drawn):
        caption += f" {len(pairs) - len(drawn)} more pairs are in the table."
    names = [(pair.option.label, pair.other.label) for pair in drawn]
    is_short = all(len(f"{label} less {other}") <= _LETTERS for label, other in names)
    marks = [
        IntervalMark.of(pair.option.kind, _pair_label(*name), pair.kept)
        for pair, name in zip(drawn, names, strict=True)
    ]
    chart = interval_chart(
        marks,
        "Kept more by the lower rank (points)",
        width=320,
        step=_ONE_LINE if is_short else _TWO_LINES,
        label_limit=370,
        label_size=FONT_SIZE if is_short else FONT_SIZE - 1,
    )
    words = [
        f"{label} less {other} {cells.in_words(pair.kept)}"
        for pair, (label, other) in zip(drawn, names, strict=True)
    ]
    sizes = quantities.sample_size(pairs[0].kept, "retention items")
    title = "Kept by the lower of two ranks of equal gain"
    return _figure(found, "kept", title, sizes, caption, words, chart)


def _pair_label(label: str, other: str) -> str:
    """On one line if that is short, else on two."""
    text = f"{label} less {other}"
    return text if len(text) <= _LETTERS else f"{label}\nless {other}"


def _agreement_figure(found: TrainTaskMechanisms) -> Figure:
    panels: list[RankPanel] = []
    words: list[str] = []
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
                marks.append(RankMark(row.option.rank, mean))
        if marks:
            heading = f"{name}, {quantities.sample_size(rows[0][1])}"
            panels.append(RankPanel(unit, marks, lines, heading))
            said = [f"{_model_name(row)} {_score_words(mean)}" for row, mean in rows]
            words.append(f"{name}: {', '.join(said)}")
    caption = (
        "Every LoRA option against full fine-tuning of the same seed. The grey line is the base, "
        "an update of zero: agreement starts there."
    )
    if any(row.option is not None and row.option.rank is None for row in found.agreement):
        caption += " The dashed line is full fine-tuning against its own next seed."
    title, chart = "Agreement with full fine-tuning by rank", rank_chart(panels)
    return _figure(found, "agreement", title, "in-domain items", caption, words, chart)


def _score_words(mean: TaskMean) -> str:
    unit = "%" if mean.unit == "points" else "nats"
    bounds = quantities.score_interval(mean.lower, mean.upper, mean.unit)
    return f"{quantities.score(mean.estimate, mean.unit)} {unit} ({bounds})"
