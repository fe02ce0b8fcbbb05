"""A learning curve: values by number of rows, and the law that describes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rankwise.findings.stats.items import Floats

LawName = Literal["constant", "logarithm", "power law"]

MIN_SIZES = 3
"""Two sizes are a straight line, whatever the law."""

REACH = 10.2
"""Standard errors of a point between the law's value at twice the rows and what was measured there,
in 95 % of 240 curves on GLUE (``python -m benchmarks.rows``). Most of it is that no law is right:
of the noise alone it would be about 3."""

REACH_CONFIDENCE = 0.95

# Exponents: below, a power law is a logarithm; above, it is at its end after the first size.
_EXPONENTS = (0.05, 3.0)

_LEAST_NOISE = 1e-9


class Law(NamedTuple):
    """A fitted law of values over rows: start + growth * f(n / first), with f(1) = 0.

    f is 0, ln, or (1 - x^-exponent), which goes to 1. ``aic`` is Akaike's, of Gaussian noise of a
    known size: the squared residuals over its variance, and twice the number of parameters.
    """

    name: LawName
    first: float
    start: float
    growth: float
    exponent: float
    aic: float

    def at(self, num_rows: float) -> float:
        """The law's value at a number of rows."""
        shape = _shape(self.name, np.asarray(num_rows / self.first), self.exponent)
        return self.start + self.growth * float(shape)


def _shape(name: LawName, ratio: Floats, exponent: float) -> Floats:
    if name == "constant":
        return np.zeros_like(ratio, dtype=np.float64)
    return np.log(ratio) if name == "logarithm" else 1.0 - ratio**-exponent


def fitted_laws(sizes: Sequence[float], values: ArrayLike, noise: float) -> tuple[Law, ...]:
    """Each law, fitted by least squares; that of the least AIC comes first.

    Args:
        sizes: (n,) numbers of rows, ascending; at least ``MIN_SIZES``.
        values: (n,) at each.
        noise: standard error of a value, all sizes alike; what they share is no part of it.

    Raises:
        ValueError: too few sizes.
    """
    from scipy.optimize import minimize_scalar  # slow to load

    if len(sizes) < MIN_SIZES:
        raise ValueError(f"{len(sizes)} sizes make no curve; at least {MIN_SIZES} are needed")
    ratios, known = np.asarray(sizes, dtype=np.float64) / sizes[0], np.asarray(values, np.float64)

    def fit(name: LawName, num_parameters: int, exponent: float = 1.0) -> Law:
        columns = np.stack([np.ones_like(ratios), _shape(name, ratios, exponent)], axis=1)
        start, growth = np.linalg.lstsq(columns, known, rcond=None)[0]
        residuals = (known - columns @ [start, growth]) / max(noise, _LEAST_NOISE)
        aic = float(residuals @ residuals) + 2.0 * num_parameters
        return Law(name, float(sizes[0]), float(start), float(growth), exponent, aic)

    # the exponent is all that is not linear
    found: Any = minimize_scalar(
        lambda log: fit("power law", 3, math.exp(log)).aic,
        bounds=tuple(map(math.log, _EXPONENTS)),
        method="bounded",
    )
    laws = fit("constant", 1), fit("logarithm", 2), fit("power law", 3, math.exp(found.x))
    return tuple(sorted(laws, key=lambda law: law.aic))
