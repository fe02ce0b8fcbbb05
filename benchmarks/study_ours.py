"""Our side of ``benchmarks.study``: one call of ``run_to_verdict``, whose observer keeps the time.

Every second belongs to a part: to the stages between whose start and end it passed, or to
planning, to what lies between stages, or to the conclusion. Between two parts the observer waits
until it is told to go on, so that the other side can have the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.study_setting import Stopwatch, keep_json, read_json
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study import growing
from rankwise.study.observer import StageOutline
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.stages.graph import stages
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.stages.stage import Stage
from rankwise.study.stages.training import Train
from tests.support.observers import Silent

Seconds = dict[str, dict[str, list[float]]]
"""Part -> what was done in it -> seconds that passed, and of the processor's cores."""

PLAN, BETWEEN, CONCLUDE = "plan", "between stages", "conclude"


class Clock:
    """Charges the time since it was last asked, and keeps the sums in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: Seconds = read_json(path, {})
        self._watch = Stopwatch()

    def charge(self, part: str, piece: str) -> None:
        """The time until now goes to a piece of a part."""
        pieces = self.seconds.setdefault(part, {})
        before = pieces.get(piece, [0.0, 0.0])
        pieces[piece] = [a + b for a, b in zip(before, self._watch.read(), strict=True)]
        keep_json(self._path, self.seconds)
        self.skip()

    def skip(self) -> None:
        """The time until now goes to nothing."""
        self._watch = Stopwatch()


class Pace(Silent):
    """An observer of a study that keeps the time, and waits before each part.

    Args:
        plan: of the study.
        clock: to be charged.
        answers: is told of each part when it is done.
        orders: has a line when the next part may begin; None: it may at once.
    """

    def __init__(
        self, plan: StudyPlan, clock: Clock, answers: TextIO, orders: TextIO | None
    ) -> None:
        self._parts = {(s.model, s.name): part_of(s) for s in stages(plan.record)}
        self._outline: dict[str, StageOutline] = {}
        self._clock, self._answers, self._orders = clock, answers, orders
        self._part: str | None = None
        self._piece = ""

    def planned(self, stages: Sequence[StageOutline]) -> None:
        self._outline = {stage.id: stage for stage in stages}

    def stage_started(self, stage: str) -> None:
        self._clock.charge(BETWEEN, BETWEEN)
        started = self._outline[stage]
        part = self._parts.get((started.model, started.name), started.name)
        if self._part not in (None, part):
            self.hand_over()
        self._part, self._piece = part, f"{started.model}, {started.name}"

    def stage_finished(self) -> None:
        assert self._part is not None
        self._clock.charge(self._part, self._piece)

    def hand_over(self) -> None:
        """Say that a part is done, and wait."""
        print(json.dumps({"done": self._part}), file=self._answers, flush=True)
        if self._orders is not None and not self._orders.readline():
            raise SystemExit("nobody waits for the rest of the study.")
        self._clock.skip()


def part_of(stage: Stage) -> str:
    """The part of the benchmark that a stage belongs to."""
    if isinstance(stage, AnalyseWeights):
        return "spectra"
    if isinstance(stage, Train | Score):
        verb = "train" if isinstance(stage, Train) else "score"
        methods = {run.method for run in stage.runs}
        return f"{verb} base" if not methods else f"{verb} {_OF[methods.pop()]}"
    return stage.kind


_OF = {"lora": "adapters", "full": "full"}


def serve(folder: Path, name: str, answers: TextIO, orders: TextIO | None) -> None:
    """Run a study of a repeat's folder to its end, part by part.

    Args:
        folder: of the repeat; has the study file, and gets study and seconds.
        name: of the study.
        answers: is told of each part, and at last that none is left.
        orders: has a line when the next part may begin; None: all may at once.

    Raises:
        SystemExit: a stage was finished by a process that was killed before it kept the time.
    """
    clock = Clock(folder / f"{name}-seconds.json")
    clock.seconds.pop(PLAN, None)  # the newest counts: one planning is what a study needs
    study = StudyFolder(folder / name)
    config = load_config(folder / f"{name}.yaml")
    plan = plan_study(config)
    require_seconds(plan.record, study, clock.seconds)
    clock.charge(PLAN, PLAN)
    pace = Pace(plan, clock, answers, orders)
    growing.LEAST_CHANCE = 1.1  # the peer has a plan alone, so nothing is added after ours
    outcome = growing.run_to_verdict(config, lambda _: plan, study, pace)
    if outcome.failures:
        raise SystemExit("\n".join(failure.message for failure in outcome.failures))
    clock.charge(CONCLUDE, CONCLUDE)
    print(json.dumps({"done": None}), file=answers, flush=True)


def require_seconds(record: StudyRecord, study: StudyFolder, seconds: Mapping[str, Any]) -> None:
    """Refuse a stage that is finished and of which no time was kept.

    Raises:
        SystemExit: there is one.
    """
    pieces = {piece for part in seconds.values() for piece in part}
    for stage in stages(record):
        finished = len(stage.left(study)) < len(stage.models)
        if finished and f"{stage.model}, {stage.name}" not in pieces:
            raise SystemExit(
                f"{study.root}: nobody knows how long {stage.name} of {stage.model} took. "
                "Delete the folder of this repeat."
            )
