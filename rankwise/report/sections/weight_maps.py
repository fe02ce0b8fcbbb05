"""Maps of the weights of a study's runs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from rankwise.findings.options import first_of_options
from rankwise.findings.weights import RunWeights, TrainTaskWeights
from rankwise.records.results import ModelResults
from rankwise.report.charts.layer_map import MOST_PANELS, thinned
from rankwise.report.charts.theme import theme
from rankwise.report.charts.weight_maps import (
    SpectrumMap,
    has_layers,
    intruder_map,
    intruders,
    norm_map,
    turned_map,
)
from rankwise.report.parts import file_name
from rankwise.report.sections.overview import Chart, Figure

_SUBTITLE_WIDTH = 92


def weight_maps(
    found: TrainTaskWeights, models: Mapping[str, ModelResults], several: bool
) -> Iterator[Figure]:
    """The size of updates, turned directions and intruders, each where it was measured.

    Args:
        found: of one trained task.
        models: runs by name.
        several: whether the study trained several tasks.
    """
    shown = _shown_runs(found)
    matrices = {
        run.run: spectra.matrices
        for run in shown
        if (spectra := models[run.run].spectra) is not None
    }
    if not has_layers(each for own in matrices.values() for each in own):
        return
    maps = [norm_map({run.option.label: matrices[run.run] for run in shown})]
    adapters = [run for run in shown if run.option.rank is not None]
    for run in adapters[-1:] or shown[-1:]:
        label, own = run.option.label, matrices[run.run]
        maps.append(turned_map(label, own))
        if any(intruders(each.change, each) for each in own):
            maps.append(intruder_map(label, own))
    yield from (_drawn(each, found, several) for each in maps if each.panels)


def _shown_runs(found: TrainTaskWeights) -> list[RunWeights]:
    """The first run of the options: ranks from small to large, then full; evenly thinned out."""
    return thinned(first_of_options(found.runs), MOST_PANELS)


def _drawn(drawn: SpectrumMap, found: TrainTaskWeights, several: bool) -> Figure:
    chart = drawn.chart(weight_title(drawn.title, drawn.detail, found, several))
    return weight_figure(
        found,
        drawn.name,
        drawn.title,
        drawn.caption,
        drawn.in_words,
        chart,
        several,
        is_wide=True,
    )


def weight_title(
    title: str, detail: str, found: TrainTaskWeights, several: bool
) -> alt.TitleParams:
    """A title with what the numbers are below it; the trained task where there are several."""
    where = f", trained on {found.train_task}" if several else ""
    return alt.TitleParams(
        textwrap.wrap(f"{title}{where}", _SUBTITLE_WIDTH - 30),
        subtitle=textwrap.wrap(detail, _SUBTITLE_WIDTH),
    )


def weight_figure(
    found: TrainTaskWeights,
    name: str,
    title: str,
    caption: str,
    words: Sequence[str],
    chart: Chart,
    several: bool,
    **options: Any,
) -> Figure:
    """A figure of this section, by its short name and in words."""
    where = f", trained on {found.train_task}" if several else ""
    prefix = f"{file_name(found.train_task)}-" if several else ""
    return Figure(
        f"weights-{prefix}{name}",
        f"{title}{where}",
        caption,
        f"{'; '.join(words)}.",
        chart.configure(**theme()),
        **options,
    )
