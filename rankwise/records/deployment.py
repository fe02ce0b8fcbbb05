"""What an adapter scores in the forms in which it is deployed, and what is left of its delta."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from rankwise.records.base import Record, VersionedRecord
from rankwise.records.recommendation import AccuracyDifference
from rankwise.records.study import Interval, Provenance, Relation, StageRecord, Unit

FormVerdict = Literal["keeps", "loses", "cannot_tell"]
"""Worst first where forms are taken together: loses, cannot_tell, keeps."""

CheckReference = Literal["adapter", "base"]

MergeMethod = Literal["linear", "ties", "dare"]
"""How several adapters are merged into one, by PEFT's names (``dare`` is its ``dare_linear``)."""


class DeltaInForm(Record):
    """What is left of delta where the merged weights are rounded to a form.

    With W the base's weights and Q the form's rounding, at the numbers that are read back.
    """

    module: str
    """A layer's name; ``all`` for all of them together."""
    delta_norm: float
    """‖delta‖_F, above 0."""
    relative_error: float
    """‖Q(W + delta) - W - delta‖_F / ‖delta‖_F: the rounding against the change; may be above 1."""
    unchanged_share: float
    """Share of delta's non-zero entries at which Q(W + delta) is Q(W)."""
    kept_share: float
    """‹Q(W + delta) - Q(W), delta› / ‖delta‖_F²: how much of delta the form has along delta.

    1 where rounding adds noise alone, 0 where it takes delta away.
    """


class FormScore(Record):
    """A form and the reference on one task, paired over the same items.

    Scores are points (shares times 100) or nats per token.
    """

    task: str
    task_version: str
    metric: str
    unit: Unit
    higher_is_better: bool
    num_examples: int
    num_fewshot: int
    chat_template: bool
    limit: int | None
    """This many items were scored at most; None: all."""
    reference_score: float
    form_score: float
    difference: Interval
    """Positive where the form is better."""
    stderr: float
    """Standard error of the difference."""
    gained: tuple[int, ...] | None
    """doc_id of the items that only the form gets right; None unless every item is right or wrong.
    """
    lost: tuple[int, ...] | None
    """doc_id of the items that only the reference gets right; None likewise."""
    accuracy: AccuracyDifference | None
    """Set where p(right) is compared: gained and lost items are then by accuracy."""


class MeanDifference(Record):
    """The mean difference over tasks of one unit, each counting the same, and its verdict."""

    unit: Unit
    tasks: tuple[str, ...]
    difference: Interval
    """Positive where the form is better."""
    margin: float
    """How much may be lost."""
    verdict: FormVerdict
    relation: Relation | None = None
    """Relation of the tasks to what was trained; None where no study says it."""


class ServedItems(Record):
    """What a server answers to a task's items, against the adapter that is scored here."""

    task: str
    num_examples: int
    differ: tuple[int, ...]
    """doc_id of the items with another option, another text, a log-likelihood of a whole text that
    differs by more than 1 %, or another score."""
    largest_nats: float | None
    """Largest difference of a log-likelihood; None for texts that are written."""


class Served(Record):
    """A server against the adapter that is scored here."""

    tasks: tuple[ServedItems, ...]
    adapter_share: float | None
    """How much of what the adapter changes the server's answers show: 1 all of it, 0 none.

    With b, a and s the log-likelihoods of base, adapter and server, Σ (s - b)(a - b) / Σ (a - b)².
    Where only texts are written: of those that the adapter changes and that are the adapter's or
    the base's, the share that are the adapter's. None where the adapter changes nothing.
    """

    ignores_adapter: bool
    """Whether it shows less than half of it, and is no farther from the base than the adapter is.
    """

    @property
    def items_that_differ(self) -> int:
        """Over all tasks."""
        return sum(len(task.differ) for task in self.tasks)


class JudgedForm(Record):
    """A form against the reference."""

    form: str
    """One of ``forms.FORMS``, a server's URL, a merge with other adapters, or ``adapter``, which is
    compared with its base."""
    num_bytes: int
    """Bytes of its weights on the disk, without names and headers; 0 where a server has them."""
    verdict: FormVerdict
    """``loses`` where a unit's mean does or a server ignores the adapter; ``keeps`` where each
    does."""
    means: tuple[MeanDifference, ...]
    scores: tuple[FormScore, ...]
    delta: DeltaInForm | None
    """All modules together; None where nothing was merged."""
    modules: tuple[DeltaInForm, ...]
    """Every module whose delta is not zero, in the model's order."""
    statement: str
    served: Served | None = None
    """Set for a server."""


class ChangedAnswer(Record):
    """An item that only the form, or only the reference, gets right."""

    form: str
    task: str
    doc_id: int
    prompt: str
    """What was asked; of a long one the end."""
    right: str
    reference_answer: str
    form_answer: str
    is_lost: bool
    """Whether the reference was right, and the form is wrong."""


class FieldChange(Record):
    """A field of answers in JSON, in points of the items whose right answer has it.

    No verdict rests on it.
    """

    form: str
    task: str
    field: str
    num_examples: int
    reference_score: float
    form_score: float
    difference: Interval
    """Positive where the form is better."""


class DeploymentCheck(VersionedRecord, has_texts=True):
    """``deployment.json``: an adapter in some forms against the adapter as trained.

    ``rankwise check`` compares the adapter as trained with its base, in the same fields.
    """

    base: str
    base_fingerprint: str
    adapter: str
    reference: CheckReference
    """``adapter``: as trained, beside the base's weights. ``base``: without it."""
    reference_bytes: int
    """Files of weights of the base, and of the adapter where it is the reference."""
    base_scores: dict[str, float]
    """Task -> score of the base, in the unit of the task."""
    confidence: float
    """Confidence of every interval, two-sided, 0..1; each holds for itself."""
    precision: Literal["float32", "bfloat16"]
    """The precision in which all of them were scored."""
    forms: tuple[JudgedForm, ...]
    fields: tuple[FieldChange, ...]
    """Rows by form, then by task."""
    changed: tuple[ChangedAnswer, ...]
    """Rows by form, then by task; lost items come first."""
    warnings: tuple[str, ...]
    verdict: FormVerdict
    """The worst of the forms'."""
    provenance: Provenance


class FormRecord(StageRecord, has_texts=False):
    """``forms/<form>/form.json``: a run in a form; written after the scores beside it.

    In the form ``AS_TRAINED`` nothing is merged.
    """

    model: str
    """The run's name."""
    form: str
    num_bytes: int
    """Bytes of the form's weights on the disk, without names and headers; 0 as trained and of a
    server."""
    delta: DeltaInForm | None
    """All modules together; None as trained."""
    modules: tuple[DeltaInForm, ...]
    """Every module whose delta is not zero, in the model's order."""
    warnings: tuple[str, ...]
    score_seconds: float
    provenance: Provenance
    served: Served | None = None
    """Set for a server."""


def worst(verdicts: Collection[FormVerdict]) -> FormVerdict:
    """``loses`` if any does, ``keeps`` if each does, else ``cannot_tell``."""
    if "loses" in verdicts:
        return "loses"
    return "keeps" if set(verdicts) == {"keeps"} else "cannot_tell"
