"""A page of a report, parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_PAIR = re.compile(r"light-dark\(#[0-9a-f]{6}, #[0-9a-f]{6}\)")


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, the text between them, and charts.

    Attributes:
        tags: with their attributes.
        parts: texts, without scripts.
        charts: by the figure's name, what the page's script draws.
        titles: by the figure's name, all that stands above its chart.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.charts: dict[str, Any] = {}
        self.titles: dict[str, str] = {}
        self._figure, self._script = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self._figure = (dict(attrs)["id"] or "").removeprefix("figure-")
            self.titles[self._figure] = ""
        self._script = ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self._script += data
            return
        self.parts.append(data)
        if self._figure and self._figure not in self.charts:
            self.titles[self._figure] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._figure:
            self.charts[self._figure] = json.loads(self._script)
        elif tag == "figure":
            self._figure = ""

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.parts))


def without_scripts(html: str) -> str:
    """The page without what the scripts are; charts stay."""
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def words(chart: Any) -> Iterator[str]:
    """Every text and number of a chart, as text."""
    if isinstance(chart, dict):
        for each in chart.values():
            yield from words(each)
    elif isinstance(chart, list):
        for each in chart:
            yield from words(each)
    else:
        yield str(chart)


def colours(charts: Any) -> tuple[int, list[str]]:
    """How many colours have a partner for dark pages, and those that have none."""
    text = json.dumps(charts)
    return len({*_PAIR.findall(text)}), _COLOUR.findall(_PAIR.sub("", text))
