"""What is compared with the base: LoRA at its ranks, full fine-tuning, models from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from rankwise.records.config.training import LoraRate
from rankwise.records.config.variants import VariantsConfig
from rankwise.records.fields import (
    ADDED,
    MOST_ENTRIES,
    Alpha,
    Epochs,
    ModuleSet,
    Rank,
    Section,
    Several,
    Text,
    UserPath,
    as_module_sets,
    exactly_one,
    run_name,
)
from rankwise.records.patterns import Pattern, layer_pattern


class AlphaConfig(Section):
    """How LoRA's alpha follows from the rank."""

    policy: Literal["proportional", "fixed", "rslora"] = "proportional"
    """``proportional``: alpha = ratio * rank, scaling = ratio. ``fixed``: scaling = alpha / rank.
    ``rslora``: scaling = alpha / sqrt(rank)."""
    ratio: Alpha | None = None
    """The ratio alpha / rank under ``proportional``; None: 2."""
    alpha: Alpha | None = None
    """The alpha of every rank under ``fixed`` and ``rslora``."""

    def _problems(self) -> Iterator[str]:
        wanted, other = (
            ("ratio", self.alpha) if self.policy == "proportional" else ("alpha", self.ratio)
        )
        if other is not None:
            yield f"policy {self.policy!r} takes {wanted!r} only"
        if self.policy != "proportional" and self.alpha is None:
            yield f"policy {self.policy!r} needs 'alpha'"

    def alpha_of(self, rank: int) -> float:
        """Alpha at this rank."""
        if self.policy == "proportional":
            return (2.0 if self.ratio is None else self.ratio) * rank
        assert self.alpha is not None
        return self.alpha

    def scaling_of(self, rank: int) -> float:
        """The factor before B @ A: alpha / rank, or alpha / sqrt(rank) under ``rslora``."""
        return self.alpha_of(rank) / (math.sqrt(rank) if self.policy == "rslora" else rank)

    @property
    def label(self) -> str:
        """One label for all ranks: 2r, 16, 16 (rslora)."""
        if self.policy == "proportional":
            return f"{self.alpha_of(1):g}r"
        return f"{self.alpha:g}" + (" (rslora)" if self.policy == "rslora" else "")


def _layers_and_ranks(pattern: Mapping[str, int]) -> Mapping[str, int]:
    """Refuse a pattern that names no layer, or a key that is no regular expression."""
    if not pattern:
        raise ValueError("no layer is named; name some, or leave the key out")
    for key in pattern:
        Pattern(key)  # names the key as it stands, where it is no regular expression
        layer_pattern(key)
    return pattern


def _mapping_or_path(value: Any) -> Any:
    if not isinstance(value, str | Path | Mapping):
        raise ValueError(f"{value!r} given; write ranks by layer, or an adapter's folder")
    return value  # pyright: ignore[reportUnknownVariableType]


PATTERN_TAGS = ("an adapter", "a mapping")

RankPattern = Annotated[
    Annotated[UserPath, Tag(PATTERN_TAGS[0])]
    | Annotated[
        Mapping[Text, Rank],
        Field(max_length=MOST_ENTRIES),
        AfterValidator(_layers_and_ranks),
        Tag(PATTERN_TAGS[1]),
    ],
    Discriminator(lambda value: PATTERN_TAGS[isinstance(value, Mapping)]),
    BeforeValidator(_mapping_or_path),
]
"""A rank for each layer, as PEFT's ``rank_pattern`` has them, or an adapter that has such ranks."""


class PairedConfig(Section):
    """Values of several axes that are used together; the other axes are the grid's."""

    rank: Rank | None = None
    alpha: AlphaConfig | None = None
    learning_rate: LoraRate | None = None
    target_modules: ModuleSet | None = None
    epochs: Epochs | None = None


class LoraConfig(Section):
    """The LoRA runs: one per seed and combination of settings. Lists make a grid."""

    model_config = ConfigDict(serialize_by_alias=True)

    ranks: Several[Rank] = (8, 16, 32, 64, 128)
    alpha: Several[AlphaConfig] = (AlphaConfig(),)
    target_modules: Annotated[Several[ModuleSet], BeforeValidator(as_module_sets)] = (
        ("all-linear",),
    )
    """The layers that LoRA adapts: their names, or ``attention``, ``mlp``, ``all-linear``. A list
    of lists gives several sets."""
    paired: Annotated[tuple[PairedConfig, ...], Field(alias="_", max_length=MOST_ENTRIES)] = ()
    """Values that are used together, as ``_`` in the file; settings that are named here leave the
    grid."""
    start: UserPath | None = None
    """Adapter (a PEFT folder, or org/name) that is merged into the base before the study begins:
    the start and the reference of every run, full fine-tuning too."""

    rank_pattern: Annotated[RankPattern | None, ADDED] = None
    """One more option, whose layers have ranks of their own: PEFT's ``rank_pattern``, which ranks
    all adapted layers here, or a PEFT LoRA folder, whose ranks are taken. Layers that the folder
    leaves out are not adapted."""

    def _problems(self) -> Iterator[str]:
        if self.rank_pattern is not None:
            yield from self._pattern_problems()
        axes = [frozenset(entry.model_dump(exclude_none=True)) for entry in self.paired]
        if len(set(axes)) > 1 or frozenset() in axes:
            yield "every entry of '_' sets the same axes, at least one"

    def _pattern_problems(self) -> Iterator[str]:
        """What a rank pattern does not go with."""
        policies = {alpha.policy for alpha in self.alphas} - {"proportional"}
        for policy in sorted(policies):
            yield (
                f"under alpha's policy {policy!r} every layer of rank_pattern would have a scaling "
                "of its own; take 'proportional', which scales all ranks alike"
            )
        if any(entry.rank is not None for entry in self.paired):
            yield (
                "'_' pairs ranks with other settings, and rank_pattern is none of these ranks; "
                "take 'rank' out of '_'"
            )

    @property
    def trained_ranks(self) -> tuple[int, ...]:
        """Every rank that is trained, smallest first."""
        paired = {entry.rank for entry in self.paired if entry.rank is not None}
        return tuple(sorted(paired or {*self.ranks}))

    @property
    def alphas(self) -> tuple[AlphaConfig, ...]:
        """Every way in which alpha follows from the rank."""
        return tuple(pair.alpha for pair in self.paired if pair.alpha is not None) or self.alpha


class FullConfig(Section):
    """Full fine-tuning, one run per seed; its rate is ``train.learning_rate.full``.

    What is ``auto`` is the most exact that fits when the study is first planned; the study's record
    has what that is.
    """

    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision in which all weights are trained: bfloat16 halves their memory, and steps then
    round stochastically."""
    optimizer: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """The optimizer: ``adamw_8bit`` keeps AdamW's moments in 8 bits (needs the extra ``torchao``).
    """


class ImportedConfig(Section):
    """A model that was trained elsewhere: an adapter or a checkpoint."""

    adapter: UserPath | None = None
    """A PEFT LoRA folder."""
    checkpoint: UserPath | None = None
    """A whole model's folder."""
    name: Annotated[str, AfterValidator(run_name)] | None = None
    train_task: Text | None = None
    """The trained task whose runs the model is compared with; needed where the study has several.
    """

    def _problems(self) -> Iterator[str]:
        yield from exactly_one(adapter=self.adapter, checkpoint=self.checkpoint)


class PromptConfig(Section):
    """The base with training rows in its prompt: no training, more tokens a question."""

    shots: Several[Annotated[int, Field(ge=0, le=1000, strict=True)]] = (5,)
    """Numbers of training rows in the prompt; the rows are drawn once for each number and seed."""


class MethodsConfig(Section):
    """What is compared with the base. ``full: null`` leaves full fine-tuning out."""

    lora: LoraConfig | None = LoraConfig()
    full: FullConfig | None = FullConfig()
    variants: VariantsConfig | None = None
    imported: Annotated[tuple[ImportedConfig, ...], Field(max_length=MOST_ENTRIES)] = ()
    prompt: PromptConfig | None = None

    @property
    def start(self) -> Path | None:
        """The adapter that is merged into the base."""
        return None if self.lora is None else self.lora.start

    def _problems(self) -> Iterator[str]:
        """Something is compared; what is varied is LoRA's."""
        lora, variants = self.lora, self.variants
        if lora is None and self.full is None and not self.imported:
            yield "'lora' and 'full' are null and nothing is imported; give one of them"
        if lora is None and variants is not None:
            yield "variants: 'lora' is null, and variants are compared with LoRA"
        trained = [] if lora is None else [*lora.trained_ranks]
        for rank in () if variants is None else variants.ranks:
            if rank not in trained:
                there = ", ".join(map(str, trained))
                yield (
                    f"variants.ranks: {rank} is not a LoRA rank of the study, so there would be "
                    f"nothing to compare with; there is {there}"
                )

    @property
    def variant_ranks(self) -> tuple[int, ...]:
        """LoRA's ranks beside which variants are trained; empty without any."""
        if self.variants is None or self.lora is None:
            return ()
        ranks = self.lora.trained_ranks
        return self.variants.ranks or (ranks[(len(ranks) - 1) // 2],)
