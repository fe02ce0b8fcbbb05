"""What ``rankwise plan`` says of a study, to people and to programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rankwise.cli.application import say, stdout
from rankwise.cli.budgets import described
from rankwise.cli.terminal import Done, needs_lines, pass_lines, plan_table
from rankwise.cli.timetables import check_price, print_times
from rankwise.engine.models.devices import Machine
from rankwise.records import quantities
from rankwise.records.files import free_bytes, in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study.costs import PASS_WORK, TRAINING_WORK
from rankwise.study.damage import Damage, find_damage, models_of
from rankwise.study.deploying import with_deployed, work_after_verdict, work_of_forms
from rankwise.study.needs import Needs, assumed_rate, needs_of
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stages import Stage, finished_work, stages
from rankwise.study.timetable import Timetable, timetable
from rankwise.study.units import owners, units


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
        rate: tokens of LoRA training in a second; None: unknown.
        is_rate_assumed: nobody gave the rate.
        needs: disk and seconds of what is left.
        later_work: in scored tokens, of what is planned once there is a verdict.
        times: which device does what when.
    """

    intact: StudyFolder
    record: StudyRecord
    graph: Sequence[Stage]
    done: Done
    damages: Sequence[Damage]
    machine: Machine | None
    device_type: str
    rate: float | None
    is_rate_assumed: bool
    needs: Needs
    later_work: float
    times: Timetable

    def content(self) -> dict[str, Any]:
        """For a program."""
        record = self.record
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in self.done}
            for run in (*record.runs, *record.variants)
        ]
        return {
            "runs": runs,
            "passes": record.passes,
            "stages": [stage.described(self.intact) for stage in self.graph],
            "units": self._units(),
            "warnings": record.warnings,
            "device": self.device_type,
            "machine": None if self.machine is None else described(self.machine),
            "precision": record.precision,
            "is_searched": record.config.is_searched,
            "forms": record.forms,
            "work_after_verdict": self.later_work,
            **self.needs._asdict(),
            "free_disk_bytes": free_bytes(self.intact.root),
            "is_rate_assumed": self.is_rate_assumed,
            "schedule": self.times.described(),
        }

    def _units(self) -> list[dict[str, Any]]:
        """The units that are done together."""
        per_second = None if self.rate is None else self.rate * TRAINING_WORK["lora"]
        taken = units(self.graph)
        unit_of = owners(taken)
        return [unit.described(unit_of, self.intact, per_second) for unit in taken]

    def show(self) -> None:
        """For people."""
        record, machine = self.record, self.machine
        stdout.print(plan_table(record, self.done))
        for line in pass_lines(record):
            say(line)
        if record.config.is_searched:
            say("search: these trainings begin it; what they show decides which go on")
        if record.forms:
            said = ", ".join(record.deployed) or "the run that the verdict names"
            tokens = quantities.count(round(self.later_work or work_of_forms(self.graph)))
            say(f"deploy: {said}, as {', '.join(record.forms)}: {tokens} tokens to score")
        if machine is not None:
            available = in_words(machine.available_bytes())
            say(f"planned for {machine.name} with {available}, in {record.precision}")
        for line in needs_lines(self.needs, self.intact.root, is_assumed=self.is_rate_assumed):
            say(line)
        print_times(self.times)


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
    record, num_devices = planned.record, planned.num_workers
    damages = find_damage(folder, models_of(record, folder))
    intact = folder.without({path for damage in damages for path in damage.spoils})
    record = with_deployed(record, intact)
    graph = stages(record)
    rate, device_type = tokens_per_second, planned.device.type
    is_assumed = rate is None and machine is not None and device_type == "cuda"
    if is_assumed:
        rate = assumed_rate(record.num_parameters)
    check_price(price_per_hour, rate)
    later_work = work_after_verdict(record)
    return Forecast(
        intact,
        record,
        graph,
        finished_work(graph, intact),
        damages,
        machine,
        device_type,
        rate,
        is_assumed,
        needs_of(graph, intact, rate, num_devices, later_work),
        later_work,
        timetable(graph, intact, num_devices, PASS_WORK[device_type], rate, price_per_hour),
    )
