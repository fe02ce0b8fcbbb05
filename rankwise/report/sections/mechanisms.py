"""The mechanisms on the page: does a low rank regularise, does a high one approach full?"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

import altair as alt

from rankwise.findings.agreement import AgreementWithFull
from rankwise.findings.mechanisms import MatchedPair, TrainTaskMechanisms, TrainTestGap
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.report.changes import left_out_remark, mean_words
from rankwise.report.charts.mechanisms import (
    PairMark,
    RankLine,
    RankMark,
    RankPanel,
    pair_chart,
    rank_panels,
)
from rankwise.report.charts.theme import theme
from rankwise.report.parts import Chart, Figure, ReportSection, Table, TitledTable, file_name
from rankwise.report.tables.csv import csv_text
from rankwise.report.tables.mechanisms import (
    agreement_rows,
    agreement_table,
    gap_rows,
    gap_table,
    model_name,
    pair_rows,
    pair_table,
    trend_table,
)

MOST_PAIRS = 16
"""More pairs than this are too many to draw; the others are in the table."""

_SUBTITLE_WIDTH = 64

# What is drawn; the table has more.
_MEASURES: tuple[tuple[str, str, Callable[[AgreementWithFull], TaskMean | None]], ...] = (
    ("Same outcome", "% of items", lambda row: row.same_outcome),
    ("Same option chosen", "% of items", lambda row: row.same_option),
    ("KL(full || model)", "nats per token", lambda row: row.kl),
)


def mechanism_section(found: Sequence[TrainTaskMechanisms]) -> ReportSection:
    """For each trained task what was found in words, three charts, and every number.

    Args:
        found: at least one.
    """
    several = len(found) > 1
    remarks = [
        "The reference paper explains its findings by mechanisms; here they are tested. Each is "
        "shown, contradicted or undecided by the interval "
        f"({quantities.percent(found[0].confidence)}) of one paired difference. Exploratory: with "
        "many intervals some miss, and the recommendation does not rest on them.",
        *_statements(found, several),
    ]
    seeds = {trend.num_seeds for part in found for trend in part.trends}
    if seeds == {1}:
        remarks.append("With one seed, all of this is conditional on that seed.")
    for each in found:
        where = f", trained on {each.train_task}" if several else ""
        if not each.agreement:
            remarks.append(f"Agreement was not measured{where}: no full fine-tuning of that seed.")
        if each.matched is None:
            remarks.append(
                f"What is kept was not compared{where}: the study has no retention task."
            )
        remarks += left_out_remark(each.left_out, where)
    files = {
        "mechanism-gaps.csv": csv_text(gap_rows(found)),
        "mechanism-pairs.csv": csv_text(pair_rows(found)),
        "mechanism-agreement.csv": csv_text(agreement_rows(found)),
    }
    return ReportSection(
        name="mechanisms",
        title="Mechanisms",
        remarks=tuple(remarks),
        figures=tuple(figure for each in found for figure in _figures(each, several)),
        tables=tuple(table for each in found for table in _tables(each, several)),
        files={name: text for name, text in files.items() if text.strip()},
    )


def _statements(found: Sequence[TrainTaskMechanisms], several: bool) -> Iterator[str]:
    for part in found:
        for sentence in part.statements:
            if several:
                yield f"Trained on {part.train_task}: {sentence[:1].lower()}{sentence[1:]}"
            else:
                yield sentence


def _tables(found: TrainTaskMechanisms, several: bool) -> Iterator[TitledTable]:
    where = f", trained on {found.train_task}" if several else ""
    tables: list[tuple[str, Table]] = []
    if found.trends:
        tables.append(("From the smallest to the largest rank", trend_table(found)))
    if found.gaps:
        tables.append(("Trained and test items", gap_table(found)))
    if found.matched is not None and found.matched.pairs:
        tables.append(("Kept at equal gain", pair_table(found, found.matched)))
    if found.agreement:
        tables.append(("Agreement with full fine-tuning", agreement_table(found)))
    for title, table in tables:
        yield TitledTable(f"{title}{where}", table)


def _figures(found: TrainTaskMechanisms, several: bool) -> Iterator[Figure]:
    if any(gap.option.rank is not None for gap in found.gaps):
        yield _gap_figure(found, several)
    if found.matched is not None and found.matched.pairs:
        yield _pair_figure(found, found.matched.pairs, several)
    if any(row.option is not None and row.option.rank is not None for row in found.agreement):
        yield _agreement_figure(found, several)


def _gap_figure(found: TrainTaskMechanisms, several: bool) -> Figure:
    title = "Gap between trained and test items by rank"
    first = found.gaps[0]
    sizes = (
        f"{quantities.sample_size(first.trained, 'trained')} and "
        f"{quantities.count(first.test.num_examples)} test items"
        f"{quantities.in_clusters(first.test.num_clusters)}"
    )
    unit = "points" if found.unit == "points" else "nats per token"
    panel = RankPanel(
        title="",
        y_title=f"Gain on trained − test ({unit})",
        marks=tuple(
            RankMark(gap.option, gap.gap) for gap in found.gaps if gap.option.rank is not None
        ),
        lines=_full_lines(found.gaps),
        zero=True,
    )
    caption = (
        "How much more a model gains on trained items than on test items. The dashed line is full "
        "fine-tuning. Each bar or band is the interval of one gap; gaps share their items, so "
        "their differences, in the table, vary less."
    )
    words = [
        f"{gap.option.label} {quantities.with_interval(gap.gap, found.unit)}" for gap in found.gaps
    ]
    chart = rank_panels([panel], _title(title, sizes, found, several))
    return _figure(found, "gap", title, caption, words, chart, several)


def _full_lines(gaps: Iterable[TrainTestGap]) -> tuple[RankLine, ...]:
    full = [gap for gap in gaps if gap.option.rank is None]
    return tuple(
        RankLine("full" if len(full) == 1 else f"full ({number})", "full", gap.gap)
        for number, gap in enumerate(full, start=1)
    )


def _pair_figure(found: TrainTaskMechanisms, pairs: Sequence[MatchedPair], several: bool) -> Figure:
    title = "Kept by the lower of two ranks of equal gain"
    kept = pairs[0].kept
    sizes = quantities.sample_size(kept, "retention items")
    marks = [
        PairMark(pair.option.label, pair.other.label, pair.option.kind, pair.kept)
        for pair in pairs[:MOST_PAIRS]
    ]
    chart = pair_chart(
        marks, "Kept more by the lower rank (points)", _title(title, sizes, found, several)
    )
    caption = (
        "Each pair has the same in-domain gain, as the table says how. Right of zero the lower "
        "rank keeps more of the retention tasks; colours are those of the lower rank."
    )
    if len(pairs) > MOST_PAIRS:
        caption += f" {len(pairs) - MOST_PAIRS} more pairs are in the table."
    words = [f"{p.option.label} less {p.other.label} {mean_words(p.kept)}" for p in pairs]
    return _figure(found, "kept", title, caption, words[:MOST_PAIRS], chart, several)


def _agreement_figure(found: TrainTaskMechanisms, several: bool) -> Figure:
    title = "Agreement with full fine-tuning by rank"
    panels: list[RankPanel] = []
    words: list[str] = []
    for name, unit, measure in _MEASURES:
        rows = [(row, mean) for row in found.agreement if (mean := measure(row)) is not None]
        panel = _agreement_panel(name, unit, rows)
        if panel is not None:
            panels.append(panel)
            said = [f"{model_name(row)} {_words(mean)}" for row, mean in rows]
            words.append(f"{name}: {', '.join(said)}")
    caption = (
        "Every LoRA option against full fine-tuning of the same seed. The grey line is the base, "
        "an update of zero: agreement starts there."
    )
    if any(row.option is not None and row.option.rank is None for row in found.agreement):
        caption += " The dashed line is full fine-tuning against its own next seed."
    chart = rank_panels(panels, _title(title, "in-domain items", found, several))
    return _figure(found, "agreement", title, caption, words, chart, several)


def _agreement_panel(
    name: str, unit: str, rows: Sequence[tuple[AgreementWithFull, TaskMean]]
) -> RankPanel | None:
    marks: list[RankMark] = []
    lines: list[RankLine] = []
    for row, mean in rows:
        if row.option is None:
            lines.append(RankLine("base", "base", mean))
        elif row.option.rank is None:
            lines.append(RankLine("next seed", "full", mean))
        else:
            marks.append(RankMark(row.option, mean))
    if not marks:
        return None
    heading = f"{name}, {quantities.sample_size(rows[0][1])}"
    return RankPanel(heading, unit, tuple(marks), tuple(lines))


def _words(mean: TaskMean) -> str:
    unit = "%" if mean.unit == "points" else "nats"
    return (
        f"{quantities.score(mean.estimate, mean.unit)} {unit} "
        f"({quantities.score_interval(mean.lower, mean.upper, mean.unit)})"
    )


def _title(title: str, sizes: str, found: TrainTaskMechanisms, several: bool) -> alt.TitleParams:
    where = f", trained on {found.train_task}" if several else ""
    subtitle = f"{sizes}; bars are {quantities.percent(found.confidence)} intervals"
    return alt.TitleParams(
        textwrap.wrap(f"{title}{where}", _SUBTITLE_WIDTH - 4),
        subtitle=textwrap.wrap(subtitle, _SUBTITLE_WIDTH),
    )


def _figure(
    found: TrainTaskMechanisms,
    name: str,
    title: str,
    caption: str,
    words: Sequence[str],
    chart: Chart,
    several: bool,
) -> Figure:
    where = f", trained on {found.train_task}" if several else ""
    prefix = f"{file_name(found.train_task)}-" if several else ""
    return Figure(
        f"mechanism-{prefix}{name}",
        f"{title}{where}",
        caption,
        f"{'; '.join(words)}.",
        chart.configure(**theme()),
    )
