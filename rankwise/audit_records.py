"""What an audit of one adapter or checkpoint found: ``audit.json``."""

from __future__ import annotations

from typing import Literal

from rankwise.records import SCHEMA_VERSION, Provenance, Record, SchemaVersion, Unit
from rankwise.spectra_records import MatrixSpectrum

AuditedKind = Literal["adapter", "checkpoint"]


class AuditScore(Record):
    """Base and adapted model on one task, paired over the same items.

    Scores are points (shares times 100) or nats per token; ``difference`` is positive where the
    adapted model is better, with its two-sided bounds. Counts are None unless every item is right
    or wrong; the p-value is McNemar's exact one, or of a paired t-test.
    """

    task: str
    metric: str
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
    p_value: float


class KeptEnergy(Record):
    """The share of ‖delta‖_F² that cutting every matrix to ``rank`` keeps, in [0, 1]."""

    rank: int
    share: float


class AuditRecord(Record):
    """An adapter or a checkpoint beside its base.

    ``rank`` is the highest of an adapter's matrices, None of a checkpoint. ``kept`` rises with
    rank, in powers of two and ending at the update's own. ``statements`` say in words what there
    is; ``confidence`` is of the scores' intervals.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    base: str
    target: str
    kind: AuditedKind
    rank: int | None
    epsilons: tuple[float, ...]
    null_draws: int
    matrices: tuple[MatrixSpectrum, ...]
    kept: tuple[KeptEnergy, ...]
    confidence: float
    scores: tuple[AuditScore, ...]
    warnings: tuple[str, ...]
    statements: tuple[str, ...]
    provenance: Provenance
