"""What an audit of one adapter or checkpoint found: ``audit.json``."""

from __future__ import annotations

from typing import Literal

from rankwise.records.base import Record, VersionedRecord
from rankwise.records.recommendation import AccuracyDifference
from rankwise.records.spectra import MatrixSpectrum
from rankwise.records.study import Interval, Provenance, Unit

AuditedKind = Literal["adapter", "checkpoint"]


class AuditScore(Record):
    """Base and adapted model on one task, paired over the same items.

    Scores are points (shares times 100) or nats per token, each with the standard error of its
    mean.
    """

    task: str
    task_version: str
    metric: str
    filter: str
    unit: Unit
    higher_is_better: bool
    num_examples: int
    num_fewshot: int
    chat_template: bool
    """Items were asked in the model's chat format."""
    limit: int | None
    """This many items were scored at most; None: all."""
    base_score: float
    base_stderr: float
    adapted_score: float
    adapted_stderr: float
    difference: Interval
    """Positive where the adapted model is better."""
    stderr: float
    """Standard error of the difference."""
    num_learned: int | None
    """Items that only the adapted model gets right; None unless every item is right or wrong."""
    num_forgotten: int | None
    """Items that only the base gets right; None unless every item is right or wrong."""
    p_value: float
    """The p-value by ``metric``: McNemar's exact test if it is 0 or 1 on every item, else a paired
    t-test."""
    accuracy: AccuracyDifference | None = None
    """Set where p(right) is compared: learned and forgotten items are then by accuracy."""


class KeptEnergy(Record):
    """The share of ‖delta‖_F² that is kept when every matrix is cut to a rank, in [0, 1]."""

    rank: int
    share: float
    """The share over all matrices together."""
    lowest: float
    """The share of the matrix that loses most."""


class OtherChange(Record):
    """A parameter outside the linear layers that a checkpoint changed; a tied one counts once."""

    name: str
    change: Literal["moved", "from_zero", "resized", "added", "removed"]
    norm: float | None = None
    """‖after - before‖; None where only one model has the parameter or its size differs."""
    relative_norm: float | None = None
    """The same over ‖before‖; None also where the parameter was zero."""


class AuditRecord(VersionedRecord, has_texts=False):
    """An adapter or a checkpoint compared with its base."""

    base: str
    base_fingerprint: str
    target: str
    kind: AuditedKind
    ranks: tuple[int, ...]
    """The distinct ranks of an adapter's layers, ascending; empty for a checkpoint."""
    epsilons: tuple[float, ...]
    """Thresholds at which intruder dimensions are counted."""
    null_draws: int
    """Random updates of each kind that each matrix is compared with."""
    matrices: tuple[MatrixSpectrum, ...]
    kept: tuple[KeptEnergy, ...]
    """What is kept by rank, ascending, up to the largest rank of a matrix."""
    cut: KeptEnergy | None
    """The smallest customary rank that keeps 99 %; None for a zero update."""
    other_changes: tuple[OtherChange, ...]
    """A checkpoint's: those of another size first, then by ``relative_norm``, then those from zero.
    """
    confidence: float
    """Confidence of the scores' intervals."""
    precision: Literal["float32", "bfloat16"] | None
    scores: tuple[AuditScore, ...]
    warnings: tuple[str, ...]
    statements: tuple[str, ...]
    """The findings in words."""
    provenance: Provenance

    @property
    def frobenius_norm(self) -> float:
        """The norm of the whole update, all its matrices taken as one."""
        return sum(matrix.update.frobenius_norm**2 for matrix in self.matrices) ** 0.5

    @property
    def is_zero(self) -> bool:
        """Whether no linear layer was changed."""
        return self.frobenius_norm == 0.0
