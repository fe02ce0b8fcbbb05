"""Of very many runs, tasks and cells a page draws and lists what can be read, and says so."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from rankwise.findings.models import summarise
from rankwise.findings.recommendation import recommend
from rankwise.records.study import Interval
from rankwise.report.cells import Cell
from rankwise.report.charts.heatmap import HeatScale, LayerMap, layer_maps, plain
from rankwise.report.charts.marks import MOST_MARKS, MarkStyle, padded
from rankwise.report.charts.plane import MOST_NAMES, Plane, PlaneMark, plane_chart
from rankwise.report.charts.ranks import RankLine, RankMark, RankPanel, rank_chart
from rankwise.report.parts import MOST_ROWS, Chart, Heading, RowGroup, Table, shortened
from rankwise.report.sections.overview import study_figures
from tests.planted.results import planted_study
from tests.support.sentences import Sentences

RANKS, SEEDS = (8, 12, 32), 60
RECOMMENDED = 101
"""A run at rank 12 that evenly thinning out leaves out."""


def layers(chart: Chart, kind: str) -> list[Chart]:
    return [each for each in chart["layer"] if each["mark"]["type"] == kind]


def points(chart: Chart) -> list[dict[str, Any]]:
    return layers(chart, "point")[-1]["data"]["values"]


def test_marks_of_many_seeds_stand_beside_their_rank(sentence: Sentences) -> None:
    marks = [RankMark(rank, float(seed)) for rank in RANKS for seed in range(SEEDS)]
    marks[RECOMMENDED] = marks[RECOMMENDED]._replace(is_ringed=True)
    lines = [RankLine("full", "full", Interval(estimate=9.0, lower=8.0, upper=10.0))] * SEEDS
    drawing = rank_chart([RankPanel("points", marks, lines, write=str)])
    drawn = points(drawing.chart)
    sentence(drawing.note, names=(len(drawn), "180"))
    assert MOST_MARKS <= len(drawn) <= MOST_MARKS + 1
    assert [row["y"] for row in drawn if row["is_ringed"]] == [RECOMMENDED - SEEDS]
    places = {rank: [row["x"] for row in drawn if _nearest(row["x"]) == rank] for rank in RANKS}
    assert all(len(own) > SEEDS // 2 for own in places.values())
    for low, high in itertools.pairwise(RANKS):
        assert max(places[low]) < min(places[high])
    (through,) = layers(drawing.chart, "line")
    assert [row["y"] for row in through["data"]["values"]] == [(SEEDS - 1) / 2] * 3
    (band,) = layers(drawing.chart, "rect")
    assert len(band["data"]["values"]) * band["mark"]["opacity"] == pytest.approx(0.16)
    assert band["mark"]["opacity"] > 1 / 255


def _nearest(place: float) -> int:
    return min(RANKS, key=lambda rank: abs(math.log2(place / rank)))


def test_labels_of_many_ranks_do_not_touch() -> None:
    ranks = range(2, 50, 2)
    drawing = rank_chart([RankPanel("points", [RankMark(rank, 1.0) for rank in ranks])])
    x = points_channel(drawing.chart, "x")
    low, high = x["scale"]["domain"]
    width = drawing.chart["width"] / math.log2(high / low)
    gaps = [width * math.log2(b / a) for a, b in itertools.pairwise(x["axis"]["values"])]
    assert len(gaps) > 5
    assert min(gaps) > 25


def points_channel(chart: Chart, channel: str) -> dict[str, Any]:
    return layers(chart, "point")[-1]["encoding"][channel]


def test_numbers_that_differ_by_rounding_have_an_axis_that_can_be_read() -> None:
    low, high = padded([6.289316338045018, 6.289316338045019])
    assert high - low > 0.5


def test_a_plane_of_many_runs_keeps_its_path_its_ring_and_some_names(sentence: Sentences) -> None:
    marks = [
        PlaneMark(f"rank {n // 10}", MarkStyle.of(8), float(n), 0.0, f"run {n}") for n in range(400)
    ]
    marks[RECOMMENDED] = marks[RECOMMENDED]._replace(is_ringed=True)
    drawing = plane_chart([Plane("x", "y", marks, path=[201, None, 203])])
    drawn = points(drawing.chart)
    assert {RECOMMENDED, 201, 203} <= {row["x"] for row in drawn}
    assert [row["x"] for row in drawn if row["is_ringed"]] == [RECOMMENDED]
    assert len(drawn) < MOST_MARKS + 4
    (path,) = layers(drawing.chart, "line")
    assert [row["x"] for row in path["data"]["values"]] == [201, 0, 203]
    names = [row["names"] for row in layers(drawing.chart, "text")[-1]["data"]["values"]]
    assert "rank 10" in names
    assert len(names) <= MOST_NAMES + 1
    sentence(drawing.note, names=(len(drawn), "400", MOST_NAMES, "40"))


@pytest.mark.parametrize(("num_layers", "has_numbers"), [(30, True), (31, False)])
def test_a_map_of_many_cells_has_no_numbers(num_layers: int, has_numbers: bool) -> None:
    values = {(layer, part): 1.0 for layer in range(num_layers) for part in "qkvo"}
    scale = HeatScale((1.0, 2.0, 3.0, 4.0), plain)
    maps, _ = layer_maps([LayerMap(name, values, scale) for name in "ab"]).chart["vconcat"]
    assert all(bool(layers(each, "text")) is has_numbers for each in maps["concat"])


def test_bars_of_very_many_runs_are_of_one_run_at_each_rank() -> None:
    results = planted_study(dict.fromkeys((2, 4, 8, "full"), 0.7), seeds=range(10))
    (part,) = results.by_train_task
    (recommendation,) = recommend(results).by_train_task
    figures = study_figures(part, recommendation, summarise(part, recommendation))
    for figure, relations in ((figures[2], 3), (figures[3], 1)):
        assert figure.drawing is not None
        assert "36 more" in figure.caption
        series = {row["run"] for panel in figure.drawing.chart["vconcat"] for row in points(panel)}
        assert series == {f"rank {n}, seed 0" for n in (2, 4, 8)} | {"full fine-tuning, seed 0"}
        assert len(figure.drawing.chart["vconcat"]) == relations


def rows(num_rows: int, marked: int = -1) -> tuple[tuple[Cell, ...], ...]:
    return tuple((Cell(str(n), is_marked=n == marked),) for n in range(num_rows))


def test_a_long_table_is_thinned_out_and_keeps_what_is_marked(sentence: Sentences) -> None:
    whole = Table("Runs.", (Heading("Run"),), (RowGroup("", "", rows(1000, marked=504)),))
    shown = shortened(whole)
    (group,) = shown.groups
    names = [int(row[0].value) for row in group.rows]
    assert {0, 504, 999} <= set(names)
    assert MOST_ROWS <= len(names) <= MOST_ROWS + 1
    sentence(shown.caption, names=("Runs. ", len(names), "1,000"))


def test_a_table_of_many_tasks_shows_whole_tasks() -> None:
    groups = tuple(RowGroup(f"task {n}", "", rows(10)) for n in range(300))
    shown = shortened(Table("Tasks.", (Heading("Run"),), groups))
    assert shown.groups == groups[: MOST_ROWS // 10]
    few = Table("Tasks.", (Heading("Run"),), groups[: MOST_ROWS // 10])
    assert shortened(few) is few
