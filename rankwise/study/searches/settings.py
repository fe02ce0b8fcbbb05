"""What a search chooses from, and on what terms, as a study file asks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankwise.records import quantities
from rankwise.records.axes import FULL_LABEL, LoraSettings, full_settings, lora_settings
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import RateRuleConfig
from rankwise.study.searches.policy import Measures, Setting, Terms
from rankwise.study.searches.tuning import FACTOR, rounded

REFERENCE_RANK = 32
"""A rate that is given without a rule is that of this rank, where the paper's advice starts."""

_PRIORS = {"proportional": -0.5, "rslora": -0.25, "fixed": 0.0}
"""How the best rate is expected to go with the rank (arXiv:2602.06204)."""


TrainedSettings = LoraSettings | int
"""What is trained, but for the rate: LoRA with these settings, or all weights, in so many epochs.
"""


def searched(config: StudyConfig) -> list[tuple[Setting, TrainedSettings]]:
    """What a search may train: smallest rank first and full fine-tuning last."""
    lora = sorted(lora_settings(config), key=lambda settings: settings.rank)
    tune = config.train.learning_rate.tune
    found: list[tuple[str, int | None, float, TrainedSettings]] = []
    for settings, label in zip(lora, _labels(lora), strict=True):
        centre = settings.peak_rate
        if tune and not isinstance(settings.learning_rate, RateRuleConfig):
            # how the best rate should go with the rank, in whole steps of the grid: so ranks share
            # rates and can be compared at one
            factor = (settings.rank / REFERENCE_RANK) ** _PRIORS[settings.alpha.policy]
            centre = settings.learning_rate * FACTOR ** round(math.log(factor, FACTOR))
        found.append((label, settings.rank, centre, settings))
    for rate, epochs in full_settings(config):
        label = FULL_LABEL if len(config.train.epochs) == 1 else f"{FULL_LABEL}, epochs {epochs}"
        found.append((label, None, rate, epochs))
    factors = (1 / FACTOR, 1.0, FACTOR)
    return [
        (Setting(label, rank, tuple(rounded(centre * factor) for factor in factors)), settings)
        if tune
        else (Setting(label, rank, (centre,)), settings)
        for label, rank, centre, settings in found
    ]


def terms_of(config: StudyConfig, measures: Measures) -> Terms:
    """The terms on which validation items decide: the study's margins."""
    wanted, in_nats = config.recommendation, measures.unit == "nats"
    return Terms(
        delta=wanted.delta_nats if in_nats else wanted.delta_for(measures.in_domain),
        epsilon=wanted.epsilon_for(measures.retention) if config.evaluation.retention else None,
        alpha=1.0 - wanted.confidence,
        unit=measures.unit,
    )


def _labels(grid: Sequence[LoraSettings]) -> list[str]:
    """The rank of each, and what else differs between them."""
    parts = {
        "alpha ": [settings.alpha.label for settings in grid],
        "rate ": [settings.rate_label for settings in grid],
        "on ": [quantities.modules(settings.target_modules) for settings in grid],
        "epochs ": [str(settings.epochs) for settings in grid],
    }
    differing = {name: values for name, values in parts.items() if len({*values}) > 1}
    return [
        ", ".join([f"rank {each.rank}", *(f"{name}{v[place]}" for name, v in differing.items())])
        for place, each in enumerate(grid)
    ]
