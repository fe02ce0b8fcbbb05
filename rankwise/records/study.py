"""Typed results: frozen, versioned, with the unit or kind in every stored name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict

from rankwise.records.config import StudyConfig

# A record of another version is refused: its fields may mean something else.
SchemaVersion = Literal[1]
SCHEMA_VERSION: SchemaVersion = 1

Relation = Literal["in_domain", "out_of_domain", "retention", "held_out_text"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
Method = Literal["lora", "full"]
Unit = Literal["points", "nats"]
Outcome = Literal["recommended", "no_evidence", "none_keeps_enough", "cannot_tell"]
State = Literal["yes", "no", "undecided"]


class Record(BaseModel):
    """Base of everything that is written into a study folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Provenance(Record):
    """What made a record: versions, platform, and the commit if there was one."""

    rankwise_version: str
    python_version: str
    platform: str
    package_versions: dict[str, str]
    git_commit: str | None
    device: str | None
    created_at: str


class PlannedRun(Record):
    """One run of a study before it is done.

    ``alpha_labels`` and ``rate_labels`` say how alpha and the learning rate are set at any rank
    ("2r", "2e-4 × (r/32)^-1/2"); they are the values of these axes, several where two settings
    meet in one run. An imported model has
    ``imported_as`` (its label) and ``imported_from``, and no seed, learning rate or epochs.
    """

    name: str
    fingerprint: str
    method: Method
    train_task: str
    rank: int | None
    alpha: float | None
    alpha_labels: tuple[str, ...]
    scaling: float | None
    learning_rate: float | None
    rate_labels: tuple[str, ...]
    epochs: int | None
    target_modules: tuple[str, ...]
    seed: int | None
    imported_as: str | None = None
    imported_from: Path | None = None
    num_steps: int
    num_examples: int
    num_tokens: int
    num_trainable_parameters: int
    trainable_share: float
    estimated_memory_bytes: int


class PlannedPass(Record):
    """Runs that are trained together, in one pass over one base model.

    ``max_tokens`` are read in one micro-batch. ``estimated_memory_bytes`` is the peak of the
    process on a CPU, of the card on CUDA.
    """

    runs: tuple[str, ...]
    max_tokens: int
    gradient_checkpointing: bool
    estimated_memory_bytes: int


class StudyRecord(Record):
    """``study.json``: the resolved config and the runs that it plans.

    The tasks that decide are in ``tasks``, by what was trained on and their relation to it;
    ``trained_formats`` has, by what was trained on, the name under which a task is scored once
    more as the training asked, for each whose standard format is another one; ``trained_items``
    likewise under which name rows that were trained on are scored, and ``ending_items``, by what
    was trained on, under which name their end is. ``overlaps`` has, by what was
    trained on, how many items of each scored task are in the training rows. ``groups`` has the
    leaves of every group that was named, and ``domains`` the domain of every task that has one.
    ``answers_fingerprints`` are, by what was trained on, those of the right answers on which
    models are compared with full fine-tuning; empty without full fine-tuning. ``passes`` say which
    runs are trained together; imported ones are in none.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    config: StudyConfig
    base_model_fingerprint: str
    precision: Literal["float32", "bfloat16"]
    tasks: dict[str, dict[Relation, tuple[str, ...]]]
    trained_formats: dict[str, dict[str, str]]
    trained_items: dict[str, dict[str, str]]
    ending_items: dict[str, str]
    overlaps: dict[str, dict[str, int]]
    groups: dict[str, tuple[str, ...]]
    domains: dict[str, str]
    task_fingerprints: dict[str, str]
    answers_fingerprints: dict[str, str] = {}
    runs: tuple[PlannedRun, ...]
    passes: tuple[PlannedPass, ...] = ()
    warnings: tuple[str, ...]
    provenance: Provenance

    def scored_tasks(self, train_task: str | None = None) -> tuple[str, ...]:
        """Every name under which a model trained on ``train_task`` is scored; None: the base."""
        sources = self.tasks if train_task is None else (train_task,)
        scored = [
            task
            for source in sources
            for names in (
                *self.tasks[source].values(),
                self.trained_formats[source].values(),
                self.trained_items[source].values(),
                (self.ending_items[source],) if source in self.ending_items else (),
            )
            for task in names
        ]
        return tuple(dict.fromkeys(scored))

    def full_run_of(self, run: PlannedRun) -> PlannedRun | None:
        """The full fine-tuning that a LoRA run is compared with; None without one.

        It has the same trained task and seed; the same number of epochs where there is such a
        one; of several that are left, it is the first of the study.
        """
        alike = [
            other
            for other in self.runs
            if (other.method, other.train_task, other.seed) == ("full", run.train_task, run.seed)
        ]
        alike.sort(key=lambda other: other.epochs != run.epochs)
        return alike[0] if alike and run.method == "lora" else None

    @property
    def adapted_modules(self) -> tuple[str, ...]:
        """What any LoRA run adapts; full fine-tuning is looked into there, or else everywhere."""
        return tuple(sorted({name for run in self.runs for name in run.target_modules}))

    @property
    def full_runs_compared(self) -> tuple[PlannedRun, ...]:
        """Every full fine-tuning that a LoRA run is compared with."""
        found = [self.full_run_of(run) for run in self.runs]
        return tuple({run.name: run for run in found if run is not None}.values())


class RunRecord(Record):
    """``run.json``: one finished training; written after the weights.

    ``train_seconds`` is its share, by tokens, of the pass it was trained in; ``peak_memory_bytes``
    is that of the pass until it was done.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    status: Literal["trained", "diverged"]
    message: str | None
    planned: PlannedRun
    num_steps: int
    num_tokens: int
    num_loss_tokens: int
    num_truncated: int
    first_loss_nats: float | None
    final_loss_nats: float | None
    update_is_zero: bool
    weights_bytes: int
    train_seconds: float
    peak_memory_bytes: int
    provenance: Provenance


class Interval(Record):
    """An estimate with its two-sided bounds, in whatever unit the subclass or the field says."""

    estimate: float
    lower: float
    upper: float

    def sign(self, at: float = 0.0) -> Literal[-1, 0, 1]:
        """1 or -1 where the whole interval is above or below ``at``, else 0: undecided."""
        return 1 if self.lower > at else -1 if self.upper < at else 0

    def negated(self) -> Self:
        """The interval of the opposite difference: a gain in nats as forgetting."""
        ends = {"estimate": -self.estimate, "lower": -self.upper, "upper": -self.lower}
        return self.model_copy(update=ends)


class _Bounded(Protocol):
    @property
    def difference(self) -> float: ...
    @property
    def lower(self) -> float: ...
    @property
    def upper(self) -> float: ...


class MetricScore(Record):
    """One aggregated metric of a task; never without its error, count and direction."""

    metric: str
    filter: str
    value: float
    stderr: float | None
    num_examples: int
    higher_is_better: bool


class TaskEvaluation(Record):
    """``eval/<task>.json``: one model on one task; written after the samples.

    ``decision_metric`` and ``decision_filter`` name the entry of ``metrics`` that decides.
    ``chance`` is the item mean of 1/options (0 for generation, None where it has no meaning).
    ``predicted_shares`` is the share of items on which option 0, 1, ... was chosen.
    ``num_unfinished`` counts generations that were cut off at their longest length, with neither
    an end of turn nor one of the task's stop strings; None where nothing is generated.
    ``num_draws`` is how many texts were sampled for each item, 0 where nothing is sampled; with
    ``sampling_seed`` they are the same texts again. ``num_truncated`` counts items of which a
    context did not fit and lost its left end. ``score_seconds`` is the model's share where several
    were scored together.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    model: str
    task: str
    task_version: str
    fingerprint: str
    output_type: str
    domain: str | None
    metrics: tuple[MetricScore, ...]
    decision_metric: str
    decision_filter: str
    num_examples: int
    num_fewshot: int
    chat_template: bool
    limit: int | None
    chance: float | None
    predicted_shares: tuple[float, ...] | None
    num_unfinished: int | None
    num_draws: int = 0
    sampling_seed: int | None = None
    num_truncated: int
    num_tokens: int
    score_seconds: float

    @property
    def decision(self) -> MetricScore:
        """The score that decides."""
        return next(
            score
            for score in self.metrics
            if (score.metric, score.filter) == (self.decision_metric, self.decision_filter)
        )


class RetentionRatio(Record):
    """(adapted - chance) / (base - chance) with Fieller's bounds, or the reason for their absence.

    It is shown and never decides: decisions use the difference.
    """

    estimate: float | None
    lower: float | None
    upper: float | None
    reason: str | None


class PairedDifference(Record):
    """The difference of two models on the same items, positive where the adapted one is better.

    The fields stand in the subclasses, each of which has its own order in JSON.
    """

    @property
    def interval(self: _Bounded) -> Interval:
        """The difference with its bounds."""
        return Interval(estimate=self.difference, lower=self.lower, upper=self.upper)


class Comparison(PairedDifference):
    """One run against the base on one task, paired over the same items.

    ``difference`` is signed so that positive is better for the adapted model: points for a
    score, nats per token for a loss. ``lower`` and ``upper`` bound it at the study's confidence,
    for this comparison alone. Counts and ``mcnemar_p_value`` are None unless every item is 0 or 1.
    ``holm_p_value`` is there for the confirmatory family (each rank, in-domain) only.
    ``retention_ratio`` is there for retention tasks scored in points only.
    """

    run: str
    task: str
    relation: Relation
    unit: Unit
    num_examples: int
    base_score: float
    adapted_score: float
    difference: float
    stderr: float
    lower: float
    upper: float
    num_learned: int | None
    num_forgotten: int | None
    num_kept_right: int | None
    num_kept_wrong: int | None
    mcnemar_p_value: float | None
    holm_p_value: float | None
    retention_ratio: RetentionRatio | None = None


class Bound(Interval):
    """An estimate with its simultaneous bounds over all ranks, in the unit of what it bounds.

    The bounds that decide hold all at once at the study's confidence: a gain's lower, a retention
    loss's upper and a shortfall's upper one. Each opposite bound is taken at the same level.
    """


class FormatEffect(PairedDifference):
    """One run against the base on one task, asked as the training asked (``scored_as``).

    ``difference`` is as in ``Comparison``, with an interval of its own; ``standard_difference``
    is that of the same items in the task's standard format. ``by_format`` is the standard minus
    the other: how much of the change is a matter of format. Below zero, the standard format
    shows a loss that the trained one does not. None where the formats have different units.
    Exploratory: no recommendation rests on it.
    """

    run: str
    task: str
    scored_as: str
    relation: Relation
    unit: Unit
    num_examples: int
    base_score: float
    adapted_score: float
    difference: float
    lower: float
    upper: float
    num_learned: int | None
    num_forgotten: int | None
    standard_difference: float
    by_format: Bound | None


class RankVerdict(Record):
    """What the data say of one rank with its other settings, seeds averaged, over all at once.

    ``label`` names what tells it from the others.
    ``better_than_base``: gain above 0. ``keeps_enough``: retention loss below epsilon
    (None without retention tasks). ``near_the_best``: not more than delta below any rank that
    was not rejected on retention. ``qualifies`` needs all of them to be "yes".
    """

    label: str
    rank: int
    alpha: float
    scaling: float
    learning_rate: float | None
    target_modules: tuple[str, ...]
    epochs: int | None
    runs: tuple[str, ...]
    gain: Bound
    retention_loss: Bound | None
    worst_retention_task: str | None
    worst_retention_loss: float | None
    shortfall: Bound
    better_than_base: State
    keeps_enough: State | None
    near_the_best: State
    qualifies: bool


class Recommendation(Record):
    """For one trained task: the outcome, the evidence, and what would decide.

    ``delta`` is in ``unit``. The ``num_..._needed`` are additional ones, in all tasks of their
    kind together; None where nothing is needed or where more of that kind alone would not do.
    Where nothing is recommended, ``sufficient_rank`` (``sufficient_label``) would be if a
    retention loss of ``sufficient_epsilon_points`` were acceptable; None where no loss would do.
    """

    train_task: str
    outcome: Outcome
    rank: int | None
    alpha: float | None
    learning_rate: float | None
    target_modules: tuple[str, ...] | None
    epochs: int | None
    statement: str
    reasons: tuple[str, ...]
    unit: Unit
    delta: float
    delta_is_derived: bool
    epsilon_points: float | None
    epsilon_is_derived: bool
    confidence: float
    num_items_in_domain: int
    num_seeds: int
    num_items_needed: int | None
    num_retention_items_needed: int | None
    num_seeds_needed: int | None
    sufficient_epsilon_points: float | None
    sufficient_rank: int | None
    sufficient_label: str | None
    verdicts: tuple[RankVerdict, ...]
    comparisons: tuple[Comparison, ...]
    format_effects: tuple[FormatEffect, ...]


class StudyRecommendation(Record):
    """``recommendation.json``: one recommendation for each task that was trained on."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    by_train_task: tuple[Recommendation, ...]
