"""Maps of the weights: every layer and module, trained beside random."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from rankwise.report.chart_theme import theme
from rankwise.report.figures import Chart, Figure
from rankwise.report.layer_map import MapPanel, MapScale, layer_map
from rankwise.report.section import file_name
from rankwise.results import ModelResults
from rankwise.spectra_records import (
    EPSILONS,
    INTRUDER_EPSILON,
    INTRUDER_K,
    MatrixSpectrum,
    VectorChange,
    intruders_of,
)
from rankwise.weight_findings import RunWeights, TrainTaskWeights, similarity

MOST_PANELS = 4
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
    if not any(each.layer is not None for own in matrices.values() for each in own):
        return
    kinds = _short_kinds(each for own in matrices.values() for each in own)
    yield _norm_map(found, shown, matrices, kinds, several)
    adapters = [run for run in shown if run.option.rank is not None]
    for run in adapters[-1:] or shown[-1:]:
        yield _similarity_map(found, run, matrices[run.run], kinds, several)
        if any(_intruders(m.change, m) for m in matrices[run.run]):
            yield _intruder_map(found, run, matrices[run.run], kinds, several)


def _shown_runs(found: TrainTaskWeights) -> list[RunWeights]:
    """The first run of the options: ranks from small to large, then full; evenly thinned out."""
    first = list({run.option.label: run for run in reversed(found.runs)}.values())
    first.sort(key=lambda run: float("inf") if run.option.rank is None else run.option.rank)
    if len(first) <= MOST_PANELS:
        return first
    places = [round(i * (len(first) - 1) / (MOST_PANELS - 1)) for i in range(MOST_PANELS)]
    return [first[place] for place in places]


def _short_kinds(matrices: Iterable[MatrixSpectrum]) -> dict[str, str]:
    """The last part of each kind's name, or all of it where others end alike."""
    kinds = list(dict.fromkeys(each.kind for each in matrices))
    last = {kind: kind.rpartition(".")[2] for kind in kinds}
    names = list(last.values())
    return {kind: name if names.count(name) == 1 else kind for kind, name in last.items()}


def _panel(
    title: str,
    matrices: Sequence[MatrixSpectrum],
    kinds: dict[str, str],
    value: Callable[[MatrixSpectrum], float | None],
) -> MapPanel:
    values = {
        (each.layer, kinds[each.kind]): number
        for each in matrices
        if each.layer is not None and (number := value(each)) is not None
    }
    present = dict.fromkeys(kinds[each.kind] for each in matrices if each.layer is not None)
    return MapPanel(title, tuple(present), values)


def _norm_map(
    found: TrainTaskWeights,
    shown: Sequence[RunWeights],
    matrices: dict[str, tuple[MatrixSpectrum, ...]],
    kinds: dict[str, str],
    several: bool,
) -> Figure:
    panels = [
        _panel(run.option.label, matrices[run.run], kinds, lambda m: m.update.relative_norm)
        for run in shown
    ]
    title = "Size of the update by layer and module"
    caption = "‖delta‖_F of each matrix relative to the base's own norm, in percent."
    detail = "% of the base's norm; rows are layers"
    return _map(found, "map-norm", (title, detail), caption, panels, _percent, several)


def _similarity_map(
    found: TrainTaskWeights,
    run: RunWeights,
    matrices: Sequence[MatrixSpectrum],
    kinds: dict[str, str],
    several: bool,
) -> Figure:
    panels = _beside_nulls(matrices, kinds, lambda change, _: 1.0 - similarity(change))
    most = max(each.leading[-1] for each in matrices)
    title = f"Turned singular vectors, {run.option.label}"
    caption = (
        f"1 − |cos| of singular vectors of one index before and after, in percent, mean of left "
        f"and right over the leading {most} (or the matrix's own number). Beside it the same "
        "under random updates: what is no larger than there is a matter of size alone."
    )
    detail = "1 − |cos| in %; rows are layers"
    return _map(found, "map-turned", (title, detail), caption, panels, _percent, several)


def _intruder_map(
    found: TrainTaskWeights,
    run: RunWeights,
    matrices: Sequence[MatrixSpectrum],
    kinds: dict[str, str],
    several: bool,
) -> Figure:
    panels = _beside_nulls(matrices, kinds, _intruders)
    title = f"Intruder dimensions, {run.option.label}"
    caption = (
        f"How many of the {INTRUDER_K} leading left singular vectors after training have no |cos| "
        f"of {INTRUDER_EPSILON} or more with any of the base's; beside it the means under random "
        "updates."
    )
    detail = f"of {INTRUDER_K} leading vectors; rows are layers"
    return _map(found, "map-intruders", (title, detail), caption, panels, _count, several)


def _beside_nulls(
    matrices: Sequence[MatrixSpectrum],
    kinds: dict[str, str],
    value: Callable[[VectorChange, MatrixSpectrum], float],
) -> list[MapPanel]:
    def of(change: VectorChange | None, matrix: MatrixSpectrum) -> float | None:
        return None if change is None else value(change, matrix)

    panels = [
        _panel("trained", matrices, kinds, lambda m: of(m.change, m)),
        _panel("Gaussian", matrices, kinds, lambda m: of(m.gaussian_null, m)),
        _panel("Haar", matrices, kinds, lambda m: of(m.haar_null, m)),
    ]
    return [panel for panel in panels if panel.values]


def _intruders(change: VectorChange, matrix: MatrixSpectrum) -> float:
    return intruders_of(change, matrix.leading, EPSILONS)


def _percent(value: float) -> str:
    share = 100.0 * value
    return f"{share:.0f}" if share >= 9.95 else f"{share:.2g}"


def _count(value: float) -> str:
    return f"{value:.2g}"


def _map(
    found: TrainTaskWeights,
    name: str,
    titles: tuple[str, str],
    caption: str,
    panels: Sequence[MapPanel],
    words: Callable[[float], str],
    several: bool,
) -> Figure:
    values = [value for panel in panels for value in panel.values.values()]
    scale = MapScale.of(values, words)
    chart = layer_map(panels, scale, weight_title(*titles, found, several))
    said = [
        f"{panel.title} {words(min(panel.values.values()))} to {words(max(panel.values.values()))}"
        for panel in panels
    ]
    return weight_figure(found, name, titles[0], caption, said, chart, several, is_wide=True)


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
