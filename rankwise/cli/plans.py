"""What ``rankwise plan`` says of a study, to people and to programs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as changed
from typing import Any, NamedTuple

from rankwise.cli.application import say, stdout
from rankwise.cli.terminal import Done, pass_lines, plan_table
from rankwise.engine.models.devices import Machine
from rankwise.errors import ConfigError
from rankwise.records import quantities
from rankwise.records.files import free_bytes, in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import COMPARED, References, StudyRecord
from rankwise.study.able import with_able_tasks
from rankwise.study.acceptance import disk_left
from rankwise.study.agenda import jobs, owners, units
from rankwise.study.budgets import MarginCost, margin_costs
from rankwise.study.conclusion import with_deployed
from rankwise.study.damage import Damage, find_damage, models_of
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.references import with_earlier_references
from rankwise.study.stages.form import work_after_verdict, work_of_forms
from rankwise.study.stages.graph import finished_work, stages, study_outline
from rankwise.study.stages.stage import Stage
from rankwise.study.times import TRAINING_WORK, Slot, assumed_rate, scheduled, seconds_left
from rankwise.tasks.resolution import GENERAL

_ASSUMED_RATE = (
    ": a third of an H100's peak, which is assumed and not measured, and more than small models "
    "reach; --tokens-per-second takes another"
)


class Forecast(NamedTuple):
    """What a study has, and what is left of it.

    Attributes:
        intact: the study's folder, without what is damaged.
        record: the plan, with what a verdict has added to it.
        graph: its stages.
        done: (model, task) that are finished; the task of a training is None.
        damages: what of the folder is made again.
        machine: that is planned for; None: the one that is here.
        device_type: of the device that is planned for.
        num_devices: equal ones.
        rate: tokens of LoRA training in a second; None: unknown.
        is_rate_assumed: nobody gave the rate.
        later_work: in scored tokens, of what is planned once there is a verdict.
        seconds: of each stage that is left, by its id; empty: nothing is known.
        slots: the units that are left, on the devices; in seconds, or in work where they are
            not known.
        price_per_hour: of a device; None: not known.
        margins: what they cost.
    """

    intact: StudyFolder
    record: StudyRecord
    graph: Sequence[Stage]
    done: Done
    damages: Sequence[Damage]
    machine: Machine | None
    device_type: str
    num_devices: int
    rate: float | None
    is_rate_assumed: bool
    later_work: float
    seconds: Mapping[str, float]
    slots: Sequence[Slot]
    price_per_hour: float | None
    margins: Sequence[MarginCost]

    def content(self) -> dict[str, Any]:
        """For a program."""
        record = self.record
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in self.done}
            for run in record.of_role(*COMPARED, "variant", "fewer_rows")
        ]
        return {
            "runs": runs,
            "passes": record.passes,
            "stages": [stage.described(self.intact) for stage in self.graph],
            "units": self._units(),
            "warnings": record.warnings,
            "device": self.device_type,
            "machine": self.machine
            and {"name": self.machine.name, "available_bytes": self.machine.available_bytes()},
            "precision": record.precision,
            "is_searched": record.config.is_searched,
            "forms": record.forms,
            "work_after_verdict": self.later_work,
            "references": record.references,
            "unable": record.unable,
            "unscored_tokens": self._unscored_tokens,
            "disk_bytes": self._disk_bytes,
            "free_disk_bytes": free_bytes(self.intact.root),
            "tokens_per_second": self.rate,
            "is_rate_assumed": self.is_rate_assumed,
            "seconds": sum(self.seconds.values()) if self.seconds else None,
            "margins": [cost._asdict() for cost in self.margins],
            "schedule": {
                "num_devices": self.num_devices,
                "seconds": self._makespan if self.seconds else None,
                "busy_share": self._busy_share,
                "device_hours": self._device_hours,
                "price_per_hour": self.price_per_hour,
                "cost": self._cost,
            },
        }

    def _units(self) -> list[dict[str, Any]]:
        """The units that are done together, and which device does what is left of them when."""
        slot_of = {slot.job.name: slot for slot in self.slots}
        taken = units(self.graph)
        unit_of = owners(taken)

        def when(unit: str) -> dict[str, Any]:
            slot = slot_of.get(unit)
            work, device, start, end = [None] * 4 if slot is None else (slot.job.work, *slot[1:])
            times = {"seconds": work, "start_seconds": start, "end_seconds": end}
            return {"device": device, **(times if self.seconds else dict.fromkeys(times))}

        return [unit.described(unit_of, self.intact) | when(unit.id) for unit in taken]

    @property
    def _unscored_tokens(self) -> int:
        """Of the items that are estimated from references."""
        record = self.record
        whole = record.model_copy(update={"references": References()})
        return sum(
            whole.tokens_of(model, tasks) - record.tokens_of(model, tasks)
            for model in record.tested
            for tasks in [record.tasks_of(model)]
        )

    @property
    def _disk_bytes(self) -> int:
        return disk_left(self.graph, self.intact, self.num_devices)

    @property
    def _makespan(self) -> float:
        return max((slot.end for slot in self.slots), default=0.0)

    @property
    def _busy_share(self) -> float:
        """Of the devices' time until all is done, what they are at work."""
        whole = self.num_devices * self._makespan
        return sum(slot.job.work for slot in self.slots) / whole if whole else 0.0

    @property
    def _device_hours(self) -> float | None:
        """Summed over devices, each from the start to the end of its last unit."""
        ends: dict[int, float] = {}
        for slot in self.slots:
            ends[slot.device] = max(slot.end, ends.get(slot.device, 0.0))
        return sum(ends.values()) / 3600 if self.seconds else None

    @property
    def _cost(self) -> float | None:
        hours, price = self._device_hours, self.price_per_hour
        return None if hours is None or price is None else hours * price

    def show(self) -> None:
        """For people."""
        record, machine = self.record, self.machine
        stdout.print(plan_table(record, self.done))
        for line in pass_lines(record):
            say(line)
        if record.config.is_searched:
            say("search: these trainings begin it; what they show decides which go on")
        for line in (*self._general_lines(), *self._reference_lines()):
            say(line)
        if record.forms:
            said = ", ".join(record.deployed) or "the run that the verdict names"
            tokens = quantities.count(round(self.later_work or work_of_forms(self.graph)))
            say(f"deploy: {said}, as {', '.join(record.forms)}: {tokens} tokens to score")
        if machine is not None:
            available = in_words(machine.available_bytes())
            say(f"planned for {machine.name} with {available}, in {record.precision}")
        for line in (*self._margin_lines(), *self._lines()):
            say(line)

    def _lines(self) -> Iterator[str]:
        """What is left takes of the disk that the folder is on, of time and of devices."""
        free = in_words(free_bytes(self.intact.root))
        yield f"disk: about {in_words(self._disk_bytes)}, {free} free here"
        if self.seconds:
            takes = quantities.seconds(sum(self.seconds.values()))
            yield f"time: about {takes} {self._by_what()}"
        if self.num_devices > 1 and self.slots:
            done = f"done after {quantities.seconds(self._makespan)}, " if self.seconds else ""
            busy = quantities.share(self._busy_share)
            yield f"{self.num_devices} devices: {done}at work {busy} of the time"
        hours, cost = self._device_hours, self._cost
        if hours is not None and (self.num_devices > 1 or cost is not None):
            said = "" if cost is None else f"; cost: {cost:,.2f} at {self.price_per_hour:g} an hour"
            yield f"device-hours: {hours:.2f}, each device until its last unit ends{said}"

    def _general_lines(self) -> Iterator[str]:
        """Whether the set's items are enough, and what is left out of it."""
        of_set = self.record.groups.get(GENERAL, ())
        if not of_set:
            return
        number = quantities.counted(len(of_set) - len(self.record.unable), "task")
        cost = next(cost for cost in self.margins if cost.relation == "retention")
        items = quantities.count(round(cost.num_items * (cost.margin / 2.0) ** 2))
        planned = quantities.count(cost.num_planned)
        yield f"{GENERAL}: {number}; 2 points of loss take about {items} items, {planned} planned"
        if with_able_tasks(self.record, self.intact) is None:
            yield f"{GENERAL}: the base is scored first, and what it cannot do is left out"
        yield from self.record.unable.values()

    def _reference_lines(self) -> Iterator[str]:
        """What most runs answer of which tasks, and what that saves."""
        record = self.record
        if not self._unscored_tokens:
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
        if self.rate is not None:
            seconds = self._unscored_tokens / (self.rate * TRAINING_WORK["lora"])
            saved += f", about {quantities.seconds(seconds)}"
        yield f"reference: the rest is estimated from {', '.join(names)}, which {saved}"

    def _margin_lines(self) -> Iterator[str]:
        """How many items the margins take, and how long these take to score."""
        for relation, of_kind in itertools.groupby(self.margins, key=lambda cost: cost.relation):
            costs = list(of_kind)
            takes = [
                f"{cost.margin:g} points take about {quantities.count(cost.num_items)} items ("
                + quantities.count(cost.num_tokens)
                + " tokens to score"
                + ("" if cost.seconds is None else f", {quantities.seconds(cost.seconds)}")
                + ")"
                for cost in costs
            ]
            planned, there = map(quantities.count, costs[0][3:5])
            what = f"margins, {relation.replace('_', '-')}: {quantities.listed(takes)}"
            yield f"{what}; planned: {planned} of {there} items"

    def _by_what(self) -> str:
        """What the time is of, and which speed it is estimated from."""
        if self.rate is None:
            return "if what is left goes as what is finished did"
        return (
            "of training and scoring, without the analysis of weights, if LoRA training reads "
            f"{quantities.count(round(self.rate))} tokens per second"
            + (_ASSUMED_RATE if self.is_rate_assumed else "")
        )


def forecast(
    planned: StudyPlan,
    folder: StudyFolder,
    machine: Machine | None,
    tokens_per_second: float | None,
    price_per_hour: float | None,
) -> Forecast:
    """What is left of a study, and what it takes.

    Raises:
        ConfigError: there is a price, and no speed is known.
    """
    record = planned.record
    damages = find_damage(folder, models_of(record, folder))
    intact = folder.without({path for damage in damages for path in damage.spoils})
    record = with_earlier_references(record, intact)
    record = with_deployed(with_able_tasks(record, intact) or record, intact)
    graph = stages(record)
    rate, device_type = tokens_per_second, planned.device.type
    is_assumed = rate is None and machine is not None and device_type == "cuda"
    if is_assumed:
        rate = assumed_rate(record.num_parameters)
    later_work = work_after_verdict(record)
    outline = study_outline(graph, intact)
    seconds: Mapping[str, float] = {}
    scored = None if rate is None else rate * TRAINING_WORK["lora"]
    if scored is not None or machine is None:  # without a rate as it went here
        seconds = seconds_left(outline, scored, later_work)
    if price_per_hour is not None and not seconds:
        problem = "--price-per-hour: no speed is known; give --tokens-per-second too"
        raise ConfigError("plan", [problem])
    work = {each.id: each.work_left for each in outline if each.num_tokens and each.work_left}
    left = jobs(units(graph), seconds or work)
    return Forecast(
        intact,
        record,
        graph,
        finished_work(graph, intact),
        damages,
        machine,
        device_type,
        planned.num_workers,
        rate,
        is_assumed,
        later_work,
        seconds,
        scheduled(left, planned.num_workers),
        price_per_hour,
        list(margin_costs(changed(planned, record=record), scored)),
    )
