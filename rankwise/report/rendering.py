"""Figures and templates to HTML: what the pages of a study and of an audit share."""

from __future__ import annotations

import io
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rankwise.records import quantities
from rankwise.report.charts.theme import Colour, theme
from rankwise.report.parts import Chart, Figure, ReportSection

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

    section: ReportSection
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
    environment.filters["odds"] = quantities.odds
    return environment.get_template(template).render(**values)


def draw_figures(figures: Sequence[Figure], number: int) -> tuple[DrawnFigure, ...]:
    """Figures with their exports, counted on from ``number``."""
    drawn: list[DrawnFigure] = []
    for figure in figures:
        if figure.chart is None:
            drawn.append(DrawnFigure(figure, 0, "", b""))
            continue
        number += 1
        svg = _svg(figure, figure.chart)
        # from the SVG: checking and compiling the chart a second time takes longer than drawing it
        png = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
        drawn.append(DrawnFigure(figure, number, svg, png))
    return tuple(drawn)


def drawn_sections(sections: Sequence[ReportSection], number: int) -> tuple[DrawnSection, ...]:
    """Sections with their figures, counted on from ``number``."""
    drawn: list[DrawnSection] = []
    for section in sections:
        figures = draw_figures(section.figures, number)
        number = max([number, *(figure.number for figure in figures)])
        drawn.append(DrawnSection(section, figures))
    return tuple(drawn)


def _svg(figure: Figure, chart: Chart) -> str:
    """The chart under the figure's title, in the look of the page."""
    title, detail = (
        textwrap.wrap(text, letters)
        for text, letters in zip((figure.title, figure.detail), figure.letters, strict=True)
    )
    titled = chart.properties(title=alt.TitleParams(title, subtitle=detail))
    file = io.StringIO()
    titled.configure(**theme()).save(file, format="svg")
    return file.getvalue()


def dark_rules(colours: Sequence[Colour]) -> Markup:
    """Style rules that put the dark partner in the place of every colour of a chart."""
    rules = [
        f'.chart [{name}="{colour.light}"] {{ {name}: {colour.dark}; }}'
        for colour in colours
        for name in ("fill", "stroke")
    ]
    return Markup("\n".join(rules))  # noqa: S704


SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")]+)['\"]?\s*\)")


def inline_svg(svg: str, name: str, title: str, description: str) -> str:
    """The SVG as one image for assistive technology, of flexible width.

    Its ids and the references to them start with ``name``, so that several stand on one page.

    Args:
        svg: a whole SVG document, as our exporter writes it.
        name: unique on the page.
        title: short, what the image is.
        description: what it shows, in words.

    Raises:
        ValueError: it holds a script or refers to something outside itself.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)  # noqa: S314 (we have just written it)
    for element in root.iter():
        if element.tag in (f"{{{SVG}}}script", f"{{{SVG}}}foreignObject", f"{{{SVG}}}image"):
            raise ValueError(f"a chart must not hold {element.tag}")
        _clean(element, name)
    width = root.attrib.pop("width")
    root.attrib.pop("height", None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"max-width: {width}px",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, name: str) -> None:
    """Own ids; no labels of single marks, which would be read out one by one."""
    for key in list(element.attrib):
        value = element.attrib[key]
        if key.startswith("aria-") or key in ("role", "class"):
            del element.attrib[key]
        elif key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif key in ("href", f"{{{XLINK}}}href"):
            if not value.startswith("#"):
                raise ValueError(f"a chart must not refer to {value!r}")
            element.attrib[key] = f"#{name}-{value[1:]}"
        elif "url(" in value:
            element.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
