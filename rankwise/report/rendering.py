"""Figures and templates to HTML: what the pages of a study and of an audit share."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankwise.findings.statements import with_folder
from rankwise.records import quantities
from rankwise.report.charts.marks import with_datasets
from rankwise.report.charts.theme import theme
from rankwise.report.items import EncodedItems
from rankwise.report.parts import Chart, Figure, ReportSection, shortened
from rankwise.report.runtime import chart_runtime

_COMMAND = re.compile("`([^`]+)`")


class DrawnFigure(NamedTuple):
    """A figure with its place on the page."""

    figure: Figure
    number: int
    chart: Chart


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

    @property
    def all_sections(self) -> list[ReportSection]:
        """In their order on the page."""
        own = [[part.card, *part.sections] if part.card else part.sections for part in self.parts]
        return [*itertools.chain(*own), *self.sections]


def rendered(page: Page) -> str:
    """The page as text, with all that its charts are drawn from; figures are counted through."""
    items_at = page.items_beside if page.items is None else ""
    number = 0

    def drawn(sections: Sequence[ReportSection]) -> list[DrawnSection]:
        nonlocal number
        shown: list[DrawnSection] = []
        for section in sections:
            figures: list[DrawnFigure] = []
            for figure in section.figures:
                number += 1
                chart = with_datasets(figure.drawing.chart, items_at)
                figures.append(DrawnFigure(figure, number, chart))
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
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    parts = [
        (part, drawn([part.card] if part.card else []), drawn(part.sections)) for part in page.parts
    ]
    drawn_sections = drawn(page.sections)
    scripts: list[str] = []
    if number:
        scripts.append(chart_runtime())
    if number or page.items is not None or any(part.card for part in page.parts):  # it moves
        file = resources.files("rankwise.report").joinpath("templates/report.js")
        scripts.append(file.read_text(encoding="utf-8"))
    text = environment.get_template("page.html").render(
        page=page,
        parts=parts,
        sections=drawn_sections,
        shortened=shortened,
        look=theme() if number else None,
        scripts=[Markup(script) for script in scripts],  # noqa: S704 (our own files)
        digests=Markup(" ".join(map(_digest, scripts))),  # noqa: S704
    )
    return text.lstrip()


def _digest(script: str) -> str:
    """For the page's policy, which lets no other script run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _with_commands(text: str, folder: Path | None) -> Markup:
    """A sentence, escaped, with what stands between backticks as code; commands name the folder."""
    text = text if folder is None else with_folder(text, folder)
    return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704
