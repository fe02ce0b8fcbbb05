"""What an update keeps when it is cut to a lower rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from rankwise.records.audits import KeptEnergy
from rankwise.report.charts.theme import FONT_SIZE, INK, MUTED, PAGE, SERIES
from rankwise.report.parts import Chart

_WIDTH, _HEIGHT = 520, 250
_LEAST_SHARE, _FEW_RANKS = 0.5, 9


def energy_chart(kept: Sequence[KeptEnergy], cut: KeptEnergy, enough: float) -> Chart:
    """The share of the energy that a cut keeps, by rank: of all matrices, and of the worst one.

    Args:
        kept: rising with rank; at least one.
        cut: the smallest that keeps enough, marked.
        enough: that share, drawn across.
    """
    longest = kept[-1].rank
    powers = [2**power for power in range(longest.bit_length())]
    ticks = powers if len(powers) <= _FEW_RANKS else powers[::2]
    low = min(_LEAST_SHARE, *(at.lowest for at in kept))
    x = alt.X(
        "rank:Q",
        title="Rank that every matrix is cut to (log scale)",
        scale=alt.Scale(type="log", base=2, domain=[1, max(longest, 2)], nice=False),
        axis=alt.Axis(values=ticks, format="d", labelOverlap=False, grid=False),
    )
    y = alt.Y(
        "share:Q",
        title="Energy kept (%)",
        scale=alt.Scale(domain=[100 * low, 100], nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )

    def of(rows: Sequence[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.Data(values=list(rows)))

    def line(shares: Sequence[float], colour: str, dash: list[int]) -> alt.Chart:
        rows = [
            {"rank": at.rank, "share": 100 * share} for at, share in zip(kept, shares, strict=True)
        ]
        return of(rows).mark_line(color=colour, strokeDash=dash, strokeWidth=2).encode(x, y)

    near_the_end = cut.rank > longest / 4
    style: dict[str, Any] = {
        "align": "right" if near_the_end else "left",
        "dx": -9 if near_the_end else 9,
        "dy": 16,
        "fontSize": FONT_SIZE,
    }
    text = f"rank {cut.rank}: {int(1000 * cut.share) / 10:.1f} %"
    mark = of([{"rank": cut.rank, "share": 100 * cut.share, "text": text}]).encode(x, y)
    named = mark.encode(alt.Text("text:N"))
    return alt.layer(
        of([{"share": 100 * enough}]).mark_rule(color=MUTED.light, strokeDash=[2, 3]).encode(y),
        line([at.lowest for at in kept], MUTED.light, [5, 3]),
        line([at.share for at in kept], SERIES[0].light, [1, 0]),
        mark.mark_point(filled=True, size=80, opacity=1, color=SERIES[0].light),
        named.mark_text(**style, color=PAGE.light, stroke=PAGE.light, strokeWidth=4),
        named.mark_text(**style, color=INK.light, fontWeight="bold"),
    ).properties(width=_WIDTH, height=_HEIGHT)
