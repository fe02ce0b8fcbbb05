"""The config of a study: frozen data that can be saved, hashed and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from rankwise.records.fields import (
    LARGEST,
    MOST_ENTRIES,
    Count,
    Duration,
    Epochs,
    Fraction,
    ModuleSet,
    Names,
    Natural,
    NotNegative,
    Number,
    Positive,
    Rank,
    Section,
    Several,
    Switch,
    Text,
    UserPath,
    as_list,
    as_model,
    as_module_sets,
    ascending,
    distinct,
    none_or_two,
    run_name,
    seconds_of,
)

Precision = Literal["auto", "float32", "bfloat16"]
BasePrecision = Literal["auto", "8bit", "4bit"]
LoraInit = Literal["A", "B"]
OptimizerName = Literal["adamw", "adamw_8bit"]
Engine = Literal["resident", "vllm"]

ENDING_SUFFIX = "@end"
"""Ends the name of the task that scores only how a trained task's rows end."""


_MOST_RUNS = 10_000
"""Each is a training with a folder of its own."""


class BaseModelConfig(Section):
    """The frozen model that every run starts from: an embedded one, a hub name, or a folder."""

    name: Text
    revision: Text | None = None
    """Branch, tag or commit of a hub repository; None: its main branch."""


class RateRuleConfig(Section):
    """A learning rate that falls with rank, so that ranks are compared at a fair step size.

    Under alpha = ratio * rank, the best rate is expected to fall as r^-1/2, under rsLoRA as r^-1/4
    (arXiv:2602.06204).
    """

    rule: Literal["constant", "r^-1/2", "r^-1/4"]
    reference_rank: Rank = 32
    value: Positive
    """The rate at ``reference_rank``; at other ranks it follows the rule."""

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
    """Peak learning rates; several make a grid.

    The default for full fine-tuning is the reference paper's. The paper publishes none for LoRA.
    """

    lora: Several[LoraRate] = (2e-4,)
    full: Several[Positive] = (5e-5,)
    tune: Switch = False
    """Search each rank's rate, and full fine-tuning's, around the one rate that is given for each.

    A rate without a rule is taken as that of rank 32.
    """

    @model_validator(mode="after")
    def _one_to_tune_around(self) -> Self:
        if self.tune and (len(self.lora) > 1 or len(self.full) > 1):
            raise ValueError("tune: true searches around one rate; give one for lora, one for full")
        return self


class StopConfig(Section):
    """When a training ends before its last step."""

    retention_loss: Positive
    """Points: a training ends at its last scored checkpoint that loses no more of the validation
    items."""


Checkpoint = Annotated[
    Annotated[int, Field(ge=1, le=LARGEST, strict=True)]
    | Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)],
    Field(union_mode="left_to_right"),
]
"""A place in a training: the number of an optimizer step, or a share of all steps."""


class TrainConfig(Section):
    """What is trained on, and how. Exactly one of ``task`` and ``data`` is given."""

    task: Names = ()
    """lm-eval tasks or groups. Each is trained on separately, a group as one, and scored on all."""
    split: Text | Mapping[str, Text] | None = None
    """Split to train on, one for all or by task; None: each task's training split.

    A task that would be scored on this split is not scored.
    """
    data: UserPath | None = None
    """A JSON Lines file of ``prompt``/``completion`` or ``messages`` to train on instead."""
    held_out_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """Share of ``data`` that is scored and not trained on."""
    exact_match: Switch = False
    """Score greedy answers to ``data`` too, by whether they equal the right ones."""
    max_examples: Count | None = None
    """Train on this many rows at most; None: all."""
    drop_overlapping: Switch = False
    """Leave out training rows that contain scored items."""
    epochs: Several[Epochs] = (3,)
    """Several make a grid."""
    batch_size: Count = 2
    gradient_accumulation_steps: Count = 4
    """An optimizer step sees ``batch_size`` times this many examples of each run."""
    learning_rate: LearningRateConfig = LearningRateConfig()
    score_checkpoints: Annotated[
        tuple[Checkpoint, ...],
        BeforeValidator(as_list),
        Field(max_length=100),
        AfterValidator(distinct),
    ] = ()
    """Optimizer steps, or shares of all steps, after which each run is scored too."""
    stop: StopConfig | None = None
    warmup_ratio: Fraction = 0.1
    """Share of the steps over which the rate rises to its peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    dropout: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    """Gradients of a larger norm are scaled down to this one."""
    precision: Precision = "auto"
    base_precision: BasePrecision = "auto"
    """Quantises the frozen base, for training and for scoring."""
    max_micro_batch_tokens: Count | None = None
    """The most tokens in one micro-batch; None: as the memory allows."""
    gradient_checkpointing: Switch | None = None
    """Compute activations again in the backward pass; None: if the memory requires it."""
    compile: Switch = False
    """Run the layers through torch.compile."""
    save_steps: Count | None = 100
    """Steps between checkpoints from which a stopped training continues; None: no checkpoints."""
    loss_on: Literal["completion", "all"] = "completion"
    """Learn the tokens of the answer only, or those of the prompt too."""
    chat_template: Switch = False
    """Write rows in the model's chat format."""
    max_length: Count = 1024
    """Rows are cut to this many tokens."""

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
                    known = ", ".join(self.task)
                    raise ValueError(f"split: {name!r} is not trained on; there is {known}")
        if self.stop is not None and not self.score_checkpoints:
            raise ValueError("stop needs score_checkpoints: the steps at which a training may end")
        if self.exact_match and self.data is None:
            raise ValueError("exact_match is for 'data'; a task brings its own metrics")
        return self

    def split_of(self, task: str) -> str | None:
        """The split to train on; None: the task's own training split."""
        return self.split.get(task) if isinstance(self.split, Mapping) else self.split

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the trained tasks, or of the data file: one set of runs for each."""
        return self.task or ((self.data.stem,) if self.data is not None else ())


class AlphaConfig(Section):
    """How LoRA's alpha follows from the rank."""

    policy: Literal["proportional", "fixed", "rslora"] = "proportional"
    """``proportional``: alpha = ratio * rank, scaling = ratio. ``fixed``: scaling = alpha / rank.
    ``rslora``: scaling = alpha / sqrt(rank)."""
    ratio: Positive | None = None
    """For ``proportional``; None: 2."""
    alpha: Positive | None = None
    """For ``fixed`` and ``rslora``."""

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
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    )
    """A set of layer names, or ``attention``, ``mlp``, ``all-linear``; a list of lists: several."""
    init: LoraInit = "A"
    """The matrix that is drawn at random; the other one begins at zero.

    ``A`` is PEFT's. With ``B`` and alpha = rank the best learning rate should hardly depend on the
    rank, and be full fine-tuning's (arXiv:2602.06204).
    """
    paired: Annotated[tuple[PairedConfig, ...], Field(alias="_", max_length=MOST_ENTRIES)] = ()
    """Values that are used together, as ``_`` in the file; axes given here leave the grid."""

    @model_validator(mode="after")
    def _same_axes(self) -> Self:
        axes = [frozenset(entry.model_dump(exclude_none=True)) for entry in self.paired]
        if len(set(axes)) > 1 or frozenset() in axes:
            raise ValueError("every entry of '_' sets the same axes, at least one")
        return self


class FullConfig(Section):
    """Full fine-tuning, one run per seed; its rate is ``train.learning_rate.full``."""

    weights: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves their memory; a step then rounds stochastically."""
    optimizer: OptimizerName = "adamw"
    """``adamw_8bit`` keeps AdamW's moments in 8 bits (needs the extra ``torchao``)."""


class ImportedConfig(Section):
    """A model that was trained elsewhere: an adapter or a checkpoint."""

    adapter: UserPath | None = None
    """A PEFT LoRA folder."""
    checkpoint: UserPath | None = None
    """A whole model's folder."""
    name: Annotated[str, AfterValidator(run_name)] | None = None
    train_task: Text | None = None
    """With several trained tasks: the one whose runs it is compared with."""

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
    imported: Annotated[tuple[ImportedConfig, ...], Field(max_length=MOST_ENTRIES)] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.lora is None and self.full is None and not self.imported:
            raise ValueError("'lora' and 'full' are null and nothing is imported; give one of them")
        return self


class EvaluationConfig(Section):
    """What is scored, and how."""

    in_domain: Names = ()
    """Tasks on which the gain is measured; empty: the trained task."""
    out_of_domain: Names = ()
    """Tasks to which the gain may transfer."""
    retention: Names = ()
    """Tasks that the base can do and the adapted model should not forget."""
    held_out_text: Names = ()
    """Texts whose loss per token is measured."""
    metric: Mapping[str, Text] = {}
    """Task -> the metric that decides, if not p_right (with options) or the task's first."""
    domains: Mapping[str, Text] = {}
    """Task or group -> domain in the report; overrides the task's own file."""
    clusters: Mapping[str, Text] = {}
    """Task or group -> field of its documents; items of equal value come in one cluster.

    Without it every item counts as independent of the others. Tasks with the same field share the
    clusters of equal value; ``doc_id`` stands for the number of the item.
    """
    num_fewshot: Natural | None = None
    """Examples in each prompt; None: each task's own number."""
    limit: Count | None = None
    """Score a random sample of each task's items, this many at most; None: all.

    The order is fixed: a larger limit adds items to those of a smaller one.
    """
    chat_template: Switch = False
    """Ask in the model's chat format."""
    fewshot_as_multiturn: Switch = False
    """Show examples as earlier turns of the conversation."""
    trained_format: Switch = True
    """Score a task that asks in another format than the training also in the training format.

    The standard format decides.
    """
    num_train_items: Annotated[Natural, AfterValidator(none_or_two)] = 100
    """Number of trained rows to score, for the gap between seen and unseen items."""
    engine: Engine = "resident"
    """``resident``, rankwise's own, scores all adapters at once; ``vllm`` needs its extra."""
    max_batch_tokens: Count = 4096
    """The most tokens in one forward pass."""

    def metric_of(self, task: str) -> str | None:
        """The configured metric that decides on a scored task; None: none is.

        A task's trained rows, and the task in the trained format (``<task>@...``), are judged by
        the task's metric; the end of trained rows is no question of a task.
        """
        if task.endswith(ENDING_SUFFIX):
            return self.metric.get(task)
        return self.metric.get(task, self.metric.get(task.partition("@")[0]))


class AnalysisConfig(Section):
    """How the weights and attention heads of every run are analysed."""

    spectra: Switch = True
    """Analyse the weights."""
    top_k: Count = 500
    """Number of leading singular vectors that are compared with the base's."""
    null_draws: Natural = 2
    """Number of random updates of each kind to compare with."""
    heads: Switch = True
    """Compare attention heads with the base's."""
    head_prompts: Annotated[int, Field(ge=2, strict=True)] = 32
    """Number of prompts on which heads are compared."""


class RecommendationConfig(Section):
    """What counts as a difference, and how sure the recommendation must be."""

    delta_points: Positive | None = None
    """Margin δ: the in-domain difference that counts; None: derived from the number of items."""
    epsilon_points: Positive | None = None
    """Margin ε: the acceptable retention loss; None: derived from the number of items."""
    delta_nats: Positive = 0.02
    """δ for tasks that are scored by their loss, in nats per token."""
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95


class SearchConfig(Section):
    """The shortest way to a verdict: which runs are trained is decided as their scores come in.

    Searches decide on validation items, which are held out of the training split. The items that
    the verdict is made from are scored once, by the runs that are left.
    """

    policy: Literal["race", "ladder"] | None = None
    """``race``: all ranks together, those that are ruled out are dropped. ``ladder``: rank 32
    first, then larger if it underfits and smaller if it forgets. None: every rank."""
    rungs: Annotated[
        tuple[Annotated[Number, Field(gt=0, lt=1)], ...],
        BeforeValidator(as_list),
        Field(min_length=1, max_length=20),
        AfterValidator(ascending),
    ] = (0.25, 0.5)
    """Shares of a training after which runs are compared, before their end."""
    validation_items: Annotated[Count, Field(ge=2)] = 200
    """Number of validation items of the trained task, and of all retention tasks together."""
    until: Literal["decided"] | None = None
    """``decided``: go on with more items and seeds until the verdict is settled, or cannot be."""
    budget: Duration | None = None
    """Time that training and scoring may take, such as ``2h``; implies ``until: decided``."""

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds; None without one."""
        return None if self.budget is None else seconds_of(self.budget)

    @property
    def grows(self) -> bool:
        """Whether the study is extended until it is decided."""
        return self.until is not None or self.budget is not None


class StudyConfig(Section):
    """A whole study file."""

    name: Annotated[str, AfterValidator(run_name)] = "study"
    base_model: Annotated[BaseModelConfig, BeforeValidator(as_model)]
    tasks_path: Annotated[
        tuple[UserPath, ...], BeforeValidator(as_list), Field(max_length=MOST_ENTRIES)
    ] = ()
    allow_task_code: Switch = False
    """Let task files of ``tasks_path`` run Python code, ``!function`` and the like."""
    train: TrainConfig
    methods: MethodsConfig = MethodsConfig()
    seeds: Annotated[
        tuple[Natural, ...],
        Field(max_length=MOST_ENTRIES),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (0,)
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    recommendation: RecommendationConfig = RecommendationConfig()

    @property
    def is_searched(self) -> bool:
        """Whether runs are chosen by their scores on validation items."""
        train = self.train
        is_tuned, is_stopped = train.learning_rate.tune, train.stop is not None
        return is_tuned or is_stopped or self.search.policy is not None

    @property
    def has_validation_items(self) -> bool:
        """Whether items are held out of the training splits to choose runs or checkpoints by."""
        return self.is_searched or bool(self.train.score_checkpoints)

    @property
    def _num_runs(self) -> int:
        """The combinations of all axes, without naming any."""
        rates, epochs, lora = self.train.learning_rate, self.train.epochs, self.methods.lora
        num_runs = 0 if self.methods.full is None else len(rates.full) * len(epochs)
        if lora is not None:
            axes = (lora.ranks, lora.alpha, lora.target_modules, rates.lora, epochs, lora.paired)
            num_runs += math.prod(len(axis) or 1 for axis in axes)
        return num_runs * len(self.seeds) * len(self.train.sources)

    @model_validator(mode="after")
    def _one_relation_per_task(self) -> Self:
        places: dict[str, list[str]] = {}
        for relation in ("in_domain", "out_of_domain", "retention", "held_out_text"):
            for task in getattr(self.evaluation, relation):
                places.setdefault(task, []).append(relation)
        for task, relations in places.items():
            if len(relations) > 1:
                raise ValueError(
                    f"evaluation: task {task!r} is in {' and '.join(relations)}; name it once"
                )
        for task in self.train.task if len(self.train.task) == 1 else ():
            if task in (*self.evaluation.out_of_domain, *self.evaluation.retention):
                raise ValueError(
                    f"evaluation: {task!r} is trained on, so it is in_domain; "
                    "take it out of out_of_domain and retention"
                )
        if len(self.train.task) > 1 and self.evaluation.in_domain:
            raise ValueError(
                "evaluation.in_domain: with several trained tasks, each is in_domain for itself "
                "and out_of_domain for the others; leave in_domain out"
            )
        if self.train.score_checkpoints and self.is_searched and self.train.stop is None:
            raise ValueError(
                "train.score_checkpoints: a search scores its own checkpoints (search.rungs); "
                "leave them out, or leave search.policy and learning_rate.tune out"
            )
        if self.train.stop is not None:
            others = self.search.policy is not None or self.train.learning_rate.tune
            if others or not self.evaluation.retention:
                raise ValueError(
                    "train.stop: it needs evaluation.retention, and goes with no search.policy and "
                    "no learning_rate.tune; take it out, or these"
                )
        if self._num_runs > _MOST_RUNS:
            raise ValueError(
                f"{self._num_runs:,} runs are more than {_MOST_RUNS:,}; shorten the lists of "
                "ranks, seeds and the other axes"
            )
        for imported in self.methods.imported:
            if imported.train_task not in (None, *self.train.sources):
                raise ValueError(
                    f"methods.imported: train_task {imported.train_task!r} is not trained on; "
                    f"there is {', '.join(self.train.sources)}"
                )
        return self
