"""Means over tasks as words and columns: what the sections about options share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankwise.findings.options import OptionName, TaskMean
from rankwise.records import quantities
from rankwise.records.axes import Kind

MOST_OPTIONS = 8
"""More options than this are too many for one chart; then one is drawn for each rank."""


def mean_words(mean: TaskMean) -> str:
    """+3.1 points (+1.0 to +5.2)."""
    return quantities.with_interval(mean, mean.unit)


def mean_row(mean: TaskMean | None, name: str) -> dict[str, Any]:
    """The columns of a CSV: the estimate under ``name``, and its bounds."""
    return {
        name: None if mean is None else mean.estimate,
        f"{name}_lower": None if mean is None else mean.lower,
        f"{name}_upper": None if mean is None else mean.upper,
    }


def drawn_options(
    options: Sequence[OptionName], most: int = MOST_OPTIONS
) -> tuple[OptionName, ...]:
    """All of them, or, where they are too many, the first of every rank and of the others."""
    if len(options) <= most:
        return tuple(options)
    first: dict[Kind, OptionName] = {}
    for option in options:
        first.setdefault(option.kind, option)
    return tuple(first.values())[-most:]


def left_out_remark(labels: Sequence[str], where: str = "") -> tuple[str, ...]:
    """Names options that take no part; ``where`` is ", trained on <task>" or empty."""
    if not labels:
        return ()
    names = quantities.listed(labels)
    if len(labels) == 1:
        return (f"{names} takes no part here{where}: a seed of it diverged or is missing.",)
    return (f"{names} take no part here{where}: seeds of them diverged or are missing.",)
