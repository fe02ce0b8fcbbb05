"""From a config to a plan: which runs, on which examples, scored on which tasks.

Checks the config against tasks and model and collects every problem; loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rankwise.engine.models import base as models
from rankwise.engine.models.attention import refuse_unpackable
from rankwise.engine.models.base import BaseModel, LinearShape
from rankwise.engine.models.devices import (
    ResolvedPrecision,
    choose_device,
    device_name,
    resolve_precision,
)
from rankwise.engine.scoring.vllm import RESERVED_TOKENS, engine_problem
from rankwise.engine.training.loop import num_optimizer_steps
from rankwise.engine.training.memory import PassMemory, TrainingSetting, available_bytes
from rankwise.errors import DataError, ModelError, PlanError, did_you_mean
from rankwise.records.axes import lora_variants
from rankwise.records.config import FullConfig, StudyConfig
from rankwise.records.fingerprints import (
    DIVERGENCE_REVISION,
    SCORING_REVISION,
    fingerprint,
    scoring_fingerprint,
)
from rankwise.records.folder import LOSS_METRIC
from rankwise.records.provenance import collect_provenance
from rankwise.records.study import PlannedPass, PlannedRun, StudyRecord, TaskEvaluation
from rankwise.study.planning.imports import imported_run
from rankwise.study.planning.passes import oversized, planned_passes
from rankwise.study.planning.runs import TargetLayers, Trainable, planned_runs
from rankwise.study.planning.tasks import TaskPlan, TaskPlanner
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.right_answers import right_answers
from rankwise.tasks.training_rows import Example, TrainingRow, tokenise_rows
from rankwise.tasks.user_data import ENDING_SUFFIX


@dataclass(frozen=True)
class StudyPlan:
    """A study that can be run: its record, and what the stages need of disk and tokenizer.

    ``answers`` has, by what was trained on, where models are compared with full fine-tuning.
    """

    record: StudyRecord
    base: BaseModel
    tokenizer: Any
    device: torch.device
    examples: dict[str, tuple[Example, ...]]
    tasks: dict[str, PreparedTask]
    answers: dict[str, tuple[RightAnswer, ...]]

    def scoring_fingerprint(self, model_fingerprint: str, task: PreparedTask) -> str:
        """Of everything that a model's scores on a task depend on."""
        return scoring_fingerprint(self.record, model_fingerprint, task.name)

    def begins_with(
        self, earlier: TaskEvaluation, model_fingerprint: str, task: PreparedTask
    ) -> bool:
        """Whether an earlier scoring is that of the task's first items and of nothing else."""
        if not 0 < earlier.num_examples < task.num_items:
            return False
        of_first = task_fingerprint(
            self.record.config,
            self.record.precision,
            task,
            digest=task.digest_of_first(earlier.num_examples),
            limit=earlier.limit,
        )
        return earlier.fingerprint == fingerprint([model_fingerprint, of_first])


def task_fingerprint(
    config: StudyConfig,
    precision: ResolvedPrecision,
    task: PreparedTask,
    *,
    digest: str,
    limit: int | None,
) -> str:
    """Of everything that scores on a task depend on, beside the model."""
    return fingerprint(
        {
            "scoring_revision": SCORING_REVISION,
            "precision": precision,
            "engine": config.evaluation.engine,
            "task": task.name,
            "task_version": task.loaded.version,
            "requests": digest,
            "limit": limit,
            "metric": metric_of(config, task.name),
        }
    )


def metric_of(config: StudyConfig, task: str) -> str | None:
    """The configured metric that decides on a task.

    Its trained rows, and the task asked as the training asked (``<task>@...``), are judged alike;
    the end of trained rows is no question of a task.
    """
    metric = config.evaluation.metric
    if task.endswith(ENDING_SUFFIX):
        return metric.get(task)
    return metric.get(task, metric.get(task.partition("@")[0]))


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
        if config.train.base_precision != "auto":  # another base, for training and for scoring
            quantised = f"{base.fingerprint}+{config.train.base_precision}"
            base = base._replace(fingerprint=quantised)
        self.config, self.base = config, base
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.tokenizer = models.load_tokenizer(base.folder)
        self.skeleton: Any = models.model_skeleton(base.folder)
        self.max_length = models.context_length(self.skeleton.config, self.tokenizer)
        if config.evaluation.engine == "vllm":
            self.max_length -= RESERVED_TOKENS
        self.device = choose_device()
        self.precision: ResolvedPrecision = resolve_precision(config.train.precision, self.device)

    def plan(self) -> StudyPlan | None:
        self._check_chat_template()
        self._check_packable()
        if problem := engine_problem(self.config):
            self.problems.append(f"evaluation.engine: {problem}")
        self._warn_of_quantised_base()
        layers = self._target_layers()
        tasks = self._tasks()
        examples = {source: tuple(self._examples(rows)) for source, rows in tasks.rows.items()}
        self._check_metrics(tasks.prepared)
        for source, its_examples in examples.items():
            self._check_warmup(source, len(its_examples))
        if self.problems:
            return None
        memory = self._memory(layers, examples)
        base = Trainable(self.base.fingerprint, self.precision, self.skeleton, layers, memory)
        runs = (*planned_runs(self.config, base, examples), *self._imported(base, examples))
        if self.problems:
            return None
        passes = self._passes(runs, memory)
        answers = self._answers(tasks) if any(run.method == "full" for run in runs) else {}
        record = StudyRecord(
            fingerprint=fingerprint(self.config.model_dump(mode="json", exclude={"tasks_path"})),
            config=self.config,
            base_model_fingerprint=self.base.fingerprint,
            precision=self.precision,
            tasks=tasks.relations,
            trained_formats=tasks.trained_formats,
            trained_items=tasks.trained_items,
            ending_items=tasks.ending_items,
            overlaps=tasks.overlaps,
            groups=tasks.groups,
            domains=tasks.domains,
            task_fingerprints={t.name: self._fingerprint_of(t) for t in tasks.prepared},
            answers_fingerprints={
                source: fingerprint([DIVERGENCE_REVISION, self.precision, its_answers])
                for source, its_answers in answers.items()
            },
            runs=runs,
            passes=passes,
            warnings=tuple(self.warnings),
            provenance=collect_provenance(device_name(self.device)),
        )
        return StudyPlan(
            record=record,
            base=self.base,
            tokenizer=self.tokenizer,
            device=self.device,
            examples=examples,
            tasks={task.name: task for task in tasks.prepared},
            answers=answers,
        )

    def _answers(self, tasks: TaskPlan) -> dict[str, tuple[RightAnswer, ...]]:
        """The right answers in-domain, by what was trained on; those that have none are left out.

        Full fine-tuning and LoRA are compared there word by word.
        """
        prepared = {task.name: task for task in tasks.prepared}
        size = self.skeleton.config.get_text_config().vocab_size
        found = {
            source: right_answers(
                [prepared[name] for name in relations["in_domain"]], self.tokenizer, size
            )
            for source, relations in tasks.relations.items()
        }
        return {source: answers for source, answers in found.items() if answers}

    def _fingerprint_of(self, task: PreparedTask) -> str:
        return task_fingerprint(
            self.config, self.precision, task, digest=task.digest, limit=task.limit
        )

    def _check_chat_template(self) -> None:
        wanted = self.config.train.chat_template or self.config.evaluation.chat_template
        if wanted and not self.tokenizer.chat_template:
            self.problems.append(
                f"chat_template: the tokenizer of {self.base.name} has none; set it to false"
            )

    def _memory(
        self,
        layers: Mapping[tuple[str, ...], TargetLayers],
        examples: Mapping[str, Sequence[Example]],
    ) -> PassMemory:
        train, full = self.config.train, self.config.methods.full
        lengths = {example.num_inputs for each in examples.values() for example in each}
        setting = TrainingSetting(
            device=self.device,
            precision=self.precision,
            longest=max(lengths),
            shortest=min(lengths),
            examples_per_step=train.batch_size * train.gradient_accumulation_steps,
            base_precision=train.base_precision,
            dropout=train.dropout,
            full=full or FullConfig(),
        )
        adapted = dict.fromkeys(name for each in layers.values() for name in each.shapes)
        return PassMemory(self.skeleton, setting, list(adapted))

    def _passes(self, runs: Sequence[PlannedRun], memory: PassMemory) -> tuple[PlannedPass, ...]:
        """What is trained together; a pass that will hardly fit is a warning."""
        available = available_bytes(self.device)
        passes = planned_passes(
            runs,
            memory,
            self.config.train,
            available_bytes=available,
        )
        for each in oversized(passes, available):
            self.warnings.append(
                f"training {each.runs[0]} takes about {each.estimated_memory_bytes / 1e9:.1f} GB "
                f"and {available / 1e9:.1f} GB are free; lower train.max_length or the ranks, or "
                "choose train.base_precision=4bit"
            )
        return passes

    def _warn_of_quantised_base(self) -> None:
        train, full = self.config.train, self.config.methods.full
        if train.base_precision != "auto" and full is not None:
            self.warnings.append(
                f"train.base_precision: the base and its adapters are trained and scored in "
                f"{train.base_precision}, full fine-tuning is not: part of its difference is theirs"
            )

    def _check_packable(self) -> None:
        """Training and scoring pack sequences; a model that would mix them is refused."""
        trains = self.config.methods.lora is not None or self.config.methods.full is not None
        if not trains and self.config.evaluation.engine != "resident":
            return
        try:
            refuse_unpackable(self.skeleton)
        except ModelError as error:
            self.problems.append(f"base_model: {error}")

    def _tasks(self) -> TaskPlan:
        planner = TaskPlanner(self.config, self.tokenizer, self.max_length)
        plan = planner.plan()
        self.problems += planner.problems
        self.warnings += planner.warnings
        formats = {name for found in plan.trained_formats.values() for name in found.values()}
        if formats:
            named = ", ".join(sorted(formats))
            self.warnings.append(
                "evaluation: models are scored in another format than they are trained in; beside "
                f"the standard format, which decides, also as {named}"
            )
        return plan

    def _target_layers(self) -> dict[tuple[str, ...], TargetLayers]:
        """The layers that each set of target modules adapts."""
        shapes = models.adaptable_shapes(self.skeleton)
        sets = dict.fromkeys(variant.target_modules for variant in lora_variants(self.config))
        found = {names: self._layers_of(names, shapes) for names in sets}
        for index, rank in enumerate(dict.fromkeys(v.rank for v in lora_variants(self.config))):
            self._check_rank(index, rank, found.values())
        return found

    def _layers_of(self, names: tuple[str, ...], shapes: Mapping[str, LinearShape]) -> TargetLayers:
        known = sorted({name.rpartition(".")[2] for name in shapes})
        resolved = models.resolved_targets(shapes, names)
        matches = models.matching_modules(shapes, resolved)
        for target, found in matches.items():
            if not found:
                near = did_you_mean(target, [*known, *models.MODULE_KINDS])
                hint = near or f"it has {', '.join(known)}"
                place = f"[{names.index(target)}]" if target in names else ""
                self.problems.append(
                    f"methods.lora.target_modules{place}: {self.base.name} has no linear layer "
                    f"named {target!r}; {hint}"
                )
        return TargetLayers(resolved, models.target_shapes(shapes, resolved))

    def _check_rank(self, index: int, rank: int, sets: Iterable[TargetLayers]) -> None:
        """Warn where a layer's update cannot have so high a rank."""
        sides: dict[int, set[str]] = {}
        for layers in sets:
            for name, shape in layers.shapes.items():
                if rank > min(shape):
                    sides.setdefault(min(shape), set()).add(name.rpartition(".")[2])
        for side, targets in sorted(sides.items()):
            self.warnings.append(
                f"methods.lora.ranks[{index}]: rank {rank} is above min(in, out) of "
                f"{', '.join(sorted(targets))} ({side}); the update there has rank {side} at most"
            )

    def _imported(self, base: Trainable, sources: Iterable[str]) -> list[PlannedRun]:
        """Models that were trained elsewhere, among the runs of one trained task."""
        runs: list[PlannedRun] = []
        known = list(sources)
        for index, imported in enumerate(self.config.methods.imported):
            place = f"methods.imported[{index}]"
            if imported.train_task is None and len(known) > 1:
                self.problems.append(
                    f"{place}: several tasks are trained on; say among whose runs it is judged "
                    f"with train_task ({', '.join(known)})"
                )
                continue
            try:
                run = imported_run(imported, base, imported.train_task or known[0])
            except ModelError as error:
                self.problems.append(f"{place}: {error}")
                continue
            if any(run.name == other.name for other in runs):
                self.problems.append(f"{place}: the same model is imported twice")
            runs.append(run)
        return runs

    def _check_metrics(self, tasks: list[PreparedTask]) -> None:
        by_name = {task.name: task for task in tasks}
        for name, wanted in self.config.evaluation.metric.items():
            if name not in by_name:
                hint = did_you_mean(name, by_name) or f"it has {', '.join(by_name)}"
                self.problems.append(f"evaluation.metric: no task {name!r} is scored; {hint}")
                continue
            known = [*by_name[name].loaded.task.aggregation(), LOSS_METRIC]
            if wanted.partition(",")[0] not in known:
                self.problems.append(
                    f"evaluation.metric.{name}: no metric {wanted!r}; it has {', '.join(known)}"
                )

    def _check_warmup(self, source: str, num_examples: int) -> None:
        steps = num_optimizer_steps(num_examples, self.config.train, min(self.config.train.epochs))
        if 0 < steps <= math.ceil(self.config.train.warmup_ratio * steps):
            self.warnings.append(
                f"train: {steps} optimizer steps on {source} are all warm-up, which starts at a "
                "rate of 0; train on more examples or lower warmup_ratio"
            )

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
