"""What a study is: frozen data that can be saved, hashed and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from rankwise.records.config_fields import (
    PAPER_RANKS,
    Count,
    Counts,
    Fraction,
    ModuleSet,
    Names,
    NotNegative,
    Positive,
    Rank,
    as_list,
    as_model,
    as_module_sets,
    distinct,
    run_name,
)

AlphaPolicy = Literal["proportional", "fixed", "rslora"]
Precision = Literal["auto", "float32", "bfloat16"]
BasePrecision = Literal["auto", "8bit", "4bit"]
OptimizerName = Literal["adamw", "adamw_8bit"]
Schedule = Literal["linear", "cosine", "constant"]
RateRule = Literal["constant", "r^-1/2", "r^-1/4"]
Engine = Literal["resident", "vllm"]


class Section(BaseModel):
    """A part of a study file: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelConfig(Section):
    """The frozen model that every run starts from: an embedded one, a hub name, or a folder."""

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None


class RateRuleConfig(Section):
    """A rate that falls with rank: ``value`` at ``reference_rank``, elsewhere by the rule.

    Under alpha = ratio * rank the best rate is expected to go as r^-1/2, under rsLoRA as r^-1/4
    (arXiv:2602.06204); so ranks are compared at a fair step size.
    """

    rule: RateRule
    reference_rank: Rank = 32
    value: Positive

    def rate_of(self, rank: int) -> float:
        """The peak rate at this rank."""
        exponent = {"constant": 0.0, "r^-1/2": -0.5, "r^-1/4": -0.25}[self.rule]
        return float(f"{self.value * (rank / self.reference_rank) ** exponent:.6g}")


RATE_TAGS = ("a rate", "a rule")


def _rate_tag(value: Any) -> str:
    return RATE_TAGS[isinstance(value, dict | RateRuleConfig)]


LoraRate = Annotated[
    Annotated[Positive, Tag(RATE_TAGS[0])] | Annotated[RateRuleConfig, Tag(RATE_TAGS[1])],
    Discriminator(_rate_tag),
]


class LearningRateConfig(Section):
    """Peak learning rates: the reference paper publishes the full one, and none for LoRA.

    Several make a grid.
    """

    lora: Annotated[
        tuple[LoraRate, ...],
        BeforeValidator(as_list),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (2e-4,)
    full: Annotated[
        tuple[Positive, ...],
        BeforeValidator(as_list),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (5e-5,)


class TrainConfig(Section):
    """What is trained on, and how. Exactly one of ``task`` and ``data``.

    ``task`` may be a group, which is trained on as a whole; of several tasks each is trained on
    apart and scored on all. Several ``epochs`` make a grid. ``split`` names the split of a task's
    data set to train on where that is not its training split (for several tasks, by task); tasks
    whose scored split it is are then left out of scoring. ``drop_overlapping`` leaves out the
    training rows in which scored items are found.

    An optimizer step sees ``batch_size`` * ``gradient_accumulation_steps`` examples of each run;
    how they are cut into micro-batches (``max_micro_batch_tokens``) and whether activations are
    computed again (``gradient_checkpointing``) is decided by the memory at hand where it is null.
    Every ``save_steps`` steps all that a training needs to go on is saved; null: never.
    ``compile`` runs the layers through torch.compile. ``base_precision`` quantises the frozen
    base, for training and for scoring.
    """

    task: Names = ()
    split: str | Mapping[str, str] | None = None
    data: Path | None = None
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    exact_match: bool = False
    max_examples: Count | None = None
    drop_overlapping: bool = False
    epochs: Counts = (3,)
    batch_size: Count = 2
    gradient_accumulation_steps: Count = 4
    learning_rate: LearningRateConfig = LearningRateConfig()
    warmup_ratio: Fraction = 0.1
    schedule: Schedule = "linear"
    dropout: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    precision: Precision = "auto"
    base_precision: BasePrecision = "auto"
    max_micro_batch_tokens: Count | None = None
    gradient_checkpointing: bool | None = None
    compile: bool = False
    save_steps: Count | None = 100
    loss_on: Literal["completion", "all"] = "completion"
    chat_template: bool = False
    max_length: Count = 1024

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.task) == (self.data is not None):
            got = "both" if self.task else "neither"
            raise ValueError(f"{got} of 'task' and 'data' given; give exactly one")
        if self.split is not None and not self.task:
            raise ValueError("split is for 'task'; your own data has no splits")
        if isinstance(self.split, Mapping):
            for name in self.split:
                if name not in self.task:
                    raise ValueError(f"split: {name!r} is not trained on")
        if self.exact_match and self.data is None:
            raise ValueError("exact_match is for 'data'; a task brings its own metrics")
        return self

    def split_of(self, task: str) -> str | None:
        """The split to train on, where it is not the task's own training split."""
        return self.split.get(task) if isinstance(self.split, Mapping) else self.split

    @property
    def sources(self) -> tuple[str, ...]:
        """What is trained on, by name: one set of runs for each."""
        return self.task or ((self.data.stem,) if self.data is not None else ())


class AlphaConfig(Section):
    """LoRA's numerator: ``ratio`` * rank, or a fixed ``alpha`` (over rank, or over sqrt(rank))."""

    policy: AlphaPolicy = "proportional"
    ratio: Positive | None = None
    alpha: Positive | None = None

    @model_validator(mode="after")
    def _right_number(self) -> Self:
        wanted, other = (
            ("ratio", self.alpha) if self.policy == "proportional" else ("alpha", self.ratio)
        )
        if other is not None:
            raise ValueError(f"policy {self.policy!r} takes {wanted!r} only")
        if self.policy != "proportional" and self.alpha is None:
            raise ValueError(f"policy {self.policy!r} needs 'alpha'")
        return self

    def alpha_of(self, rank: int) -> float:
        """The numerator of the scaling at this rank."""
        if self.policy == "proportional":
            return (2.0 if self.ratio is None else self.ratio) * rank
        assert self.alpha is not None
        return self.alpha

    def scaling_of(self, rank: int) -> float:
        """The factor before B @ A: alpha / rank, or alpha / sqrt(rank) under ``rslora``."""
        return self.alpha_of(rank) / (math.sqrt(rank) if self.policy == "rslora" else rank)

    @property
    def label(self) -> str:
        """The same at every rank: 2r, 16, 16 (rslora)."""
        if self.policy == "proportional":
            return f"{self.alpha_of(1):g}r"
        return f"{self.alpha:g}" + (" (rslora)" if self.policy == "rslora" else "")


class PairedConfig(Section):
    """Values of several axes that belong together; what is not given here comes from the grid."""

    rank: Rank | None = None
    alpha: AlphaConfig | None = None
    learning_rate: LoraRate | None = None
    target_modules: ModuleSet | None = None
    epochs: Count | None = None


class LoraConfig(Section):
    """One run per seed and combination: lists make a grid, and ``_`` pairs values.

    ``target_modules`` is a set of layer names, or ``attention``, ``mlp``, ``all-linear``; a list
    that contains lists is several sets. An axis that ``_`` has is taken from there.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    ranks: Annotated[
        tuple[Rank, ...], BeforeValidator(as_list), AfterValidator(distinct), Field(min_length=1)
    ] = PAPER_RANKS
    alpha: Annotated[
        tuple[AlphaConfig, ...],
        BeforeValidator(as_list),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (AlphaConfig(),)
    target_modules: Annotated[
        tuple[ModuleSet, ...],
        BeforeValidator(as_module_sets),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (("q_proj", "k_proj", "v_proj", "o_proj"),)
    paired: Annotated[tuple[PairedConfig, ...], Field(alias="_")] = ()

    @model_validator(mode="after")
    def _same_axes(self) -> Self:
        axes = [frozenset(each.model_dump(exclude_none=True)) for each in self.paired]
        if len(set(axes)) > 1 or frozenset() in axes:
            raise ValueError("every entry of '_' sets the same axes, at least one")
        return self


class FullConfig(Section):
    """Full fine-tuning, one run per seed; its rate is ``train.learning_rate.full``.

    ``weights`` in bfloat16 halve the memory of float32 ones; a step then rounds stochastically.
    ``adamw_8bit`` keeps AdamW's moments in 8 bits (the extra ``torchao``).
    """

    weights: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerName = "adamw"


class ImportedConfig(Section):
    """A model that was trained elsewhere: a PEFT ``adapter`` folder, or a whole ``checkpoint``.

    ``train_task`` says among which runs it is judged, where several tasks are trained on.
    """

    adapter: Path | None = None
    checkpoint: Path | None = None
    name: Annotated[str, AfterValidator(run_name)] | None = None
    train_task: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.adapter is None) == (self.checkpoint is None):
            got = "neither" if self.adapter is None else "both"
            raise ValueError(f"{got} of 'adapter' and 'checkpoint' given; give exactly one")
        return self


class MethodsConfig(Section):
    """What is compared with the base. ``full: null`` leaves full fine-tuning out."""

    lora: LoraConfig | None = LoraConfig()
    full: FullConfig | None = FullConfig()
    imported: tuple[ImportedConfig, ...] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.lora is None and self.full is None and not self.imported:
            raise ValueError("'lora' and 'full' are null and nothing is imported; leave one")
        return self


class EvaluationConfig(Section):
    """What is scored. ``in_domain`` defaults to what was trained on.

    ``num_train_items`` of the rows that were trained on are scored too: how much better is a
    model on what it has seen?

    ``domains`` groups tasks in the report, over what their own files say.

    Unless ``trained_format`` is false, a task that asks in another format than the training did
    is also scored in that one; the standard format decides.

    ``engine`` answers: ``resident``, rankwise's own, for all adapters at once, or ``vllm``, where
    it is installed. ``max_batch_tokens`` are read in one forward pass.
    """

    in_domain: Names = ()
    out_of_domain: Names = ()
    retention: Names = ()
    held_out_text: Names = ()
    metric: Mapping[str, str] = {}
    domains: Mapping[str, str] = {}
    num_fewshot: Annotated[int, Field(ge=0, strict=True)] | None = None
    limit: Count | None = None
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    trained_format: bool = True
    num_train_items: Annotated[int, Field(ge=0, strict=True)] = 100
    engine: Engine = "resident"
    max_batch_tokens: Count = 4096


class AnalysisConfig(Section):
    """What is looked for in every run: heads are compared with the base's on ``head_prompts``.

    ``top_k`` singular vectors are compared with the base's, ``null_draws`` of each null likewise.
    """

    spectra: bool = True
    top_k: Count = 500
    null_draws: Annotated[int, Field(ge=0, strict=True)] = 2
    heads: bool = True
    head_prompts: Annotated[int, Field(ge=2, strict=True)] = 32


class RecommendationConfig(Section):
    """What counts as a difference: δ in-domain and ε on retention; derived from n if null."""

    delta_points: Positive | None = None
    epsilon_points: Positive | None = None
    delta_nats: Positive = 0.02
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class StudyConfig(Section):
    """A whole study file."""

    name: Annotated[str, AfterValidator(run_name)] = "study"
    base_model: Annotated[BaseModelConfig, BeforeValidator(as_model)]
    tasks_path: Annotated[tuple[Path, ...], BeforeValidator(as_list)] = ()
    train: TrainConfig
    methods: MethodsConfig = MethodsConfig()
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, strict=True)], ...],
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (0,)
    evaluation: EvaluationConfig = EvaluationConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    recommendation: RecommendationConfig = RecommendationConfig()

    @model_validator(mode="after")
    def _one_relation_per_task(self) -> Self:
        places: dict[str, list[str]] = {}
        for relation in ("in_domain", "out_of_domain", "retention", "held_out_text"):
            for task in getattr(self.evaluation, relation):
                places.setdefault(task, []).append(relation)
        for task, found in places.items():
            if len(found) > 1:
                raise ValueError(
                    f"evaluation: task {task!r} is in {' and '.join(found)}; name it once"
                )
        for task in self.train.task if len(self.train.task) == 1 else ():
            if task in (*self.evaluation.out_of_domain, *self.evaluation.retention):
                raise ValueError(
                    f"evaluation: {task!r} is trained on, so it is in_domain; "
                    "take it out of out_of_domain and retention"
                )
        if len(self.train.task) > 1 and self.evaluation.in_domain:
            raise ValueError(
                "evaluation.in_domain: of several trained tasks each is its own in_domain, and the "
                "others are its out_of_domain; leave in_domain out"
            )
        for imported in self.methods.imported:
            if imported.train_task not in (None, *self.train.sources):
                raise ValueError(
                    f"methods.imported: train_task {imported.train_task!r} is not trained on here"
                )
        return self
