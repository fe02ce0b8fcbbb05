"""From a study file to what is measured before training."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.prediction.features import Untrained, features_of
from benchmarks.prediction.probe import ProbeSetting
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.structure import context_length
from rankwise.errors import ConfigError
from rankwise.records.config.study import StudyConfig
from rankwise.records.study import COMPARED, PlannedRun
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.tasks.requests import PreparedTask, prepared_task
from rankwise.tasks.right_answers import right_answers

NUM_ITEMS = 64
"""The most items of each task that the base answers; they are the first of a study's own."""


class UntrainedPlan(NamedTuple):
    """A planned study of one trained task, with its LoRA runs, or what a search may train."""

    plan: StudyPlan
    of_lora: tuple[PlannedRun, ...]

    @property
    def largest(self) -> PlannedRun:
        """The first planned model of the largest rank."""
        return max(self.of_lora, key=lambda model: model.rank or 0)


def plan_untrained(config: StudyConfig) -> UntrainedPlan:
    """Plan a study whose features are to be measured; loads no weights, and writes nothing.

    Args:
        config: of a study with one trained task and at least one LoRA rank.

    Raises:
        ConfigError: several tasks are trained, or no LoRA rank is.
        PlanError: the study cannot be planned.
    """
    if len(config.train.sources) > 1:
        problem = (
            f"train.task: {len(config.train.sources)} tasks are trained, and one is measured; "
            "write a study file for each"
        )
        raise ConfigError(config.name, [problem])
    gauged = config.analysis.model_copy(update={"gauges": True})  # for their right answers
    # a ladder's plan has its first rank alone, and the question is of all
    whole = config.search.model_copy(update={"policy": None})
    plan = plan_study(config.model_copy(update={"analysis": gauged, "search": whole}))
    return UntrainedPlan(plan, _of_lora(plan))


def measure(study: UntrainedPlan, *, with_probe: bool = True) -> dict[str, float]:
    """What is known of a study before it is trained, by the names of ``FEATURES``.

    Nothing is written. Equal studies give equal numbers on one machine with the same micro-batches,
    which free memory decides.

    Args:
        study: that is to be trained.
        with_probe: also train the largest rank for a few steps.

    Raises:
        ModelError: the base model cannot be loaded, or cannot read packed sequences.
        TaskError: a task cannot judge its answers.
    """
    untrained = _untrained(study.plan, study.largest)
    return features_of(untrained, with_probe=with_probe)


def measure_features(config: StudyConfig, *, with_probe: bool = True) -> dict[str, float]:
    """``measure`` of a study file; what each raises."""
    return measure(plan_untrained(config), with_probe=with_probe)


def _of_lora(plan: StudyPlan) -> tuple[PlannedRun, ...]:
    record = plan.record
    of_lora = tuple(
        model
        for model in record.of_role(*COMPARED, "searched")
        if model.rank is not None and model.role != "imported"
    )
    if not of_lora:
        problem = "methods.lora: no rank is trained, and the largest is measured; name one"
        raise ConfigError(record.config.name, [problem])
    return of_lora


def _untrained(plan: StudyPlan, model: PlannedRun) -> Untrained:
    """The base in memory, and what it reads."""
    record = plan.record
    (train_task,) = record.tasks
    relations, overlaps = record.tasks[train_task], record.overlaps[train_task]
    own, kept = (
        [plan.tasks[name] for name in relations.get(relation, ())]
        for relation in ("in_domain", "retention")
    )
    base: Any = load_frozen(
        fetch_weights(plan.base),
        record.precision,
        plan.device,
        record.config.train.base_precision,
    )
    max_length = context_length(base.config, plan.tokenizer)
    planned = next(each for each in record.passes if model.name in each.runs)
    gauged, in_domain = (
        plan.inputs.get("gauges", {}).get(train_task, ()),
        {task.name for task in own},
    )
    vocabulary_size: int = base.config.get_text_config().vocab_size
    return Untrained(
        base_model=base,
        tokenizer=plan.tokenizer,
        setting=ProbeSetting(record.config, model.whole, planned, record.precision),
        num_parameters=record.num_parameters,
        examples=plan.examples[train_task],
        in_domain=[_first_items(task, plan, max_length) for task in own],
        retention=[_first_items(task, plan, max_length) for task in kept],
        answers=[answer for answer in gauged if answer.task in in_domain],
        texts=[answer for answer in gauged if answer.task not in in_domain],
        retained=right_answers(kept, plan.tokenizer, vocabulary_size),
        overlaps=[overlaps[task.name] / task.num_items for task in (*own, *kept)],
        max_batch_tokens=plan.step_tokens,
    )


def _first_items(task: PreparedTask, plan: StudyPlan, max_length: int) -> PreparedTask:
    """The task with its first ``NUM_ITEMS`` items, in the order in which a study takes them."""
    if task.num_items <= NUM_ITEMS:
        return task
    evaluation = plan.record.config.evaluation
    return prepared_task(task.loaded, plan.tokenizer, max_length, evaluation, limit=NUM_ITEMS)
