"""Maps of weight matrices: every layer and module, trained and random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rankwise.records.spectra import (
    EPSILONS,
    INTRUDER_EPSILON,
    MatrixSpectrum,
    VectorChange,
    intruder_k,
    intruders_of,
    similarity,
)
from rankwise.report.charts.heatmap import HeatScale, LayerMap, layer_maps, percent
from rankwise.report.parts import Figure


def norm_map(matrices: Mapping[str, Sequence[MatrixSpectrum]]) -> Iterator[Figure]:
    """The size of the updates of some models, by what they are called."""
    panels = {
        label: [(matrix, matrix.update.relative_norm) for matrix in own]
        for label, own in matrices.items()
    }
    return _figure(
        "map-norm",
        "Size of the update by layer and module",
        "% of the base's norm; rows are layers",
        "‖delta‖_F of each matrix relative to the base's own norm, in percent.",
        panels,
        percent,
    )


def turned_map(label: str, matrices: Sequence[MatrixSpectrum]) -> Iterator[Figure]:
    """How far singular vectors of one model have turned, compared with random updates."""
    most = max(matrix.leading[-1] for matrix in matrices)
    caption = (
        f"1 − |cos| of singular vectors of one index before and after, in percent, mean of left "
        f"and right over the leading {most} (or the matrix's own number)."
    )
    if _are_drawn(matrices):
        caption += (
            " Beside it the same under random updates: what is no larger than there is a matter of "
            "size alone."
        )
    return _figure(
        "map-turned",
        f"Turned singular vectors, {label}",
        "1 − |cos| in %; rows are layers",
        caption,
        _with_nulls(matrices, lambda change, _: 1.0 - similarity(change)),
        percent,
    )


def intruder_map(label: str, matrices: Sequence[MatrixSpectrum]) -> Iterator[Figure]:
    """Where intruder dimensions of one model are, compared with random updates."""
    k = intruder_k(matrices)
    beside = "; next to it the means under random updates" if _are_drawn(matrices) else ""
    return _figure(
        "map-intruders",
        f"Intruder dimensions, {label}",
        f"of {k} leading vectors; rows are layers",
        f"How many of the {k} leading left singular vectors after training have no |cos| of "
        f"{INTRUDER_EPSILON} or more with any of the base's{beside}.",
        _with_nulls(matrices, intruders),
        lambda value: f"{value:.2g}",
    )


def intruders(change: VectorChange, matrix: MatrixSpectrum) -> float:
    """The count at the standard k and ε."""
    return intruders_of(change, matrix.leading, EPSILONS)


def nulls(matrix: MatrixSpectrum) -> list[VectorChange]:
    """What random updates have done to it: Gaussian, Haar; where they were drawn."""
    return [null for null in (matrix.gaussian_null, matrix.haar_null) if null is not None]


_Panels = Mapping[str, Sequence[tuple[MatrixSpectrum, float | None]]]
"""By title: matrices with their numbers, None where nothing was measured."""


def _figure(
    name: str, title: str, detail: str, caption: str, panels: _Panels, words: Callable[[float], str]
) -> Iterator[Figure]:
    """Of the panels that have values, with one scale; nothing where none has."""
    kinds = {matrix.kind for own in panels.values() for matrix, _ in own}
    ends = Counter(kind.rpartition(".")[2] for kind in kinds)

    def short(kind: str) -> str:
        """The last part of a kind's name, or all of it where others end alike."""
        end = kind.rpartition(".")[2]
        return end if ends[end] == 1 else kind

    values = {
        title: {
            (matrix.layer, short(matrix.kind)): value
            for matrix, value in own
            if matrix.layer is not None and value is not None
        }
        for title, own in panels.items()
    }
    scale = HeatScale.of([value for own in values.values() for value in own.values()], words)
    maps = [LayerMap(label, own, scale) for label, own in values.items() if own]
    if maps:
        yield Figure(name, title, caption, layer_maps(maps), detail)


def _are_drawn(matrices: Iterable[MatrixSpectrum]) -> bool:
    return any(matrix.haar_null is not None for matrix in matrices)


def _with_nulls(
    matrices: Sequence[MatrixSpectrum], value: Callable[[VectorChange, MatrixSpectrum], float]
) -> _Panels:
    changes: dict[str, list[VectorChange | None]] = {
        "trained": [matrix.change for matrix in matrices],
        "Gaussian": [matrix.gaussian_null for matrix in matrices],
        "Haar": [matrix.haar_null for matrix in matrices],
    }
    return {
        title: [
            (matrix, None if change is None else value(change, matrix))
            for matrix, change in zip(matrices, own, strict=True)
        ]
        for title, own in changes.items()
    }
