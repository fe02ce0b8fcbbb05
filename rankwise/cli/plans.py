"""What ``rankwise plan`` says of a study, to people and to programs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace as changed
from typing import Any

from rankwise.cli.application import say, stdout
from rankwise.cli.terminal import pass_lines, plan_table
from rankwise.engine.models.devices import Machine
from rankwise.records import quantities
from rankwise.records.files import free_bytes, in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import COMPARED
from rankwise.study.able import with_able_tasks
from rankwise.study.acceptance import disk_left
from rankwise.study.agenda import owners, units
from rankwise.study.budgets import margin_costs
from rankwise.study.conclusion import with_deployed
from rankwise.study.damage import find_damage, models_of
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.references import unscored_tokens, with_settled_references
from rankwise.study.stages.form import work_after_verdict, work_of_forms
from rankwise.study.stages.graph import finished_work, stages, study_outline
from rankwise.study.times import TRAINING_WORK, assumed_rate, seconds_left
from rankwise.tasks.resolution import GENERAL

_ASSUMED_RATE = (
    ": a third of an H100's peak, which is assumed and not measured, and more than small models "
    "reach; --tokens-per-second takes another"
)


class Forecast:
    """What is left of a study, and what it takes.

    Attributes:
        damages: what of the folder is made again.
        rate: tokens of LoRA training in a second; None: unknown.
    """

    def __init__(
        self,
        planned: StudyPlan,
        folder: StudyFolder,
        machine: Machine | None,
        tokens_per_second: float | None,
    ) -> None:
        """``machine`` is what is planned for; None: the one that is here."""
        self.damages = find_damage(folder, models_of(planned.record, folder))
        intact = folder.without({path for damage in self.damages for path in damage.spoils})
        record = with_settled_references(planned.record, intact)
        able = with_able_tasks(record, intact)
        self._awaits_base = able is None
        record = with_deployed(able or record, intact)
        self._intact, self._record, self._graph = intact, record, stages(record)
        self._machine, self._device_type = machine, planned.device.type
        self.rate = tokens_per_second
        has_card = machine is not None and self._device_type == "cuda"
        self._is_rate_assumed = tokens_per_second is None and has_card
        if self._is_rate_assumed:
            self.rate = assumed_rate(record.num_parameters)

        self._later_work = work_after_verdict(record)  # in scored tokens
        outline = study_outline(self._graph, intact)
        self._seconds: Mapping[str, float] = {}  # of each stage that is left; empty: unknown
        # tokens that are scored in a second
        self._scored_rate = scored = self.rate and self.rate * TRAINING_WORK["lora"]
        if scored is not None or machine is None:  # without a rate as it went here
            self._seconds = seconds_left(outline, scored, self._later_work)
        self._margins = list(margin_costs(changed(planned, record=record), scored))
        self._done = finished_work(self._graph, intact)
        self._disk_bytes = disk_left(self._graph, intact)
        self._has_parts = bool(planned.record.references.parts)
        self._unscored_tokens = unscored_tokens(record)

    def content(self) -> dict[str, Any]:
        """For a program: with each unit, how long what is left of it takes."""
        record, seconds, all_units = self._record, self._seconds, units(self._graph)
        unit_of, listed = owners(all_units), list[dict[str, Any]]()
        for unit in all_units:
            left = sum(seconds.get(stage.id, 0.0) for stage in unit.stages) if seconds else None
            listed.append(unit.described(unit_of, self._intact) | {"seconds": left})
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in self._done}
            for run in record.of_role(*COMPARED, "variant", "fewer_rows")
        ]
        return {
            "runs": runs,
            "passes": record.passes,
            "stages": [stage.described(self._intact) for stage in self._graph],
            "units": listed,
            "warnings": record.warnings,
            "device": self._device_type,
            "machine": self._machine
            and {"name": self._machine.name, "available_bytes": self._machine.available_bytes()},
            "precision": record.precision,
            "is_searched": record.config.is_searched,
            "forms": record.forms,
            "work_after_verdict": self._later_work,
            "references": record.references,
            "unable": record.unable,
            "unscored_tokens": self._unscored_tokens,
            "disk_bytes": self._disk_bytes,
            "free_disk_bytes": free_bytes(self._intact.root),
            "tokens_per_second": self.rate,
            "is_rate_assumed": self._is_rate_assumed,
            "seconds": sum(self._seconds.values()) if self._seconds else None,
            "margins": [cost._asdict() for cost in self._margins],
        }

    def show(self) -> None:
        """For people."""
        record, machine = self._record, self._machine
        stdout.print(plan_table(record, self._done))
        for line in pass_lines(record):
            say(line)
        if record.config.is_searched:
            say("search: these trainings begin it; what they show decides which go on")
        for line in (*self._general_lines(), *self._reference_lines()):
            say(line)
        if record.forms:
            said = ", ".join(record.deployed) or "the run that the verdict names"
            tokens = quantities.count(round(self._later_work or work_of_forms(self._graph)))
            say(f"deploy: {said}, as {', '.join(record.forms)}: {tokens} tokens to score")
        if machine is not None:
            available = in_words(machine.available_bytes())
            say(f"planned for {machine.name} with {available}, in {record.precision}")
        for line in self._margin_lines():
            say(line)
        free = in_words(free_bytes(self._intact.root))
        say(f"disk: about {in_words(self._disk_bytes)}, {free} free here")
        if self._seconds:
            by_what = "if what is left goes as what is finished did"
            if self.rate is not None:
                by_what = (
                    "of training and scoring, without the analysis of weights, if LoRA training "
                    f"reads {quantities.count(round(self.rate))} tokens per second"
                    + (_ASSUMED_RATE if self._is_rate_assumed else "")
                )
            say(f"time: about {quantities.seconds(sum(self._seconds.values()))} {by_what}")

    def _general_lines(self) -> Iterator[str]:
        """Whether the set's items are enough, and what is left out of it."""
        of_set = self._record.groups.get(GENERAL, ())
        if not of_set:
            return
        number = quantities.counted(len(of_set) - len(self._record.unable), "task")
        resolves = ""
        for cost in [each for each in self._margins if each.relation == "retention"][:1]:
            items, planned = map(quantities.count, (cost.items_for(2.0), cost.num_planned))
            resolves = f"; 2 points of retention loss take about {items} items, {planned} planned"
        yield f"{GENERAL}: {number}{resolves}"
        if self._awaits_base:
            yield f"{GENERAL}: the base is scored first, and what it cannot do is left out"
        yield from self._record.unable.values()

    def _reference_lines(self) -> Iterator[str]:
        """What most runs answer of which tasks, and what that saves; why all answer everything."""
        record = self._record
        if not self._unscored_tokens:
            settings = record.config.evaluation.reference
            if settings is not None:
                why = "no task has enough items for it, or runs are searched for"
                if record.references.parts:
                    why = "each is a reference, or has answered them already"
                elif self._has_parts:
                    least = quantities.share(settings.least_saving)
                    why = f"a part would save less than {least} of the work"
                yield f"reference: all runs answer all items; {why}"
            return
        parts = {
            task: [model for model in record.tested if record.part_of(model, task) is not None]
            for task in record.references.parts
        }
        for task, models in parts.items():
            part = record.references.parts[task]
            yield (
                f"reference: {quantities.counted(len(models), 'run')} of {len(record.tested)} "
                f"answer {quantities.count(part.num_items)} of {quantities.count(part.num_all)} "
                f"items of {task}"
            )
        names = dict.fromkeys(name for names in record.references.runs.values() for name in names)
        saved = f"saves {quantities.count(self._unscored_tokens)} scored tokens"
        if self._scored_rate is not None:
            saved += f", about {quantities.seconds(self._unscored_tokens / self._scored_rate)}"
        yield f"reference: the rest is estimated from {', '.join(names)}, which {saved}"

    def _margin_lines(self) -> Iterator[str]:
        """How many items the margins take, and how long these take to score."""
        for relation, of_kind in itertools.groupby(self._margins, key=lambda cost: cost.relation):
            costs = list(of_kind)
            needs = [
                f"{cost.margin:g} points about {quantities.count(cost.num_items)} ("
                + (
                    f"{quantities.count(cost.num_tokens)} tokens"
                    if cost.seconds is None
                    else quantities.seconds(cost.seconds)
                )
                + ")"
                for cost in costs
            ]
            planned = quantities.count(costs[0].num_planned)
            there = quantities.count(costs[0].num_available)
            yield (
                f"items to resolve, {relation.replace('_', '-')}: {', '.join(needs)}; "
                f"planned: {planned} of {there}"
            )
