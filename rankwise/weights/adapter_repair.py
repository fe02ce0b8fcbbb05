"""The repair of one adapter, of a study's run or of any: candidates, scores, choice, folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwise.engine.models import base as models
from rankwise.engine.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from rankwise.engine.models.base import BaseModel
from rankwise.engine.models.devices import ResolvedPrecision, choose_device, provenance_on
from rankwise.findings.model_card import model_card
from rankwise.findings.repairs import RepairTasks, choose_repair
from rankwise.records.files import digest_of, write_atomically
from rankwise.records.fingerprints import fingerprint
from rankwise.records.outputs import output_folder
from rankwise.records.repair_scores import RepairDivergences, RepairScores
from rankwise.records.repairs import AdapterRepair, Repair, RepairFamily
from rankwise.tasks.questions import Advance, RightAnswer
from rankwise.tasks.right_answers import right_answers
from rankwise.weights.lowrank import read_updates, save_updates
from rankwise.weights.repair_scores import AskedTask, RepairScorer
from rankwise.weights.repairs import RepairSources, Updates, derived_updates, reverted_heads
from rankwise.weights.session import CONFIDENCE, ScoringSession

CARD_FILE = "README.md"


@dataclass(frozen=True, eq=False)
class AdapterRepairer:
    """An adapter, the repairs of it that are tried, and the tasks that choose and judge one.

    Nothing is read before it is needed: a study may know all scores.

    Attributes:
        model: the adapter's name in records.
        folder: of the adapter.
        base: of it.
        tokenizer: the base's.
        in_domain: what the adapter was trained for; at least one task.
        retention: what it should keep; likewise.
        kinds: of repair, as in ``repairs.derived_updates``.
        open_session: of the base, in which candidates are scored.
        others: name and folder of the adapters to average it with.
        refined: rank -> folder of the adapter truncated to it and trained on.
        confidence: of all that is said together, 0..1.
        warnings: what could not be checked.
    """

    model: str
    folder: Path
    base: BaseModel
    tokenizer: Any
    in_domain: Sequence[AskedTask]
    retention: Sequence[AskedTask]
    kinds: Sequence[RepairFamily | Repair]
    open_session: Callable[[], ScoringSession]
    others: Sequence[tuple[str, Path]] = ()
    refined: Mapping[int, Path] = field(default_factory=dict[int, Path])
    confidence: float = CONFIDENCE
    warnings: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[AskedTask]:
        """Every task, those in-domain first."""
        return [*self.in_domain, *self.retention]

    @cached_property
    def sources(self) -> RepairSources:
        """What the candidates are made of.

        Raises:
            ModelError: an adapter is more than plain LoRA, or as ``repairs.RepairSources``.
        """
        others = [read_updates(folder) for _, folder in self.others]
        refined = {rank: read_updates(folder) for rank, folder in self.refined.items()}
        return RepairSources.of(self.base.folder, read_updates(self.folder), others, refined)

    @cached_property
    def derived(self) -> Mapping[Repair, Updates]:
        """The candidates, the adapter as it is first.

        Raises:
            ModelError: as ``sources`` and ``repairs.derived_updates``.
        """
        return derived_updates(self.sources, self.kinds)

    @cached_property
    def scorer(self) -> RepairScorer:
        """The base and the candidates.

        Raises:
            ModelError: as ``derived``, or the base cannot be loaded.
        """
        derived = self.derived  # before the base is in memory: intruders read its weights too
        return RepairScorer(self.open_session(), self.model, self.folder, derived)

    @cached_property
    def answers(self) -> tuple[RightAnswer, ...]:
        """Right answers in-domain, on which candidates are compared with the base.

        Raises:
            ModelError: the base's config cannot be read.
        """
        tasks = [task.prepared for task in self.in_domain]
        skeleton: Any = models.model_skeleton(self.base.folder)
        vocabulary_size = skeleton.config.get_text_config().vocab_size
        # half of them: each is read once for every repair, one after another
        return right_answers(tasks, self.tokenizer, vocabulary_size)[::2]

    def chosen(
        self,
        scores: Sequence[RepairScores],
        divergences: RepairDivergences | None,
        wanted: str,
        *,
        max_loss_points: float,
        output: str,
    ) -> AdapterRepair:
        """The record of the candidate that gains most within the limit; see ``choose_repair``.

        Args:
            scores: of every task.
            divergences: on ``answers``; None where there are none.
            wanted: the record's fingerprint.
            max_loss_points: limit of the retention loss.
            output: what the record says of where ``write`` writes the candidate, if one holds.

        Raises:
            RecordError: as ``choose_repair``.
        """
        names = (
            tuple(task.prepared.name for task in of) for of in (self.in_domain, self.retention)
        )
        choice = choose_repair(
            scores,
            RepairTasks(*names),
            max_loss_points=max_loss_points,
            confidence=self.confidence,
            divergences=divergences,
        )
        return AdapterRepair(
            fingerprint=wanted,
            model=self.model,
            base_model=self.base.name,
            averaged_with=tuple(name for name, _ in self.others),
            choice=choice,
            reverted=tuple(reverted_heads(self.sources, choice.repair)),
            folder=None if choice.repair is None else output,
            warnings=(*self.warnings, *self.sources.warnings_of(self.kinds)),
            provenance=provenance_on(choose_device()),
        )

    def write(self, folder: Path, record: AdapterRepair) -> None:
        """Write the chosen candidate in PEFT's format, with a model card that has its scores.

        Raises:
            StorageError: the folder cannot be written.
        """
        assert record.choice.repair is not None
        save_updates(self.derived[record.choice.repair], folder, source=self.folder)
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
        advance: as of ``RepairScorer.scores``.

    Raises:
        ConfigError: files that rankwise did not write are in the way.
        ModelError: the base cannot be loaded.
        RecordError: as ``findings.repairs.choose_repair``.
        StorageError: the folder cannot be written.
        UnchangedOutputsError: the adapter answers as the base does.
    """
    weights = [digest_of(repairer.folder / name).sha256 for name in (CONFIG_FILE, WEIGHTS_FILE)]
    asked = [task.prepared.digest for task in repairer.tasks]
    wanted = fingerprint([repairer.base.fingerprint, weights, precision, asked])
    scores = [
        repairer.scorer.scores(task, fingerprint=wanted, advance=advance) for task in repairer.tasks
    ]
    divergences = None
    if repairer.answers:
        divergences = repairer.scorer.divergences(repairer.answers, fingerprint=wanted)
    record = repairer.chosen(
        scores, divergences, wanted, max_loss_points=max_loss_points, output=str(output)
    )
    if record.choice.repair is not None:
        with output_folder(output) as place:
            repairer.write(place, record)
    return record
