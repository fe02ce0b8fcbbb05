"""The charts of a page as files, for papers and slides."""

from __future__ import annotations

import json
import textwrap

import vl_convert

from rankwise.report.charts.marks import with_datasets
from rankwise.report.charts.theme import PAGE, on_white, theme
from rankwise.report.parts import Chart, Figure
from rankwise.report.rendering import Page

PNG_SCALE = 2.5

_LETTERS = 72
"""Of a line above a chart, at most."""


def figure_files(page: Page) -> dict[str, dict[str, str | bytes]]:
    """The files of each figure that has a chart: by its name, the content by suffix."""
    return {
        figure.name: {"svg": svg, "png": vl_convert.svg_to_png(svg, scale=PNG_SCALE)}
        for section in page.all_sections
        for figure in section.figures
        # PNG from the SVG: compiling the chart a second time takes longer than drawing it
        for svg in [figure_svg(figure)]
    }


def figure_svg(figure: Figure) -> str:
    """The chart under the figure's title, on white."""
    return vl_convert.vegalite_to_svg(specification(figure))


def specification(figure: Figure) -> Chart:
    """All that the chart is drawn from, for any program that knows Vega-Lite."""
    title, detail = (textwrap.wrap(text, _LETTERS) for text in (figure.title, figure.detail))
    titled = {**figure.drawing.chart, "title": {"text": title, "subtitle": detail}}
    look = {**theme(), "background": PAGE.css}
    whole: Chart = json.loads(on_white(json.dumps({**with_datasets(titled), "config": look})))
    return whole
