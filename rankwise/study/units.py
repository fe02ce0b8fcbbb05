"""The units of a study: stages that one worker does together, with what is in its memory."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.study.stages import CompareDistributions, Score, Stage, Train


@dataclass(frozen=True)
class Unit:
    """What a worker takes as a whole: such as a pass, which it trains and then scores."""

    kind: str
    """"base", "pass", "full", "imported", or the kind of its stages."""
    stages: tuple[Stage, ...]
    """In the order in which they are done."""

    @cached_property
    def id(self) -> str:
        """The same in every process that reads the same ``study.json``."""
        return f"{self.kind}-{fingerprint([stage.id for stage in self.stages])[:12]}"

    @property
    def model(self) -> str:
        """What it works on, as the user sees it."""
        return self.stages[0].model

    @property
    def work(self) -> float:
        """As of its stages."""
        return sum(stage.work for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        """The most that one of its stages holds at once."""
        return max(stage.memory_bytes for stage in self.stages)

    def described(
        self, unit_of: Mapping[str, Unit], folder: StudyFolder, work_per_second: float | None
    ) -> dict[str, Any]:
        """The unit as JSON: what it is, what it needs and costs, and whether it is finished.

        Args:
            unit_of: see ``owners``.
            folder: of the study.
            work_per_second: by which the seconds are estimated; None: they are not.
        """
        needs = dict.fromkeys(unit_of[need].id for stage in self.stages for need in stage.needs)
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.model,
            "stages": [stage.id for stage in self.stages],
            "needs": [unit for unit in needs if unit != self.id],
            "work": self.work,
            "seconds": None if work_per_second is None else self.work / work_per_second,
            "memory_bytes": self.memory_bytes,
            "is_finished": all(stage.is_finished(folder) for stage in self.stages),
        }


def units(graph: Sequence[Stage]) -> tuple[Unit, ...]:
    """The stages of a study as units, in the order of the stages.

    A unit is the scoring of the base; a pass, or what is imported together, with its scoring; all
    comparisons with one full fine-tuning; or another stage by itself. It can be begun when one of
    its stages can: the training of a pass does not wait until the base is scored.
    """
    return tuple(
        Unit(_kind(together[0]), together)
        for _, group in itertools.groupby(graph, key=_shared)
        for together in [tuple(group)]
    )


def owners(all_units: Sequence[Unit]) -> dict[str, Unit]:
    """The id of each stage -> the unit that it is of."""
    return {stage.id: unit for unit in all_units for stage in unit.stages}


def work_from(all_units: Sequence[Unit]) -> dict[str, float]:
    """Unit -> the work of the longest chain of units that begins with it and need each other.

    Whoever takes the one with the longest chain first is done soonest, or nearly so (Graham, 1969).

    Args:
        all_units: in an order in which each comes after those that it needs; what they need
            besides counts as done.
    """
    longest = {unit.id: unit.work for unit in all_units}
    unit_of = owners(all_units)
    for unit in reversed(all_units):
        needed = {need for stage in unit.stages for need in stage.needs} & unit_of.keys()
        for before in {unit_of[need].id: unit_of[need] for need in needed}.values():
            if before.id != unit.id:
                chain = before.work + longest[unit.id]
                longest[before.id] = max(longest[before.id], chain)
    return longest


def _shared(stage: Stage) -> Hashable:
    """The same for stages of one unit, which follow each other."""
    match stage:
        case Train() | Score():
            return "", stage.model
        case CompareDistributions():
            return stage.kind, stage.reference.name
        case _:
            return stage.id


def _kind(first: Stage) -> str:
    match first:
        case Score():
            return "base"
        case Train(planned_pass=None):
            return "imported"
        case Train():
            return "full" if first.runs[0].method == "full" else "pass"
        case _:
            return first.kind
