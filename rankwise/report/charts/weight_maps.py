"""Maps of weight matrices: every layer and module, trained and random."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import altair as alt

from rankwise.records.spectra import (
    EPSILONS,
    INTRUDER_EPSILON,
    MatrixSpectrum,
    VectorChange,
    intruder_k,
    intruders_of,
    similarity,
)
from rankwise.report.charts.drawing import Layers
from rankwise.report.charts.layer_map import MapPanel, MapScale, layer_map, percent


class SpectrumMap(NamedTuple):
    """A map that can be drawn, and what is said about it.

    Attributes:
        name: for file names.
        title: of the figure.
        detail: what the numbers are.
        caption: what can be read from it.
        panels: each with at least one value; empty where nothing was measured.
        words: a number in the cells.
    """

    name: str
    title: str
    detail: str
    caption: str
    panels: tuple[MapPanel, ...]
    words: Callable[[float], str]

    @property
    def in_words(self) -> list[str]:
        """The range of every panel."""
        ranges = [(panel.title, sorted(panel.values.values())) for panel in self.panels]
        return [
            f"{title} {self.words(values[0])} to {self.words(values[-1])}"
            for title, values in ranges
        ]

    def chart(self, title: alt.TitleParams) -> Layers:
        """The panels side by side."""
        values = [value for panel in self.panels for value in panel.values.values()]
        return layer_map(self.panels, MapScale.of(values, self.words), title)


def has_layers(matrices: Iterable[MatrixSpectrum]) -> bool:
    """Whether there is anything to put on a map."""
    return any(matrix.layer is not None for matrix in matrices)


def norm_map(matrices: Mapping[str, Sequence[MatrixSpectrum]]) -> SpectrumMap:
    """The size of the updates of some models, by what they are called."""
    kinds = _short_kinds(each for own in matrices.values() for each in own)
    panels = [
        _panel(label, own, kinds, lambda each: each.update.relative_norm)
        for label, own in matrices.items()
    ]
    return SpectrumMap(
        "map-norm",
        "Size of the update by layer and module",
        "% of the base's norm; rows are layers",
        "‖delta‖_F of each matrix relative to the base's own norm, in percent.",
        tuple(panel for panel in panels if panel.values),
        percent,
    )


def turned_map(label: str, matrices: Sequence[MatrixSpectrum]) -> SpectrumMap:
    """How far singular vectors of one model have turned, compared with random updates."""
    most = max(matrix.leading[-1] for matrix in matrices)
    return SpectrumMap(
        "map-turned",
        f"Turned singular vectors, {label}",
        "1 − |cos| in %; rows are layers",
        f"1 − |cos| of singular vectors of one index before and after, in percent, mean of left "
        f"and right over the leading {most} (or the matrix's own number)."
        + _if_drawn(
            matrices,
            " Beside it the same under random updates: what is no larger than there is a matter of "
            "size alone.",
        ),
        _with_nulls(matrices, lambda change, _: 1.0 - similarity(change)),
        percent,
    )


def intruder_map(label: str, matrices: Sequence[MatrixSpectrum]) -> SpectrumMap:
    """Where intruder dimensions of one model are, compared with random updates."""
    k = intruder_k(matrices)
    return SpectrumMap(
        "map-intruders",
        f"Intruder dimensions, {label}",
        f"of {k} leading vectors; rows are layers",
        f"How many of the {k} leading left singular vectors after training have no |cos| of "
        f"{INTRUDER_EPSILON} or more with any of the base's"
        + _if_drawn(matrices, "; next to it the means under random updates")
        + ".",
        _with_nulls(matrices, intruders),
        lambda value: f"{value:.2g}",
    )


def intruders(change: VectorChange, matrix: MatrixSpectrum) -> float:
    """The count at the standard k and ε."""
    return intruders_of(change, matrix.leading, EPSILONS)


def _if_drawn(matrices: Iterable[MatrixSpectrum], words: str) -> str:
    return words if any(matrix.haar_null is not None for matrix in matrices) else ""


def _short_kinds(matrices: Iterable[MatrixSpectrum]) -> dict[str, str]:
    """The last part of each kind's name, or all of it where others end alike."""
    kinds = list(dict.fromkeys(matrix.kind for matrix in matrices))
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
        (matrix.layer, kinds[matrix.kind]): number
        for matrix in matrices
        if matrix.layer is not None and (number := value(matrix)) is not None
    }
    present = dict.fromkeys(kinds[each.kind] for each in matrices if each.layer is not None)
    return MapPanel(title, tuple(present), values)


def _with_nulls(
    matrices: Sequence[MatrixSpectrum], value: Callable[[VectorChange, MatrixSpectrum], float]
) -> tuple[MapPanel, ...]:
    kinds = _short_kinds(matrices)

    def of(change: VectorChange | None, matrix: MatrixSpectrum) -> float | None:
        return None if change is None else value(change, matrix)

    panels = [
        _panel("trained", matrices, kinds, lambda m: of(m.change, m)),
        _panel("Gaussian", matrices, kinds, lambda m: of(m.gaussian_null, m)),
        _panel("Haar", matrices, kinds, lambda m: of(m.haar_null, m)),
    ]
    return tuple(panel for panel in panels if panel.values)
