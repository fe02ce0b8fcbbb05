"""Figures and templates to HTML: what the pages of a study and of an audit share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rankwise.report.charts.theme import Colour
from rankwise.report.inline_svg import inline_svg
from rankwise.report.parts import Section
from rankwise.report.sections.overview import Chart, Figure

PNG_SCALE = 2.5


class DrawnFigure(NamedTuple):
    """A figure with its exports; ``svg`` is empty where there is nothing to draw."""

    figure: Figure
    number: int
    svg: str
    png: bytes

    @property
    def inline(self) -> Markup:
        """For the page: our own exporter's SVG, parsed and cleaned, so it needs no escaping."""
        name = self.figure.name
        text = inline_svg(self.svg, name, self.figure.title, self.figure.description)
        return Markup(text)  # noqa: S704


class DrawnSection(NamedTuple):
    """A section with its figures drawn."""

    section: Section
    figures: tuple[DrawnFigure, ...]


def render_template(template: str, /, **values: Any) -> str:
    """A page as text; everything is escaped that is not marked as ours."""
    environment = Environment(
        loader=PackageLoader("rankwise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def draw_figures(figures: Sequence[Figure], number: int) -> tuple[DrawnFigure, ...]:
    """Figures with their exports, counted on from ``number``."""
    drawn: list[DrawnFigure] = []
    for figure in figures:
        if figure.chart is None:
            drawn.append(DrawnFigure(figure, 0, "", b""))
            continue
        number += 1
        drawn.append(DrawnFigure(figure, number, _svg(figure.chart), _png(figure.chart)))
    return tuple(drawn)


def drawn_sections(sections: Sequence[Section], number: int) -> tuple[DrawnSection, ...]:
    """Sections with their figures, counted on from ``number``."""
    drawn: list[DrawnSection] = []
    for section in sections:
        figures = draw_figures(section.figures, number)
        number = max([number, *(figure.number for figure in figures)])
        drawn.append(DrawnSection(section, figures))
    return tuple(drawn)


def _svg(chart: Chart) -> str:
    file = io.StringIO()
    chart.save(file, format="svg")
    return file.getvalue()


def _png(chart: Chart) -> bytes:
    file = io.BytesIO()
    chart.save(file, format="png", scale_factor=PNG_SCALE)
    return file.getvalue()


def dark_rules(colours: Sequence[Colour]) -> Markup:
    """Style rules that put the dark partner in the place of every colour of a chart."""
    rules = [
        f'.chart [{name}="{colour.light}"] {{ {name}: {colour.dark}; }}'
        for colour in colours
        for name in ("fill", "stroke")
    ]
    return Markup("\n".join(rules))  # noqa: S704
