"""From a config to a plan: which runs, on which examples, scored on which tasks.

Checks the config against tasks and model and collects every problem; loads no weights.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rankwise import models
from rankwise.config import StudyConfig
from rankwise.devices import ResolvedPrecision, choose_device, device_name, resolve_precision
from rankwise.errors import DataError, ModelError, PlanError, TaskError
from rankwise.models import BaseModel, LinearShape
from rankwise.provenance import collect_provenance
from rankwise.records import RELATIONS, Relation, StudyRecord
from rankwise.run_plans import planned_runs
from rankwise.store import LOSS_METRIC, fingerprint, scoring_fingerprint
from rankwise.tasks import (
    LoadedTask,
    PreparedTask,
    TrainingRow,
    load_tasks,
    load_user_data,
    prepare_task,
    task_rows,
)
from rankwise.tasks.resolution import TaskNotFound
from rankwise.training import Example, num_optimizer_steps, tokenise_rows

# Raised when a change to the code changes what is scored from equal settings.
SCORING_REVISION = 1


@dataclass(frozen=True)
class StudyPlan:
    """A study that can be run: its record, and what the stages need of disk and tokenizer."""

    record: StudyRecord
    base: BaseModel
    tokenizer: Any
    device: torch.device
    examples: tuple[Example, ...]
    tasks: tuple[PreparedTask, ...]

    def scoring_fingerprint(self, model_fingerprint: str, task: PreparedTask) -> str:
        """Of everything that a model's scores on a task depend on."""
        return scoring_fingerprint(self.record, model_fingerprint, task.name)


def plan_study(config: StudyConfig, report: Callable[[str], None] = lambda _: None) -> StudyPlan:
    """Plan a study; a base model or data set that is not here yet is fetched.

    Args:
        config: a checked config.
        report: is told of downloads and conversions.

    Raises:
        PlanError: with every problem found, or because the base model cannot be had.
        ModelError: its tokenizer or config cannot be used.
    """
    try:
        base = models.find_base_model(config.base_model, report, weights=False)
    except ModelError as error:
        name = config.base_model.name
        raise PlanError(config.name, name, [str(error)]) from error
    planner = _Planner(config, base)
    plan = planner.plan()
    if planner.problems or plan is None:
        raise PlanError(config.name, base.name, planner.problems, planner.warnings)
    return plan


class _Planner:
    """Collects problems and warnings while it puts a plan together."""

    def __init__(self, config: StudyConfig, base: BaseModel) -> None:
        self.config, self.base = config, base
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.tokenizer = models.load_tokenizer(base.folder)
        self.skeleton: Any = models.model_skeleton(base.folder)
        self.max_length = models.context_length(self.skeleton.config, self.tokenizer)
        self.device = choose_device()
        self.precision: ResolvedPrecision = resolve_precision(config.train.precision, self.device)

    def plan(self) -> StudyPlan | None:
        self._check_chat_template()
        shapes = self._check_target_modules()
        rows, leaves = self._rows_and_tasks()
        examples = self._examples(rows)
        tasks = self._prepared(leaves)
        self._check_metrics(tasks)
        self._check_fewshot(tasks, leaves)
        self._check_warmup(len(examples))
        if self.problems:
            return None
        record = StudyRecord(
            fingerprint=fingerprint(self.config.model_dump(mode="json", exclude={"tasks_path"})),
            config=self.config,
            base_model_fingerprint=self.base.fingerprint,
            precision=self.precision,
            tasks={relation: tuple(names) for relation, names in leaves.items()},
            task_fingerprints={task.name: self._task_fingerprint(task) for task in tasks},
            runs=planned_runs(
                self.config, self.base.fingerprint, self.precision, self.skeleton, shapes, examples
            ),
            warnings=tuple(self.warnings),
            provenance=collect_provenance(device_name(self.device)),
        )
        return StudyPlan(
            record=record,
            base=self.base,
            tokenizer=self.tokenizer,
            device=self.device,
            examples=tuple(examples),
            tasks=tuple(tasks),
        )

    def _task_fingerprint(self, task: PreparedTask) -> str:
        """Of everything that scores on a task depend on, beside the model."""
        return fingerprint(
            {
                "scoring_revision": SCORING_REVISION,
                "precision": self.precision,
                "task": task.name,
                "task_version": task.loaded.version,
                "requests": task.digest,
                "limit": task.limit,
                "metric": self.config.evaluation.metric.get(task.name),
            }
        )

    def _check_chat_template(self) -> None:
        wanted = self.config.train.chat_template or self.config.evaluation.chat_template
        if wanted and not self.tokenizer.chat_template:
            self.problems.append(
                f"chat_template: the tokenizer of {self.base.name} has none; set it to false"
            )
        if self.config.train.chat_template != self.config.evaluation.chat_template:
            self.warnings.append(
                f"train.chat_template is {self.config.train.chat_template} and "
                f"evaluation.chat_template {self.config.evaluation.chat_template}: models are "
                "scored in another format than they are trained in"
            )

    def _check_target_modules(self) -> dict[str, LinearShape]:
        """The shapes of the layers that LoRA adapts."""
        lora = self.config.methods.lora
        if lora is None:
            return {}
        shapes = models.adaptable_shapes(self.skeleton)
        matches = models.matching_modules(shapes, lora.target_modules)
        names = sorted({name.rpartition(".")[2] for name in shapes})
        for index, (target, found) in enumerate(matches.items()):
            if not found:
                close = difflib.get_close_matches(target, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
                self.problems.append(
                    f"methods.lora.target_modules[{index}]: {self.base.name} has no linear layer "
                    f"named {target!r}; {hint}"
                )
        for index, rank in enumerate(lora.ranks):
            sides: dict[int, set[str]] = {}
            for target, found in matches.items():
                for name in found:
                    side = min(shapes[name])
                    if rank > side:
                        sides.setdefault(side, set()).add(target)
            for side, targets in sorted(sides.items()):
                self.warnings.append(
                    f"methods.lora.ranks[{index}]: rank {rank} is above min(in, out) of "
                    f"{', '.join(sorted(targets))} ({side}); the update there has rank {side} at "
                    "most"
                )
        return {name: shapes[name] for found in matches.values() for name in found}

    def _check_metrics(self, tasks: list[PreparedTask]) -> None:
        by_name = {task.name: task for task in tasks}
        for name, wanted in self.config.evaluation.metric.items():
            if name not in by_name:
                close = difflib.get_close_matches(name, by_name, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(by_name)}"
                self.problems.append(f"evaluation.metric: no task {name!r} is scored; {hint}")
                continue
            known = [*by_name[name].loaded.task.aggregation(), LOSS_METRIC]
            if wanted.partition(",")[0] not in known:
                self.problems.append(
                    f"evaluation.metric.{name}: no metric {wanted!r}; it has {', '.join(known)}"
                )

    def _check_fewshot(
        self, tasks: list[PreparedTask], leaves: Mapping[Relation, Mapping[str, LoadedTask]]
    ) -> None:
        """Training is zero-shot; a task that sets its own number of examples is scored so."""
        for task in tasks:
            if task.name in leaves["in_domain"] and task.num_fewshot:
                self.warnings.append(
                    f"evaluation.num_fewshot: {task.name} is scored after {task.num_fewshot} "
                    "examples and trained without; set it to 0 to score what is trained"
                )

    def _check_warmup(self, num_examples: int) -> None:
        steps = num_optimizer_steps(num_examples, self.config.train)
        if 0 < steps <= math.ceil(self.config.train.warmup_ratio * steps):
            self.warnings.append(
                f"train: {steps} optimizer steps are all warm-up, which starts at a rate of 0; "
                "train on more examples or lower warmup_ratio"
            )

    def _rows_and_tasks(
        self,
    ) -> tuple[list[TrainingRow], dict[Relation, dict[str, LoadedTask]]]:
        """The rows to train on, and the leaf tasks of each relation."""
        train, evaluation = self.config.train, self.config.evaluation
        wanted: dict[Relation, list[str]] = {
            relation: list(getattr(evaluation, relation)) for relation in RELATIONS
        }
        names = [train.task] if train.task is not None else []
        names += [name for listed in wanted.values() for name in listed]
        loaded = self._load(names)
        leaves: dict[Relation, dict[str, LoadedTask]] = {
            relation: self._leaves(relation, wanted, loaded) for relation in RELATIONS
        }
        for relation, other in itertools.combinations(RELATIONS, 2):
            for name in leaves[relation].keys() & leaves[other].keys():
                self.problems.append(
                    f"evaluation: {name!r} is in {relation} and in {other}; name it once"
                )
        rows: list[TrainingRow] = []
        if train.task is not None:
            trained = self._trained_tasks(loaded.get(train.task))
            rows = self._task_rows(trained)
            self._exclude_trained(trained, leaves)
        else:
            rows, tasks = self._user_rows()
            leaves["in_domain"] = {**{task.name: task for task in tasks}, **leaves["in_domain"]}
        return rows, leaves

    def _load(self, names: list[str]) -> Mapping[str, tuple[LoadedTask, ...] | TaskNotFound]:
        try:
            return load_tasks(list(dict.fromkeys(names)), self.config.tasks_path)
        except TaskError as error:
            self.problems.append(str(error))
            return {}

    def _leaves(
        self,
        relation: Relation,
        wanted: Mapping[Relation, list[str]],
        loaded: Mapping[str, tuple[LoadedTask, ...] | TaskNotFound],
    ) -> dict[str, LoadedTask]:
        leaves: dict[str, LoadedTask] = {}
        for index, name in enumerate(wanted[relation]):
            found = loaded.get(name, ())
            if isinstance(found, TaskNotFound):
                self.problems.append(f"evaluation.{relation}[{index}]: {found}")
            else:
                leaves |= {task.name: task for task in found}
        if relation == "held_out_text":
            for task in leaves.values():
                if task.output_type != "loglikelihood_rolling":
                    self.problems.append(
                        f"evaluation.held_out_text: {task.name!r} is {task.output_type}, not prose "
                        "(loglikelihood_rolling); move it to another list"
                    )
        return leaves

    def _trained_tasks(
        self, found: tuple[LoadedTask, ...] | TaskNotFound | None
    ) -> tuple[LoadedTask, ...]:
        if isinstance(found, TaskNotFound):
            self.problems.append(f"train.task: {found}")
            return ()
        return found or ()

    def _exclude_trained(
        self, trained: tuple[LoadedTask, ...], leaves: dict[Relation, dict[str, LoadedTask]]
    ) -> None:
        """What is trained on is in-domain, unless its scored items are those trained on."""
        spent = {t.name for t in trained if self._trained_split(t) == _scored_split(t)}
        for relation in ("out_of_domain", "retention"):
            for task in trained:
                if leaves[relation].pop(task.name, None) is not None:
                    self.warnings.append(
                        f"evaluation.{relation}: {task.name!r} is trained on and was left out"
                    )
        for name in spent & leaves["in_domain"].keys():
            self.problems.append(
                f"evaluation.in_domain: {name!r} is trained on the split that it is scored on; "
                "name tasks whose items were not trained on"
            )
        if not leaves["in_domain"]:
            leaves["in_domain"] = {t.name: t for t in trained if t.name not in spent}
            if trained and not leaves["in_domain"]:
                self.problems.append(
                    f"evaluation.in_domain: the split {self._trained_split(trained[0])!r} of "
                    f"{self.config.train.task!r} is trained on and cannot be scored; name tasks "
                    "that it should help"
                )

    def _trained_split(self, task: LoadedTask) -> str | None:
        return self.config.train.split or task.task.config.training_split

    def _task_rows(self, trained: tuple[LoadedTask, ...]) -> list[TrainingRow]:
        """Rows of every trained task, in equal shares where there is a limit."""
        train = self.config.train
        rows: list[TrainingRow] = []
        for index, task in enumerate(trained):
            left = None if train.max_examples is None else train.max_examples - len(rows)
            share = None if left is None else math.ceil(left / (len(trained) - index))
            if share == 0:
                break
            try:
                rows += task_rows(
                    task,
                    self.tokenizer,
                    chat_template=train.chat_template and bool(self.tokenizer.chat_template),
                    max_examples=share,
                    split=train.split,
                )
            except (TaskError, DataError) as error:
                self.problems.append(f"train.task: {error}")
        return rows

    def _user_rows(self) -> tuple[list[TrainingRow], tuple[LoadedTask, ...]]:
        train = self.config.train
        assert train.data is not None
        try:
            data = load_user_data(
                train.data,
                self.tokenizer,
                chat_template=train.chat_template and bool(self.tokenizer.chat_template),
                held_out_fraction=train.held_out_fraction,
                max_examples=train.max_examples,
                exact_match=train.exact_match,
            )
        except DataError as error:
            self.problems.append(f"train.data: {error}")
            return [], ()
        return data.training, data.tasks

    def _examples(self, rows: list[TrainingRow]) -> list[Example]:
        try:
            examples = tokenise_rows(rows, self.tokenizer, self.config.train, self.max_length)
        except DataError as error:
            self.problems.append(f"train: {error}")
            return []
        truncated = sum(example.is_truncated for example in examples)
        if truncated:
            self.warnings.append(
                f"train.max_length: {truncated} of {len(examples)} prompts are longer and lose "
                "their left end"
            )
        return examples

    def _prepared(self, leaves: Mapping[Relation, Mapping[str, LoadedTask]]) -> list[PreparedTask]:
        evaluation = self.config.evaluation
        prepared: list[PreparedTask] = []
        for relation, tasks in leaves.items():
            for loaded in tasks.values():
                try:
                    prepared.append(
                        prepare_task(
                            loaded,
                            self.tokenizer,
                            max_length=self.max_length,
                            num_fewshot=evaluation.num_fewshot,
                            limit=evaluation.limit,
                            chat_template=evaluation.chat_template
                            and bool(self.tokenizer.chat_template),
                            fewshot_as_multiturn=evaluation.fewshot_as_multiturn,
                        )
                    )
                except (TaskError, DataError) as error:
                    self.problems.append(f"evaluation.{relation}: {error}")
        return prepared


def _scored_split(loaded: LoadedTask) -> str | None:
    """The split whose items a task scores."""
    config = loaded.task.config
    return config.test_split or config.validation_split
