"""Maps of attention heads: every layer and head, what changed and what it does, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import altair as alt

from rankwise.findings.heads import TrainTaskHeads, intervention, mode_name
from rankwise.findings.options import first_of_options
from rankwise.records import quantities
from rankwise.records.heads import ChangeMeasure, HeadChanges, HeadMap, TaskHeadEffects
from rankwise.records.results import ModelResults
from rankwise.report.charts.drawing import Layers
from rankwise.report.charts.layer_map import (
    MOST_PANELS,
    MapPanel,
    MapScale,
    layer_map,
    percent,
    thinned,
)

MOST_COLUMNS = 72
"""Per chart: with many heads fewer panels fit. Further panels go into another chart."""

MEASURE_TITLES: dict[ChangeMeasure, str] = {
    "entropy": "Entropy, nats",
    "divergence": "Divergence, nats",
    "first_token_mass": "First token, %",
    "output": "Output, %",
}
_MEASURES_IN_WORDS: dict[ChangeMeasure, str] = {
    "entropy": "signed change of the entropy of the attention",
    "divergence": "Jensen-Shannon divergence of the attention from the base's (at most 0.69)",
    "first_token_mass": "signed change of the mass on the first token",
    "output": "relative change of the output",
}
_SIGNED = ("entropy", "first_token_mass")
_IN_PERCENT = ("first_token_mass", "output")


_T = TypeVar("_T")


class HeadFigure(NamedTuple):
    """A map that can be drawn, and what is said about it.

    Attributes:
        name: for file names.
        title: of the figure.
        detail: what the numbers are.
        caption: what can be read from it.
        panels: at least one.
        scale: of panels without their own.
    """

    name: str
    title: str
    detail: str
    caption: str
    panels: tuple[MapPanel, ...]
    scale: MapScale

    def chart(self, title: alt.TitleParams) -> Layers:
        """The panels side by side."""
        return layer_map(self.panels, self.scale, title)

    @property
    def in_words(self) -> list[str]:
        """The range of every panel, and where its largest number is."""
        return [_in_words(panel, panel.scale or self.scale) for panel in self.panels]


def head_figures(found: TrainTaskHeads, models: Mapping[str, ModelResults]) -> Iterator[HeadFigure]:
    """All maps of one trained task, each where it was measured."""
    changed = {
        run.run: changes
        for run in first_of_options(found.runs)
        if (changes := models[run.run].head_changes) is not None and changes.changes
    }
    if changed:
        yield _by_run(found, changed)
        adapters = [run.run for run in found.runs if run.option.rank is not None]
        shown = [name for name in changed if name in adapters] or list(changed)
        yield from _by_measure(found.labels[shown[-1]], changed[shown[-1]])
    for model in models.values():
        kinds = {(effects.mode, effects.keys_and_values): None for effects in model.head_effects}
        for kind in kinds:
            own = [each for each in model.head_effects if (each.mode, each.keys_and_values) == kind]
            yield from _with_effects(model, found.labels[model.name], own)


def _by_run(found: TrainTaskHeads, changed: Mapping[str, HeadChanges]) -> HeadFigure:
    """How far the heads' outputs moved, run by run."""
    maps = {
        found.labels[name]: output.values
        for name, changes in changed.items()
        if (output := changes.change("output")) is not None
    }
    width = max(len(row) for values in maps.values() for row in values)
    kept = thinned(list(maps), _room(width))
    panels = tuple(_panel(label, maps[label]) for label in kept)
    caption = (
        "‖change‖ / ‖output‖ of every head before the output projection, base against adapted on "
        "the same prompts."
    )
    if len(found.runs) > len(maps):
        caption += " Of each setting it is the first seed."
    if len(kept) < len(maps):
        caption += f" {len(kept)} of {len(maps)} settings are drawn; heads.csv has them all."
    return HeadFigure(
        "map-output",
        "Change of the heads' outputs",
        "% of their size; rows are layers, columns heads",
        caption,
        panels,
        _scale(panels, percent),
    )


def _by_measure(label: str, changes: HeadChanges) -> Iterator[HeadFigure]:
    """Everything that was measured on one run's heads."""
    width = max(len(row) for row in changes.base_entropy)
    chunks = _chunks(changes.changes, _room(width))
    for number, chunk in enumerate(chunks, start=1):
        names = [MEASURE_TITLES[panel.measure].split(",")[0].lower() for panel in chunk]
        words = quantities.listed([_MEASURES_IN_WORDS[each.measure] for each in chunk])
        panels = tuple(
            _scaled(
                _panel(MEASURE_TITLES[each.measure], each.values),
                percent if each.measure in _IN_PERCENT else _plain,
                signed=each.measure in _SIGNED,
            )
            for each in chunk
        )
        yield HeadFigure(
            f"map-attention{_place(number, chunks)}",
            f"Attention of the heads, {label}{_what(names, chunks)}",
            "adapted less base; rows are layers, columns heads",
            f"{quantities.capital(words)}; means over queries behind the first.",
            panels,
            MapScale((), _plain),
        )


def _with_effects(
    model: ModelResults, label: str, effects: Sequence[TaskHeadEffects]
) -> Iterator[HeadFigure]:
    """What changed in a run's heads, and what each does on each task.

    Args:
        model: the run.
        label: what it is called.
        effects: of one intervention, one record for each task.
    """
    mode, shared = effects[0].mode, effects[0].keys_and_values
    done = mode_name(mode, keys_and_values=shared)
    output = None if model.head_changes is None else model.head_changes.change("output")
    changed = (
        ()
        if output is None
        else (_scaled(_panel("Change of the output, %", output.values), percent),)
    )
    left = "Left, how far training has moved a head's output; then what" if changed else "What"
    needed = "the head's delta" if mode == "revert" else "the head"
    chunks = _chunks(effects, max(1, _room(max(effects[0].num_heads)) - len(changed)))
    for number, chunk in enumerate(chunks, start=1):
        yield HeadFigure(
            f"map-effects-{model.name}-{mode}{'-keys-and-values' * shared}{_place(number, chunks)}",
            f"{'Change and effect' if changed else 'Effect'} of heads {done}, {label}"
            f"{_what([each.task for each in chunk], chunks)}",
            f"each head {done}, one at a time; rows are layers, columns heads",
            f"{left} happens to the mean log-probability of the right answer when the head alone "
            f"is {done}: negative where {needed} is needed, positive where it stands in the way. "
            f"{intervention(mode, keys_and_values=shared)}",
            (*changed, *(_effect_panel(panel) for panel in chunk)),
            MapScale((), _plain),
        )


def _effect_panel(effects: TaskHeadEffects) -> MapPanel:
    values = {(e.layer, str(e.head)): e.effect.estimate for e in effects.answers}
    columns = tuple(str(number) for number in range(max(effects.num_heads)))
    return _scaled(MapPanel(f"{effects.task}, nats", columns, values), _plain, signed=True)


def _room(width: int) -> int:
    """How many panels with this many heads fit into a chart."""
    return max(1, min(MOST_PANELS, MOST_COLUMNS // width))


def _chunks(items: Sequence[_T], most: int) -> list[Sequence[_T]]:
    """As few as hold them all, in order, about as long as each other."""
    number = math.ceil(len(items) / most)
    size = math.ceil(len(items) / number)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _place(number: int, chunks: Sequence[object]) -> str:
    """At the end of a file's name: which of several."""
    return f"-{number}" if len(chunks) > 1 else ""


def _what(names: Sequence[str], chunks: Sequence[object]) -> str:
    """At the end of a title: what is on one of several."""
    return f": {quantities.listed(names)}" if len(chunks) > 1 else ""


def _panel(title: str, values: HeadMap) -> MapPanel:
    columns = tuple(str(number) for number in range(max(map(len, values))))
    cells = {
        (layer, str(head)): value
        for layer, row in enumerate(values)
        for head, value in enumerate(row)
    }
    return MapPanel(title, columns, cells)


def _scaled(panel: MapPanel, words: Callable[[float], str], *, signed: bool = False) -> MapPanel:
    return panel._replace(scale=_scale([panel], words, signed=signed))


def _scale(
    panels: Sequence[MapPanel], words: Callable[[float], str], *, signed: bool = False
) -> MapScale:
    values = [value for panel in panels for value in panel.values.values()]
    return MapScale.of(values, words, signed=signed)


def _in_words(panel: MapPanel, scale: MapScale) -> str:
    values = sorted(panel.values.values())
    layer, head = max(panel.values, key=lambda place: abs(panel.values[place]))
    return (
        f"{panel.title}: {scale.words(values[0])} to {scale.words(values[-1])}, largest in layer "
        f"{layer} head {head}"
    )


def _plain(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")
