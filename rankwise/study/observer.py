"""What happens while a study runs, as events, and who tells them.

Whoever follows a study is a function of its events: a terminal, the lines of ``--json``, a tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rankwise.records.study import PlannedRun, StageFailure


class StageOutline(NamedTuple):
    """What whoever follows a study knows of a stage.

    Attributes:
        id: tells it from the others.
        kind: what it does: training, scoring, spectra.
        name: the scored task, or the kind.
        model: what it works on: "base", a run's name, or "pass 1: 9 adapters".
        work: scored tokens, or what takes as long.
        num_tokens: that are trained or scored for the work; None: it reads none.
        work_left: what earlier calls have not done of it.
        is_finished: whether an earlier call has done it.
        seconds: that it took then, by its records; None where it is not finished, or not known.
        records: the models that it writes records of: "base", or a run's name.
        slowness: how many times longer than scoring it takes for the same work.
        remembered: seconds per unit of work of its kind in the last study of this base on this
            machine; None where there was none.
        by_arithmetic: seconds that all of its work is expected to take before its kind was seen, by
            what it computes and by the device; None: as ``slowness`` has it.
    """

    id: str
    kind: str
    name: str
    model: str
    work: float
    num_tokens: int | None
    work_left: float
    is_finished: bool = False
    seconds: float | None = None
    records: tuple[str, ...] = ()
    slowness: float = 1.0
    remembered: float | None = None
    by_arithmetic: float | None = None

    @classmethod
    def of_run(cls, name: str, kind: str, run: PlannedRun, work: float) -> StageOutline:
        """What a verb does to a run; no stage does it."""
        return cls(name, kind, name, run.name, work, None, work)


class TrainingStep(NamedTuple):
    """An optimizer step that a run has taken.

    Attributes:
        run: its name.
        step: from 1.
        num_steps: of its whole training.
        num_tokens: that it has read so far.
        loss_nats: mean over the learned tokens of the step.
        learning_rate: of the step.
        gauges: of the texts that the run wrote for it and learned from, by name, such as "reward".
    """

    run: str
    step: int
    num_steps: int
    num_tokens: int
    loss_nats: float
    learning_rate: float
    gauges: Mapping[str, float] = MappingProxyType({})


class Planned(NamedTuple):
    """All stages in their order; a study that plans more says all of them again."""

    stages: tuple[StageOutline, ...]


class StageStarted(NamedTuple):
    """A stage begins, by its id."""

    stage: str


class Advanced(NamedTuple):
    """Some work of a stage is done.

    Attributes:
        stage: its id.
        work: that was done.
        peak_memory_bytes: of the process that does it, or of tensors on its card.
    """

    stage: str
    work: float
    peak_memory_bytes: int


class Skipped(NamedTuple):
    """Work of a stage that an earlier call has done; it says nothing about the speed."""

    stage: str
    work: float


class Stepped(NamedTuple):
    """A run of a stage was trained a step further; its work is told by ``Advanced``."""

    stage: str
    step: TrainingStep


class StageFinished(NamedTuple):
    """A stage is done, by its id."""

    stage: str


class StageFailed(NamedTuple):
    """A stage failed; what does not need it goes on."""

    failure: StageFailure


class StageLeftOut(NamedTuple):
    """Nothing can be done for a stage, by its id: what it needs diverged or failed."""

    stage: str


class Noted(NamedTuple):
    """Something that whoever waits should know: a warning.

    Attributes:
        text: the warning.
        stage: the id of the stage that it is about, if it is about one.
    """

    text: str
    stage: str | None = None


class Decided(NamedTuple):
    """What is done next, where that depends on what was found."""

    text: str


Event = (
    Planned
    | StageStarted
    | Advanced
    | Skipped
    | Stepped
    | StageFinished
    | StageFailed
    | StageLeftOut
    | Noted
    | Decided
)
Observer = Callable[[Event], None]


class Teller:
    """Tells an observer what happens; what is told of work is of the stage that began last.

    Args:
        observer: is told everything.
        memory: the peak of the memory in use, in bytes.
    """

    def __init__(self, observer: Observer, memory: Callable[[], int] = lambda: 0) -> None:
        self.event, self._memory = observer, memory
        self._stage: str | None = None

    def planned(self, stages: Sequence[StageOutline]) -> None:
        self.event(Planned(tuple(stages)))

    def stage_started(self, stage: str) -> None:
        self._stage = stage
        self.event(StageStarted(stage))

    def advanced(self, work: float) -> None:
        if self._stage is not None:
            self.event(Advanced(self._stage, work, self._memory()))

    def skipped(self, work: float) -> None:
        if self._stage is not None:
            self.event(Skipped(self._stage, work))

    def stepped(self, step: TrainingStep) -> None:
        if self._stage is not None:
            self.event(Stepped(self._stage, step))

    def stage_finished(self) -> None:
        assert self._stage is not None
        stage, self._stage = self._stage, None
        self.event(StageFinished(stage))

    def stage_failed(self, failure: StageFailure) -> None:
        self._stage = None
        self.event(StageFailed(failure))

    def noted(self, text: str) -> None:
        self.event(Noted(text, self._stage))
