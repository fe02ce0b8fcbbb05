"""What is trained on, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from rankwise.records.config.objectives import (
    DpoConfig,
    GrpoConfig,
    ObjectiveConfig,
    SdftConfig,
    WrittenConfig,
)
from rankwise.records.config.own_rows import ColumnsConfig, Judges, data_name, writes_nothing
from rankwise.records.fields import (
    ADDED,
    LARGEST,
    AnyNumber,
    Count,
    Duration,
    Epochs,
    Fraction,
    LearningRate,
    Names,
    NotNegative,
    Number,
    Points,
    Positive,
    Rank,
    Section,
    Several,
    Switch,
    Text,
    UserPath,
    exactly_one,
)

Precision = Literal["auto", "float32", "bfloat16"]


BasePrecision = Literal["auto", "8bit", "4bit"]


class RateRuleConfig(Section):
    """A learning rate that falls with rank, so that ranks are compared at a fair step size.

    Under alpha = ratio * rank, the best rate is expected to fall as r^-1/2, under rsLoRA as r^-1/4
    (arXiv:2602.06204).
    """

    rule: Literal["constant", "r^-1/2", "r^-1/4"]
    reference_rank: Rank = 32
    value: LearningRate
    """The rate at ``reference_rank``; at other ranks it follows the rule."""

    def rate_of(self, rank: int) -> float:
        """The peak rate at this rank."""
        exponent = {"constant": 0.0, "r^-1/2": -0.5, "r^-1/4": -0.25}[self.rule]
        return float(f"{self.value * (rank / self.reference_rank) ** exponent:.6g}")


RATE_TAGS = ("a rate", "a rule")


LoraRate = Annotated[
    Annotated[LearningRate, Tag(RATE_TAGS[0])] | Annotated[RateRuleConfig, Tag(RATE_TAGS[1])],
    Discriminator(lambda value: RATE_TAGS[isinstance(value, dict | RateRuleConfig)]),
]


class LearningRateConfig(Section):
    """Peak learning rates; several make a grid.

    The default for full fine-tuning is the reference paper's. The paper publishes none for LoRA:
    its default is 2e-4 at rank 32, and by the rule for alpha = 2 * rank at others.
    """

    lora: Several[LoraRate] = (RateRuleConfig(rule="r^-1/2", value=2e-4),)
    full: Several[LearningRate] = (5e-5,)
    tune: Switch = False
    """Search each rank's rate, and full fine-tuning's, around the one rate that is given for each.

    A rate without a rule is taken as that of rank 32.
    """

    def _problems(self) -> Iterator[str]:
        if self.tune and (len(self.lora) > 1 or len(self.full) > 1):
            yield "tune: true searches around one rate; give one for lora, one for full"


class StopConfig(Section):
    """When a training ends before its last step."""

    retention_loss: Points
    """The points of retention that a training may lose: it ends at its last scored checkpoint that
    loses no more of the validation items."""


SequenceAdapter = Literal["same", "new", "fresh"]


class SequenceConfig(Section):
    """Tasks that are trained one after the other."""

    tasks: Annotated[Names, Field(min_length=2)]
    """The lm-eval tasks or groups, in their order."""
    adapter: Several[SequenceAdapter] = ("same",)
    """What each task but the first is trained on: the adapter of the task before it (``same``), or
    a ``new`` one beside that, which stays as it is, as if it were merged into the base. Both go on
    from the weights that the task before left. A ``fresh`` adapter is on the base, for comparison.
    Full fine-tuning goes on from its own weights."""


class TrainedPart(NamedTuple):
    """One thing that a study trains on.

    Attributes:
        name: of the trained task in the study: that of its task, and of those before it.
        task: as lm-eval knows it, or the name of own rows.
        after: the name of the part whose runs it goes on from; None: it begins at the base.
        adapter: on what LoRA trains it.
        has_full: whether full fine-tuning is trained too; it has no new adapter, so that is no
            other than on the same one.
    """

    name: str
    task: str
    after: str | None = None
    adapter: SequenceAdapter = "fresh"
    has_full: bool = True


Checkpoint = Annotated[
    Annotated[int, Field(ge=1, le=LARGEST, strict=True)]
    | Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)],
    Field(union_mode="left_to_right"),
]
"""A place in a training: the number of an optimizer step, or a share of all steps."""


class TrainConfig(Section):
    """What is trained on, and how. Exactly one of ``task``, ``sequence``, ``data`` is given."""

    task: Names = ()
    """The lm-eval tasks or groups to train on. Each is trained on separately, a group as one, and
    scored on all."""
    sequence: Annotated[
        SequenceConfig | None,
        BeforeValidator(
            lambda value: {"tasks": value} if isinstance(value, list | tuple) else value
        ),
        ADDED,
    ] = None
    """Tasks to train on one after the other instead: ``[A, B]`` trains B where A ended, and says
    what is left of A. A list, or ``tasks`` with ``adapter``."""
    split: Text | Mapping[Text, Text] | None = None
    """The split to train on, one for all or by task; None: each task's training split. A task that
    would be scored on this split is not scored."""
    data: UserPath | None = None
    """Rows to train on instead: a file (JSON Lines, JSON, CSV, Parquet), or a data set of the Hub,
    ``org/name[:config][@revision][/split]``."""
    columns: ColumnsConfig | None = None
    """The columns of ``data`` by their roles; None: the names of the columns say it."""
    objective: Annotated[
        ObjectiveConfig | None,
        BeforeValidator(lambda value: {value: {}} if isinstance(value, str) else value),
    ] = None
    """What is minimised: the loss of the answers' tokens, or an objective, alone or with its
    settings (``{dpo: {beta: 0.1}}``). ``dpo`` learns from a chosen and a rejected answer; ``sdft``
    and ``grpo`` from texts that the model writes itself, by a teacher or by rewards."""
    held_out_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """The share of ``data`` that is scored and not trained on."""
    judged_by: Judges = ("loss",)
    """How the held-out rows of ``data`` are scored; of several ways the first decides."""
    max_new_tokens: Count | None = None
    """The most tokens that a model may write in an answer to them; None: as many as the right
    answers need."""
    max_examples: AnyNumber[Count] = ()
    """The most rows that are trained on; empty: all. With several numbers, LoRA's runs are trained
    on each: the rows of fewer are among those of more."""
    drop_overlapping: Switch = False
    """Leave out training rows that contain scored items."""
    epochs: Several[Epochs] = (3,)
    """How often each row is trained on; several numbers make a grid."""
    rows_at: Literal["epochs", "steps"] = "epochs"
    """What runs on fewer rows have in common with those on the most: how often they read each row,
    or how many optimizer steps they take, so that they read theirs more often."""
    batch_size: Count = 2
    gradient_accumulation_steps: Count = 4
    """The number of batches whose gradients one optimizer step adds up: it sees ``batch_size``
    times this many examples of each run."""
    learning_rate: LearningRateConfig = LearningRateConfig()
    score_checkpoints: Annotated[AnyNumber[Checkpoint], Field(max_length=100)] = ()
    """The optimizer steps, or shares of all steps, after which each run is scored too."""
    stop: StopConfig | None = None
    warmup_ratio: Fraction = 0.1
    """The share of the steps over which the rate rises to its peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    dropout: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    """The largest norm of a run's gradient; larger gradients are scaled down to it."""
    precision: Precision = "auto"
    base_precision: BasePrecision = "auto"
    """The precision of the frozen base, in training and in scoring; ``8bit`` and ``4bit`` quantise
    it."""
    max_micro_batch_tokens: Count | None = None
    """The most tokens in one micro-batch; None: as the memory allows."""
    gradient_checkpointing: Switch | None = None
    """Compute activations again in the backward pass; None: if the memory requires it."""
    save_every: Duration | None = "15min"
    """How often a state is saved from which a killed training continues; None: never."""
    loss_on: Literal["completion", "all"] = "completion"
    """The tokens that are learned: those of the answer only, or those of the prompt too."""
    turns: Annotated[Literal["last", "all"], ADDED] = "last"
    """The assistant's turns that are learned of a conversation in ``data``: the last one, or every
    one. The last one alone is scored."""
    chat_template: Switch = False
    """Write rows in the model's chat format."""
    max_length: Count = 1024
    """The most tokens of a row; longer rows are cut."""

    @model_validator(mode="before")
    @classmethod
    def _pairs_by_preference(cls, data: Any) -> Any:
        objective = data.get("objective") if isinstance(data, dict) else None
        is_dpo = objective == "dpo" or (isinstance(objective, dict) and "dpo" in objective)
        return {"judged_by": ("preference",), **data} if is_dpo else data

    def _problems(self) -> Iterator[str]:
        yield from exactly_one(task=self.task or None, data=self.data, sequence=self.sequence)
        if self.split is not None and self.data is not None:
            yield "split is for 'task'; your own data has no splits"
        if isinstance(self.split, Mapping):
            for name in self.split:
                if name not in self.tasks:
                    known = ", ".join(self.tasks)
                    yield f"split: {name!r} is not trained on; there is {known}"
        if self.stop is not None and not self.score_checkpoints:
            yield "stop needs score_checkpoints: the steps at which training may end"
        if self.objective is not None and self.data is None:
            yield f"objective: {self.objective.name} learns from rows in 'data'"
        if self.written is not None:
            yield from self._written_problems()
        if self.judged_by != ("loss",) and self.data is None:
            yield "judged_by is for 'data'; a task brings its own metrics"
        yield from writes_nothing(self.judged_by, self.max_new_tokens)
        if self.judged_by[0] == "length":
            yield "judged_by: a longer answer is neither gain nor loss; name another judge first"
        if self.columns is not None and self.data is None:
            yield "columns are for 'data'; a task knows its own"
        # the rows of DPO have two answers, and no others have
        is_dpo = self.dpo is not None
        if is_dpo != ("preference" in self.judged_by):
            yield "judged_by: preference goes with objective dpo; give both or neither"
        if is_dpo and self.loss_on == "all":
            yield "loss_on: dpo compares answers; leave it at completion"
        if self.turns == "all":
            if is_dpo:
                yield "turns: dpo compares answers; leave it at last"
            if self.data is None:
                yield "turns is for conversations in 'data'; leave it at last"
            if self.loss_on == "all":
                yield "turns: loss_on: all learns every token already; set one of the two"
        if self.columns is not None and (self.columns.rejected is not None) != is_dpo:
            yield "columns: 'rejected' goes with objective dpo; give both or neither"

    def _written_problems(self) -> Iterator[str]:
        """What does not go with texts that the model writes itself."""
        assert self.objective is not None
        name = self.objective.name
        if self.loss_on == "all":
            yield f"loss_on: {name} learns what the model writes; leave it at completion"
        if self.turns == "all":
            yield f"turns: {name} answers the last turn; leave it at last"
        if self.objective.grpo is not None and self.judged_by == ("loss",):
            yield (
                "judged_by: grpo raises rewards, and the loss of the right answers is none; say "
                "how held-out rows are scored (such as judged_by: json)"
            )

    @property
    def dpo(self) -> DpoConfig | None:
        """The settings of DPO; None: the next token is learned."""
        return None if self.objective is None else self.objective.dpo

    @property
    def written(self) -> WrittenConfig | None:
        """How a model writes the texts that it learns from; None: it learns from given ones."""
        return None if self.objective is None else self.objective.written

    @property
    def num_iterations(self) -> int:
        """Steps that are taken with the same rows, which follow each other."""
        return self.written.num_iterations if isinstance(self.written, GrpoConfig) else 1

    @property
    def template(self) -> str | None:
        """Of what a teacher is asked; None: there is no teacher."""
        return self.written.template if isinstance(self.written, SdftConfig) else None

    def split_of(self, task: str) -> str | None:
        """The split to train on; None: the task's own training split."""
        return self.split.get(task) if isinstance(self.split, Mapping) else self.split

    @property
    def most_examples(self) -> int | None:
        """The rows that the verdict is about, at most; None: all."""
        return max(self.max_examples, default=None)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The lm-eval tasks that are trained on; empty for own rows."""
        return self.task if self.sequence is None else self.sequence.tasks

    @property
    def parts(self) -> tuple[TrainedPart, ...]:
        """What is trained on, one set of runs for each, after what it goes on from."""
        if self.sequence is None:
            names = self.task or ((data_name(self.data),) if self.data is not None else ())
            return tuple(TrainedPart(name, name) for name in names)
        first, *others = self.sequence.tasks
        parts = {first: TrainedPart(first, first)}
        for adapter in self.sequence.adapter:
            before = first
            for task in others:
                link = {"same": " after ", "new": " on ", "fresh": ""}[adapter]
                name = f"{task}{link}{before if link else ''}"
                has_full = adapter != "new" or "same" not in self.sequence.adapter
                parts[name] = TrainedPart(name, task, before if link else None, adapter, has_full)
                before = name
        return tuple(parts.values())

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(part.name for part in self.parts)

    def before(self, name: str) -> tuple[TrainedPart, ...]:
        """The parts that one goes on from, nearest first; ``name`` is one of ``sources``."""
        by_name, chain = {part.name: part for part in self.parts}, list[TrainedPart]()
        part = by_name[name]
        while part.after is not None:
            part = by_name[part.after]
            chain.append(part)
        return tuple(chain)
