"""The units of a study: stages that one worker does together, with what is in its memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.study.stages.stage import Stage
from rankwise.study.stages.training import Train
from rankwise.study.times import Job


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

    def described(self, unit_of: Mapping[str, Unit], folder: StudyFolder) -> dict[str, Any]:
        """The unit as JSON: what it is, what it needs and costs, and whether it is finished.

        ``unit_of``: see ``owners``.
        """
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.model,
            "stages": [stage.id for stage in self.stages],
            "needs": self._needs(self.stages, unit_of),
            "work": self.work,
            "memory_bytes": self.memory_bytes,
            "is_finished": all(stage.is_finished(folder) for stage in self.stages),
        }

    def job(self, unit_of: Mapping[str, Unit], left: Mapping[str, float]) -> Job:
        """What is left of it; the arguments are those of ``jobs``."""
        stages = [stage for stage in self.stages if stage.id in left]
        needs = self._needs(stages, unit_of)
        trains = isinstance(stages[0], Train)
        waits_for = self._needs(stages[:1], unit_of) if trains else needs
        return Job(self.id, sum(left[stage.id] for stage in stages), needs, waits_for)

    def _needs(self, stages: Sequence[Stage], unit_of: Mapping[str, Unit]) -> tuple[str, ...]:
        """The ids of the units that some of its stages need."""
        needs = (unit_of[need].id for stage in stages for need in stage.needs if need in unit_of)
        return tuple(unit for unit in dict.fromkeys(needs) if unit != self.id)


def units(graph: Sequence[Stage]) -> tuple[Unit, ...]:
    """The stages of a study as units, in the order of the stages.

    A unit is the scoring of the base; a pass, or what is imported together, with its scoring; all
    comparisons with one full fine-tuning; or another stage by itself. It can be begun when one of
    its stages can: the training of a pass does not wait until the base is scored.
    """
    return tuple(
        Unit(together[0].unit_kind, together)
        for _, group in itertools.groupby(graph, key=lambda stage: stage.together)
        for together in [tuple(group)]
    )


def owners(all_units: Sequence[Unit]) -> dict[str, Unit]:
    """The id of each stage -> the unit that it is of."""
    return {stage.id: unit for unit in all_units for stage in unit.stages}


def jobs(all_units: Sequence[Unit], left: Mapping[str, float]) -> list[Job]:
    """What is left of some units; one that trains needs what its scoring does only after that.

    Args:
        all_units: in an order in which each comes after those that it needs.
        left: the id of each stage that is left -> its work, or the seconds that it takes. What
            is needed besides counts as done.
    """
    units_left = [unit for unit in all_units if any(stage.id in left for stage in unit.stages)]
    unit_of = owners(units_left)
    return [unit.job(unit_of, left) for unit in units_left]
