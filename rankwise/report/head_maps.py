"""Maps of attention heads: every layer and head, what changed and what it does, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import altair as alt

from rankwise.head_findings import MODE_NAMES, HeadsOfRun, TrainTaskHeads
from rankwise.head_records import ChangeMeasure, HeadChanges, HeadMap, TaskHeadEffects
from rankwise.report.drawing import Layers
from rankwise.report.layer_map import MapPanel, MapScale, layer_map
from rankwise.results import ModelResults

MOST_PANELS, MOST_COLUMNS = 4, 72
"""Of one chart; with many heads fewer panels fit."""

MEASURE_TITLES: dict[ChangeMeasure, str] = {
    "entropy": "Entropy, nats",
    "divergence": "Divergence, nats",
    "first_token_mass": "First token, %",
    "output": "Output, %",
}
_SIGNED = ("entropy", "first_token_mass")
_IN_PERCENT = ("first_token_mass", "output")


class HeadFigure(NamedTuple):
    """A map that can be drawn, and what is said about it.

    Attributes:
        name: for file names.
        title: of the figure.
        detail: what the numbers are.
        caption: what can be read from it.
        panels: at least one.
        scale: of panels that have none of their own.
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
        run.option.label: changes
        for run in _first_of_options(found.runs)
        if (changes := models[run.run].head_changes) is not None and changes.changes
    }
    if changed:
        yield _by_run(changed)
        label = list(changed)[-1]
        adapters = [run.option.label for run in found.runs if run.option.rank is not None]
        yield _by_measure(*_last(changed, adapters[-1] if adapters else label))
    labels = {run.run: run.option.label for run in found.runs}
    for model in models.values():
        modes = dict.fromkeys(each.mode for each in model.head_effects)
        for mode in modes:
            own = [each for each in model.head_effects if each.mode == mode]
            yield _beside_effects(model, labels.get(model.name, model.name), own)


def _last(changed: Mapping[str, HeadChanges], label: str) -> tuple[str, HeadChanges]:
    return label, changed.get(label) or list(changed.values())[-1]


def _first_of_options(runs: Sequence[HeadsOfRun]) -> list[HeadsOfRun]:
    """The first run of each option, ranks from small to large and then full."""
    first = list({run.option.label: run for run in reversed(runs)}.values())
    return sorted(first, key=lambda run: run.option.rank or float("inf"))


def _by_run(changed: Mapping[str, HeadChanges]) -> HeadFigure:
    """How far the heads' outputs moved, run by run."""
    maps = {
        label: found.values
        for label, changes in changed.items()
        if (found := changes.change("output")) is not None
    }
    width = max(len(row) for values in maps.values() for row in values)
    kept = _thinned(list(maps), max(1, min(MOST_PANELS, MOST_COLUMNS // width)))
    panels = tuple(_panel(label, maps[label]) for label in kept)
    return HeadFigure(
        "map-output",
        "Change of the heads' outputs",
        "% of their size; rows are layers, columns heads",
        "‖change‖ / ‖output‖ of every head before the output projection, base beside adapted on "
        "the same prompts.",
        panels,
        _scale(panels, _percent),
    )


def _by_measure(label: str, changes: HeadChanges) -> HeadFigure:
    """Everything that was measured on one run's heads."""
    panels: list[MapPanel] = []
    width = max(len(row) for row in changes.base_entropy)
    for each in changes.changes[: max(1, MOST_COLUMNS // width)]:
        panel = _panel(MEASURE_TITLES[each.measure], each.values)
        words = _percent if each.measure in _IN_PERCENT else _plain
        panels.append(_scaled(panel, words, signed=each.measure in _SIGNED))
    return HeadFigure(
        "map-attention",
        f"Attention of the heads, {label}",
        "adapted less base; rows are layers, columns heads",
        "Signed change of the entropy of the attention, its Jensen-Shannon divergence from the "
        "base's (at most 0.69), signed change of the mass on the first token, and the relative "
        "change of the output; means over queries behind the first.",
        tuple(panels),
        MapScale((), _plain),
    )


def _beside_effects(
    model: ModelResults, label: str, effects: Sequence[TaskHeadEffects]
) -> HeadFigure:
    """What changed in a run's heads beside what each does on each task."""
    mode = effects[0].mode
    panels: list[MapPanel] = []
    output = None if model.head_changes is None else model.head_changes.change("output")
    width = max(effects[0].num_heads)
    if output is not None:
        panels.append(_scaled(_panel("Change of the output, %", output.values), _percent))
    room = max(1, MOST_COLUMNS // width - len(panels))
    for each in effects[: min(room, MOST_PANELS - len(panels))]:
        values = {(e.layer, str(e.head)): e.effect.estimate for e in each.answers}
        columns = tuple(str(number) for number in range(width))
        panel = MapPanel(f"{each.task}, nats", columns, values)
        panels.append(_scaled(panel, _plain, signed=True))
    return HeadFigure(
        f"map-effects-{model.name}-{mode}",
        f"Change and effect of every head, {label}",
        f"each head {MODE_NAMES[mode]}, one at a time; rows are layers, columns heads",
        f"Left, how far training has moved a head's output; then what happens to the mean "
        f"log-probability of the right answer when the head alone is {MODE_NAMES[mode]}: negative "
        "where the head is needed, positive where it stands in the way.",
        tuple(panels),
        MapScale((), _plain),
    )


def _thinned(labels: list[str], most: int) -> list[str]:
    if len(labels) <= most:
        return labels
    if most == 1:
        return labels[-1:]
    return [labels[round(i * (len(labels) - 1) / (most - 1))] for i in range(most)]


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


def _percent(value: float) -> str:
    share = 100.0 * value
    return (f"{share:.0f}" if abs(share) >= 9.95 else f"{share:.2g}").replace("-", "−")
