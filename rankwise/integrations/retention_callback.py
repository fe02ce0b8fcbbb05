"""A callback of transformers' Trainer that watches what a model forgets while it trains.

Trainers that are built on it take the callback too: TRL's, Axolotl's and LLaMA-Factory's. It scores
the live model with the resident engine, adapters of PEFT in its layers, so no weights are copied. A
model that brings an attention of its own, as Unsloth's do, is refused before the first step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.undisturbed import undisturbed, untrained
from rankwise.errors import ConfigError, ModelError, TaskError
from rankwise.findings.deployment import LossRule, refuse_vacuous
from rankwise.findings.training_looks import TrainingLook, training_look
from rankwise.records import quantities
from rankwise.records.config.own_rows import ClauseConfig
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.fields import margin
from rankwise.records.folder import BASE
from rankwise.records.grouping import grouped
from rankwise.records.results import ModelResults, left_out_warnings, missing_items
from rankwise.records.study_file import contract_of, load_contract
from rankwise.tasks.requests import PreparedTask
from rankwise.weights.session import (
    CONFIDENCE,
    Samples,
    ScoreSettings,
    ScoringSession,
    comparable,
    cut_warnings,
)

logger = logging.getLogger(__name__)

_NAME = "RetentionCallback"
_KEYS = {"retention": "tasks", "gain": "gain", "own": "own"}
_REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class RetentionCallback(TrainerCallback):
    """Scores a model on tasks and own rows while it trains, against the base on the same items.

    The base is scored once, before the first step. Every ``every`` steps and at the end, the
    changes with their 95 % intervals go into the trainer's log. The training's random states and
    all modes of the model are left as they were, so its losses are those without the callback.
    Of several processes that each hold the whole model, the first scores and the others wait.

    Attributes:
        looks: what was found so far, first to last.
        stop_reason: why this callback stopped the training; None if it did not.
    """

    def __init__(
        self,
        tasks: Sequence[str] = (),
        *,
        gain: Sequence[str] = (),
        own: Mapping[str, Any] | str | PathLike[str] | None = None,
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
            tasks: of retention, as lm-eval names them.
            gain: tasks that the training should improve.
            own: sets of own rows, each judged by itself as ``rankwise check --contract`` does: a
                contract's file, or name -> its keys, as in ``evaluation.own`` of a study, and
                ``max_loss``. The training is stopped once a set is shown to lose more than that;
                a set of role ``retention`` without it has ``max_retention_loss``.
            every: optimizer steps between two looks.
            items: the most items of each task and set that are scored; at least 2.
            max_retention_loss: stop once the mean loss over ``tasks`` is shown to be above it, in
                points; None: never stop. Looking often errs often, so all looks share 5 %.
            tasks_path: folders with further task files.
            allow_task_code: whether these, and checks of own rows, may run Python code.
            num_fewshot: examples before each question; None: each task's own number.
            chat_template: ask in the model's chat format, if it has one.
            trainer: tells its trackers too; None: the numbers go into ``state.log_history`` alone.

        Raises:
            ConfigError: with every problem.
        """
        problems: list[str] = []
        for key, names in (("tasks", tasks), ("gain", gain), ("tasks_path", tasks_path)):
            if isinstance(names, str):
                problems.append(f"{key}: {names!r} is a text; give a list of names: [{names!r}]")
        if not tasks and not own:
            problems.append("tasks: there are none; name at least one, or give own sets")
        if not _is_whole(every, 1):
            problems.append(f"every: {every!r} is not a number of steps; give at least 1")
        if not _is_whole(items, 2):
            problems.append(f"items: {items!r} give no interval; give a whole number, at least 2")
        if num_fewshot is not None and not _is_whole(num_fewshot, 0):
            problems.append(f"num_fewshot: {num_fewshot!r} is no number of examples")
        try:
            if max_retention_loss is not None:
                margin(max_retention_loss)
        except ValueError as error:
            problems.append(f"max_retention_loss: {error}")
        if problems:
            raise ConfigError(_NAME, problems)
        sets: Mapping[str, ClauseConfig] = {}
        if isinstance(own, str | PathLike):
            sets = load_contract(Path(own))
        elif own:
            sets = contract_of(own, f"{_NAME}, own", Path.cwd())
        settings = ScoreSettings(
            tasks=(),
            tasks_path=tuple(map(Path, tasks_path)),
            allow_task_code=allow_task_code,
            num_fewshot=num_fewshot,
            limit=items,
            chat_template=chat_template,
        )
        asked = {
            "retention": settings._replace(tasks=tuple(tasks)),
            "gain": settings._replace(tasks=tuple(gain)),
            "own": settings._replace(own=sets),
        }
        self._asked = {key: each for key, each in asked.items() if each.tasks or each.own}
        self._chat_template, self._every, self._trainer = chat_template, every, trainer
        # a set that is to be learned may lose anything, unless it says otherwise
        clauses = {
            name: each.max_loss or (None if each.role == "retention" else math.inf)
            for name, each in sets.items()
        }
        self._rule = LossRule(math.inf, math.inf, CONFIDENCE, clauses)
        if max_retention_loss is not None:
            nats = RecommendationConfig().delta_nats
            self._rule = self._rule._replace(points=max_retention_loss, nats=nats)
        self._tokenizer: Any = None
        self._tasks: Mapping[str, Sequence[PreparedTask]] = {}
        self._base: Mapping[str, ModelResults] = {}
        self._of_base: Samples = {}
        self.looks: tuple[TrainingLook, ...] = ()
        self.stop_reason: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare the tasks and score the base.

        Raises:
            ConfigError: the trainer has no tokenizer, shards the model, or resumes all weights.
            ModelError: the model cannot be scored while it trains.
            TaskError: a task is unknown, or cannot be scored.
            DataError: own rows cannot be read or judged, or the base scores nothing where a loss
                is limited.
        """
        model: nn.Module = kwargs["model"]
        self.looks, self.stop_reason = (), None
        self._tokenizer = _tokenizer(kwargs.get("processing_class"))
        problem, kind = None, PartialState().distributed_type
        is_sharded = any(hasattr(weight, "placements") for weight in model.parameters())
        if is_sharded or kind not in _REPLICATED:
            problem = (
                f"it may shard the model over processes ({kind.value}); train in one process or "
                "with DDP, or leave the callback out"
            )
        # a checkpoint of all weights is not the base that it came from
        elif state.global_step and not isinstance(model, peft.PeftModel):
            problem = (
                f"all weights are resumed at step {state.global_step}, so the base is not there "
                "any more; leave the callback out"
            )
        # PEFT switches an adapter off, and not the biases that it trained
        elif state.global_step and (biased := _trained_biases(model)):
            problem = (
                f"bias={biased!r} is resumed at step {state.global_step}, so the base's biases are "
                "not there any more; leave the callback out"
            )
        if problem is not None:
            raise ConfigError(_NAME, [problem])
        if self._chat_template and not self._tokenizer.chat_template:
            raise ConfigError(_NAME, ["chat_template: the tokenizer has none; leave it out"])
        if not state.is_world_process_zero:
            return
        with undisturbed(model), untrained(model):
            config = decoder_of(model).config
            self._tasks = {
                relation: settings.prepared(self._tokenizer, config)
                for relation, settings in self._asked.items()
            }
            places = grouped(
                (task.name, _KEYS[relation])
                for relation, tasks in self._tasks.items()
                for task in tasks
            )
            for name, keys in places.items():
                if len(keys) > 1:
                    raise TaskError(
                        f"{name} is listed in {quantities.listed(keys)}. Give each task and each "
                        "set a name of its own."
                    )
            for tasks in self._tasks.values():
                for warning in cut_warnings(tasks):
                    logger.warning(warning)
            self._of_base = {}
            self._base = self._scored(model, BASE, self._of_base)
        for name, most in self._rule.clauses.items():
            if (most or self._rule.margin(self._base["own"].items[name].unit)) < math.inf:
                refuse_vacuous(name, self._base["own"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, if it is time, and stop the training if it forgets too much."""
        if state.global_step % self._every:
            return
        look = self._look(args, state, kwargs["model"])
        self.stop_reason = look.reason_to_stop(self._rule)
        if self.stop_reason is not None:
            logger.warning(self.stop_reason)
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model that is left, unless that was done at the last step."""
        was_seen = bool(self.looks) and self.looks[-1].step == state.global_step
        if state.global_step and (args.load_best_model_at_end or not was_seen):
            self._look(args, state, kwargs["model"])

    def _scored(self, model: nn.Module, name: str, samples: Samples) -> dict[str, ModelResults]:
        """The model as it is now, by relation; ``samples`` has the base's lines, or gets them."""
        try:
            session = ScoringSession(model, self._tokenizer)
        except ModelError as error:
            raise ModelError(
                f"{_NAME} cannot score this model while it trains: {error} Or leave the callback "
                "out, and compare the saved model with its base (`rankwise audit --tasks`)."
            ) from error
        return {
            relation: session.results(tasks, name, samples=samples)[0]
            for relation, tasks in self._tasks.items()
        }

    def _look(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> TrainingLook:
        """What the first process finds; the others wait for it."""
        step = state.global_step
        found: list[Any] = [None]
        if state.is_world_process_zero:
            with undisturbed(model):
                now = self._scored(model, f"step {step}", dict(self._of_base))
            for warning in left_out_warnings(missing_items([*self._base.values(), *now.values()])):
                logger.warning(warning)
            pairs = {key: comparable([self._base[key], now[key]]) for key in now}
            base, now = ({key: pair[n] for key, pair in pairs.items()} for n in (0, 1))
            found = [training_look(step, self._every, base, now, CONFIDENCE)]
        if args.world_size > 1:
            torch.distributed.broadcast_object_list(found)
        look: TrainingLook = found[0]
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


def _is_whole(value: object, least: int) -> bool:
    """Whether it is a whole number, as annotations do not make sure, and not too small."""
    return isinstance(value, int) and value >= least


def _trained_biases(model: nn.Module) -> str | None:
    """PEFT's ``bias`` of an adapter that trains biases of the base; None: none does."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    biases = (getattr(config, "bias", "none") for config in configs.values())
    return next((bias for bias in biases if bias != "none"), None)
