"""A failure signature: what went wrong, with the numbers behind it and what to do next."""

from __future__ import annotations

from typing import Literal, get_args

from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.study import Unit

SignatureName = Literal[
    "diverged",
    "worse_than_base",
    "negative_transfer",
    "metrics_disagree",
    "forgetting_on_prose",
    "does_not_stop",
    "letters_collapsed",
    "memorised",
    "train_test_gap",
    "items_in_training",
    "too_easy",
    "not_a_matter_of_rank",
    "erratic_over_ranks",
    "unstable_over_seeds",
    "reward_falls",
    "texts_run_away",
]
SIGNATURES: tuple[SignatureName, ...] = get_args(SignatureName)

TITLES: dict[SignatureName, str] = {
    "diverged": "Diverged",
    "worse_than_base": "Worse than the base",
    "negative_transfer": "Negative transfer",
    "metrics_disagree": "p(right) and accuracy disagree",
    "forgetting_on_prose": "Forgetting on prose",
    "does_not_stop": "Does not stop",
    "letters_collapsed": "Answers collapsed to one option",
    "memorised": "Training rows memorised",
    "train_test_gap": "Gain on training rows only",
    "items_in_training": "Scored items in the training rows",
    "too_easy": "Ranks alike: too easy",
    "not_a_matter_of_rank": "Ranks alike: not a matter of rank",
    "erratic_over_ranks": "Erratic over ranks",
    "unstable_over_seeds": "Unstable over seeds",
    "reward_falls": "Reward falls in training",
    "texts_run_away": "Own texts run away",
}


class Signature(Record):
    """One failure that the data show.

    ``label`` names the option, "rank 8" or "full fine-tuning"; it is empty where the failure is
    one of the whole study. ``estimate`` and its bounds are the difference or the share that was
    judged, in ``unit``, a share in points; each interval is two-sided and by itself, at the
    study's confidence. ``num_items`` is the number of items behind them, in ``num_clusters``
    clusters (None: every item is its own).
    """

    name: SignatureName
    train_task: str
    label: str
    task: str | None
    statement: str
    advice: str
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    unit: Unit | None = None
    num_items: int | None = None
    num_clusters: int | None = None

    @property
    def title(self) -> str:
        """What the signature is called."""
        return TITLES[self.name]


def signature(
    name: SignatureName,
    at: tuple[str, str, str | None],
    judged: TaskMean,
    *,
    statement: str,
    advice: str,
) -> Signature:
    """A signature that was judged by an interval; the statement may begin in lower case.

    ``at`` are the trained task, the label and the task (None: several), as in ``Signature``.
    """
    train_task, label, task = at
    return Signature(
        name=name,
        train_task=train_task,
        label=label,
        task=task,
        statement=quantities.capital(statement),
        advice=advice,
        **judged.model_dump(include={"estimate", "lower", "upper", "unit"}),
        num_items=judged.num_examples,
        num_clusters=judged.num_clusters,
    )


def judged_amount(judged: TaskMean) -> str:
    """20.0 points (12.6 to 27.4)."""
    return quantities.with_interval(judged, judged.unit, signed=False)
