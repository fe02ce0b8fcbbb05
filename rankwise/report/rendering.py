"""Pages as HTML, with the script that draws their charts, and the charts as files."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import itertools
import json
import re
import textwrap
import zlib
from collections.abc import Sequence
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankwise.errors import StorageError, visible
from rankwise.findings.statements import with_folder
from rankwise.records import quantities
from rankwise.records.files import cache_folder, read_regular, write_atomically
from rankwise.report.charts.marks import with_datasets
from rankwise.report.charts.theme import PAGE, on_white, theme
from rankwise.report.items import EncodedItems
from rankwise.report.parts import Chart, Figure, ReportSection, shortened

PNG_SCALE = 2.5

_COMMAND = re.compile("`([^`]+)`")

_LETTERS = 72
"""The most letters of a line above a chart in a file."""

_REVISION = 1
"""The revision of what is made of vl-convert's bundle."""


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
        takes: how long that takes.
    """

    title: str
    kind: str
    answer: str
    statement: str
    points: Sequence[str] = ()
    sections: Sequence[ReportSection] = ()
    card: ReportSection | None = None
    command: str = ""
    takes: str = ""


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
    study_folder: Path | None = None

    @property
    def all_sections(self) -> list[ReportSection]:
        """All sections in their order on the page."""
        own = [[part.card, *part.sections] if part.card else part.sections for part in self.parts]
        return [*itertools.chain(*own), *self.sections]


def rendered(page: Page) -> str:
    """The page as text, with all that its charts are drawn from; figures are counted through."""

    def with_commands(text: str) -> Markup:
        """A sentence, escaped, with backticks as code; commands name the study's folder."""
        text = visible(with_folder(text, page.study_folder))
        return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704

    environment = Environment(
        loader=PackageLoader("rankwise.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["odds"] = quantities.odds
    environment.filters["with_commands"] = with_commands
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
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
        next_number=partial(next, itertools.count(1)),
        with_datasets=with_datasets,
        items_at=page.items_beside if page.items is None else "",
        shortened=shortened,
        look=theme() if has_charts else None,
        scripts=[Markup(script) for script in scripts],  # noqa: S704 (our own files)
        digests=Markup(" ".join(f"'sha256-{digest}'" for digest in digests)),  # noqa: S704
    )
    return text.lstrip()


def _shown(value: object) -> object:
    """What stands on the page; what is HTML by now was a text before."""
    return visible(value) if type(value) is str else value


def chart_runtime() -> str:
    """The script, which defines ``vegaEmbed``.

    To bundle it takes more than a second, so it is kept in the user's cache; where that cannot be
    written or read, it is made each time.
    """
    made_by = version("vl-convert-python")
    path = cache_folder() / f"vega-{made_by}-{_REVISION}.js.gz"
    with contextlib.suppress(OSError, EOFError, zlib.error):  # gzip knows its checksum
        return gzip.decompress(read_regular(path)).decode()
    script = _bundled(made_by)
    with contextlib.suppress(StorageError):
        write_atomically(path, gzip.compress(script.encode()))
    return script


def _bundled(made_by: str) -> str:
    """A function that is called at once, for the names in it are not for the page."""
    import vl_convert

    notice = (
        f"/* Vega {vl_convert.get_vega_version()}, Vega-Lite "
        f"{vl_convert.get_vegalite_versions()[-1]}, Vega-Embed "
        f"{vl_convert.get_vega_embed_version()}: copyright University of Washington Interactive "
        "Data Lab, BSD-3-Clause; with D3: copyright Mike Bostock, ISC, and others; "
        f"bundled by vl-convert {made_by} */\n"
    )
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"{notice}(() => {{{bundle}}})();\n"


def figure_files(page: Page) -> dict[str, dict[str, str | bytes]]:
    """The files of each figure that has a chart: by its name, the content by suffix."""
    import vl_convert

    return {
        figure.name: {"svg": svg, "png": vl_convert.svg_to_png(svg, scale=PNG_SCALE)}
        for section in page.all_sections
        for figure in section.figures
        # PNG from the SVG: compiling the chart a second time takes longer than drawing it
        for svg in [figure_svg(figure)]
    }


def figure_svg(figure: Figure) -> str:
    """The chart under the figure's title, on white."""
    import vl_convert

    return vl_convert.vegalite_to_svg(specification(figure))


def specification(figure: Figure) -> Chart:
    """All that the chart is drawn from, for any program that knows Vega-Lite."""
    title, detail = (textwrap.wrap(text, _LETTERS) for text in (figure.title, figure.detail))
    titled = {**figure.drawing.chart, "title": {"text": title, "subtitle": detail}}
    look = {**theme(), "background": PAGE.css}
    whole: Chart = json.loads(on_white(json.dumps({**with_datasets(titled), "config": look})))
    return whole
