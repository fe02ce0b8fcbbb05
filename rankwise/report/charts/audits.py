"""The charts of an audit: what a cut keeps, and what base and adapted model score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from rankwise.records import quantities
from rankwise.records.audits import AuditScore, KeptEnergy
from rankwise.records.study import Unit
from rankwise.report.charts.theme import FONT_SIZE, INK, MUTED, PAGE, SERIES

Layers = alt.LayerChart | alt.FacetChart

_WIDTH, _HEIGHT, _ROW = 520, 250, 24
_LEAST_SHARE = 0.5
_FEW_RANKS = 9


def energy_chart(
    kept: Sequence[KeptEnergy], cut: KeptEnergy, enough: float, title: alt.TitleParams
) -> Layers:
    """The share of the energy that a cut keeps, by rank: of all matrices, and of the worst one.

    Args:
        kept: rising with rank; at least one.
        cut: the smallest that keeps enough, marked.
        enough: that share, drawn across.
        title: with what the lines are in its subtitle.
    """
    low = min(_LEAST_SHARE, *(each.lowest for each in kept))
    x = alt.X(
        "rank:Q",
        title="Rank that every matrix is cut to (log scale)",
        scale=alt.Scale(type="log", base=2, domain=[1, max(kept[-1].rank, 2)], nice=False),
        axis=alt.Axis(values=_ticks(kept[-1].rank), format="d", labelOverlap=False, grid=False),
    )
    y = alt.Y(
        "share:Q",
        title="Energy kept (%)",
        scale=alt.Scale(domain=[100 * low, 100], nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )
    lines = [
        _line(kept, [each.lowest for each in kept], MUTED.light, [5, 3]).encode(x, y),
        _line(kept, [each.share for each in kept], SERIES[0].light, [1, 0]).encode(x, y),
    ]
    across = alt.Chart(alt.Data(values=[{"share": 100 * enough}])).mark_rule(
        color=MUTED.light, strokeDash=[2, 3]
    )
    mark = alt.Chart(
        alt.Data(
            values=[
                {
                    "rank": cut.rank,
                    "share": 100 * cut.share,
                    "text": f"rank {cut.rank}: {int(1000 * cut.share) / 10:.1f} %",
                }
            ]
        )
    )
    near_the_end = cut.rank > kept[-1].rank / 4
    style: dict[str, Any] = {
        "align": "right" if near_the_end else "left",
        "dx": -9 if near_the_end else 9,
        "dy": 16,
        "fontSize": FONT_SIZE,
    }
    halo = mark.mark_text(**style, color=PAGE.light, stroke=PAGE.light, strokeWidth=4)
    words = mark.mark_text(**style, color=INK.light, fontWeight="bold")
    point = mark.mark_point(filled=True, size=80, opacity=1, color=SERIES[0].light)
    return alt.layer(
        across.encode(y),
        *lines,
        point.encode(x, y),
        *(each.encode(x, y, alt.Text("text:N")) for each in (halo, words)),
    ).properties(width=_WIDTH, height=_HEIGHT, title=title)


def score_chart(scores: Sequence[AuditScore], title: alt.TitleParams) -> alt.VConcatChart:
    """The difference from the base on every task, an axis for each unit.

    Args:
        scores: at least one.
        title: with what the bars are in its subtitle.
    """
    units: dict[Unit, list[AuditScore]] = {}
    for score in scores:
        units.setdefault(score.unit, []).append(score)
    return alt.vconcat(*(_differences(own, unit) for unit, own in units.items())).properties(
        title=title
    )


def _line(
    kept: Sequence[KeptEnergy], shares: Sequence[float], colour: str, dash: list[int]
) -> alt.Chart:
    values = [
        {"rank": each.rank, "share": 100 * share} for each, share in zip(kept, shares, strict=True)
    ]
    return alt.Chart(alt.Data(values=values)).mark_line(
        color=colour, strokeDash=dash, strokeWidth=2
    )


def _ticks(longest: int) -> list[int]:
    powers = [2**power for power in range(longest.bit_length())]
    return powers if len(powers) <= _FEW_RANKS else powers[::2]


def _differences(scores: Sequence[AuditScore], unit: Unit) -> Layers:
    rows: list[dict[str, Any]] = [
        {
            "task": f"{each.task}, {quantities.size(each.num_examples)}",
            "x": each.difference,
            "low": each.lower,
            "high": each.upper,
            "zero": 0.0,
        }
        for each in scores
    ]
    name = "points" if unit == "points" else "nats per token"
    x: dict[str, Any] = {
        "title": f"adapted {quantities.MINUS} base ({name}), right is better",
        "axis": alt.Axis(tickCount=6, labelFlush=False),
        "scale": alt.Scale(zero=True, padding=8),
    }
    tasks = [row["task"] for row in rows]
    y = alt.Y(
        "task:N",
        sort=tasks,
        title=None,
        axis=alt.Axis(domain=False, ticks=False, labelLimit=260, labelPadding=8),
    )
    data, colour = alt.Data(values=rows), SERIES[0].light
    return alt.layer(
        alt.Chart().mark_rule(color=MUTED.light).encode(alt.X("zero:Q", **x)),
        alt.Chart()
        .mark_rule(strokeWidth=2, color=colour)
        .encode(alt.X("low:Q", **x), alt.X2("high:Q"), y),
        alt.Chart()
        .mark_point(filled=True, size=70, opacity=1, color=colour)
        .encode(alt.X("x:Q", **x), y),
        data=data,
    ).properties(width=_WIDTH - 120, height=max(len(rows), 2) * _ROW)
