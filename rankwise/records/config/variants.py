"""Variants of LoRA and other ways to train few weights: which are trained beside LoRA."""

from __future__ import annotations

from typing import Literal

from rankwise.records.config.training import LoraRate
from rankwise.records.fields import AnyNumber, Rank, Section, Several

VariantName = Literal[
    "rslora",
    "lora_plus",
    "dora",
    "pissa",
    "olora",
    "eva",
    "lora_fa",
    "vera",
    "adalora",
]

VARIANT_LABELS: dict[VariantName, str] = {
    "rslora": "rsLoRA",
    "lora_plus": "LoRA+",
    "dora": "DoRA",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "eva": "EVA",
    "lora_fa": "LoRA-FA",
    "vera": "VeRA",
    "adalora": "AdaLoRA",
}
"""What each is called in tables."""


class VariantsConfig(Section):
    """Variants that are trained beside LoRA, with its settings: in its pass, or alone."""

    names: Several[VariantName]
    ranks: AnyNumber[Rank] = ()
    """Of LoRA's; empty: the middle one."""
    match: Literal["rank", "parameters"] = "rank"
    """``parameters``: the rank at which a variant trains as many weights as LoRA at this one."""
    learning_rate: AnyNumber[LoraRate] = ()
    """Several make a grid; empty: LoRA's."""
