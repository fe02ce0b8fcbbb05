"""What is minimised, other than the loss of the right answers' tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rankwise.records.config.own_rows import CheckConfig, JudgeName
from rankwise.records.fields import (
    ADDED,
    Count,
    NotNegative,
    Number,
    Positive,
    Section,
    Several,
    Text,
)


class DpoConfig(Section):
    """DPO, as TRL's DPOTrainer has it: the chosen answer gets likelier against the rejected one.

    A run is compared with the base, whose log-ratio of both answers is where it begins.
    """

    beta: Positive = 0.1
    """How strongly a run is kept near the base: the reward is beta times the log-ratio to it."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """The loss of a pair. ``ipo`` draws the margin of the log-ratios, per answer token, to 1 / (2
    beta) (arXiv:2310.12036)."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    """The share of pairs whose two answers may have been mistaken for each other, under
    ``sigmoid``."""
    sft_weight: NotNegative = 0.0
    """The factor of the chosen answers' loss per token, which is added to the loss of pairs."""

    def _problems(self) -> Iterator[str]:
        if self.label_smoothing and self.loss == "ipo":
            yield "label_smoothing is of the sigmoid loss; leave it out"


class WrittenConfig(Section):
    """How a model writes the texts that it learns from."""

    max_completion_length: Count = 256
    """The most tokens of a text; one that is longer is cut."""
    temperature: Positive = 1.0
    """By which logits are divided when a text is sampled, and in the loss."""

    num_generations: Count = 1
    """The texts that are written for each row of a step."""

    @property
    def is_distilled(self) -> bool:
        """Whether a teacher's distributions are learned; else texts by their rewards."""
        return isinstance(self, SdftConfig)


class SdftConfig(WrittenConfig):
    """Self-distillation (arXiv:2601.19897): a teacher that knows the answer reads what is written.

    It says at each token of the model's own text what it would have written there. The loss is the
    mean over texts of the mean KL over their tokens, as TRL's SDFTTrainer has it with
    ``distillation_mode="full_logits"`` and the base as teacher.
    """

    template: Annotated[str, Field(min_length=1)] = (
        "{prompt}\n\nThis is an example of a response to the question:\n{answer}\n\n"
        "Now answer with a response of your own."
    )
    """What the teacher is asked, with the row's ``{prompt}`` and its ``{answer}``."""
    direction: Literal["forward", "reverse"] = "forward"
    """``forward``: KL(teacher || model), ``reverse``: KL(model || teacher)."""
    teacher: Text | None = None
    """A model or checkpoint with the base's vocabulary; None: the base itself."""

    def _problems(self) -> Iterator[str]:
        for name in ("prompt", "answer"):
            if f"{{{name}}}" not in self.template:
                yield f"template: {{{name}}} is missing; write it where the row's {name} stands"


class RewardConfig(CheckConfig):
    """A reward with settings: a check, or a function of a file, and how much it weighs."""

    check: JudgeName | None = None
    """The name of a check without settings."""
    metric: Text | None = None
    """Which of the check's numbers: ``fields_correct`` of ``json``, say; None: the first."""
    weight: Number = 1.0
    """The factor of this reward in the sum."""

    def _problems(self) -> Iterator[str]:
        checks = self.model_dump(exclude={"metric", "weight"}, exclude_none=True)
        if len(checks) != 1:
            yield "name one reward: check, json, regex or code"
        if self.code is not None and self.metric is not None:
            yield f"metric: {self.code} gives one number; leave metric out"


REWARD_TAGS = ("a name", "a reward")

Reward = Annotated[
    Annotated[JudgeName, Tag(REWARD_TAGS[0])] | Annotated[RewardConfig, Tag(REWARD_TAGS[1])],
    Discriminator(lambda value: REWARD_TAGS[isinstance(value, dict | RewardConfig)]),
]
"""What a text is worth: a check of the row's answer, or a function in TRL's signature."""

REWARDS = ("number", "exact", "contains", "json", "rouge", "bleu", "chrf")
"""Checks without settings that a reward can be."""

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]


class GrpoConfig(WrittenConfig):
    """GRPO, as TRL's GRPOTrainer has it: texts get likelier by their reward against their group's.

    Names and defaults are TRL's.
    """

    rewards: Several[Reward]
    """What a text is worth: the weighted sum of these."""
    max_completion_length: Count = 512
    num_generations: Annotated[Count, Field(ge=2)] = 8
    beta: NotNegative = 0.0
    """The factor of the KL from the base, by its estimate at the tokens of the text."""
    epsilon: Positive = 0.2
    """How far the ratio of a token's new to its old probability may go below 1 and still count."""
    epsilon_high: Positive | None = None
    """The same above 1; None: ``epsilon``."""
    loss_type: LossType = "dapo"
    """How losses of tokens are summed. ``grpo``: the mean over texts of the mean over tokens;
    ``bnpo``: the mean over the tokens of ``batch_size`` rows; ``dr_grpo``: the sum over the number
    of texts times ``max_completion_length``; ``dapo``: the mean over the tokens of the step."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Of what the ratio is: of each token, or of the whole text as the mean over its tokens
    (GSPO)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """The standard deviation by which advantages are divided: of the texts of a row, or of the
    step."""
    num_iterations: Count = 1
    """The optimizer steps that are taken with the same texts."""

    def _problems(self) -> Iterator[str]:
        for each in self.rewards:
            name = each.check if isinstance(each, RewardConfig) else each
            if name is not None and name not in REWARDS:
                yield f"rewards: {name} judges no text by itself; name one of {', '.join(REWARDS)}"

    @property
    def largest_ratio(self) -> float:
        """The ratio from which a token that gets likelier counts no more."""
        return 1.0 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


class ObjectiveConfig(Section):
    """One objective, by its name."""

    dpo: DpoConfig | None = None
    sdft: Annotated[SdftConfig | None, ADDED] = None
    grpo: Annotated[GrpoConfig | None, ADDED] = None

    def _problems(self) -> Iterator[str]:
        if len(self.model_dump(exclude_none=True)) != 1:
            yield "name one objective: dpo, sdft or grpo"

    @property
    def name(self) -> str:
        """Of the objective."""
        return self.named[0]

    @property
    def named(self) -> tuple[str, dict[str, Any]]:
        """The objective's name and its settings."""
        ((name, settings),) = self.model_dump(exclude_none=True).items()
        return name, settings

    @property
    def written(self) -> WrittenConfig | None:
        """How texts are written, where the model learns from its own."""
        return self.sdft or self.grpo
