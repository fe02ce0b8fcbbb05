"""Differences with their intervals, run under run, one panel for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.models import ModelSummary
from rankwise.records.study import Interval, Unit
from rankwise.report.charts.theme import FONT_SIZE, INK, MUTED, kind_colour, kind_shape

WIDTH = 350
LABEL_LIMIT = 150
_ROOMY, _TIGHT = 21, 16
_MANY_RUNS = 6
_LONGEST_NAME = 40


class Panel(NamedTuple):
    """The differences of every run on one task; ``size`` is its number of items, as text."""

    name: str
    size: str
    unit: Unit
    changes: tuple[tuple[ModelSummary, Interval], ...]

    @property
    def title(self) -> str:
        """The task and its number of items."""
        return f"{self.name}, {self.size}"

    @property
    def short_title(self) -> str:
        """The same, with the middle of a long name left out so that it fits over the panel."""
        if len(self.name) <= _LONGEST_NAME:
            return self.title
        return f"{self.name[: _LONGEST_NAME - 16]}…{self.name[-15:]}, {self.size}"


class Group(NamedTuple):
    """Panels that share an axis. ``title`` may be empty; ``left_out`` counts tasks not drawn."""

    title: str
    axis_title: str
    panels: tuple[Panel, ...]
    left_out: int = 0


def interval_chart(groups: Sequence[Group], title: alt.TitleParams) -> alt.VConcatChart:
    """Groups of panels below each other, each group with its own axis."""
    return alt.vconcat(*(_group_chart(group) for group in groups)).properties(title=title)


def _group_chart(group: Group) -> alt.FacetChart:
    titles = _titles(group.panels)
    data = alt.Data(
        values=[
            value
            for panel, title in zip(group.panels, titles, strict=True)
            for value in _values(panel, title)
        ]
    )
    labels = list(
        dict.fromkeys(summary.label for panel in group.panels for summary, _ in panel.changes)
    )
    y = alt.Y(
        "label:N",
        sort=labels,
        title=None,
        scale=alt.Scale(domain=labels),
        axis=alt.Axis(domain=False, ticks=False, labelLimit=LABEL_LIMIT, labelPadding=8),
    )
    x: dict[str, Any] = {
        "title": group.axis_title,
        "axis": alt.Axis(tickCount=6, labelFlush=False),
        "scale": alt.Scale(zero=True, padding=8),
    }
    colour = alt.Color("colour:N", scale=None)
    layers = alt.layer(
        alt.Chart().mark_rule(color=MUTED.light).encode(alt.X("zero:Q", **x)),
        alt.Chart()
        .mark_rule(strokeWidth=2)
        .encode(alt.X("low:Q", **x), alt.X2("high:Q"), y, colour),
        alt.Chart()
        .mark_point(filled=True, size=70, opacity=1)
        .encode(alt.X("x:Q", **x), y, colour, alt.Shape("shape:N", scale=None)),
        data=data,
    ).properties(
        width=WIDTH, height=len(labels) * (_ROOMY if len(labels) <= _MANY_RUNS else _TIGHT)
    )
    header = alt.Header(
        labelOrient="top", labelAnchor="start", labelPadding=4, labelFontWeight="normal", title=None
    )
    chart = layers.facet(row=alt.Row("panel:N", sort=titles, header=header))
    if not group.title:
        return chart
    return chart.properties(
        title=alt.TitleParams(group.title, fontSize=FONT_SIZE + 1, color=INK.light, offset=6)
    )


def _titles(panels: Sequence[Panel]) -> list[str]:
    """Short titles, unless two would be the same."""
    titles = [panel.short_title for panel in panels]
    return titles if len(set(titles)) == len(titles) else [panel.title for panel in panels]


def _values(panel: Panel, title: str) -> list[dict[str, Any]]:
    return [
        {
            "panel": title,
            "label": summary.label,
            "x": change.estimate,
            "low": change.lower,
            "high": change.upper,
            "zero": 0.0,
            "colour": kind_colour(summary.kind).light,
            "shape": kind_shape(summary.kind),
        }
        for summary, change in panel.changes
    ]
