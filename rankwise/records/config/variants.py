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
    """The ranks of LoRA beside which variants are trained; empty: the middle one."""
    match: Literal["rank", "parameters"] = "rank"
    """What a variant shares with LoRA. ``parameters``: its rank is the one at which it trains as
    many weights as LoRA."""
    learning_rate: AnyNumber[LoraRate] = ()
    """The learning rates of variants; several make a grid. Empty: LoRA's."""
