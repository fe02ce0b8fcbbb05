"""By rank, and by what else differs: one setting at a time, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rankwise.findings.axes import (
    Axis,
    AxisEffect,
    AxisLead,
    AxisName,
    AxisState,
    TrainTaskAxes,
)
from rankwise.findings.checkpoints import TrainTaskCheckpoints
from rankwise.findings.comparison import Compared
from rankwise.records import quantities
from rankwise.records.axes import FULL_LABEL
from rankwise.records.grouping import grouped
from rankwise.records.study import Unit
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.ranks import MOST_SERIES, RankMark, RankPanel, in_unit, rank_chart
from rankwise.report.parts import Column, Figure, ReportSection, Shown, Table, file_name, shows

MOST_PANELS = 9
"""More panels than this are too many to draw."""

ChangeKind = Literal["gain", "retention"]

Along = Literal["rank", "number of rows"]
_ALONG: dict[Along, str] = {
    "rank": "LoRA rank (log scale)",
    "number of rows": "Training rows (log scale)",
}

_TITLES: dict[ChangeKind, tuple[str, str]] = {
    "gain": ("In-domain gain", "Gain"),
    "retention": ("Change on retention tasks", "Change"),
}


class ChangeAtRank(NamedTuple):
    """What a model changes; ``panel`` is the setting it stands under, ``series`` what else.

    ``rank`` is its place on the axis: a number of rows may take the place of a rank.
    """

    panel: str
    rank: int | None
    series: str
    of: Compared


def change_figures(
    changes: Sequence[ChangeAtRank],
    title: str,
    series: Sequence[str],
    series_title: str,
    confidence: float,
    *,
    name: str = "",
    more: str = "",
    along: Along = "rank",
) -> Iterator[Figure]:
    """A figure of the gains and one of retention, each where there is any at a rank.

    Args:
        changes: in any order.
        title: what stands behind the name of the change.
        series: in their order; more than can be told apart are left out.
        series_title: of the key.
        confidence: of the intervals.
        name: before that of the change.
        more: a sentence for the caption.
        along: what the axis has.
    """
    for kind, (what, y_title) in _TITLES.items():
        drawn = [
            (
                RankMark(change.rank, mean, change.series, name=_pattern_name(change.of)),
                mean,
                change.panel,
            )
            for change in changes
            if (mean := change.of.gain if kind == "gain" else change.of.retention) is not None
            and change.rank is not None
            and change.series in series[:MOST_SERIES]
        ]
        if not drawn:
            continue
        first = drawn[0][1]
        names = list(dict.fromkeys(panel for *_, panel in drawn))
        panels = [
            RankPanel(
                f"{y_title} ({cells.unit_name(first.unit)})",
                [mark for mark, _, its_panel in drawn if its_panel == panel],
                title=panel,
                has_zero=True,
                write=in_unit(first.unit),
            )
            for panel in names[:MOST_PANELS]
        ]
        caption = (
            f"Above zero is better than the base. Values at one {along} are side by side. Each "
            "interval is for one change from the base; models share their items, so the paired "
            "differences in the table vary less."
        )
        caption += cells.more(len(series) - MOST_SERIES, "values are in the table")
        caption += cells.more(len(names) - MOST_PANELS, "settings are in the CSV file")
        there = {mark.series for mark, *_ in drawn}
        items = quantities.sample_size(first, "items")
        items += f" in {first.num_tasks} tasks" if first.num_tasks > 1 else ""
        yield Figure(
            f"{name}-{kind}" if name else kind,
            f"{what}{title}",
            f"{caption} {more}".strip(),
            rank_chart(
                panels, [each for each in series if each in there], series_title, _ALONG[along]
            ),
            f"{items}; bars are {cells.intervals(confidence)}",
        )


def _pattern_name(of: Compared) -> str:
    """What a rank pattern is called, which stands at its mean rank."""
    return "" if of.mean_rank is None else quantities.rank(of)


_HELD = {
    "epochs": "read each of their rows as often",
    "steps": "take as many optimizer steps, so that they read their rows more often",
}


@shows("axes")
def axis_section(found: Sequence[TrainTaskAxes], *_: object) -> ReportSection:
    """Two charts for each axis other than rank, and a table for each trained task."""
    about = [
        "Each value of an axis against the first, averaged over the combinations of the other "
        "axes that were trained with both, so that nothing else differs. Seeds are averaged, items "
        f"paired. Intervals are {quantities.percent(found[0].confidence)}, one at a time; p values "
        "are corrected by Holm's method over the values of an axis. Exploratory: the "
        "recommendation does not rest on this."
    ]
    if (rows_at := found[0].rows_at) is not None:
        about.append(
            "Runs on fewer rows are trained on the first of the same rows in one order, and "
            f"{_HELD[rows_at]}."
        )

    return ReportSection.of(
        "axes", "One setting at a time", about, found, _axes_shown, figures="axis"
    )


def _axes_shown(found: TrainTaskAxes) -> Iterator[Shown]:
    """Whether each axis matters, its figures, whose panels are the other axes, and the table."""
    for axis in found.axes:
        text = f"in-domain {_verdict(axis.state, found.delta, found.unit, 'δ')}"
        if found.epsilon_points is not None:
            kept = _verdict(axis.retention_state, found.epsilon_points, "points", "ε")
            text += f"; on retention {kept}"
        yield f"{_axis_name(axis)} ({', '.join(axis.values)}): {text}."
    drawn = [axis for axis in found.axes if axis.method == "lora" and axis.name != "rank"]
    for axis in drawn:
        others: list[AxisName] = [each.name for each in drawn if each.name != axis.name]
        if axis.name == "rows":
            yield from _by_rows(found, ["rank", *others])
            continue
        changes = [
            ChangeAtRank(point.in_words(others), point.rank, point.settings[axis.name], point)
            for point in found.points
        ]
        title, name = f" by rank and {axis.name}", file_name(axis.name)
        yield from change_figures(
            changes, title, axis.values, axis.name, found.confidence, name=name
        )

    def combinations(row: tuple[Axis, AxisEffect]) -> Cell:
        same = row[1].num_same_runs
        note = f"{quantities.count(same)} of them one run" if same else ""
        return Cell(quantities.count(row[1].num_combinations), "", note)

    retention: list[Column] = [
        Column("1.retention_lead", "Retention", "difference, points", _lead),
        Column("1.retention_lead", "Holm p", write=_holm_p),
    ]
    yield Table.of(
        f"Trained on {found.train_task}: each value less the first of its axis, on the same items, "
        "all other settings equal. Positive is better.",
        [(axis, effect) for axis in found.axes for effect in axis.effects],
        Column("1.value", "Value"),
        Column(combinations, "Matched combinations", "of the other axes"),
        Column("1.lead", "In-domain", f"difference, {found.unit}", _lead),
        Column("1.lead", "Holm p", write=_holm_p),
        *(() if found.epsilon_points is None else retention),
        by=lambda row: (_axis_name(row[0]), f"against {row[0].values[0]}"),
        file="axes",
    )
    yield Table.in_files("axes", found.points)


def _by_rows(found: TrainTaskAxes, others: Sequence[AxisName]) -> Iterator[Shown]:
    """Two charts with a line for each setting, and their numbers."""
    by_setting = grouped((point.in_words(others), point) for point in found.points)
    changes = [
        ChangeAtRank("", int(point.settings["rows"]), setting, point)
        for setting, points in by_setting.items()
        for point in points
    ]
    yield from change_figures(
        changes,
        " by number of rows",
        [*by_setting],
        "setting",
        found.confidence,
        name="rows",
        along="number of rows",
    )
    table = Table.of(
        cells.changes_caption(found.train_task, found.confidence),
        found.points,
        Column(lambda row: int(row.settings["rows"]), "Rows"),
        Column("gain", "Gain", found.unit, cells.sized),
        Column("retention", "Retention", "change, points", cells.sized),
        by=lambda row: row.in_words(others),
    )
    yield "By number of rows", table


def _verdict(state: AxisState | None, margin: float, unit: Unit, letter: str) -> str:
    amount = f"{letter}\u00a0=\u00a0{quantities.amount(margin, unit)}"
    return {
        None: "not compared",
        "different": "it matters",
        "slightly different": f"it matters, by less than {amount}",
        "alike": f"its values are alike within {amount}",
        "undecided": "cannot tell",
    }[state]


def _axis_name(axis: Axis) -> str:
    return f"{FULL_LABEL}, {axis.name}" if axis.method == "full" else axis.name


def _lead(lead: AxisLead | None) -> Cell:
    return Cell("not compared") if lead is None else cells.sized(lead)


def _holm_p(lead: AxisLead | None) -> str | None:
    """Below this it is not known more exactly."""
    if lead is None:
        return None
    return "< 10⁻⁹" if lead.holm_p_value < 1e-9 else quantities.p_value(lead.holm_p_value)


@shows("checkpoints")
def checkpoint_section(found: Sequence[TrainTaskCheckpoints], *_: object) -> ReportSection:
    """Two charts and a table for each trained task."""
    about = (
        "Runs are scored on their way too. Which step is best is chosen on validation items, and "
        "compared with the end on test items, paired. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory. The "
        "recommendation is about the ends."
    )

    return ReportSection.of(
        "checkpoints", "On the way: checkpoints", about, found, _checkpoints_shown
    )


def _checkpoints_shown(found: TrainTaskCheckpoints) -> Iterator[Shown]:
    changes = [
        # as a value beside rank: the share of the steps, the same for every option
        ChangeAtRank("", point.rank, quantities.percent(round(share, 3)), point)
        for point in found.points
        for share in [point.step / point.num_steps]
    ]
    yield from change_figures(
        changes,
        " by rank and share of the steps",
        sorted({change.series for change in changes}, key=lambda text: float(text[:-2])),
        "steps",
        found.confidence,
        more="The last share is the end of the training.",
    )
    yield Table.of(
        f"Trained on {found.train_task}: change from the base after so many steps. Worth is the "
        "gain less twice the retention loss beyond ε, on validation items.",
        found.points,
        Column(lambda row: f"{quantities.count(row.step)} of {row.num_steps}", "Step"),
        Column("gain", "Gain", "test items"),
        Column("retention", "Retention", "test items"),
        Column("validation_worth", "Worth", "validation", "+.1f"),
        Column("kl_prompts", "KL, prompts", "nats per token", ".3g"),
        Column(lambda row: "yes" if row.is_chosen else "", "Chosen", is_text=True),
        by=lambda row: row.label,
        file="checkpoints",
    )
