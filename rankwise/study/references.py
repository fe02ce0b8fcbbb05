"""Reference runs: they answer all items, and most of what the others would answer is estimated.

What is answered is in the study's record before anything is scored. Where the references tell too
little of a task, all runs answer all of it: the precision decides that, and no estimate does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rankwise.findings.stats.reference import MIN_SCORED, pseudo_items
from rankwise.records.files import unless_damaged
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import References, StudyRecord
from rankwise.study.times import training_work

LEAST_SAVING = 1.5
"""A task is answered in part where that divides its items by so much; else it is not worth it."""

LEAST_R_SQUARED = 0.2
"""The least R² of the median run. With less, 200 of 1,000 items count as fewer than 240."""


def num_answered(num_items: int, share: float) -> int | None:
    """How many of a task's items most runs answer; None: all."""
    number = max(MIN_SCORED, math.ceil(share * num_items))
    return number if number * LEAST_SAVING < num_items else None


def with_references(study: StudyRecord, earlier: References | None = None) -> StudyRecord:
    """A planned study with its references: the middle rank's first run, and full beside it.

    Args:
        study: its record says which tasks may be answered in part.
        earlier: of the same study as it was planned before. They stay, and so do the tasks that
            they predicted too little of.
    """
    if not study.references.parts:
        return study
    before = {} if earlier is None else earlier.runs
    runs = {
        task: names
        for task in study.tasks
        if (names := reference_runs(study, task, before.get(task, ())))
    }
    references = study.references.model_copy(update={"runs": runs})
    whole = () if earlier is None else earlier.whole
    return study.model_copy(update={"references": references.without(whole)})


def reference_runs(
    study: StudyRecord, train_task: str, earlier: Collection[str] = ()
) -> tuple[str, ...]:
    """The names of a trained task's references; one that is among ``earlier`` stays."""
    lora = [run for run in study.of_role("trained") if run.train_task == train_task and run.rank]
    lora = [run for run in lora if run.mean_rank is None]
    first = [run for run in lora if run.seed == study.config.seeds[0]]
    ranks = sorted({run.rank for run in first if run.rank is not None})
    kept = [run for run in lora if run.name in earlier]
    for run in kept or [run for run in first if run.rank == ranks[len(ranks) // 2]]:
        full = study.full_run_of(run)
        return (run.name, *([] if full is None else [full.name]))
    return ()


def with_settled_references(study: StudyRecord, folder: StudyFolder) -> StudyRecord:
    """A planned study with the references that it has in its folder, if it has some.

    A run that has answered more there of a task than others are to answer answers all items of
    every such task. As long as a study has no references, it gets none where they save too little.
    """
    settings = study.config.evaluation.reference
    if settings is None or not study.references.parts:
        return study
    earlier = References()
    with unless_damaged():
        record = folder.read_if_there(folder.study_file, StudyRecord)
        earlier = earlier if record is None else record.references
    study = with_references(study, earlier)  # knows what all runs answer whole by now
    answered = {
        run.name
        for run in study.tested
        for task in study.references.parts.keys() & study.tasks_of(run)
        if (scored := folder.earlier_evaluation(run.name, task)) is not None
        and scored.num_examples > study.references.parts[task].num_items
    }
    update = {"answered": tuple(sorted(answered.union(earlier.answered)))}
    study = study.model_copy(update={"references": study.references.model_copy(update=update)})
    if not earlier.runs and saved_share(study) < settings.least_saving:
        return study.model_copy(update={"references": References()})
    return study


def unscored_tokens(study: StudyRecord) -> int:
    """The tokens of the items that are estimated from references."""
    whole = study.model_copy(update={"references": References()})
    models = [(model, study.tasks_of(model)) for model in study.tested]
    return sum(whole.tokens_of(*each) - study.tokens_of(*each) for each in models)


def saved_share(study: StudyRecord) -> float:
    """The share of the work of training and scoring a whole study that its references save."""
    whole = study.model_copy(update={"references": References()})
    models = (None, *study.tested)
    scored = sum(whole.tokens_of(model, study.tasks_of(model)) for model in models)
    return unscored_tokens(study) / (scored + training_work(study.models))


def with_whole_tasks(study: StudyRecord, models: Sequence[ModelResults]) -> StudyRecord:
    """A finished study in which all runs answer the tasks that its references tell too little of.

    They do where the median run's changes are predicted badly, or where what was answered is of
    too few clusters.
    """
    too_little = [
        task
        for task in study.references.parts
        if _is_too_little([model.items[task] for model in models if task in model.items])
    ]
    return study.model_copy(update={"references": study.references.without(too_little)})


def _is_too_little(items: Sequence[TaskItems]) -> bool:
    """Whether they predict too little of one task; models that answered all of it do not count."""
    parts = [(each.scored, each.r_squared or 0.0) for each in items if each.scored is not None]
    if not parts:
        return False
    clusters = min(len({*(scored.clusters or scored.doc_ids)}) for scored, _ in parts)
    return clusters < MIN_SCORED or statistics.median(r for _, r in parts) < LEAST_R_SQUARED


def with_estimates(
    study: StudyRecord, base: ModelResults, models: Sequence[ModelResults]
) -> tuple[ModelResults, ...]:
    """The models with all items of the tasks that they answered in part."""
    by_name = {model.name: model for model in models}

    def whole(model: ModelResults) -> ModelResults:
        planned = None if model.run is None else model.run.planned
        parts = [task for task in model.items if study.part_of(planned, task) is not None]
        if planned is None or not parts:
            return model
        names = study.references.runs[planned.train_task]
        references = [by_name[name] for name in names if name in by_name]  # some may have diverged
        items = dict(model.items)
        for task in parts:
            theirs = [each.items[task] for each in references if task in each.items]
            items[task] = _estimated(base.items[task], theirs, items[task])
        return model.model_copy(update={"items": items})

    return tuple(map(whole, models))


def _estimated(base: TaskItems, references: Sequence[TaskItems], scored: TaskItems) -> TaskItems:
    """All items of the base, from a model's answers to some; see ``stats.reference``."""
    answered = {*scored.doc_ids}
    order = [*scored.doc_ids, *(doc_id for doc_id in base.doc_ids if doc_id not in answered)]
    clusters = None if base.clusters is None else np.array(_in_order(order, base, base.clusters))
    others = [_in_order(order, each, each.values) for each in references]
    found = pseudo_items(
        np.array(_in_order(order, base, base.values)),
        np.array(others).reshape(len(others), len(order)),
        np.array(scored.values),
        clusters,
    )
    values = dict(zip(order, found.values.tolist(), strict=True))
    update = {
        "doc_ids": base.doc_ids,
        "values": tuple(values[doc_id] for doc_id in base.doc_ids),
        "choices": None,
        "clusters": base.clusters,
        "scored": scored.model_copy(update={"accuracy": None}),
        "r_squared": found.r_squared,
    }
    if scored.accuracy is not None:
        before = [base.accuracy, *(each.accuracy for each in references)]
        own, *theirs = [each for each in before if each is not None]
        own = own.model_copy(update={"clusters": base.clusters})
        update["accuracy"] = _estimated(own, theirs, scored.accuracy)
    return scored.model_copy(update=update)


def _in_order(doc_ids: Sequence[int], items: TaskItems, values: Sequence[float]) -> list[float]:
    of: Mapping[int, float] = dict(zip(items.doc_ids, values, strict=True))
    return [of[doc_id] for doc_id in doc_ids]
