"""The repair of one adapter, of a study's run or of any: candidates, scores, choice, folder.

The base and every repair answer a task together: a prompt is read once for all of them where they
agree, and the base's matrix products are shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import BaseModel
from rankwise.engine.models.devices import ResolvedPrecision, choose_device, provenance_on
from rankwise.engine.models.frozen_adapters import FrozenAdapter, load_frozen_adapter
from rankwise.errors import TaskError
from rankwise.findings.model_card import model_card
from rankwise.findings.repairs import RepairTasks, choose_repair
from rankwise.records import p_right, quantities
from rankwise.records.files import write_atomically
from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE
from rankwise.records.outputs import output_folder
from rankwise.records.reading import judged_lines, linked
from rankwise.records.repair_scores import RepairedItems, RepairScores
from rankwise.records.repairs import AS_IT_IS, AdapterRepair, Repair, RepairFamily
from rankwise.records.results import MIN_ITEMS, TaskItems
from rankwise.tasks.evaluation import ScoredModel, Scoring
from rankwise.tasks.questions import Advance
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.weights.lowrank import read_updates, save_updates
from rankwise.weights.repairs import (
    RepairSources,
    Updates,
    as_frozen,
    derived_updates,
    reverted_heads,
)
from rankwise.weights.session import CONFIDENCE, ScoringSession


class AskedTask(NamedTuple):
    """A task that repairs are scored on.

    Attributes:
        prepared: the task.
        metric: the configured one that decides; None: p(right), or the task's own.
        cluster_field: of its documents; None: items that ask the same are clusters.
    """

    prepared: PreparedTask
    metric: str | None = None
    cluster_field: str | None = None


def _items(scoring: Scoring, task: AskedTask) -> TaskItems:
    """The items by the metric that decides; choices and other metrics are not kept."""
    lines = [s for s in scoring.samples if s["filter"] == scoring.record.decision_filter]
    judged = judged_lines(scoring.record, lines, task.metric, task.cluster_field)
    if scoring.record.model == BASE:
        judged = linked({task.prepared.name: judged})[task.prepared.name]
    return judged.items.model_copy(update={"choices": None, "accuracy": None, "candidates": {}})


CARD_FILE = "README.md"


@dataclass(frozen=True, eq=False)
class AdapterRepairer:
    """An adapter, the repairs of it that are tried, and the tasks that choose and judge one.

    Nothing is read before it is needed: a study may know all scores.

    Attributes:
        model: the adapter's name in records.
        adapter: where it is.
        base: of it.
        in_domain: what the adapter was trained for; at least one task.
        retention: what it should keep; likewise.
        kinds: of repair, as in ``repairs.derived_updates``.
        open_session: of the base, in which candidates are scored.
        others: the adapters to average it with, with their names.
        confidence: of all that is said together, 0..1.
        warnings: what could not be checked.
    """

    model: str
    adapter: AdapterFolder
    base: BaseModel
    in_domain: Sequence[AskedTask]
    retention: Sequence[AskedTask]
    kinds: Sequence[RepairFamily | Repair]
    open_session: Callable[[], ScoringSession]
    others: Sequence[tuple[str, AdapterFolder]] = ()
    confidence: float = CONFIDENCE
    warnings: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[AskedTask]:
        """Every task, those in-domain first."""
        return [*self.in_domain, *self.retention]

    def refuse_unjudgeable(self) -> None:
        """Refuse tasks by which no repair can be judged, before anything is scored.

        Raises:
            TaskError: a task has fewer than two items, or no retention task is scored in points.
        """
        for task in [each.prepared for each in self.tasks]:
            if task.num_items < MIN_ITEMS:
                raise TaskError(
                    f"task {task.name!r} has {quantities.counted(task.num_items, 'item')}, and a "
                    f"difference needs {MIN_ITEMS}. Score more, or leave the task out."
                )
        kinds = {task.prepared.loaded.output_type for task in self.retention}
        if kinds <= {"loglikelihood_rolling"}:
            raise TaskError(
                "every retention task is scored by its loss, and the limit is in points. Name one "
                "that asks questions."
            )

    @cached_property
    def sources(self) -> RepairSources:
        """What the candidates are made of.

        Raises:
            ModelError: an adapter is more than plain LoRA, or as ``repairs.RepairSources``.
        """
        others = [read_updates(adapter) for _, adapter in self.others]
        return RepairSources.of(self.base.folder, read_updates(self.adapter), others)

    @cached_property
    def derived(self) -> Mapping[Repair, Updates]:
        """The candidates, the adapter as it is first.

        Raises:
            ModelError: as ``sources`` and ``repairs.derived_updates``.
        """
        return derived_updates(self.sources, self.kinds)

    @cached_property
    def _opened(self) -> tuple[ScoringSession, dict[Repair, FrozenAdapter]]:
        """The base, and on it the adapter from its folder and its repairs as they would be written.

        Raises:
            ModelError: as ``derived``, or the base cannot be loaded.
            UnchangedOutputsError: the adapter answers as the base does.
        """
        derived = self.derived
        session = self.open_session()
        base, dtype = session.model, next(session.model.parameters()).dtype
        adapters = {
            repair: load_frozen_adapter(base, self.adapter, dtype)
            if repair == AS_IT_IS
            else as_frozen(updates, base)
            for repair, updates in derived.items()
        }
        for repair, adapter in adapters.items():
            session.scorer.hold(repair.label, adapter)
        asked = probes(self.tasks[0].prepared.requests)
        refuse_unapplied(session.scorer, [AS_IT_IS.label], asked)
        return session, adapters

    def scores(
        self, task: AskedTask, *, fingerprint: str, advance: Advance = lambda _: None
    ) -> RepairScores:
        """Score the base and every candidate on a task, item by item.

        Args:
            task: what is asked.
            fingerprint: of the record.
            advance: receives the number of tokens read or written, ``num_tokens`` per model.

        Raises:
            UnchangedOutputsError: the adapter answers as the base does.
            TaskError: its answers cannot be judged, or its documents have no such field.
        """
        session, adapters = self._opened
        started = time.perf_counter()
        scored = [ScoredModel(BASE, fingerprint)]
        scored += [ScoredModel(each.label, fingerprint, each.label) for each in adapters]
        wanted = None if p_right.is_wanted(task.metric) else task.metric
        scorings = session.score(scored, task.prepared, metric=wanted, advance=advance)
        every = [_items(scoring, task) for scoring in scorings]
        missing = {doc_id for items in every for doc_id in items.missing}
        base, *repaired = (items.without(missing) for items in every)
        return RepairScores(
            fingerprint=fingerprint,
            model=self.model,
            task=task.prepared.name,
            base=base,
            repaired=tuple(
                RepairedItems(repair=repair, items=items)
                for repair, items in zip(adapters, repaired, strict=True)
            ),
            score_seconds=time.perf_counter() - started,
            provenance=session.provenance,
        )

    def chosen(
        self,
        scores: Sequence[RepairScores],
        wanted: str,
        *,
        max_loss_points: float,
        output: str,
    ) -> AdapterRepair:
        """The record of the candidate that gains most within the limit; see ``choose_repair``.

        Args:
            scores: of every task.
            wanted: the record's fingerprint.
            max_loss_points: limit of the retention loss.
            output: what the record says of where ``write`` writes the candidate, if one holds.

        Raises:
            RecordError: as ``choose_repair``.
        """
        names = (
            tuple(task.prepared.name for task in of) for of in (self.in_domain, self.retention)
        )
        asked = [kind for kind in self.kinds if isinstance(kind, Repair)]
        choice = choose_repair(
            scores,
            RepairTasks(*names),
            max_loss_points=max_loss_points,
            confidence=self.confidence,
            asked=asked if len(asked) == len(self.kinds) else (),
        )
        repair = choice.repair
        ranks: dict[str, int] = {}
        if repair is not None and repair.family == "energy":
            ranks = {name: update.rank for name, update in self.derived[repair].items()}
        return AdapterRepair(
            fingerprint=wanted,
            model=self.model,
            base_model=self.base.recorded_name,
            averaged_with=tuple(name for name, _ in self.others),
            choice=choice,
            reverted=tuple(reverted_heads(self.sources, repair)),
            ranks=ranks,
            folder=None if repair is None else output,
            warnings=(*self.warnings, *self.sources.warnings_of(self.kinds)),
            provenance=provenance_on(choose_device()),
        )

    def write(self, folder: Path, record: AdapterRepair) -> None:
        """Write the chosen candidate in PEFT's format, with a model card that has its scores.

        Raises:
            StorageError: the folder cannot be written.
        """
        assert record.choice.repair is not None
        save_updates(self.derived[record.choice.repair], folder, source=self.adapter)
        write_atomically(folder / CARD_FILE, model_card(record))


def repair_adapter(
    repairer: AdapterRepairer,
    precision: ResolvedPrecision,
    *,
    max_loss_points: float,
    output: Path,
    advance: Advance = lambda _: None,
) -> AdapterRepair:
    """Score the candidates, choose one within the limit, and write it if it holds.

    Args:
        repairer: of an adapter that is in no study.
        precision: of its session.
        max_loss_points: limit of the retention loss, see ``findings.repairs.choose_repair``.
        output: folder of the repaired adapter; is not written where none does.
        advance: as of ``AdapterRepairer.scores``.

    Raises:
        ConfigError: files that rankwise did not write are in the way.
        ModelError: the base cannot be loaded.
        RecordError: as ``findings.repairs.choose_repair``.
        StorageError: the folder cannot be written.
        UnchangedOutputsError: the adapter answers as the base does.
    """
    asked = [task.prepared.digest for task in repairer.tasks]
    wanted = fingerprint([repairer.base.fingerprint, repairer.adapter.digest, precision, asked])
    scores = [repairer.scores(task, fingerprint=wanted, advance=advance) for task in repairer.tasks]
    record = repairer.chosen(scores, wanted, max_loss_points=max_loss_points, output=str(output))
    if record.choice.repair is not None:
        with output_folder(output) as place:
            repairer.write(place, record)
    return record
