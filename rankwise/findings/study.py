"""What a study shows beside its recommendations, put together from its records."""

from __future__ import annotations

from rankwise.findings.axes import TrainTaskAxes, axis_effects
from rankwise.findings.checkpoints import TrainTaskCheckpoints, checkpoints
from rankwise.findings.claims import Claim, paper_claims
from rankwise.findings.heads import TrainTaskHeads, head_findings
from rankwise.findings.mechanisms import TrainTaskMechanisms, mechanisms
from rankwise.findings.options import option_gains
from rankwise.findings.retention import TrainTaskRetention, retention_groups
from rankwise.findings.signatures.found import Signature, failure_signatures
from rankwise.findings.transfer import Transfer, transfer
from rankwise.findings.tuning import TrainTaskRates, tuned_rates
from rankwise.findings.weights import TrainTaskWeights, weight_findings
from rankwise.records.base import SCHEMA_VERSION, Record, SchemaVersion
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults


class StudyFindings(Record):
    """``findings.json``.

    All but ``signatures``, ``transfer`` and ``claims`` have an entry for each trained task that
    has such a thing; ``transfer`` is None where nothing is tested out of the
    trained domain.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    signatures: tuple[Signature, ...] = ()
    rates: tuple[TrainTaskRates, ...] = ()
    axes: tuple[TrainTaskAxes, ...] = ()
    checkpoints: tuple[TrainTaskCheckpoints, ...] = ()
    transfer: Transfer | None = None
    retention: tuple[TrainTaskRetention, ...] = ()
    mechanisms: tuple[TrainTaskMechanisms, ...] = ()
    weights: tuple[TrainTaskWeights, ...] = ()
    heads: tuple[TrainTaskHeads, ...] = ()
    claims: tuple[Claim, ...] = ()


def study_findings(results: StudyResults, recommendation: StudyRecommendation) -> StudyFindings:
    """Everything that follows from a finished study and is no recommendation."""
    sources = option_gains(results)
    parts = list(zip(sources, recommendation.by_train_task, strict=True))
    return StudyFindings(
        signatures=tuple(found for part in parts for found in failure_signatures(*part)),
        rates=tuned_rates(results),
        axes=tuple(found for part in parts if (found := axis_effects(*part))),
        checkpoints=tuple(found for part in parts if (found := checkpoints(*part))),
        transfer=transfer(sources),
        retention=tuple(found for source in sources if (found := retention_groups(source))),
        mechanisms=tuple(found for part in parts if (found := mechanisms(*part))),
        weights=tuple(found for source in sources if (found := weight_findings(source))),
        heads=tuple(found for source in sources if (found := head_findings(source))),
        claims=paper_claims(sources, recommendation),
    )
