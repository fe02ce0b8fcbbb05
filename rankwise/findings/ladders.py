"""LoRA options of a trained task that differ by rank alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rankwise.findings.options import OptionGains, TrainedOption
from rankwise.records import quantities
from rankwise.records.study import PlannedRun

_Setting = tuple[str, str, str, str]
_NAMES = ("alpha ", "rate ", "on ", "epochs ")


class Ladder(NamedTuple):
    """LoRA options that differ by rank alone, smallest first; the label says what they share."""

    label: str
    rungs: tuple[TrainedOption, ...]


def ladders(source: OptionGains) -> list[Ladder]:
    """The trained ranks of every combination of the other settings, where there are several.

    Two settings that come to one run at a rank (alpha 2r and 16 at rank 8) both have it.
    """
    rungs: dict[_Setting, dict[int, TrainedOption]] = {}
    for option in source.options:
        if option.plan.rank is not None and option.plan.imported_as is None:
            for setting in _settings(option.plan):
                rungs.setdefault(setting, {})[option.plan.rank] = option
    varied = [len({setting[place] for setting in rungs}) > 1 for place in range(len(_NAMES))]
    return [
        Ladder(_label(setting, varied), tuple(by_rank[rank] for rank in sorted(by_rank)))
        for setting, by_rank in rungs.items()
        if len(by_rank) > 1
    ]


def _settings(plan: PlannedRun) -> Iterator[_Setting]:
    modules = quantities.modules(plan.target_modules)
    for alpha, rate in itertools.product(plan.alpha_labels, plan.rate_labels):
        yield alpha, rate, modules, str(plan.epochs)


def _label(setting: _Setting, varied: Sequence[bool]) -> str:
    parts = zip(_NAMES, setting, varied, strict=True)
    return ", ".join(f"{name}{value}" for name, value, is_varied in parts if is_varied)
