"""Figures and templates to HTML: what the pages of a study and of an audit share."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankwise.findings.statements import with_folder
from rankwise.records import quantities
from rankwise.report.charts.marks import with_datasets
from rankwise.report.charts.theme import theme
from rankwise.report.items import EncodedItems
from rankwise.report.parts import ReportSection, shortened
from rankwise.report.runtime import chart_runtime

_COMMAND = re.compile("`([^`]+)`")


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
    numbers = itertools.count(1)

    def drawn(sections: Iterable[ReportSection]) -> list[dict[str, Any]]:
        """Sections with their figures numbered, as the template takes them."""
        return [
            {
                "section": section,
                "figures": [
                    {
                        "figure": figure,
                        "number": next(numbers),
                        "chart": with_datasets(figure.drawing.chart, items_at),
                    }
                    for figure in section.figures
                ],
            }
            for section in sections
        ]

    def with_commands(text: str) -> Markup:
        """A sentence, escaped, with backticks as code; commands name the study's folder."""
        text = text if page.study_folder is None else with_folder(text, page.study_folder)
        return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704

    environment = Environment(
        loader=PackageLoader("rankwise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["odds"] = quantities.odds
    environment.filters["with_commands"] = with_commands
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    parts = [
        (part, drawn([part.card] if part.card else []), drawn(part.sections)) for part in page.parts
    ]
    has_charts = any(section.figures for section in page.all_sections)
    scripts = [chart_runtime()] if has_charts else []
    if has_charts or page.items is not None or any(part.card for part in page.parts):  # it moves
        file = resources.files("rankwise.report").joinpath("templates/report.js")
        scripts.append(file.read_text(encoding="utf-8"))
    # for the page's policy, which lets no other script run
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    text = environment.get_template("page.html").render(
        page=page,
        parts=parts,
        sections=drawn(page.sections),
        shortened=shortened,
        look=theme() if has_charts else None,
        scripts=[Markup(script) for script in scripts],  # noqa: S704 (our own files)
        digests=Markup(" ".join(f"'sha256-{digest}'" for digest in digests)),  # noqa: S704
    )
    return text.lstrip()
