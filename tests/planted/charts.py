"""A chart of every kind."""

from __future__ import annotations

from rankwise.records.study import Interval
from rankwise.report.charts.heatmap import (
    HeatCell,
    HeatPanel,
    HeatScale,
    LayerMap,
    heat_map,
    layer_maps,
    plain,
)
from rankwise.report.charts.intervals import Bar, BarPanel, interval_chart
from rankwise.report.charts.losses import loss_chart
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.plane import Plane, PlaneMark, plane_chart
from rankwise.report.charts.ranks import RankLine, RankMark, RankPanel, rank_chart

INTERVAL = Interval(estimate=1.0, lower=-1.0, upper=3.0)
LINES = [RankLine("full", "full", INTERVAL), RankLine("base", "base", 0.0)]
RANKS = [RankMark(4, INTERVAL, is_ringed=True, name="rank 4"), RankMark(8, 1.0)]
SERIES = [mark._replace(series="16") for mark in RANKS]
CURVES = {"law": [(4.0, 1.0), (8.0, 2.0)]}
BARS = [Bar("task\nn = 9", f"rank {rank}", rank, INTERVAL, "task") for rank in (4, 8)]
MARKS = [
    PlaneMark("rank 4", MarkStyle.of(4), INTERVAL, INTERVAL, "", is_ringed=True, model="rank 4"),
    PlaneMark("rank 8", MarkStyle.of(8), 1.0, 0.9, ""),
]
SCALE = HeatScale((1.0, 2.0, 3.0, 4.0), plain, is_signed=True, title="points")
CELLS = {
    ("rank 4", "task"): HeatCell(1.0, "+1.0", "0 to 2", frame="#1c2024", task="task"),
    ("rank 8", "task"): HeatCell(None, "—"),
}
CHARTS = {
    "intervals": interval_chart([BarPanel("", "points", "points", BARS)]),
    "losses": loss_chart({"rank 4": (4, [(1, 3.0), (2, 2.0)])}),
    "map": heat_map([HeatPanel("", ["task"], ["rank 4", "rank 8"], CELLS, SCALE)], (9, 9)),
    "layers": layer_maps([LayerMap("a map", {(0, "q"): 1.0, (1, "q"): -2.0}, SCALE)]),
    "plane": plane_chart([Plane("x", "y", MARKS, True, (-1.0, "ε"), [1, 0, None], 0.95)]),
    "ranks": rank_chart([RankPanel("y", RANKS, LINES, title="t", has_zero=True, write=str)] * 2),
    "curves": rank_chart([RankPanel("y", RANKS, curves=CURVES, write=str)]),
    "series": rank_chart([RankPanel("y", SERIES, write=str)], ["16"], "alpha"),
}
