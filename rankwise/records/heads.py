"""Findings about a run's attention heads: how they changed, and what they do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.study import Interval, Relation, StageRecord, Unit

HeadMode = Literal["ablate", "ablate-mean"]
"""A head outputs zeros, or its mean over the task's tokens."""

HEAD_MODES: tuple[HeadMode, ...] = get_args(HeadMode)

ChangeMeasure = Literal["entropy", "divergence", "first_token_mass", "output"]
CHANGE_MEASURES: tuple[ChangeMeasure, ...] = get_args(ChangeMeasure)
"""Signed change of the attention's entropy in nats; Jensen-Shannon divergence in nats; signed
change of the attention on the first token; ‖change of the output‖ / ‖output‖."""

ShareOf = Literal["query", "key", "value", "output", "all"]

HeadMap = tuple[tuple[float, ...], ...]
"""A value for each head: layer by layer, head by head."""


class HeadEstimate(Interval):
    """Mean effect of an ablation over items; positive is better.

    The bounds hold for all candidates at once (Bonferroni).
    """

    stderr: float
    p_value: float
    """Corrected for all candidates (Holm)."""


class HeadEffect(Record):
    """Effect of ablating one head, in one unit."""

    layer: int
    head: int
    effect: HeadEstimate
    """The effect on the run's model."""
    control: HeadEstimate
    """The effect of the same ablation on the base."""
    beyond_control: HeadEstimate
    """Effect minus control, item by item."""


class ScreenedHead(Record):
    """The effect that the gradient predicts, in nats, and whether it was scored exactly."""

    layer: int
    head: int
    expected_nats: float
    is_scored: bool


class Screen(Record):
    """A first-order screen: one backward pass orders the heads, and the first ones are scored."""

    heads: tuple[ScreenedHead, ...]
    rank_correlation: Interval | None
    """Spearman's, of predicted and exact effects over the scored heads only; None where undefined.
    """


class TaskHeadEffects(StageRecord, has_texts=False):
    """``heads/<mode>/<task>.json``: effects of a run's heads, one by one, on one task."""

    model: str
    mode: HeadMode
    task: str
    task_fingerprint: str | None
    """The study's, for a task that it scores; None for others."""
    relation: Relation | None
    metric: str
    unit: Unit
    num_items: int
    confidence: float
    num_heads: tuple[int, ...]
    """Heads of each layer.

    Bounds and p-values are corrected for all of them, including those that a screen left out.
    """
    base_score: float
    adapted_score: float
    base_answer_nats: float
    adapted_answer_nats: float
    scores: tuple[HeadEffect, ...]
    """Effects on the metric that decides, in points or nats."""
    answers: tuple[HeadEffect, ...]
    """Effects on the log-probability of the right answer, in nats; they show far smaller effects.

    Among the options of a choice; per token of a target.
    """
    screen: Screen | None
    score_seconds: float

    @property
    def num_candidates(self) -> int:
        """How many heads can be ablated: all heads of the model."""
        return sum(self.num_heads)


class ChangeMap(Record):
    """A measure of change for every head."""

    measure: ChangeMeasure
    values: HeadMap
    halves: tuple[HeadMap, HeadMap]
    """The same on two halves of the prompts, as a control: their difference is noise."""


class ShareMap(Record):
    """Each head's share of ‖delta‖² over all layers, of one of attention's matrices or of all four.

    Rows of k and v belong to a group: their share is divided evenly among its heads.
    """

    of: ShareOf
    values: HeadMap


class HeadChanges(StageRecord, has_texts=False):
    """``heads.json``: a run's heads compared with the base's, on the same prompts.

    Of a model whose heads are not known, everything is empty.
    """

    model: str
    tasks: tuple[str, ...]
    """Tasks whose prompts were read."""
    num_prompts: int = 0
    num_tokens: int = 0
    num_groups: tuple[int, ...] = ()
    """Key-value groups of each layer."""
    base_entropy: HeadMap = ()
    """Mean entropy of the base's attention, in nats."""
    base_first_token_mass: HeadMap = ()
    """Mean attention of the base on the first token."""
    changes: tuple[ChangeMap, ...] = ()
    shares: tuple[ShareMap, ...] = ()
    not_analysed: str | None
    """Why there are no maps; None if there are."""
    analysis_seconds: float = 0.0

    def change(self, measure: ChangeMeasure) -> ChangeMap | None:
        """The map of a measure; None if there is none."""
        return next((change for change in self.changes if change.measure == measure), None)

    def share(self, of: ShareOf) -> ShareMap | None:
        """The map of a share; None if there is none."""
        return next((share for share in self.shares if share.of == of), None)


def of_most_items(effects: Iterable[TaskHeadEffects]) -> tuple[TaskHeadEffects, ...]:
    """One record for each mode and task: a trial on few items stands behind the whole."""
    alike = grouped(((each.mode, each.task), each) for each in effects)
    return tuple(max(its, key=lambda each: each.num_items) for its in alike.values())
