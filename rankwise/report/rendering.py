"""Figures and templates to HTML: what the pages of a study and of an audit share."""

from __future__ import annotations

import base64
import hashlib
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankwise.findings.statements import with_folder
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.report.charts.marks import ITEMS_LINK, with_datasets
from rankwise.report.charts.theme import Colour, page_colours, theme
from rankwise.report.items import EncodedItems
from rankwise.report.parts import Chart, Figure, ReportSection, shortened

PNG_SCALE = 2.5

_LOADED_FROM = "https://vega.github.io/vega-datasets/"
"""What our exporter puts before a link within the page, as if it were a data set of Vega's."""

_COMMAND = re.compile("`([^`]+)`")

_LETTERS = 72
"""Of a line above a chart, at most: charts are at least as wide."""


class DrawnFigure(NamedTuple):
    """A figure with its exports."""

    figure: Figure
    number: int
    svg: str
    png: bytes
    items_at: str | None

    @property
    def inline(self) -> Markup:
        """For the page: our own exporter's SVG, parsed and cleaned, so it needs no escaping."""
        figure = self.figure
        text = inline_svg(self.svg, figure.name, figure.title, figure.description, self.items_at)
        return Markup(text)  # noqa: S704


class DrawnSection(NamedTuple):
    """A section with its figures drawn."""

    section: ReportSection
    figures: tuple[DrawnFigure, ...]


class Part(NamedTuple):
    """An answer with its reasons, such as of one trained task.

    Attributes:
        title: empty where there is one part.
        kind: of the answer, for its colour.
        answer: in a few words.
        statement: the answer in a sentence.
        points: more sentences.
        sections: what it rests on.
        card: the first screen, in place of the statement: what can be chosen, in a table and in a
            picture. None without.
        command: what to do next, below the card's table.
    """

    title: str
    kind: str
    answer: str
    statement: str
    points: Sequence[str]
    sections: Sequence[ReportSection]
    card: ReportSection | None = None
    command: str = ""


class Page(NamedTuple):
    """What stands on a page: its head, parts, and the sections about all of it.

    ``items_beside`` is the page beside this one that has the items, if one does; ``study_folder``
    is what commands name.
    """

    kicker: str
    title: str
    subject: str
    parts: Sequence[Part]
    sections: Sequence[ReportSection]
    items: EncodedItems | None = None
    items_beside: str | None = None
    refresh_seconds: int | None = None
    study_folder: Path | None = None


def rendered(
    page: Page, kinds: Iterable[Kind], *, with_images: bool = True
) -> tuple[str, dict[str, str | bytes]]:
    """The page as text, and its figures and numbers as files; figures are counted through.

    Args:
        page: whose figures' names are unique.
        kinds: of the models that charts show, for their colours on dark pages.
        with_images: without, the figures are on the page alone.
    """
    files: dict[str, str | bytes] = {}
    items_at = page.items_beside if page.items is None else ""
    number = 0

    def drawn(sections: Sequence[ReportSection]) -> list[DrawnSection]:
        nonlocal number
        shown: list[DrawnSection] = []
        for section in sections:
            figures: list[DrawnFigure] = []
            for figure in section.figures:
                number += 1
                spec = specification(figure, figure.drawing.chart)
                svg = vl_convert.vegalite_to_svg(spec).replace(f"{_LOADED_FROM}#", "#")
                # from the SVG: compiling the chart a second time takes longer than drawing it
                png = vl_convert.svg_to_png(svg, scale=PNG_SCALE) if with_images else b""
                figures.append(DrawnFigure(figure, number, svg, png, items_at))
                files.update({f"{figure.name}.svg": svg, f"{figure.name}.png": png})
            shown.append(DrawnSection(section, tuple(figures)))
        return shown

    environment = Environment(
        loader=PackageLoader("rankwise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["odds"] = quantities.odds
    environment.filters["with_commands"] = partial(_with_commands, folder=page.study_folder)
    script = ""
    if page.items is not None or any(part.card for part in page.parts):  # it moves
        file = resources.files("rankwise.report").joinpath("templates/report.js")
        script = file.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html").render(
        page=page,
        parts=[
            (part, drawn([part.card] if part.card else []), drawn(part.sections))
            for part in page.parts
        ],
        sections=drawn(page.sections),
        shortened=shortened,
        script=Markup(script),  # noqa: S704 (our own file)
        script_digest=Markup(f"sha256-{digest}"),  # noqa: S704
        dark=Markup("\n".join(_dark_rules(page_colours(kinds)))),  # noqa: S704
    )
    return text.lstrip(), files


def _with_commands(text: str, folder: Path | None) -> Markup:
    """A sentence, escaped, with what stands between backticks as code; commands name the folder."""
    text = text if folder is None else with_folder(text, folder)
    return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704


def specification(figure: Figure, chart: Chart) -> Chart:
    """The chart under the figure's title, in the look of the page."""
    title, detail = (textwrap.wrap(text, _LETTERS) for text in (figure.title, figure.detail))
    titled = {**chart, "title": {"text": title, "subtitle": detail}, "config": theme()}
    return with_datasets(titled)


def _dark_rules(colours: Sequence[Colour]) -> Iterator[str]:
    """Style rules that put the dark partner in the place of every colour of a chart."""
    for colour in colours:
        for name in ("fill", "stroke"):
            yield f'.chart [{name}="{colour.light}"] {{ {name}: {colour.dark}; }}'


SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")]+)['\"]?\s*\)")


def inline_svg(
    svg: str, name: str, title: str, description: str, items_at: str | None = None
) -> str:
    """The SVG as one image for assistive technology, of flexible width.

    Its ids and the references to them start with ``name``, so that several stand on one page.

    Args:
        svg: a whole SVG document, as our exporter writes it.
        name: unique on the page.
        title: short, what the image is.
        description: what it shows, in words.
        items_at: the page with the items that marks link to; empty: this one; None: there is none,
            and marks are no links.

    Raises:
        ValueError: it holds a script or refers to something outside itself.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)  # noqa: S314 (we have just written it)
    for element in root.iter():
        if element.tag in (f"{{{SVG}}}script", f"{{{SVG}}}foreignObject", f"{{{SVG}}}image"):
            raise ValueError(f"a chart must not hold {element.tag}")
        _clean(element, name, items_at)
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


def _clean(element: ElementTree.Element, name: str, items_at: str | None) -> None:
    """Own ids; no labels of single marks, which would be read out one by one, nor keys to them.

    Links of marks are for a pointer: there is one for each mark, and the list of the items can be
    asked for every task by keys.
    """
    for key in list(element.attrib):
        value = element.attrib[key]
        if key.startswith("aria-") or key in ("role", "class"):
            del element.attrib[key]
        elif key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif key in ("href", f"{{{XLINK}}}href"):
            if not value.startswith("#"):
                raise ValueError(f"a chart must not refer to {value!r}")
            if not value.startswith(ITEMS_LINK):
                element.attrib[key] = f"#{name}-{value[1:]}"
            elif items_at is None:
                del element.attrib[key]
            else:
                element.attrib[key] = f"{items_at}{value}"
        elif "url(" in value:
            element.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if element.tag == f"{{{SVG}}}a":
        element.attrib |= {"tabindex": "-1", "aria-hidden": "true"}
