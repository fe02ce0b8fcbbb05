"""Who follows a study while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from rankwise.records.study import StageFailure


class StageOutline(NamedTuple):
    """What whoever follows a study knows of a stage.

    Attributes:
        id: tells it from the others.
        kind: what it does: training, scoring, spectra.
        name: the scored task, or the kind.
        model: what it works on: "base", a run's name, or "pass 1: 9 adapters".
        work: scored tokens, or what takes as long.
        num_tokens: that are trained or scored for the work; None: it reads none.
        models: their kind: "base", "lora", "full" or a variant. Stages of one kind and name take
            about as long for the same work, those of one kind of models too all the more.
        work_left: what earlier calls have not done of it.
        is_finished: whether an earlier call has done it.
        seconds: that it took then, by its records; None where it is not finished, or not known.
        records: the models that it writes records of: "base", or a run's name.
    """

    id: str
    kind: str
    name: str
    model: str
    work: float
    num_tokens: int | None
    models: str
    work_left: float
    is_finished: bool = False
    seconds: float | None = None
    records: tuple[str, ...] = ()


class TrainingStep(NamedTuple):
    """An optimizer step that a run has taken.

    Attributes:
        run: its name.
        step: from 1.
        num_steps: of its whole training.
        num_tokens: that it has read so far.
        loss_nats: mean over the learned tokens of the step.
        learning_rate: of the step.
    """

    run: str
    step: int
    num_steps: int
    num_tokens: int
    loss_nats: float
    learning_rate: float


class Observer(Protocol):
    """Receives the progress of a study; what a terminal shows is one."""

    def study_started(self, stages: Sequence[StageOutline]) -> None:
        """All stages in their order; a search that plans more says all of them again."""
        ...

    def stage_started(self, stage: str) -> None:
        """A stage begins, by its id; what follows is of this stage."""
        ...

    def advanced(self, work: float) -> None: ...

    def skipped(self, work: float) -> None:
        """Work that an earlier call has done; it says nothing about the speed."""
        ...

    def stepped(self, step: TrainingStep) -> None:
        """A run of the stage was trained a step further; its work is told by ``advanced``."""
        ...

    def stage_finished(self) -> None: ...

    def stage_failed(self, failure: StageFailure) -> None: ...

    def stage_left_out(self, stage: str) -> None:
        """Nothing can be done for a stage, by its id: what it needs diverged or failed."""
        ...

    def noted(self, text: str) -> None:
        """Something that whoever waits should know: a warning."""
        ...

    def decided(self, text: str) -> None:
        """What is done next, where that depends on what was found."""
        ...
