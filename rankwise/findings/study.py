"""What a study shows beside its recommendations, put together from its records."""

from __future__ import annotations

from rankwise.findings.axes import TrainTaskAxes, axis_effects
from rankwise.findings.claims import Claim, paper_claims
from rankwise.findings.heads import TrainTaskHeads, head_findings
from rankwise.findings.mechanisms import TrainTaskMechanisms, mechanisms
from rankwise.findings.retention import TrainTaskRetention, retention_groups
from rankwise.findings.signatures.found import Signature, failure_signatures
from rankwise.findings.transfer import Transfer, transfer
from rankwise.findings.weights import TrainTaskWeights, weight_findings
from rankwise.records.results import StudyResults
from rankwise.records.study import SCHEMA_VERSION, Record, SchemaVersion, StudyRecommendation


class StudyFindings(Record):
    """``findings.json``.

    ``axes``, ``retention``, ``mechanisms``, ``weights`` and ``heads`` have an entry for each
    trained task that has such a thing; ``transfer`` is None where nothing is tested out of the
    trained domain.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    signatures: tuple[Signature, ...] = ()
    axes: tuple[TrainTaskAxes, ...] = ()
    transfer: Transfer | None = None
    retention: tuple[TrainTaskRetention, ...] = ()
    mechanisms: tuple[TrainTaskMechanisms, ...] = ()
    weights: tuple[TrainTaskWeights, ...] = ()
    heads: tuple[TrainTaskHeads, ...] = ()
    claims: tuple[Claim, ...] = ()


def study_findings(results: StudyResults, recommendation: StudyRecommendation) -> StudyFindings:
    """Everything that follows from a finished study and is no recommendation.

    Raises:
        RecordError: models were scored on different items, or a score is missing.
    """
    parts = [(results.of(each.train_task), each) for each in recommendation.by_train_task]
    axes = [axis_effects(part, its) for part, its in parts]
    retention = [retention_groups(part) for part, _ in parts]
    return StudyFindings(
        signatures=failure_signatures(results, recommendation),
        axes=tuple(each for each in axes if each is not None),
        transfer=transfer(results),
        retention=tuple(each for each in retention if each is not None),
        mechanisms=mechanisms(results, recommendation),
        weights=weight_findings(results),
        heads=head_findings(results),
        claims=paper_claims(results, recommendation),
    )
