"""A ratio of two means over the same items, with the interval of Fieller (1954)."""

from __future__ import annotations

from rankwise.findings.stats.estimates import Estimate, Ratio, fieller


def ratio_of_means(
    numerator: Estimate, denominator: Estimate, difference: Estimate, confidence: float
) -> Ratio:
    """The ratio numerator / denominator of two estimates from the same seeds and items.

    The covariance of the two follows from the variances of both and of their difference.

    Args:
        numerator: a mean.
        denominator: another one.
        difference: numerator - denominator, item by item.
        confidence: 0..1, two-sided.

    Returns:
        None and a reason if the denominator is not shown to be above zero: no θ is excluded then.
    """
    quantile = max(
        float(each.spread.quantile((1.0 + confidence) / 2.0))
        for each in (numerator, denominator, difference)
    )
    var_n, var_d = numerator.stderr**2, denominator.stderr**2
    variances = var_n, var_d, (var_n + var_d - difference.stderr**2) / 2.0
    ratio = fieller(numerator.value, denominator.value, variances, quantile)
    if ratio is None or denominator.value <= 0:
        return Ratio(None, None, None, "what it is a share of is not shown to be above zero")
    return ratio
