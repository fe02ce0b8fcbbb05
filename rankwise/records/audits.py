"""What an audit of one adapter or checkpoint found: ``audit.json``."""

from __future__ import annotations

from typing import Literal

from rankwise.records.spectra import MatrixSpectrum
from rankwise.records.study import (
    SCHEMA_VERSION,
    PairedDifference,
    Provenance,
    Record,
    SchemaVersion,
    Unit,
)

AuditedKind = Literal["adapter", "checkpoint"]


class AuditScore(PairedDifference):
    """Base and adapted model on one task, paired over the same items.

    Scores are points (shares times 100) or nats per token, each with the standard error of its
    mean; ``difference`` is positive where the adapted model is better, with its two-sided bounds.
    Counts are None unless every item is right or wrong; the p-value is McNemar's exact one, or of
    a paired t-test. ``chat_template`` says whether items were asked as in a conversation.
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
    limit: int | None
    base_score: float
    base_stderr: float
    adapted_score: float
    adapted_stderr: float
    difference: float
    stderr: float
    lower: float
    upper: float
    num_learned: int | None
    num_forgotten: int | None
    p_value: float


class KeptEnergy(Record):
    """The share of ‖delta‖_F² that cutting every matrix to ``rank`` keeps, in [0, 1].

    ``share`` is of all matrices together, ``lowest`` of the matrix that loses most.
    """

    rank: int
    share: float
    lowest: float


class OtherChange(Record):
    """A parameter beside the linear layers that a checkpoint changed; a tied one counts once.

    ``norm`` is ‖after - before‖, ``relative_norm`` that of ‖before‖. Where only one model has the
    parameter or its size differs there is neither, and where it was zero no relative one.
    """

    name: str
    change: Literal["moved", "from_zero", "resized", "added", "removed"]
    norm: float | None = None
    relative_norm: float | None = None


class AuditRecord(Record):
    """An adapter or a checkpoint beside its base.

    ``ranks`` are the different ones of an adapter's layers, ascending; a checkpoint has none.
    ``kept`` rises with rank up to the largest that a matrix has; ``cut`` is the smallest customary
    rank that keeps 99 %, None of a zero update. ``other_changes`` are a checkpoint's: of another
    size first, then by ``relative_norm``, then what was zero. ``statements`` say in words what
    there is; ``confidence`` is of the scores' intervals.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    base: str
    base_fingerprint: str
    target: str
    kind: AuditedKind
    ranks: tuple[int, ...]
    epsilons: tuple[float, ...]
    null_draws: int
    matrices: tuple[MatrixSpectrum, ...]
    kept: tuple[KeptEnergy, ...]
    cut: KeptEnergy | None
    other_changes: tuple[OtherChange, ...]
    confidence: float
    precision: Literal["float32", "bfloat16"] | None
    scores: tuple[AuditScore, ...]
    warnings: tuple[str, ...]
    statements: tuple[str, ...]
    provenance: Provenance

    @property
    def frobenius_norm(self) -> float:
        """Of the whole update, all its matrices taken as one."""
        return sum(each.update.frobenius_norm**2 for each in self.matrices) ** 0.5

    @property
    def is_zero(self) -> bool:
        """Whether no linear layer was changed."""
        return self.frobenius_norm == 0.0


class ChangedLayer(Record):
    """A layer of an adapter after an intervention; its intruders where those were looked for."""

    name: str
    rank_before: int
    rank: int
    relative_error: float
    num_intruders: int | None = None
    num_intruders_left: int | None = None


class InterventionRecord(Record):
    """``intervention.json``, beside the adapter that it is about.

    ``relative_error`` is ‖wanted - written‖_F / ‖wanted‖_F of all layers together: of a truncation
    what is wanted is the whole update, of scaled intruders the update with exactly that scaling.
    ``energy_kept`` is 1 - ``relative_error``². ``rank`` is what layers were cut to; ``factor``,
    ``k`` and ``epsilon`` are of scaled intruders.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    source: str
    kind: Literal["truncation", "scaled_intruders"]
    rank: int | None
    factor: float | None
    k: int | None
    epsilon: float | None
    relative_error: float
    energy_kept: float
    layers: tuple[ChangedLayer, ...]
    provenance: Provenance
