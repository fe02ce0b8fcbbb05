"""Which of a model's matrices are read, in which groups, and means over kinds of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from rankwise.engine.models.structure import MODULE_KINDS, LinearShape
from rankwise.weights.matrix import layer_number

NUM_LAYERS = 8
"""The most layers whose matrices are read: neighbours are alike, and each costs its spectra."""

GROUP_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Bytes of what is gathered at once, by kind of device; a single matrix may need more."""


def read_matrices(shapes: Mapping[str, LinearShape]) -> dict[str, LinearShape]:
    """The matrices of ``NUM_LAYERS`` layers from the first to the last, evenly spread.

    Matrices outside of numbered layers are read too.
    """
    layers = sorted({number for name in shapes if (number := layer_number(name)) is not None})
    last, number = len(layers) - 1, min(NUM_LAYERS, len(layers))
    chosen = {layers[round(place * last / max(number - 1, 1))] for place in range(number)}
    return {name: shape for name, shape in shapes.items() if layer_number(name) in {None, *chosen}}


def in_groups(num_bytes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most so many bytes; a larger one is a group of its own."""
    group: list[str] = []
    total = 0
    for name, size in num_bytes.items():
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def means_by_kind(feature: str, values: Mapping[str, float]) -> dict[str, float]:
    """Means over matrices: of all of them, of attention's and of the MLPs', as features.

    Args:
        feature: its name.
        values: of each matrix, by its name.
    """
    kinds = {"all-linear": feature, "attention": f"{feature}_attention", "mlp": f"{feature}_mlp"}
    found: dict[str, float] = {}
    for kind, name in kinds.items():
        of_kind = [value for each, value in values.items() if MODULE_KINDS[kind].search(each)]
        if of_kind:
            found[name] = statistics.fmean(of_kind)
    return found
