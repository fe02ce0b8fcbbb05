"""What is left of a study, and what it takes, before it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from typing import Any, NamedTuple

from rankwise.engine.models.devices import Machine
from rankwise.records.files import cache_folder, free_bytes
from rankwise.records.folder import StudyFolder
from rankwise.records.study import COMPARED, PlannedRun, StudyRecord
from rankwise.study.able import with_able_tasks
from rankwise.study.acceptance import disk_left
from rankwise.study.agenda import owners, units
from rankwise.study.budgets import MarginCost, StudyResolution, margin_costs, resolution
from rankwise.study.conclusion import with_deployed
from rankwise.study.damage import Damage, find_damage, models_of
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.references import unscored_tokens, with_settled_references
from rankwise.study.speeds import remembered_speeds
from rankwise.study.stages.form import work_after_verdict, work_of_forms
from rankwise.study.stages.graph import finished_work, stages, study_outline
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.stages.stage import Stage
from rankwise.study.times import TRAINING_WORK, assumed_rate, seconds_left


class Forecast(NamedTuple):
    """What is left of a study, and what it takes.

    Attributes:
        record: of the study, by what its folder has.
        stages: of the record.
        folder: the study's, without what is damaged.
        damages: what of the folder is made again.
        machine: that is planned for; None: the one that is here.
        device: its type.
        awaits_base: whether the base is scored before it is known which tasks are left out.
        done: finished (model, task) pairs; task None is the training.
        seconds: of each stage that is left, by its id; empty: unknown.
        rate: tokens of LoRA training in a second, as given or assumed; None: neither.
        is_rate_assumed: whether nobody gave it.
        scored_rate: tokens that are scored in a second, by that or as remembered; None: unknown.
        later_work: scored tokens after the verdict.
        detectable: the differences in points that a study of this size can tell.
        margins: the items, tokens and seconds that half, all and twice each margin take.
        disk_bytes: that what is left takes.
        unscored_tokens: scored tokens that reference runs save.
        has_parts: whether the plan has parts of tasks for reference runs, settled or not.
    """

    record: StudyRecord
    stages: Sequence[Stage]
    folder: StudyFolder
    damages: Sequence[Damage]
    machine: Machine | None
    device: str
    awaits_base: bool
    done: set[tuple[str, str | None]]
    seconds: Mapping[str, float]
    rate: float | None
    is_rate_assumed: bool
    scored_rate: float | None
    later_work: float
    detectable: StudyResolution
    margins: Sequence[MarginCost]
    disk_bytes: int
    unscored_tokens: int
    has_parts: bool

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The runs that the study trains: those it compares, and what is trained beside them."""
        return self.record.of_role(*COMPARED, "variant", "fewer_rows")

    @property
    def seconds_left(self) -> float | None:
        """The seconds of everything that is left; None: unknown."""
        return sum(self.seconds.values()) if self.seconds else None

    @property
    def unscored_seconds(self) -> float | None:
        """That reference runs save; None where no rate is known."""
        return None if self.scored_rate is None else self.unscored_tokens / self.scored_rate

    @property
    def form_tokens(self) -> int:
        """The tokens to score in deployed forms."""
        return round(self.later_work or work_of_forms(self.stages))

    @property
    def free_bytes(self) -> int:
        """The free bytes of the folder's disk."""
        return free_bytes(self.folder.root)

    @property
    def analyses(self) -> list[AnalyseWeights]:
        """The analyses of weights that are left."""
        return [
            stage
            for stage in self.stages
            if isinstance(stage, AnalyseWeights) and not stage.is_finished(self.folder)
        ]

    @property
    def cache_bytes(self) -> int:
        """Bytes of decompositions that the cache folder keeps, as far as its limit allows."""
        return sum(stage.cache_bytes for stage in self.analyses)

    def content(self) -> dict[str, Any]:
        """The content for a program: with each unit, how long what is left of it takes."""
        record, seconds, all_units = self.record, self.seconds, units(self.stages)
        unit_of, listed = owners(all_units), list[dict[str, Any]]()
        for unit in all_units:
            left = sum(seconds.get(stage.id, 0.0) for stage in unit.stages) if seconds else None
            listed.append(unit.described(unit_of, self.folder) | {"seconds": left})
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in self.done}
            for run in self.runs
        ]
        return {
            "runs": runs,
            "passes": record.passes,
            "stages": [stage.described(self.folder) for stage in self.stages],
            "units": listed,
            "own_data": record.own_data,
            "warnings": record.warnings,
            "device": self.device,
            "machine": self.machine
            and {"name": self.machine.name, "available_bytes": self.machine.available_bytes()},
            "precision": record.precision,
            "is_searched": record.config.is_searched,
            "forms": record.forms,
            "work_after_verdict": self.later_work,
            "references": record.references,
            "unable": record.unable,
            "unscored_tokens": self.unscored_tokens,
            "disk_bytes": self.disk_bytes,
            "free_disk_bytes": self.free_bytes,
            "cache_bytes": self.cache_bytes,
            "free_cache_bytes": free_bytes(cache_folder()),
            "tokens_per_second": self.rate,
            "is_rate_assumed": self.is_rate_assumed,
            "seconds": self.seconds_left,
            "margins": [cost._asdict() for cost in self.margins],
        }


def forecast(
    planned: StudyPlan,
    folder: StudyFolder,
    machine: Machine | None = None,
    tokens_per_second: float | None = None,
) -> Forecast:
    """What is left of a planned study in its folder.

    Args:
        planned: for the machine.
        folder: the study's.
        machine: None: the one that is here, where stages take as long as they did.
        tokens_per_second: of LoRA training; None: a third of an H100's peak for a card that is
            described, and what is known of the machine that is here.
    """
    damages = find_damage(folder, models_of(planned.record, folder))
    intact = folder.without({path for damage in damages for path in damage.spoils})
    record = with_settled_references(planned.record, intact)
    able = with_able_tasks(record, intact)
    record = with_deployed(able or record, intact)
    graph, later_work = stages(record), work_after_verdict(record)

    has_card = machine is not None and planned.device.type == "cuda"
    is_assumed = tokens_per_second is None and has_card
    rate = assumed_rate(record.num_parameters) if is_assumed else tokens_per_second
    scored = None if rate is None else rate * TRAINING_WORK["lora"]
    seconds: Mapping[str, float] = {}
    if rate is not None or machine is None:
        remembered = remembered_speeds(record)
        outline = study_outline(graph, intact, remembered)
        seconds = seconds_left(outline, scored, later_work)
        if scored is None and Score.kind in remembered:
            scored = 1 / remembered[Score.kind]
    settled = changed(planned, record=record)
    can_tell = resolution(settled)
    return Forecast(
        record=record,
        stages=graph,
        folder=intact,
        damages=damages,
        machine=machine,
        device=planned.device.type,
        awaits_base=able is None,
        done=finished_work(graph, intact),
        seconds=seconds,
        rate=rate,
        is_rate_assumed=is_assumed,
        scored_rate=scored,
        later_work=later_work,
        detectable=can_tell,
        margins=list(margin_costs(settled, can_tell, scored)),
        disk_bytes=disk_left(graph, intact),
        unscored_tokens=unscored_tokens(record),
        has_parts=bool(planned.record.references.parts),
    )
