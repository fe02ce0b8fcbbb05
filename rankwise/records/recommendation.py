"""``recommendation.json``: the verdict of a study, with the comparisons that it stands on."""

from __future__ import annotations

from rankwise.records.base import Record, VersionedRecord
from rankwise.records.judgement import BestBet, Look, Outcome, Prospect
from rankwise.records.study import Interval, Relation, State, Unit


class AccuracyDifference(Record):
    """The same difference by the task's own metric (``metric``), where p(right) decides; points.

    ``is_opposite``: its sign is not that of p(right)'s, and one of the two at least is shown.
    """

    metric: str
    base_score: float
    adapted_score: float
    difference: Interval
    is_opposite: bool


class Comparison(Record):
    """One run against the base on one task, paired over the same items.

    ``difference`` is signed so that positive is better for the adapted model: points for a
    score, nats per token for a loss. Of an option's only run on the only task that decides, it has
    the bounds of the option's verdict. Others are at the study's confidence, for this comparison
    alone, and ``p_value`` is always that of such bounds: below 1 - confidence where they leave zero
    out. ``accuracy`` is there where p(right) decides; then the counts and ``mcnemar_p_value`` are
    of accuracy, and the other p-value of p(right). Counts and ``mcnemar_p_value`` are None unless
    every item is 0 or 1. Exploratory: nothing is corrected. Of items that come in ``num_clusters``
    clusters (None: every item is its own) McNemar's test is not made.
    """

    run: str
    task: str
    relation: Relation
    unit: Unit
    num_examples: int
    base_score: float
    adapted_score: float
    difference: Interval
    stderr: float
    num_learned: int | None
    num_forgotten: int | None
    num_kept_right: int | None
    num_kept_wrong: int | None
    p_value: float
    mcnemar_p_value: float | None
    num_clusters: int | None = None
    accuracy: AccuracyDifference | None = None


class FormatEffect(Record):
    """One run against the base on one task, asked as the training asked (``scored_as``).

    ``difference`` is as in ``Comparison``, with an interval of its own; ``standard_difference``
    is that of the same items in the task's standard format. ``by_format`` is the standard minus
    the other: how much of the change is a matter of format. Below zero, the standard format
    shows a loss that the trained one does not. None where the formats have different metrics.
    Where p(right) decides, the counts are of accuracy.
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
    difference: Interval
    num_learned: int | None
    num_forgotten: int | None
    standard_difference: float
    by_format: Interval | None
    num_clusters: int | None = None


class RankVerdict(Record):
    """What the data say of the runs of one rank with its other settings, averaged over seeds.

    ``gain``, the losses and ``shortfall`` have the bounds that decide: with them, a wrong option is
    recommended at most as often as the study's confidence allows. They are about these runs,
    whatever another seed would do. ``label`` names what tells the option from the others.
    """

    label: str
    rank: int | None
    """None where no model has a rank, or nobody knows it; of a rank pattern ``mean_rank``, rounded.
    """
    mean_rank: float | None = None
    """Of a rank pattern the rank that trains as many weights; its runs have the ranks of layers."""
    alpha: float | None
    scaling: float | None
    learning_rate: float | None
    target_modules: tuple[str, ...]
    epochs: int | None
    runs: tuple[str, ...]
    imported_as: str | None = None
    """The name under which an adapter was imported; None for one that was trained here."""
    gain: Interval
    """The gain over the base, in the recommendation's unit."""
    retention_loss: Interval | None
    """The loss in points; None without retention tasks."""
    worst_retention_task: str | None
    """The task that is estimated to lose most; None too where no task is shown to lose."""
    worst_retention_loss: Interval | None
    """The largest loss of any retention task, in points; whichever task it is."""
    shortfall: Interval
    """How far it is below the best other option that was not rejected on retention."""
    better_than_base: State | None
    """Whether the gain is above 0; None without a base."""
    keeps_enough: State | None
    """Whether the retention loss is below epsilon, and on every task below the ceiling.

    None without retention tasks.
    """
    near_the_best: State
    """Whether the shortfall is below delta."""
    qualifies: bool
    """Whether all of them are "yes", and no run diverged."""
    worse_than: tuple[str, ...]
    """Labels of the options that are shown to score more in-domain."""
    ruled_out_by: str | None
    """What shows that it is not the answer.

    "retention", or the option that most probably keeps enough and is better by over delta.
    """
    diverged_seeds: tuple[int, ...] = ()
    """With which its training diverged, or its reward failed."""
    reward_failed_seeds: tuple[int, ...] = ()
    """Those of them whose reward failed."""


class Recommendation(Record):
    """The verdict on one trained task: the outcome, the evidence, and what would decide."""

    train_task: str
    outcome: Outcome
    rank: int | None
    mean_rank: float | None = None
    """As in ``RankVerdict``."""
    alpha: float | None
    learning_rate: float | None
    target_modules: tuple[str, ...] | None
    epochs: int | None
    statement: str
    """The answer in words."""
    reasons: tuple[str, ...]
    unit: Unit
    """The unit of the gains and of delta."""
    in_domain_metric: str | None
    """The metric that decides on every in-domain task; None where they differ."""
    retention_metric: str | None
    """The same of the retention tasks; None without any."""
    retention_tasks: tuple[str, ...]
    """Those that decide."""
    delta: float
    """The in-domain difference that counts."""
    epsilon_points: float | None
    """The acceptable retention loss, on average; None without retention tasks."""
    worst_task_points: float | None
    """The acceptable loss of any single task."""
    confidence: float
    """Probability that nothing wrong is recommended, over all looks."""
    num_items_in_domain: int
    num_clusters_in_domain: int | None = None
    """The clusters that these items are in; None where every item is its own."""
    num_seeds: int
    """The most runs of one option."""
    is_of_scores: bool = False
    """The models were trained and scored elsewhere: what is missing has to come from there."""
    has_base: bool = True
    """Whether there is a base. Without one, gains are over the mean of the models, and no option
    need be above it."""
    looks: tuple[Look, ...]
    """Every judgement of this study so far, this one last."""
    best_bet: BestBet | None
    """Odds of every option; None where no option is complete."""
    prospects: tuple[Prospect, ...]
    """What more items or seeds would do; empty where the study is decided."""
    sufficient_epsilon_points: float | None
    """The epsilon, in tenths, at which an option would be recommended.

    None where one is recommended, or where no loss would do.
    """
    sufficient_worst_task_points: float | None
    """The ceiling that it needs for that."""
    sufficient_rank: int | None
    """The rank of that option."""
    sufficient_label: str | None
    better_and_kept_by_full: str | None
    """The label of a full fine-tuning that gains more and loses less than every LoRA option."""
    best_rate_at_edge: float | None
    """The learning rate of the best option, where it is an end of the rates that were tried."""
    verdicts: tuple[RankVerdict, ...]
    """Of every option that has a finished run, smallest first."""
    left_out: tuple[str, ...] = ()
    """Labels of the ranks that a search trained no further; they are not compared."""
    untried: tuple[str, ...] = ()
    """Labels of those that it ended without training."""
    missing: tuple[str, ...] = ()
    """What is missing of single models of a table."""
    num_tasks_in_domain: int = 1
    """Those that decide."""
    comparisons: tuple[Comparison, ...]
    format_effects: tuple[FormatEffect, ...]

    @property
    def chosen(self) -> RankVerdict | None:
        """The option that is recommended; None where nothing is."""
        return next((each for each in self.verdicts if each.qualifies), None)

    @property
    def left(self) -> tuple[RankVerdict, ...]:
        """The options that are not shown to be no answer."""
        return tuple(each for each in self.verdicts if each.ruled_out_by is None)

    @property
    def recommended_run(self) -> str | None:
        """The first seed's run of the recommended option; None where nothing is recommended."""
        return None if self.chosen is None else self.chosen.runs[0]

    @property
    def best_bet_run(self) -> str | None:
        """The first seed's run of the best bet; None without one, or where that is the base."""
        choice = None if self.best_bet is None else self.best_bet.choice
        return next((each.runs[0] for each in self.verdicts if each.label == choice), None)


class StudyRecommendation(VersionedRecord, has_texts=False):
    """``recommendation.json``: one recommendation for each task that was trained on."""

    by_train_task: tuple[Recommendation, ...]
