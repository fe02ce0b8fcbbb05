"""The texts of a step that a model wrote itself, and what is learned from each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from rankwise.findings.stats.estimates import welch_interval
from rankwise.records.base import Record
from rankwise.records.config.objectives import GrpoConfig, WrittenConfig
from rankwise.records.study import Change, LearnedTexts
from rankwise.tasks.training_rows import Example, OwnText


class TextMetrics(Record):
    """What a model wrote for a step, and what came of it.

    Attributes:
        num_texts: that it wrote.
        num_tokens: of these, without their prompts.
        cut_share: the share of texts that were cut at the length limit.
        entropy_nats: the mean loss of the tokens under the model that wrote them, which is the
            entropy of its next token on average; None where a teacher is learned.
        kl_nats: the mean over tokens of the estimate of KL(model || base) that GRPO uses, of the
            texts that the base has read; None where it has read none.
        clipped_share: the share of tokens that do not count, as their ratio is clipped.
        reward: the mean over texts; None where nothing is rewarded, and where no text is.
        rewards: the mean of each reward by its name.
        no_spread_share: the share of rows whose texts have equal rewards: nothing is learned there.
    """

    num_texts: int
    num_tokens: int
    cut_share: float
    entropy_nats: float | None = None
    kl_nats: float | None = None
    clipped_share: float | None = None
    reward: float | None = None
    rewards: Mapping[str, float | None] = {}
    no_spread_share: float | None = None

    @property
    def gauges(self) -> dict[str, float]:
        """What is known, by the names that trackers and events have."""
        named = {
            "reward": self.reward,
            **{f"rewards/{name}": reward for name, reward in self.rewards.items()},
            "no_spread_share": self.no_spread_share,
            "completion_length": self.num_tokens / self.num_texts,
            "cut_share": self.cut_share,
            "entropy": self.entropy_nats,
            "kl": self.kl_nats,
            "clipped_share": self.clipped_share,
        }
        return {name: value for name, value in named.items() if value is not None}


_FEWEST_STEPS = 3
"""A quarter with fewer steps has no interval."""


def summary(steps: Sequence[TextMetrics], num_iterations: int = 1) -> LearnedTexts | None:
    """What all steps of a training say of its texts; None: it wrote none.

    Args:
        steps: in their order.
        num_iterations: the steps that are taken with the same texts.
    """
    if not steps:
        return None
    number = max(len(steps) // 10, 1)
    first, last = steps[:number], steps[-number:]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def of(part: Sequence[TextMetrics], name: str) -> Any:
        return mean(getattr(step, name) for step in part)

    def length(part: Sequence[TextMetrics]) -> float:
        return sum(step.num_tokens for step in part) / sum(step.num_texts for step in part)

    def change(values: Sequence[float | None]) -> Change | None:
        known = [value for value in values if value is not None]
        if (size := len(known) // 4) < _FEWEST_STEPS:
            return None
        before, after = known[:size], known[-size:]
        estimate, lower, upper = welch_interval(before, after, 0.95)
        first = sum(before) / size
        return Change(first=first, estimate=estimate, lower=lower, upper=upper)

    new = steps[::num_iterations]
    return LearnedTexts(
        num_texts=sum(step.num_texts for step in new),
        reward_first=of(first, "reward"),
        reward_last=of(last, "reward"),
        no_spread_share=of(steps, "no_spread_share"),
        tokens_first=length(first),
        tokens_last=length(last),
        cut_first=of(first, "cut_share"),
        cut_last=of(last, "cut_share"),
        entropy_first=of(first, "entropy_nats"),
        entropy_last=of(last, "entropy_nats"),
        kl_last=of(last, "kl_nats"),
        reward_change=change([step.reward for step in new]),
        tokens_change=change([step.num_tokens / step.num_texts for step in new]),
    )


class WrittenTexts(NamedTuple):
    """The texts of a step, or of several steps that are taken with the same ones.

    Attributes:
        examples: prompts and texts, those of a row next to each other.
        metrics: what is known of them before a step is taken.
        of_base: place of a text -> the losses of its tokens under the base, of those it has read.
    """

    examples: tuple[Example, ...]
    metrics: TextMetrics
    of_base: Mapping[int, tuple[float, ...]] = MappingProxyType({})

    def with_base(self, nats: Mapping[int, tuple[float, ...]], *, is_held: bool) -> WrittenTexts:
        """The same with what the base says of some texts; held to it where all are learned so."""
        if not is_held:
            return self._replace(of_base=nats)
        held = (
            example._replace(own=own._replace(base_nats=nats[place]))
            for place, example in enumerate(self.examples)
            if (own := example.own) is not None
        )
        return self._replace(examples=tuple(held), of_base=nats)

    def read(
        self, nats: Mapping[int, Sequence[float]], grpo: GrpoConfig
    ) -> tuple[WrittenTexts, TextMetrics]:
        """The texts for the next step with them, and what this one says of them.

        Args:
            nats: place of a text -> the losses of its tokens in this step.
            grpo: the settings.
        """
        now = [np.array(nats[place]) for place in range(len(self.examples))]
        own = [example.own for example in self.examples if example.own is not None]
        old = [np.array(x.old_nats) if x.old_nats else y for x, y in zip(own, now, strict=True)]
        counts = np.array([len(each) for each in now])
        log_ratios = np.concatenate(old) - np.concatenate(now)
        if grpo.importance_sampling_level == "sequence":
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            log_ratios = (np.add.reduceat(log_ratios, starts) / counts).repeat(counts)
        # a token whose ratio has gone as far as it may in the direction of its advantage
        advantages = np.array([each.advantage for each in own]).repeat(counts)
        ratios = np.exp(np.clip(log_ratios, -50.0, 50.0))  # beyond float32 anyway
        too_low = (ratios < 1.0 - grpo.epsilon) & (advantages < 0)
        too_high = (ratios > grpo.largest_ratio) & (advantages > 0)
        to_base = [now[place] - np.array(nats) for place, nats in self.of_base.items()]
        update: dict[str, Any] = {
            "entropy_nats": float(np.concatenate(old).mean()),
            "clipped_share": float((too_low | too_high).mean()),
        }
        if to_base:
            d = np.concatenate(to_base)
            update["kl_nats"] = float((np.exp(np.clip(d, -50.0, 50.0)) - d - 1.0).mean())
        aged = tuple(
            example._replace(own=text._replace(old_nats=tuple(map(float, nats_then))))
            for example, text, nats_then in zip(self.examples, own, old, strict=True)
        )
        return self._replace(examples=aged), self.metrics.model_copy(update=update)

    def as_values(self) -> dict[str, Any]:
        """Plain values, from which ``of_values`` makes the same again."""
        texts = [(x.tokens, x.num_loss_tokens, tuple(x.own or ())) for x in self.examples]
        of_base = dict(self.of_base)
        return {"texts": texts, "metrics": self.metrics.model_dump(), "of_base": of_base}

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> WrittenTexts:
        """The same as before.

        Raises:
            ValueError, TypeError, LookupError: the values are no such texts.
        """
        examples = tuple(
            Example(tuple(tokens), number, is_truncated=False, own=OwnText(*own))
            for tokens, number, own in values["texts"]
        )
        of_base = {int(place): tuple(nats) for place, nats in values["of_base"].items()}
        return cls(examples, TextMetrics.model_validate(values["metrics"]), of_base)


def token_weights(lengths: Sequence[int], per_part: int, written: WrittenConfig) -> list[float]:
    """What the loss of each token of a text weighs, so that the sum over a step is its loss.

    Args:
        lengths: the tokens of each text of the step.
        per_part: the texts of ``batch_size`` rows, which TRL reads at once.
        written: the settings.
    """
    number = len(lengths)
    kind = written.loss_type if isinstance(written, GrpoConfig) else "grpo"
    if kind == "grpo":
        return [1.0 / (number * length) for length in lengths]
    if kind == "dr_grpo":
        return [1.0 / (number * written.max_completion_length)] * number
    if kind == "dapo":
        return [1.0 / sum(lengths)] * number
    starts = range(0, number, per_part)
    parts = [lengths[start : start + per_part] for start in starts]
    return [1.0 / (len(parts) * sum(part)) for part in parts for _ in part]
