"""A model's gain or loss as a share of another's, on the same items and from the same seeds."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.options import OptionGains, Runs
from rankwise.findings.stats.estimates import Estimate, fieller
from rankwise.findings.stats.items import Floats
from rankwise.records import quantities
from rankwise.records.base import Record


class Share(Record):
    """A ratio of two means with its interval (Fieller 1954), or why it cannot be given."""

    estimate: float | None
    lower: float | None
    upper: float | None
    reason: str | None

    @property
    def in_words(self) -> str | None:
        """92 % (85 to 99); None where it cannot be given."""
        if self.estimate is None or self.lower is None or self.upper is None:
            return None
        estimate, lower, upper = (
            quantities.formatted(100.0 * value, ".0f")
            for value in (self.estimate, self.lower, self.upper)
        )
        return f"{estimate} % ({lower} to {upper})"


def ratio_of_means(
    numerator: Estimate, denominator: Estimate, difference: Estimate, confidence: float
) -> Share:
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
        why = "what it is a share of is not shown to be above zero"
        return Share(estimate=None, lower=None, upper=None, reason=why)
    return Share(**ratio._asdict(), reason=None)


def share_of(
    source: OptionGains, part: Sequence[Floats], whole: Sequence[Floats], tasks: Sequence[str]
) -> Share:
    """The mean of ``part`` over that of ``whole``; (seeds, items) of each of these tasks."""
    both = [a - b for a, b in zip(part, whole, strict=True)]
    numerator, denominator, difference = (
        source.estimate(values, tasks) for values in (part, whole, both)
    )
    return ratio_of_means(numerator, denominator, difference, source.confidence)


def share_of_gain(source: OptionGains, runs: Runs, whole: Runs, tasks: Sequence[str]) -> Share:
    """What some runs gain as a share of what others do."""
    own, largest = ([source.gains(models, task) for task in tasks] for models in (runs, whole))
    return share_of(source, own, largest, tasks)
