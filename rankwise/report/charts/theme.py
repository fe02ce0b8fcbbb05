"""Colours and type of the charts: one colour for each rank, the same in every chart and study.

Ranks run from light green to dark violet (told apart in grey as well), full fine-tuning is
vermilion, the base is grey; methods differ in shape too. Every colour has a partner for dark
pages; the browser chooses.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, NamedTuple

from rankwise.records.axes import Kind

FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"
FONT_SIZE = 13
TITLE_SIZE = 15


class Colour(NamedTuple):
    """A colour on a white page, and its partner on a dark one."""

    light: str
    dark: str

    @property
    def css(self) -> str:
        """Whichever suits the page it is on."""
        return f"light-dark({self.light}, {self.dark})"


PAGE = Colour("#ffffff", "#16191d")
INK = Colour("#1c2024", "#e4e7ea")
MUTED = Colour("#575f68", "#a5adb6")
GRID = Colour("#e3e6e9", "#30363d")
BASE = Colour("#6b7178", "#b4bbc3")
FULL = Colour("#c4500b", "#ff9d5c")

ALARM = Colour("#b3261e", "#ff8a80")
UNSHOWN = Colour("#eff1f2", "#23282e")

# Differences from the base, from small to large; text on the last two is in the page's colour.
GAIN_STEPS = (
    Colour("#dcebf7", "#1d3347"),
    Colour("#b9d7ef", "#24496b"),
    Colour("#8dbbe3", "#2f6799"),
    Colour("#2f74b0", "#5a9fd8"),
    Colour("#174f85", "#a3d0f7"),
)
LOSS_STEPS = (
    Colour("#fbe7d6", "#3f2a1b"),
    Colour("#f5cca8", "#5f3d20"),
    Colour("#e9a66d", "#8a5626"),
    Colour("#b05a14", "#e29a54"),
    Colour("#773905", "#ffcf9e"),
)

# log2(rank) and the colour there; between two, they are mixed.
_RAMP: tuple[tuple[float, Colour], ...] = (
    (0.0, Colour("#8a9a1f", "#d3df6e")),
    (2.0, Colour("#18a07c", "#5fd9b5")),
    (3.0, Colour("#1391b0", "#5fcbe6")),
    (4.0, Colour("#1f6fbd", "#78b6f7")),
    (5.0, Colour("#4a53b8", "#a0a8f8")),
    (6.0, Colour("#7436a6", "#c69af2")),
    (7.0, Colour("#96227c", "#ec97d6")),
    (8.0, Colour("#7d1248", "#f5a3bd")),
    (10.0, Colour("#330a20", "#fbd5de")),
)


_CSS = re.compile(r"light-dark\((#[0-9a-f]{6}), #[0-9a-f]{6}\)")


def on_white(text: str) -> str:
    """A text with the colours of white pages alone, for what does not know the others."""
    return _CSS.sub(r"\1", text)


def kind_colour(kind: Kind) -> Colour:
    """The colour of a rank, of full fine-tuning, or of the base."""
    if isinstance(kind, int):
        return rank_colour(kind)
    return BASE if kind == "base" else FULL


def rank_colour(rank: int) -> Colour:
    """The colour of a rank of at least 1; above 1024 that of 1024."""
    place = min(math.log2(rank), _RAMP[-1][0])
    for (low, first), (high, second) in itertools.pairwise(_RAMP):
        if place <= high:
            weight = (place - low) / (high - low)
            return Colour(*(_mixed(a, b, weight) for a, b in zip(first, second, strict=True)))
    return _RAMP[-1][1]


def kind_shape(kind: Kind) -> str:
    """The mark's shape: circles are ranks, a square is full fine-tuning."""
    return "circle" if isinstance(kind, int) else "diamond" if kind == "base" else "square"


def theme() -> dict[str, Any]:
    """The config of every chart, in Vega-Lite's terms."""

    def words(name: str, colour: Colour = INK, weight: str = "normal") -> dict[str, Any]:
        return {
            f"{name}FontSize": FONT_SIZE,
            f"{name}FontWeight": weight,
            f"{name}Color": colour.css,
        }

    return {
        "background": None,
        "padding": 6,
        "font": FONT,
        "axis": {
            **words("label"),
            **words("title"),
            "titlePadding": 8,
            "gridColor": GRID.css,
            "domainColor": MUTED.css,
            "tickColor": MUTED.css,
        },
        "text": {"fontSize": FONT_SIZE, "color": INK.css},
        "view": {"stroke": None},
        "legend": {**words("label"), **words("title", MUTED), "labelLimit": 240, "symbolSize": 90},
        "concat": {"spacing": 26},
        "facet": {"spacing": 10},
        "title": {
            "anchor": "start",
            "frame": "group",
            "fontSize": TITLE_SIZE,
            "fontWeight": "bold",
            "color": INK.css,
            **words("subtitle", MUTED),
            "subtitlePadding": 5,
            "lineHeight": 19,
            "subtitleLineHeight": 17,
            "offset": 12,
        },
        "header": {**words("label", weight="bold"), "labelLimit": 520, "title": None},
    }


def _mixed(first: str, second: str, weight: float) -> str:
    pairs = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * weight):02x}" for a, b in pairs)
