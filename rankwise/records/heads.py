"""What was found out about a run's attention heads: what changed in them, and what they matter."""

from __future__ import annotations

from typing import Literal, get_args

from rankwise.records.study import (
    SCHEMA_VERSION,
    Record,
    Relation,
    SchemaVersion,
    StageRecord,
    Unit,
)

HeadMode = Literal["ablate", "ablate-mean", "revert"]
"""A head puts out zeros, or its mean over the task's tokens; or an adapter loses its delta."""

HEAD_MODES: tuple[HeadMode, ...] = get_args(HeadMode)

ChangeMeasure = Literal["entropy", "divergence", "first_token_mass", "output"]
CHANGE_MEASURES: tuple[ChangeMeasure, ...] = get_args(ChangeMeasure)
"""Signed change of entropy in nats, Jensen-Shannon divergence in nats, signed change of the mass on
the first token, ‖change of the output‖ / ‖output‖."""

ShareOf = Literal["query", "key", "value", "output", "all"]

HeadMap = tuple[tuple[float, ...], ...]
"""A value for each head: layer by layer, head by head."""


class HeadEstimate(Record):
    """A mean over items of what an intervention does; positive is better.

    ``lower`` and ``upper`` hold for all candidates at once (Bonferroni); ``p_value`` is Holm's,
    over the same.
    """

    estimate: float
    stderr: float
    lower: float
    upper: float
    p_value: float

    @property
    def is_shown(self) -> bool:
        """Whether the bounds leave zero out."""
        return self.lower > 0.0 or self.upper < 0.0


class HeadEffect(Record):
    """What an intervention on one head does, in one unit.

    ``effect`` is that on the run's model. ``control`` is the same on the base: the same ablation;
    for a reversion, which a base cannot have, the base with the delta of this head alone.
    ``beyond_control`` is effect less control item by item; of a reversion None.
    """

    layer: int
    head: int
    effect: HeadEstimate
    control: HeadEstimate
    beyond_control: HeadEstimate | None


class ScreenedHead(Record):
    """The effect that the gradient expects, in nats, and whether it was scored exactly."""

    layer: int
    head: int
    expected_nats: float
    is_scored: bool


class Screen(Record):
    """A first-order screen: one backward pass orders the heads, the first of them are scored.

    That of a reversion looks at every other item (``TaskHeadEffects.first_half_nats``).

    ``rank_correlation`` is Spearman's, of expected and exact effects over the scored heads, None
    where it has no meaning; so it says nothing of those that were passed over.
    """

    heads: tuple[ScreenedHead, ...]
    rank_correlation: float | None
    lower: float | None
    upper: float | None


class TaskHeadEffects(StageRecord):
    """``heads/<mode>/<task>.json``: the heads of a run on one task, one after another.

    ``scores`` are effects on the metric that decides, in points or nats; ``answers`` those on
    the log-probability of the right answer among the options (of a target: per token) in nats,
    which see far smaller effects. ``first_half_nats`` has, head by head as in ``answers``, the mean
    effect over every other item: what may be looked at before the rest is used to confirm.
    ``keys_and_values``: reversions also take out rows of k and v that the head's group shares.
    ``num_candidates`` heads are what bounds and p-values are corrected over: all that there is
    something to do to, also those that a screen has left out. ``task_fingerprint`` is the study's
    for a task that it scores.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    model: str
    mode: HeadMode
    keys_and_values: bool
    task: str
    task_fingerprint: str | None
    relation: Relation | None
    metric: str
    unit: Unit
    num_items: int
    confidence: float
    num_heads: tuple[int, ...]
    num_candidates: int
    base_score: float
    adapted_score: float
    base_answer_nats: float
    adapted_answer_nats: float
    scores: tuple[HeadEffect, ...]
    answers: tuple[HeadEffect, ...]
    first_half_nats: tuple[float, ...]
    screen: Screen | None
    score_seconds: float


class RepairedTask(Record):
    """A task on the items that no head was chosen by; ``random`` is the mean over random sets.

    Effects are the repaired adapter's less the adapter's, positive better; their bounds hold for
    all tasks at once. ``lost_nats`` is the adapter's less the base's: what there is to restore.
    Scores are positive better: a loss has a minus.
    """

    task: str
    relation: Relation | None
    unit: Unit
    num_items: int
    base_score: float
    adapted_score: float
    repaired_score: float
    effect: HeadEstimate
    effect_nats: HeadEstimate
    lost_nats: HeadEstimate
    random_nats: float | None


class HeadRepair(Record):
    """``heads/repair.json``: heads whose reversion restores other domains at least cost.

    ``heads`` in the order in which they were chosen, each with what the set gained with it on the
    items it was chosen by. ``folder`` holds the repaired adapter in PEFT's layout;
    ``projection_error`` is ‖wanted - written‖ / ‖wanted‖ of its delta: 0, rows and columns of the
    factors are zeroed. ``num_random_sets`` of as many heads were reverted for comparison.
    ``effects`` are the fingerprints of what the heads were chosen from.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    model: str
    fingerprint: str
    effects: tuple[str, ...]
    keys_and_values: bool
    in_domain: tuple[str, ...]
    others: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    selection_gain_nats: tuple[float, ...]
    num_selection_items: int
    tasks: tuple[RepairedTask, ...]
    num_random_sets: int
    folder: str | None
    projection_error: float | None
    statement: str


class ChangeMap(Record):
    """A measure of change for every head; ``halves`` are those of two halves of the prompts.

    How well the halves agree is the control: what differs between them is no matter of training.
    """

    measure: ChangeMeasure
    values: HeadMap
    halves: tuple[HeadMap, HeadMap]


class ShareMap(Record):
    """Each head's share of ‖delta‖² of one of attention's matrices over all layers; or all four.

    Rows of k and v belong to a group: their share is divided evenly among its heads.
    """

    of: ShareOf
    values: HeadMap


class HeadChanges(StageRecord):
    """``heads.json``: a run's heads beside the base's, on the same prompts.

    ``base_entropy`` and ``base_first_token_mass`` are the base's own. ``not_analysed`` says why
    there are no maps. ``tasks`` are those whose prompts were read.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    model: str
    tasks: tuple[str, ...]
    num_prompts: int
    num_tokens: int
    num_groups: tuple[int, ...]
    base_entropy: HeadMap
    base_first_token_mass: HeadMap
    changes: tuple[ChangeMap, ...]
    shares: tuple[ShareMap, ...]
    not_analysed: str | None
    analysis_seconds: float

    def change(self, measure: ChangeMeasure) -> ChangeMap | None:
        """The map of a measure, if there is one."""
        return next((each for each in self.changes if each.measure == measure), None)

    def share(self, of: ShareOf) -> ShareMap | None:
        """The map of a share, if there is one."""
        return next((each for each in self.shares if each.of == of), None)
