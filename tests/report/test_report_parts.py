"""What the report is made of: number formats, colours, labels of points."""

from __future__ import annotations

import csv
import io
import itertools
import re

import pytest
from vl_convert import vegalite_to_svg

from rankwise.findings.options import OptionName
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.heatmap import HeatScale, LayerMap, layer_maps, plain
from rankwise.report.charts.marks import LETTER, LINE, Name, names_beside
from rankwise.report.charts.theme import INK, rank_colour
from rankwise.report.parts import Column, Table
from rankwise.report.rendering import Page, Part, rendered


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (quantities.change(-0.04, "points"), "0.0"),
        (quantities.change(0.0404, "nats"), "+0.040"),
        (quantities.change_interval(-3.21, 1.44, "points"), "−3.2 to +1.4"),
        (quantities.change_interval(73.9, 126.1, "points"), "+73.9 to +100.0"),
        (quantities.score_interval(-126.1, 2.0, "points"), "−100.0 to 2.0"),
        (quantities.change_interval(-1.0, 126.1, "nats"), "−1.000 to +126.100"),
        (quantities.times(0.0314), "0.031 ×"),
        (quantities.times(1.0), "1 ×"),
        (quantities.times(99.4), "99 ×"),
        (quantities.times(292.4), "292 ×"),
        (quantities.p_value(0.0432), "0.043"),
        (quantities.p_value(0.0099999), "0.010"),
        (quantities.p_value(1.0), "1.0"),
        (quantities.p_value(1.73e-18), "1.7 × 10⁻¹⁸"),
        (quantities.p_value(None), "—"),
        (quantities.parameters(460_800), "461 k"),
        (quantities.parameters(999_999), "1.00 M"),
        (quantities.share(0.0034), "0.34 %"),
        (quantities.share(1.0), "100 %"),
        (quantities.seconds(42.4), "42 s"),
        (quantities.seconds(750), "12.5 min"),
        (quantities.memory(1_500_000_000), "1.4 GiB"),
        (quantities.memory(900 * 2**20), "900 MiB"),
        (quantities.learning_rate(0.0002), "2e-4"),
        (quantities.counted(1, "seed"), "1 seed"),
        (quantities.listed(("a", "b", "c")), "a, b and c"),
    ],
)
def test_numbers_are_written_in_one_way(text: str, expected: str) -> None:
    assert text == expected


def test_a_column_is_written_by_the_type_of_its_field() -> None:
    rows = [
        OptionName(label="rank 4", rank=4),
        OptionName(label="rank 1024", rank=1024),
        OptionName(label="full", rank=None),
    ]
    nothing: dict[int, str] = {}
    table = Table.of(
        "",
        rows,
        Column("label", "Option"),
        Column("rank", "Rank"),
        Column("rank", "Half", write=".1f"),
        Column("kind", "In words", write={4: "four", 1024: "many", "full": "all"}),
        Column("label", "Words"),
        Column(lambda row: nothing.get(row.rank), "Left out"),
    )
    assert [heading.title for heading in table.headings] == [
        "Option", "Rank", "Half", "In words", "Words",
    ]  # fmt: skip
    assert [cell.value for cell in table.groups[0].rows[1]] == [
        "rank 1024", "1,024", "1024.0", "many", "rank 1024",
    ]  # fmt: skip
    assert table.groups[0].rows[2][1] == cells.EMPTY
    assert table.texts == (0, 4)


def test_every_rank_has_a_colour_of_its_own() -> None:
    ranks = [2**power for power in range(10)] + [3, 12, 48, 96]
    for side in ("light", "dark"):
        colours = [getattr(rank_colour(rank), side) for rank in ranks]
        assert len(set(colours)) == len(ranks)
        assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in colours)
    assert rank_colour(4096) == rank_colour(1024)


def test_names_do_not_cover_each_other_and_stay_in_the_plot() -> None:
    places = {"a": (50.0, 50.0), "b": (62.0, 52.0), "c": (55.0, 64.0), "d": (195.0, 45.0)}
    names = [Name(f"rank 16{letter}", x, y, INK) for letter, (x, y) in places.items()]
    *_, texts = names_beside(names, 200.0)
    assert texts["mark"]["type"] == "text"
    drawn = {row["names"]: (row["x"], row["y"]) for row in texts["data"]["values"]}
    assert set(drawn) == {name.text for name in names}
    width = LETTER * len("rank 16a")
    for (one, (x, y)), (other, (x2, y2)) in itertools.combinations(drawn.items(), 2):
        assert abs(x - x2) >= width or abs(y - y2) >= LINE, (one, other)
    assert all(0 <= x <= 200 - width for x, _ in drawn.values())


def test_columns_of_a_map_whose_names_end_alike_stay_apart() -> None:
    values = {(0, "left.of_a_long_name"): 1.0, (0, "right.of_a_long_name"): 2.0}
    drawing = layer_maps([LayerMap("a map", values, HeatScale.of([1.0, 2.0], plain))])
    drawn = vegalite_to_svg(drawing.chart)
    assert all(text in drawn for text in (">1</text>", ">2</text>"))
    assert "left.of_a" in drawn
    assert "right.of_a" in drawn


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\tx", "\rx", "a=b", "", "−3"]
    numbers = [-0.5, 0.25, -3, None]
    text = cells.csv_text([{"=name": cell} for cell in [*texts, *numbers]])
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=name"]
    assert [row[0] for row in rows][:9] == [
        *(f"'{formula}" for formula in (*texts[:5], "\nx")),
        *("a=b", "", "−3"),
    ]
    assert text.splitlines()[-4:] == ["-0.5", "0.25", "-3", '""']


def test_a_command_in_a_sentence_is_code_and_still_text() -> None:
    said = "Run `rankwise run <b>` or `tell` it, but not ` or <i>."
    page = rendered(Page("", "", "", [Part("", "audit", "", said, (), ())], ()))
    assert (
        "Run <code>rankwise run &lt;b&gt;</code> or <code>tell</code> it, but not ` or &lt;i&gt;."
        in page
    )
