"""The axes of a study: which combinations of settings are trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rankwise.records import quantities
from rankwise.records.config.methods import AlphaConfig, PairedConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import LoraRate, RateRuleConfig
from rankwise.records.config.variants import VARIANT_LABELS, VariantName
from rankwise.records.grouping import grouped
from rankwise.records.study import PlannedRun

FULL_LABEL = "full fine-tuning"

Kind = int | Literal["full", "base"]
"""What a model is, for its colour and its mark: a rank, full fine-tuning, or the base."""

SETTING = ("rank", "alpha", "scaling", "learning_rate", "target_modules", "epochs")
"""What an option is besides its seed: fields that a planned run and a verdict share."""


ModuleNames = tuple[str, ...]
"""A set of target modules, as the study file names it."""

BesideRank = tuple[str, str, str, str]
"""What ranks can be compared under: how alpha and the rate follow from them, modules, epochs."""


class LoraSettings(NamedTuple):
    """One combination of a LoRA run's settings; ``learning_rate`` may depend on the rank."""

    rank: int
    alpha: AlphaConfig
    learning_rate: LoraRate
    target_modules: tuple[str, ...]
    epochs: int

    @property
    def peak_rate(self) -> float:
        """The peak learning rate at this rank."""
        rate = self.learning_rate
        return rate.rate_of(self.rank) if isinstance(rate, RateRuleConfig) else rate

    @property
    def rate_label(self) -> str:
        """The same at every rank: 2e-4, or 2e-4 × (r/32)^-1/2."""
        return rate_label(self.learning_rate)


def rate_label(rate: LoraRate) -> str:
    """How a learning rate is set, at whatever rank."""
    if not isinstance(rate, RateRuleConfig):
        return quantities.learning_rate(rate)
    value, power = quantities.learning_rate(rate.value), rate.rule.removeprefix("r^")
    return value if power == "constant" else f"{value} × (r/{rate.reference_rank})^{power}"


def lora_settings(config: StudyConfig) -> tuple[LoraSettings, ...]:
    """The grid of the study's lists times its ``_`` list, ranks first; each combination once."""
    lora = config.methods.lora
    if lora is None:
        return ()
    grid: dict[str, tuple[Any, ...]] = {
        "epochs": config.train.epochs,
        "target_modules": lora.target_modules,
        "learning_rate": config.train.learning_rate.lora,
        "alpha": lora.alpha,
        "rank": lora.ranks,
    }
    found: list[LoraSettings] = []
    for entry in lora.paired or (PairedConfig(),):
        axes = grid | {axis: (value,) for axis, value in entry if value is not None}
        combinations = itertools.product(*axes.values())
        found += [LoraSettings(**dict(zip(axes, each, strict=True))) for each in combinations]
    return tuple(dict.fromkeys(found))


def pattern_settings(config: StudyConfig, ranks: Mapping[ModuleNames, int]) -> list[LoraSettings]:
    """The grid's settings but for its ranks, under which a rank pattern is trained.

    Args:
        config: of a study with a rank pattern.
        ranks: target modules -> the pattern's mean rank there, rounded.
    """
    grid = dict.fromkeys(each._replace(rank=0) for each in lora_settings(config))
    return [each._replace(rank=ranks[each.target_modules]) for each in grid]


class VariantChoice(NamedTuple):
    """A variant with the settings that it shares with LoRA, whose rank it is compared with."""

    name: VariantName
    lora: LoraSettings


def variant_choices(config: StudyConfig) -> tuple[VariantChoice, ...]:
    """Every variant beside LoRA's settings at the ranks that are asked for, at its own rates."""
    section = config.methods.variants
    if section is None:
        return ()
    settings = dict.fromkeys(
        setting._replace(learning_rate=rate)
        for setting in lora_settings(config)
        if setting.rank in config.methods.variant_ranks
        for rate in section.learning_rate or (setting.learning_rate,)
    )
    return tuple(itertools.starmap(VariantChoice, itertools.product(section.names, settings)))


def full_settings(config: StudyConfig) -> tuple[tuple[float, int], ...]:
    """(learning rate, epochs) of every full fine-tuning of a seed; epochs of the grid only."""
    if config.methods.full is None:
        return ()
    return tuple(itertools.product(config.train.learning_rate.full, config.train.epochs))


def beside_rank(run: PlannedRun) -> tuple[BesideRank, ...]:
    """The settings of a LoRA run besides its rank and seed.

    Several where two settings come to one run at its rank (alpha 2r and 16 at rank 8).
    """
    modules = quantities.modules(run.target_modules)
    return tuple(
        (alpha, rate, modules, str(run.epochs))
        for alpha, rate in itertools.product(run.alpha_labels, run.rate_labels)
    )


def run_labels(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """What each run is called among these: its rank and variant, and what else differs.

    Seeds are left out: runs that differ by seed alone have one label. LoRA's rank beside a variant
    is named where variants would be called the same without it.
    """
    # runs of one kind are told apart by their settings
    kind_of = {run.name: (run.method, run.variant, run.role == "imported") for run in planned}
    differing = {
        kind: [name for name, setting in _SETTINGS.items() if len({*map(setting, runs)}) > 1]
        for kind, runs in grouped((kind_of[run.name], run) for run in planned).items()
    }
    labels = {run.name: _run_label(run, differing[kind_of[run.name]]) for run in planned}
    ranks_of = grouped((labels[run.name], run.beside_ranks) for run in planned)
    ambiguous = {label for label, ranks in ranks_of.items() if len({*ranks}) > 1}
    for run in planned:
        if labels[run.name] in ambiguous:
            ranks = " and ".join(f"rank {rank}" for rank in run.beside_ranks)
            labels[run.name] += f", beside {ranks}"
    return labels


_SETTINGS: dict[str, Callable[[PlannedRun], str]] = {
    "alpha ": lambda run: " = ".join(run.alpha_labels),
    "rate ": lambda run: " = ".join(run.rate_labels),
    "on ": lambda run: quantities.modules(run.target_modules),
    "epochs ": lambda run: str(run.epochs),
    "rows ": lambda run: str(run.num_examples) if run.role == "fewer_rows" else "all",
}
"""What may differ between runs of one method and rank, and how it is written."""


def _run_label(run: PlannedRun, differing: Sequence[str]) -> str:
    """Full fine-tuning; rank 32; rank 32, DoRA; then what differs."""
    if run.imported is not None:
        return f"imported {run.imported.label}"
    if run.called is not None and run.role == "imported":
        return run.called
    parts = [FULL_LABEL if run.rank is None else quantities.rank(run)]
    if run.variant is not None:
        parts.append(VARIANT_LABELS[run.variant])
    return ", ".join([*parts, *(f"{name}{_SETTINGS[name](run)}" for name in differing)])
