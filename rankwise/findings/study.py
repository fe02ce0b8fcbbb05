"""What a study shows beside its recommendations, a field for each finding.

A field says how its finding is made from the judged study, and what the terminal says of it. The
page has a section for each, with its tables (``report.sections``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import Field

from rankwise.findings.axes import TrainTaskAxes, axis_effects
from rankwise.findings.card import VerdictCard, verdict_card
from rankwise.findings.checkpoints import TrainTaskCheckpoints, checkpoints
from rankwise.findings.deployment import DeployedRun, deployed_runs
from rankwise.findings.gauges import TrainTaskGauges, gauges
from rankwise.findings.heads import TrainTaskHeads, head_findings
from rankwise.findings.mechanisms import TrainTaskMechanisms, mechanisms
from rankwise.findings.mitigations import TrainTaskMitigations, mitigations
from rankwise.findings.options import OptionGains, option_gains
from rankwise.findings.prompting import TrainTaskPrompting, prompting
from rankwise.findings.retention import TrainTaskRetention, retention_groups
from rankwise.findings.sequences import TrainTaskSequence, sequences
from rankwise.findings.signatures.found import failure_signatures
from rankwise.findings.signatures.signature import Signature
from rankwise.findings.slices import TrainTaskSlices, slices
from rankwise.findings.transfer import Transfer, transfer
from rankwise.findings.tuning import TrainTaskRates, tuned_rates
from rankwise.findings.variants import TrainTaskVariants, variants_beside_lora
from rankwise.findings.weights import TrainTaskWeights, weight_findings
from rankwise.records.base import VersionedRecord
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.repairs import AdapterRepair
from rankwise.records.results import StudyResults


class JudgedStudy(NamedTuple):
    """A study and its verdict, as findings are made from them, and the findings made so far."""

    results: StudyResults
    recommendation: StudyRecommendation
    sources: tuple[OptionGains, ...]
    made: dict[str, Any]


class Finding(NamedTuple):
    """How a finding is made, and its forms.

    Attributes:
        compute: from the judged study.
        lines: sentences of what was found of a trained task, for the terminal; what has some is in
            ``--json`` too.
    """

    compute: Callable[[JudgedStudy], Any]
    lines: Callable[[Any], Iterable[str]] | None = None


def _found(
    compute: Callable[[JudgedStudy], Any],
    lines: Callable[[Any], Iterable[str]] | None = None,
    default: Any = (),
) -> Any:
    """The field of a finding."""
    field = Field(default=default)
    field.metadata.append(Finding(compute, lines))
    return field


def _each(
    find: Callable[..., Any], *reads: str, lines: Callable[[Any], Iterable[str]] | None = None
) -> Any:
    """The field of a finding of every trained task that has one; see ``_parts``."""
    return _found(lambda of: tuple(_parts(of, find, *reads)), lines)


def _parts(of: JudgedStudy, find: Callable[..., Any], *reads: str) -> Iterator[Any]:
    """What is found of each trained task's options, verdict, and findings that are ``read``."""
    for source, part in zip(of.sources, of.recommendation.by_train_task, strict=True):
        own = (_of_task(of.made[name], part.train_task) for name in reads)
        if (found := find(source, part, *own)) is not None:
            yield found


def _of_task(found: Iterable[Any], train_task: str) -> Any:
    return next((one for one in found if one.train_task == train_task), None)


def _statements(found: Iterable[Any]) -> Iterator[str]:
    return (statement for of_task in found for statement in of_task.statements)


class StudyFindings(VersionedRecord, has_texts=True):
    """``findings.json``: a field for each finding, in the order in which they are made and shown.

    All but ``signatures``, ``repairs``, ``deployed`` and ``transfer`` have an entry for each
    trained task that has such a thing. ``repairs`` has one for each repaired run, ``deployed`` for
    each that was checked in forms; ``transfer`` is None where nothing is tested out of the trained
    domain.
    """

    signatures: tuple[Signature, ...] = _found(
        lambda of: tuple(itertools.chain(*_parts(of, failure_signatures))),
        lambda found: (f"{one.title}: {one.statement}" for one in found),
    )
    rates: tuple[TrainTaskRates, ...] = _found(lambda of: tuned_rates(of.results))
    prompting: tuple[TrainTaskPrompting, ...] = _each(prompting, lines=_statements)
    checkpoints: tuple[TrainTaskCheckpoints, ...] = _each(checkpoints)
    transfer: Transfer | None = _found(lambda of: transfer(of.sources), default=None)
    sequences: tuple[TrainTaskSequence, ...] = _found(
        lambda of: sequences(of.sources, of.recommendation), lines=_statements
    )
    retention: tuple[TrainTaskRetention, ...] = _each(retention_groups)
    slices: tuple[TrainTaskSlices, ...] = _each(slices, lines=_statements)
    gauges: tuple[TrainTaskGauges, ...] = _each(gauges)
    axes: tuple[TrainTaskAxes, ...] = _each(axis_effects)
    mitigations: tuple[TrainTaskMitigations, ...] = _each(mitigations)
    repairs: tuple[AdapterRepair, ...] = _found(
        lambda of: tuple(r.adapter_repair for r in of.results.runs if r.adapter_repair)
    )
    deployed: tuple[DeployedRun, ...] = _found(
        lambda of: deployed_runs(of.results, of.recommendation),
        lambda found: itertools.chain(*(run.lines for run in found)),
    )
    variants: tuple[TrainTaskVariants, ...] = _each(variants_beside_lora)
    mechanisms: tuple[TrainTaskMechanisms, ...] = _each(mechanisms)
    weights: tuple[TrainTaskWeights, ...] = _each(weight_findings)
    heads: tuple[TrainTaskHeads, ...] = _each(head_findings)
    cards: tuple[VerdictCard, ...] = _each(verdict_card, "axes", "prompting")

    @property
    def with_lines(self) -> dict[str, tuple[Any, ...]]:
        """The findings with ``lines``, by name: people read these beside a verdict."""
        return {name: getattr(self, name) for name, its in FINDINGS.items() if its.lines}

    def card_lines(self, card: VerdictCard) -> Iterator[str]:
        """What stands below the rows of a card, in the terminal and on the page."""
        if card.remark:
            yield card.remark
        signs = Counter(s.title for s in self.signatures if s.train_task == card.train_task)
        if signs:
            named = ", ".join(f"{title} ({number})" for title, number in signs.items())
            yield f"To check: {named}."
        yield from (
            f"- {line}"
            for run in self.deployed
            if run.train_task == card.train_task
            for line in run.lines
        )
        yield from (
            f"- {statement}"
            for found in self.sequences
            if found.train_task == card.train_task
            for statement in found.statements
        )

    def lines(self, train_task: str) -> Iterator[str]:
        """What the terminal says of a trained task beside its verdict."""
        for name, found in self.with_lines.items():
            to_lines = FINDINGS[name].lines
            assert to_lines is not None
            yield from to_lines(one for one in found if one.train_task == train_task)


FINDINGS: Mapping[str, Finding] = {
    name: finding
    for name, field in StudyFindings.model_fields.items()
    for finding in field.metadata
    if isinstance(finding, Finding)
}
"""Every finding by the name of its field."""


def study_findings(results: StudyResults, recommendation: StudyRecommendation) -> StudyFindings:
    """All findings of a finished study; the recommendation is made before."""
    judged = JudgedStudy(results, recommendation, option_gains(results, recommendation), {})
    for name, finding in FINDINGS.items():
        judged.made[name] = finding.compute(judged)
    return StudyFindings(**judged.made)
