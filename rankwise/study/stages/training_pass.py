"""A pass while it is trained: it goes on where it was, and its weights and losses are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankwise.errors import DivergedError, RecordError, RewardError
from rankwise.records.fields import seconds_of
from rankwise.records.files import require_room
from rankwise.records.study import PlannedPass, PlannedRun, RunRecord
from rankwise.study.observer import TrainingStep
from rankwise.study.quarantine import set_aside
from rankwise.study.times import training_work

if TYPE_CHECKING:
    from torch import nn

    from rankwise.engine.models.trained_adapters import AdapterBank
    from rankwise.engine.training.loop import TextWriter, TrainingResult
    from rankwise.engine.training.trainees import StepMetrics, Trainee
    from rankwise.engine.training.written import TextMetrics
    from rankwise.study.context import StudyContext

Trainings = Mapping[PlannedRun, Sequence[PlannedRun]]
"""Whole trainings -> the runs and checkpoints that come from each."""

Save = Callable[["Trainee", PlannedRun], dict[str, Any]]
"""Writes a trainee's weights as those of a run or a checkpoint of it; what ``RunRecord`` says of
them."""


_FIRST_STEPS = 5
"""After so many steps a run is reported whose rewards never differ: it learns nothing."""


class TrainingPass:
    """Trains a pass, and writes what comes of it into the study's folder."""

    def __init__(
        self, context: StudyContext, trainees: Sequence[Trainee], trainings: Trainings, save: Save
    ) -> None:
        from rankwise.engine.training.states import StateWriter

        self._context, self._folder, self._signals = context, context.folder, context.signals
        self._trainees = trainees
        self._models = {run.name: models_of for run, models_of in trainings.items()}
        # the steps of a finished run are written down; only checkpoints on its way are missing
        self._finished = {
            run.name for run in trainings if self._folder.finished_run(run) is not None
        }
        self._tell, self._save = context.tell, save
        every = context.study.config.train.save_every
        self._save_every = None if every is None else seconds_of(every)
        self._last_save = time.monotonic()
        self._failures: list[str] = []
        self.states = StateWriter()

    def train(
        self,
        model: nn.Module,
        planned: PlannedPass,
        bank: AdapterBank | None = None,
        writer: TextWriter | None = None,
    ) -> None:
        """Train the pass as planned; adapters go through a bank, own texts come from a writer.

        Raises:
            RewardError: a reward fails on texts of some runs; the others are finished.
        """
        from rankwise.engine.training.loop import train_pass
        from rankwise.engine.training.micro_batches import training_lanes
        from rankwise.engine.training.trainees import VariantTrainee

        context, trained = self._context, self._context.study.config.train
        precision = context.study.precision
        if isinstance(self._trainees[0], VariantTrainee):
            # PEFT multiplies its float32 weights in float32, the base's in the base's precision
            precision = "float32"
        for trainee in self._trainees:
            self.resume(trainee)
        with context.signals.deferred():
            try:
                train_pass(
                    model,
                    self._trainees,
                    bank=bank,
                    max_tokens=planned.max_tokens,
                    precision=precision,
                    gradient_checkpointing=planned.gradient_checkpointing,
                    observer=self,
                    max_lanes=training_lanes(trained, context.plan.device),
                    writer=writer,
                )
            finally:
                self.states.finish()  # however the pass ended
        if self._failures:
            raise RewardError(" ".join(self._failures))

    def resume(self, trainee: Trainee) -> None:
        """Go on where the training was saved last, or begin.

        A saved state that is damaged is set aside: the training begins anew, and so it does for a
        checkpoint that the saved state has gone past.
        """
        run = trainee.run
        if run.name in self._finished:
            return
        self._folder.start_run(run)
        state = self._folder.training_state_file(run)
        if state.exists():
            try:
                trainee.load_state(state, until=trainee.marks[0])
            except RecordError as error:
                place = set_aside(self._folder, [state], str(error))
                self._tell.noted(f"{error} It is moved to {place}, and {run.name} starts again.")
        for metrics in trainee.metrics:
            self._folder.append_metrics(run.name, metrics.model_dump())
        self._tell.skipped(_work(trainee, 0, trainee.step))

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        if trainee.run.name not in self._finished:
            self._folder.append_metrics(trainee.run.name, metrics.model_dump())
        if metrics.step == _FIRST_STEPS:
            lines = trainee.metrics[:: trainee.num_iterations]
            written = [line.texts for line in lines if line.texts is not None]
            if said := _learns_nothing(written):
                self._tell.noted(f"{trainee.run.name}: {said}")
        self._tell.advanced(_work(trainee, metrics.step - 1, metrics.step))
        self._tell.stepped(
            TrainingStep(
                run=trainee.run.name,
                step=metrics.step,
                num_steps=len(trainee.batches),
                num_tokens=metrics.num_tokens,
                loss_nats=metrics.loss_nats,
                learning_rate=metrics.learning_rate,
                gauges={} if metrics.texts is None else metrics.texts.gauges,
            )
        )
        stops, saves = self._signals.is_pending, self._save_every
        if saves is not None and (stops or time.monotonic() - self._last_save >= saves):
            # all have taken the step; weights of those at their end are saved after this, if at all
            for each in self._trainees:
                if each.step and (stops or not each.is_finished):
                    self._save_state(each)
            if self._context.state_saved is not None:
                self.states.finish()
                for each in self._trainees:
                    self._context.state_saved(self._folder.training_state_file(each.run))
            self._last_save = time.monotonic()
        if stops:
            self.states.finish()
            self._signals.stop_if_asked()

    def _save_state(self, trainee: Trainee) -> None:
        if trainee.run.name in self._finished:
            return
        path = self._folder.training_state_file(trainee.run)
        require_room(path, trainee.run.state_bytes)
        trainee.save_state(path, self.states.write)

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        """Save the weights; of a training that is to go on later, its state first."""
        if trainee.step < len(trainee.batches):
            self._save_state(trainee)
        self.states.finish()  # the record of a run takes its state away
        for model in self._models[trainee.run.name]:
            if model.num_steps == trainee.step:
                if model.is_part:
                    self._folder.start_run(model)
                    for metrics in trainee.metrics:
                        self._folder.append_metrics(model.name, metrics.model_dump())
                finish_run(self._context, model, **self._save(trainee, model), **result._asdict())
        if trainee.is_finished:
            self._finished.add(trainee.run.name)

    def dropped(self, trainee: Trainee, error: DivergedError | RewardError) -> None:
        if isinstance(error, RewardError):  # it may be tried again from here
            if self._save_every is not None and trainee.step:
                self._save_state(trainee)
            self._failures.append(f"{trainee.run.name}, step {trainee.step + 1}: {error}")
            return
        self._finished.add(trainee.run.name)
        self._tell.skipped(_work(trainee, trainee.step, trainee.marks[-1]))
        self.states.finish()
        for model in self._models[trainee.run.name]:
            if model.num_steps > trainee.step:
                finish_run(
                    self._context,
                    model,
                    status="diverged",
                    message=str(error),
                    num_steps=trainee.step,
                    train_seconds=trainee.seconds,
                )

    def shrunk(self, max_tokens: int) -> None:
        self._tell.noted(
            f"memory ran out: going on for now with micro-batches of {max_tokens} tokens at most"
        )


def _learns_nothing(steps: Sequence[TextMetrics]) -> str | None:
    """What to say where no text of the first steps was worth more or less than the others."""
    if not steps or any(step.no_spread_share != 1.0 for step in steps):
        return None
    texts, rewards = sum(step.num_texts for step in steps), {step.reward for step in steps}
    if rewards == {None}:
        return (
            f"no reward gave a number for any of its first {texts:,} texts: nothing is learned. "
            "Give numbers in place of None"
        )
    value = f", {rewards.pop():g}" if len(rewards) == 1 else ""
    return (
        f"in its first {_FIRST_STEPS} steps, all texts of a row had the same reward{value} "
        f"({texts:,} texts): nothing is learned. Give a reward with partial credit, train on right "
        "answers first (methods.lora.start), or raise temperature or num_generations"
    )


def _work(trainee: Trainee, start: int, stop: int) -> float:
    """The planned work of the steps from ``start`` to ``stop``; own texts may be shorter."""
    tokens, run = trainee.batches[start:stop], trainee.run
    planned = sum(each.num_tokens for step in tokens for each in step)
    return planned * training_work([run]) / run.num_tokens


def finish_run(context: StudyContext, run: PlannedRun, **measured: Any) -> None:
    """Write the record of a run: its weights, if it has any, are there."""
    from rankwise.engine.models.devices import provenance_on

    cut = sum(example.is_truncated for example in context.plan.examples_of(run))
    made_by = provenance_on(context.plan.device)
    context.folder.finish_run(RunRecord.of(run, made_by, num_truncated=cut, **measured))
