"""Maps of attention heads: every layer and head, what changed and what it does, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from rankwise.findings.heads import TrainTaskHeads, intervention, mode_name
from rankwise.findings.options import first_of_options
from rankwise.records import quantities
from rankwise.records.heads import ChangeMeasure, HeadChanges, HeadMap, TaskHeadEffects
from rankwise.records.results import ModelResults
from rankwise.report.charts.layer_map import (
    MOST_PANELS,
    MapPanel,
    MapScale,
    map_figure,
    percent,
    plain,
    thinned,
)
from rankwise.report.parts import Figure, file_name

MOST_COLUMNS = 72
"""Per chart: with many heads fewer panels fit. Further panels go into another chart."""

# The title of a measure's panel, what it is in words, how its numbers are written, and whether
# they have a sign.
_MEASURES: dict[ChangeMeasure, tuple[str, str, Callable[[float], str], bool]] = {
    "entropy": ("Entropy, nats", "signed change of the entropy of the attention", plain, True),
    "divergence": (
        "Divergence, nats",
        "Jensen-Shannon divergence of the attention from the base's (at most 0.69)",
        plain,
        False,
    ),
    "first_token_mass": (
        "First token, %",
        "signed change of the mass on the first token",
        percent,
        True,
    ),
    "output": ("Output, %", "relative change of the output", percent, False),
}

T = TypeVar("T")


def head_maps(found: TrainTaskHeads, models: Mapping[str, ModelResults]) -> Iterator[Figure]:
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
        by_kind: dict[tuple[str, bool], list[TaskHeadEffects]] = {}
        for effects in model.head_effects:
            by_kind.setdefault((effects.mode, effects.keys_and_values), []).append(effects)
        for own in by_kind.values():
            yield from _with_effects(model, found.labels[model.name], own)


def _by_run(found: TrainTaskHeads, changed: Mapping[str, HeadChanges]) -> Figure:
    """How far the heads' outputs moved, run by run."""
    maps = {
        found.labels[name]: output.values
        for name, changes in changed.items()
        if (output := changes.change("output")) is not None
    }
    width = max(len(row) for values in maps.values() for row in values)
    kept = thinned(list(maps), _room(width))
    drawn = [value for label in kept for row in maps[label] for value in row]
    scale = MapScale.of(drawn, percent)
    caption = (
        "‖change‖ / ‖output‖ of every head before the output projection, base against adapted on "
        "the same prompts."
    )
    if len(found.runs) > len(maps):
        caption += " Of each setting it is the first seed."
    if len(kept) < len(maps):
        caption += f" {len(kept)} of {len(maps)} settings are drawn; heads.csv has them all."
    return map_figure(
        "map-output",
        "Change of the heads' outputs",
        "% of their size; rows are layers, columns heads",
        caption,
        [_panel(label, maps[label], scale) for label in kept],
        names_largest=True,
    )


def _by_measure(label: str, changes: HeadChanges) -> Iterator[Figure]:
    """Everything that was measured on one run's heads."""
    width = max(len(row) for row in changes.base_entropy)
    for place, is_whole, chunk in _chunks(changes.changes, _room(width)):
        panels: list[MapPanel] = []
        for change in chunk:
            title, _, write, is_signed = _MEASURES[change.measure]
            panels.append(_panel(title, change.values, write, is_signed=is_signed))
        names = [panel.title.split(",")[0].lower() for panel in panels]
        words = quantities.listed([_MEASURES[change.measure][1] for change in chunk])
        yield map_figure(
            f"map-attention{place}",
            f"Attention of the heads, {label}{_what(names, is_whole=is_whole)}",
            "adapted less base; rows are layers, columns heads",
            f"{quantities.capital(words)}; means over queries behind the first.",
            panels,
            names_largest=True,
        )


def _with_effects(
    model: ModelResults, label: str, effects: Sequence[TaskHeadEffects]
) -> Iterator[Figure]:
    """What changed in a run's heads, and what each does on each task.

    Args:
        model: the run.
        label: what it is called.
        effects: of one intervention, one record for each task.
    """
    mode, shared = effects[0].mode, effects[0].keys_and_values
    done = mode_name(mode, keys_and_values=shared)
    output = None if model.head_changes is None else model.head_changes.change("output")
    changed = [] if output is None else [_panel("Change of the output, %", output.values, percent)]
    left = "Left, how far training has moved a head's output; then what" if changed else "What"
    needed = "the head's delta" if mode == "revert" else "the head"
    most = max(1, _room(max(effects[0].num_heads)) - len(changed))
    for place, is_whole, chunk in _chunks(effects, most):
        name = f"map-effects-{model.name}-{mode}{'-keys-and-values' * shared}"
        yield map_figure(
            f"{file_name(name)}{place}",
            f"{'Change and effect' if changed else 'Effect'} of heads {done}, {label}"
            f"{_what([part.task for part in chunk], is_whole=is_whole)}",
            f"each head {done}, one at a time; rows are layers, columns heads",
            f"{left} happens to the mean log-probability of the right answer when the head alone "
            f"is {done}: negative where {needed} is needed, positive where it stands in the way. "
            f"{intervention(mode, keys_and_values=shared)}",
            [*changed, *(_effect_panel(part) for part in chunk)],
            names_largest=True,
        )


def _effect_panel(effects: TaskHeadEffects) -> MapPanel:
    values = {(head.layer, str(head.head)): head.effect.estimate for head in effects.answers}
    columns = tuple(map(str, range(max(effects.num_heads))))
    scale = MapScale.of(list(values.values()), plain, signed=True)
    return MapPanel(f"{effects.task}, nats", columns, values, scale)


def _panel(
    title: str, values: HeadMap, look: MapScale | Callable[[float], str], *, is_signed: bool = False
) -> MapPanel:
    """With this scale, or with one of its own that writes numbers so."""
    by_place = {
        (layer, str(head)): value
        for layer, row in enumerate(values)
        for head, value in enumerate(row)
    }
    if not isinstance(look, MapScale):
        look = MapScale.of(list(by_place.values()), look, signed=is_signed)
    return MapPanel(title, tuple(map(str, range(max(map(len, values))))), by_place, look)


def _room(width: int) -> int:
    """How many panels with this many heads fit into a chart."""
    return max(1, min(MOST_PANELS, MOST_COLUMNS // width))


def _chunks(items: Sequence[T], most: int) -> Iterator[tuple[str, bool, Sequence[T]]]:
    """As few as hold all items, in order, about as long as each other.

    Each comes with what its file's name ends in, and whether it is the only one.
    """
    number = math.ceil(len(items) / most)
    size = math.ceil(len(items) / number)
    for place, start in enumerate(range(0, len(items), size), start=1):
        yield f"-{place}" if number > 1 else "", number == 1, items[start : start + size]


def _what(names: Sequence[str], *, is_whole: bool) -> str:
    """At the end of a title: what is on one of several."""
    return "" if is_whole else f": {quantities.listed(names)}"
