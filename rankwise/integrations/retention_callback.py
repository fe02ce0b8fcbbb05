"""A callback of transformers' Trainer that watches what a model forgets while it trains.

Trainers that are built on it take the callback too: TRL's, Axolotl's and LLaMA-Factory's. It scores
the live model with the resident engine, adapters of PEFT in its layers, so no weights are copied. A
model that brings an attention of its own, as Unsloth's do, is refused before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import peft
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.undisturbed import undisturbed, untrained
from rankwise.errors import ConfigError, ModelError, TaskError
from rankwise.findings.deployment import LossRule
from rankwise.findings.training_looks import TrainingLook, training_look
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.fields import margin
from rankwise.records.results import ModelResults
from rankwise.tasks.requests import PreparedTask
from rankwise.weights.session import CONFIDENCE, ScoreSettings, ScoringSession

logger = logging.getLogger(__name__)

_NAME = "RetentionCallback"


class RetentionCallback(TrainerCallback):
    """Scores a model on tasks while it trains, against the base on the same items.

    The base is scored once, before the first step. Every ``every`` steps and at the end, the
    changes with their 95 % intervals go into the trainer's log. The training's random states and
    all modes of the model are left as they were, so its losses are those without the callback.

    Attributes:
        looks: what was found so far, first to last.
        stop_reason: why this callback stopped the training; None if it did not.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        gain: Sequence[str] = (),
        every: int = 200,
        items: int = 300,
        max_retention_loss: float | None = None,
        tasks_path: Sequence[str | PathLike[str]] = (),
        allow_task_code: bool = False,
        num_fewshot: int | None = None,
        chat_template: bool = False,
        trainer: Trainer | None = None,
    ) -> None:
        """Take the settings; tasks are looked up when the training begins.

        Args:
            tasks: of retention, as lm-eval names them; at least one.
            gain: tasks that the training should improve.
            every: optimizer steps between two looks.
            items: the most items of each task that are scored; at least 2.
            max_retention_loss: stop once the mean loss over ``tasks`` is shown to be above it, in
                points; None: never stop. Looking often errs often, so all looks share 5 %.
            tasks_path: folders with further task files.
            allow_task_code: whether these may run Python code.
            num_fewshot: examples before each question; None: each task's own number.
            chat_template: ask in the model's chat format, if it has one.
            trainer: tells its trackers too; None: the numbers go into ``state.log_history`` alone.

        Raises:
            ConfigError: with every problem.
        """
        problems: list[str] = []
        for key, names in (("tasks", tasks), ("gain", gain)):
            if isinstance(names, str):
                problems.append(f"{key}: {names!r} is a text; give a list of names: [{names!r}]")
        if not tasks:
            problems.append("tasks: there are none; name at least one")
        if every < 1:
            problems.append(f"every: {every} is not a number of steps; give at least 1")
        if items < 2:
            problems.append(f"items: {items} are too few for an interval; give at least 2")
        try:
            if max_retention_loss is not None:
                margin(max_retention_loss)
        except ValueError as error:
            problems.append(f"max_retention_loss: {error}")
        if problems:
            raise ConfigError(_NAME, problems)
        self._settings = ScoreSettings(
            tuple(tasks),
            tuple(map(Path, tasks_path)),
            allow_task_code,
            num_fewshot=num_fewshot,
            limit=items,
            chat_template=chat_template,
        )
        self._names = {"retention": tuple(tasks)} | ({"gain": tuple(gain)} if gain else {})
        self._every, self._trainer = every, trainer
        self._rule: LossRule | None = None
        if max_retention_loss is not None:
            nats = RecommendationConfig().delta_nats
            self._rule = LossRule(max_retention_loss, nats, CONFIDENCE)
        self._tokenizer: Any = None
        self._tasks: Mapping[str, Sequence[PreparedTask]] = {}
        self._base: Mapping[str, ModelResults] = {}
        self.looks: tuple[TrainingLook, ...] = ()
        self.stop_reason: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare the tasks and score the base.

        Raises:
            ConfigError: the trainer has no tokenizer, trains on several processes, or resumes all
                weights.
            ModelError: the model cannot be scored while it trains.
            TaskError: a task is unknown, or cannot be scored.
        """
        model: nn.Module = kwargs["model"]
        self.looks, self.stop_reason = (), None
        self._tokenizer = _tokenizer(kwargs.get("processing_class"))
        problem = None
        if args.world_size > 1 or args.deepspeed:
            how = f"{args.world_size} processes" if args.world_size > 1 else "DeepSpeed"
            problem = f"it trains with {how}; train in one process, or leave the callback out"
        # a checkpoint of all weights is not the base that it came from
        elif state.global_step and not isinstance(model, peft.PeftModel):
            problem = (
                f"all weights are resumed at step {state.global_step}, so the base is not there "
                "any more; leave the callback out"
            )
        if problem is not None:
            raise ConfigError(_NAME, [problem])
        with undisturbed(model), untrained(model):
            settings, tokenizer = self._settings, self._tokenizer
            if settings.chat_template and not tokenizer.chat_template:
                raise ConfigError(_NAME, ["chat_template: the tokenizer has none; leave it out"])
            config = decoder_of(model).config
            self._tasks = {
                relation: settings._replace(tasks=names).prepared(tokenizer, config)
                for relation, names in self._names.items()
            }
            names = [task.name for of_relation in self._tasks.values() for task in of_relation]
            if both := sorted({name for name in names if names.count(name) > 1}):
                raise TaskError(
                    f"{', '.join(both)} is listed in both tasks and gain. Name each task once."
                )
            self._base = self._scored(model, "base")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, if it is time, and stop the training if it forgets too much."""
        if state.global_step % self._every:
            return
        look = self._look(state, kwargs["model"])
        self.stop_reason = None if self._rule is None else look.reason_to_stop(self._rule)
        if self.stop_reason is not None:
            logger.warning(self.stop_reason)
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model that is left, unless that was done at the last step."""
        was_seen = bool(self.looks) and self.looks[-1].step == state.global_step
        if state.global_step and (args.load_best_model_at_end or not was_seen):
            self._look(state, kwargs["model"])

    def _scored(self, model: nn.Module, name: str) -> dict[str, ModelResults]:
        """The model as it is now, by relation."""
        try:
            session = ScoringSession(model, self._tokenizer)
        except ModelError as error:
            raise ModelError(
                f"{_NAME} cannot score this model while it trains: {error} Or leave the callback "
                "out, and compare the saved model with its base (`rankwise audit --tasks`)."
            ) from error
        return {
            relation: session.results(tasks, name)[0] for relation, tasks in self._tasks.items()
        }

    def _look(self, state: TrainerState, model: nn.Module) -> TrainingLook:
        step = state.global_step
        with undisturbed(model):
            now = self._scored(model, f"step {step}")
        look = training_look(step, self._every, self._base, now, CONFIDENCE)
        self.looks = (*self.looks, look)
        if self._trainer is None:
            state.log_history.append({**look.logged, "epoch": state.epoch, "step": step})
        else:
            control = self._trainer.control
            is_due = control.should_log
            # not by a subclass's own log: TRL's adds the means of its metrics, and begins new ones
            Trainer.log(self._trainer, look.logged)
            # logging has taken it back, and the loss is still to come
            control.should_log = is_due
        return look


def _tokenizer(processing_class: Any) -> Any:
    """The trainer's tokenizer, out of a processor too."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None:
        problem = "the trainer has no tokenizer; give it one by Trainer(processing_class=...)"
        raise ConfigError(_NAME, [problem])
    return tokenizer
