"""The repair of one adapter without a study: candidates, their scores, the choice, the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.engine.models import base as models
from rankwise.engine.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from rankwise.engine.models.devices import choose_device, provenance_on, resolve_precision
from rankwise.engine.models.streamed import load_to_score
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.findings.repairs import RepairTasks, choose_repair
from rankwise.records.files import digest_of
from rankwise.records.fingerprints import fingerprint
from rankwise.records.outputs import output_folder
from rankwise.records.repairs import AdapterRepair, Repair, RepairFamily
from rankwise.tasks.questions import Advance
from rankwise.tasks.requests import PreparedTask
from rankwise.weights.audit import Audited
from rankwise.weights.audit_scores import CONFIDENCE, ScoreSettings
from rankwise.weights.repair_scores import (
    AskedTask,
    RepairScorer,
    in_domain_answers,
    write_repaired,
)
from rankwise.weights.repairs import RepairSources, Updates, derived_updates, reverted_heads


class Candidates(NamedTuple):
    """The repairs of an adapter that are tried.

    Attributes:
        adapter: the adapter, with its base.
        others: what it is averaged with.
        sources: what they are made of.
        derived: repair -> updates, the adapter as it is first.
        warnings: what could not be checked or tried.
    """

    adapter: Audited
    others: tuple[Audited, ...]
    sources: RepairSources
    derived: dict[Repair, Updates]
    warnings: tuple[str, ...]


class RepairQuestions(NamedTuple):
    """What is asked of the candidates, prepared for the base: in-domain, and retention."""

    in_domain: Sequence[PreparedTask]
    retention: Sequence[PreparedTask]

    @property
    def all(self) -> list[PreparedTask]:
        """Every task."""
        return [*self.in_domain, *self.retention]


def candidates(
    adapter: Audited, others: Sequence[Audited], kinds: Sequence[RepairFamily | Repair]
) -> Candidates:
    """Derive every repair of some kinds.

    Args:
        adapter: to repair; of kind ``adapter``, as are the others.
        others: adapters of the same base to average it with.
        kinds: of repair, as in ``repairs.derived_updates``.

    Raises:
        ModelError: as ``repairs.derived_updates`` and ``repairs.RepairSources``.
    """
    updates = [other.updates for other in others]
    sources = RepairSources.of(adapter.base.folder, adapter.updates, updates)
    warnings = tuple(warning for each in (adapter, *others) for warning in each.warnings)
    return Candidates(
        adapter,
        tuple(others),
        sources,
        derived_updates(sources, kinds),
        (*warnings, *sources.warnings_of(kinds)),
    )


def repair_adapter(
    found: Candidates,
    questions: RepairQuestions,
    settings: ScoreSettings,
    *,
    max_loss_points: float,
    output: Path,
    advance: Advance = lambda _: None,
) -> AdapterRepair:
    """Score the candidates, choose one within the limit, and write it if it holds.

    Args:
        found: from ``candidates``.
        questions: the tasks; at least one of each relation.
        settings: with which the tasks were prepared.
        max_loss_points: limit of the retention loss, see ``findings.repairs.choose_repair``.
        output: folder of the repaired adapter; is not written where none does.
        advance: as of ``RepairScorer.scores``.

    Raises:
        ConfigError: files that rankwise did not write are in the way.
        ModelError: the base cannot be loaded.
        RecordError: as ``findings.repairs.choose_repair``.
        StorageError: the folder cannot be written.
        UnchangedOutputsError: the adapter answers as the base does.
    """
    adapter, device = found.adapter, choose_device()
    precision = resolve_precision(settings.precision, device)
    base = load_to_score(adapter.base.folder, precision, device)
    tokenizer = models.load_tokenizer(adapter.base.folder)
    resident = ResidentScorer(base, tokenizer)
    scorer = RepairScorer(resident, base, adapter.target, found.derived)
    weights = [digest_of(adapter.target / name).sha256 for name in (CONFIG_FILE, WEIGHTS_FILE)]
    asked = [task.digest for task in questions.all]
    wanted = fingerprint([adapter.base.fingerprint, weights, precision, asked])
    scores = [
        scorer.scores(
            AskedTask(task), model=str(adapter.target), fingerprint=wanted, advance=advance
        )
        for task in questions.all
    ]
    tasks = RepairTasks(
        tuple(task.name for task in questions.in_domain),
        tuple(task.name for task in questions.retention),
    )
    answers = in_domain_answers(questions.in_domain, tokenizer, adapter.base.folder)
    choice = choose_repair(
        scores,
        tasks,
        max_loss_points=max_loss_points,
        confidence=CONFIDENCE,
        divergences=scorer.divergences(answers, model=str(adapter.target), fingerprint=wanted)
        if answers
        else None,
    )
    record = AdapterRepair(
        fingerprint=wanted,
        model=str(adapter.target),
        base_model=adapter.base.name,
        averaged_with=tuple(str(other.target) for other in found.others),
        choice=choice,
        reverted=tuple(reverted_heads(found.sources, choice.repair)),
        folder=None if choice.repair is None else str(output),
        warnings=found.warnings,
        provenance=provenance_on(device),
    )
    if choice.repair is not None:
        with output_folder(output) as place:
            write_repaired(place, found.derived[choice.repair], adapter.target, record)
    return record
