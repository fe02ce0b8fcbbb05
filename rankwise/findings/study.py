"""What a study shows beside its recommendations, put together from its records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rankwise.findings.axes import TrainTaskAxes, axis_effects
from rankwise.findings.behaviour import TrainTaskBehaviour, behaviour
from rankwise.findings.card import VerdictCard, verdict_card
from rankwise.findings.checkpoints import TrainTaskCheckpoints, checkpoints
from rankwise.findings.claims import Claim, paper_claims
from rankwise.findings.deployed import DeployedRun, deployed_runs
from rankwise.findings.gauges import TrainTaskGauges, gauges
from rankwise.findings.heads import TrainTaskHeads, head_findings
from rankwise.findings.lost_items import TrainTaskLostItems, lost_items
from rankwise.findings.mechanisms import TrainTaskMechanisms, mechanisms
from rankwise.findings.mitigations import TrainTaskMitigations, mitigations
from rankwise.findings.options import option_gains
from rankwise.findings.retention import TrainTaskRetention, retention_groups
from rankwise.findings.signatures.found import Signature, failure_signatures
from rankwise.findings.transfer import Transfer, transfer
from rankwise.findings.truncation import TrainTaskTruncation, truncated_curves
from rankwise.findings.tuning import TrainTaskRates, tuned_rates
from rankwise.findings.variants import TrainTaskVariants, variants_beside_lora
from rankwise.findings.weights import TrainTaskWeights, weight_findings
from rankwise.records.base import SCHEMA_VERSION, Record, SchemaVersion
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.repairs import AdapterRepair
from rankwise.records.results import StudyResults

T = TypeVar("T")


class StudyFindings(Record):
    """``findings.json``.

    All but ``signatures``, ``repairs``, ``deployed``, ``transfer`` and ``claims`` have an entry for
    each trained task that has such a thing. ``repairs`` has one for each repaired run, ``deployed``
    for each that was checked in forms; ``transfer`` is None where nothing is tested out of the
    trained domain.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    cards: tuple[VerdictCard, ...] = ()
    signatures: tuple[Signature, ...] = ()
    rates: tuple[TrainTaskRates, ...] = ()
    axes: tuple[TrainTaskAxes, ...] = ()
    checkpoints: tuple[TrainTaskCheckpoints, ...] = ()
    truncation: tuple[TrainTaskTruncation, ...] = ()
    mitigations: tuple[TrainTaskMitigations, ...] = ()
    repairs: tuple[AdapterRepair, ...] = ()
    deployed: tuple[DeployedRun, ...] = ()
    variants: tuple[TrainTaskVariants, ...] = ()
    transfer: Transfer | None = None
    retention: tuple[TrainTaskRetention, ...] = ()
    gauges: tuple[TrainTaskGauges, ...] = ()
    lost_items: tuple[TrainTaskLostItems, ...] = ()
    behaviour: tuple[TrainTaskBehaviour, ...] = ()
    mechanisms: tuple[TrainTaskMechanisms, ...] = ()
    weights: tuple[TrainTaskWeights, ...] = ()
    heads: tuple[TrainTaskHeads, ...] = ()
    claims: tuple[Claim, ...] = ()


def _there(found: Iterable[T | None]) -> tuple[T, ...]:
    """What there is of it."""
    return tuple(each for each in found if each is not None)


def study_findings(results: StudyResults, recommendation: StudyRecommendation) -> StudyFindings:
    """Everything that follows from a finished study and is no recommendation."""
    sources = option_gains(results, recommendation)
    parts = list(zip(sources, recommendation.by_train_task, strict=True))
    return StudyFindings(
        cards=_there(verdict_card(*part) for part in parts),
        signatures=tuple(found for part in parts for found in failure_signatures(*part)),
        rates=tuned_rates(results),
        axes=_there(axis_effects(*part) for part in parts),
        checkpoints=_there(checkpoints(*part) for part in parts),
        truncation=_there(truncated_curves(*part) for part in parts),
        mitigations=_there(mitigations(*part) for part in parts),
        repairs=_there(model.adapter_repair for model in results.runs),
        deployed=deployed_runs(results, recommendation),
        variants=_there(variants_beside_lora(*part) for part in parts),
        transfer=transfer(sources),
        retention=_there(retention_groups(source) for source in sources),
        gauges=_there(gauges(source) for source in sources),
        lost_items=_there(lost_items(source) for source in sources),
        behaviour=_there(behaviour(source) for source in sources),
        mechanisms=_there(mechanisms(*part) for part in parts),
        weights=_there(weight_findings(source) for source in sources),
        heads=_there(head_findings(source) for source in sources),
        claims=paper_claims(sources, recommendation),
    )
