"""From the folder of a finished study to what the collection keeps of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from rankwise.errors import RecordError
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import run_record
from rankwise.prediction.collected import (
    Change,
    CollectedItems,
    CollectedModel,
    CollectedRun,
    CollectedStudy,
    CollectedTraining,
    in_thousandths,
)
from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.reading import read_results
from rankwise.records.results import ModelResults, TaskItems, TrainTaskResults
from rankwise.records.spectra import intruders_of
from rankwise.records.study import Relation, Unit

NUM_LOSSES = 8
MIN_RANKS = 2
_KEPT: tuple[Relation, ...] = ("in_domain", "retention")


def collected_studies(folder: StudyFolder) -> tuple[CollectedStudy, ...]:
    """What is kept of a finished study, one record for each trained task.

    Raises:
        RecordError: it is no study, it is not finished, or it has fewer than two ranks.
    """
    results = read_results(folder)
    for name, reason in results.left_out.items():
        raise RecordError(
            f"{folder.root} is no finished study: {name} {reason}. Run it to its end "
            f"(`rankwise run {folder.root}`), then collect it."
        )
    return tuple(_collected(folder, part) for part in results.by_train_task)


def _collected(folder: StudyFolder, part: TrainTaskResults) -> CollectedStudy:
    runs = [run for run in part.runs if run_record(run).planned.imported_as is None]
    lora = [run_record(run).planned for run in runs if run_record(run).planned.rank is not None]
    ranks = {plan.rank for plan in lora}
    if len(ranks) < MIN_RANKS:
        found = f"rank {lora[0].rank} alone" if lora else "no rank of LoRA"
        raise RecordError(
            f"{folder.root} has {found} on {part.train_task}: a study tells which rank is best "
            f"only with {MIN_RANKS} ranks or more. Add some with `rankwise extend --ranks`."
        )
    source, plan, train = OptionGains(part), lora[0], part.study.config.train
    model = CollectedModel(
        name=_without_folders(part.study.config.base_model.name),
        fingerprint=part.study.base_model_fingerprint,
        num_parameters=part.study.num_parameters,
        parameters_per_rank=plan.num_trainable_parameters // (plan.rank or 1),
    )
    training = CollectedTraining(
        num_rows=plan.num_examples,
        num_tokens=plan.num_tokens,
        num_steps=plan.num_steps,
        epochs=plan.epochs or 1,
        rows_per_step=train.batch_size * train.gradient_accumulation_steps,
        target_modules=plan.target_modules,
    )
    return CollectedStudy(
        task=part.train_task,
        source=fingerprint(
            [part.study.fingerprint, *(run_record(r).planned.fingerprint for r in runs)]
        ),
        base_model=model,
        training=training,
        features=recorded_features(part, model, training),
        base_scores={task: _score(part.base.items[task]) for task in _tasks(part)},
        runs=tuple(_run(folder, source, run) for run in runs),
        items=tuple(_items(part, relation, task, runs) for relation, task in _kept_tasks(part)),
    )


def recorded_features(
    part: TrainTaskResults, model: CollectedModel, training: CollectedTraining
) -> dict[str, float]:
    """What the records of a study tell that was known before training.

    The names are those of ``study.predicting.measure_features``, which measures more.
    ``base_accuracy`` and ``base_p_right`` are means over the tasks in-domain, 0..1; where
    the loss decides there is ``base_loss``, in nats, in their place.
    """
    found = {
        "train_rows": training.num_rows,
        "train_tokens": training.num_tokens / training.epochs,
        "train_steps": training.num_steps,
        "rank_parameters": model.parameters_per_rank,
    }
    if model.num_parameters:  # 0 in the record of an older version
        found["model_parameters"] = model.num_parameters
    items = [part.base.items[task] for task in part.tasks["in_domain"]]
    named = {
        "base_accuracy": [each.by_accuracy for each in items if each.unit == "points"],
        "base_p_right": [each for each in items if each.accuracy is not None],
        "base_loss": [each for each in items if each.unit == "nats"],
    }
    means = {
        name: statistics.fmean(statistics.fmean(each.values) for each in those)
        for name, those in named.items()
        if those
    }
    return {name: float(value) for name, value in (found | means).items()}


def _without_folders(name: str) -> str:
    """A model's name; of a folder its last part, for the others are of one machine."""
    path = PurePath(name)
    return path.name if path.is_absolute() else name


def _run(folder: StudyFolder, source: OptionGains, run: ModelResults) -> CollectedRun:
    record = run_record(run)
    plan, is_trained = record.planned, record.status == "trained"
    matrices = run.spectra.matrices if run.spectra else ()

    def mean(relation: Relation, unit: Unit) -> Change | None:
        tasks = source.tasks(relation, unit)
        return _change(source, run, tasks) if is_trained and tasks else None

    return CollectedRun(
        method=plan.method,
        rank=plan.rank,
        alpha=plan.alpha,
        learning_rate=plan.learning_rate,
        seed=plan.seed,
        status=record.status,
        gain=mean("in_domain", "points") or mean("in_domain", "nats"),
        retention=mean("retention", "points"),
        held_out_text=mean("held_out_text", "nats"),
        tasks={task: _change(source, run, [task]) for task in _tasks(source.results)}
        if is_trained
        else {},
        losses_nats=_eighths([loss for _, loss in folder.read_losses(run.name)]),
        energy_rank_90=statistics.fmean(m.update.energy_rank_90 for m in matrices)
        if matrices
        else None,
        intruders=statistics.fmean(
            intruders_of(m.change, m.leading, run.spectra.epsilons) for m in matrices
        )
        if run.spectra and matrices
        else None,
        update_norm=run.spectra.frobenius_norm if run.spectra and matrices else None,
    )


def _change(source: OptionGains, run: ModelResults, tasks: Sequence[str]) -> Change:
    found = source.estimate([source.gains((run,), task) for task in tasks], tasks)
    unit = source.results.base.items[tasks[0]].unit
    return Change(unit=unit, estimate=round(found.value, 4), stderr=round(found.stderr, 4))


def _eighths(losses: Sequence[float]) -> tuple[float, ...]:
    """Means over equal parts of a training, in its order."""
    parts = np.array_split(np.array(losses), min(NUM_LOSSES, len(losses)) or 1)
    return tuple(round(float(part.mean()), 4) for part in parts if part.size)


def _kept_tasks(part: TrainTaskResults) -> Iterator[tuple[Relation, str]]:
    for relation in _KEPT:
        for task in part.tasks.get(relation, ()):
            yield relation, task


def _tasks(part: TrainTaskResults) -> tuple[str, ...]:
    return tuple(task for names in part.tasks.values() for task in names)


def _score(items: TaskItems) -> float:
    scale = 100.0 if items.unit == "points" else 1.0
    return round(scale * statistics.fmean(items.values), 4)


def _items(
    part: TrainTaskResults, relation: Relation, task: str, runs: Sequence[ModelResults]
) -> CollectedItems:
    """Every model's items in the order of the base's.

    Raises:
        RecordError: a run was scored on other items.
    """
    base = part.base.items[task]
    models = [part.base, *runs]
    return CollectedItems(
        task=task,
        relation=relation,
        unit=base.unit,
        higher_is_better=base.higher_is_better,
        values=tuple(in_thousandths(_ordered(model, task, base)) for model in models),
        right=tuple(_right(model, task, base) for model in models),
    )


def _ordered(model: ModelResults, task: str, base: TaskItems) -> list[float]:
    if task not in model.items:  # it diverged
        return []
    items = model.items[task]
    by_number = dict(zip(items.doc_ids, items.values, strict=True))
    if set(by_number) != set(base.doc_ids):
        raise RecordError(
            f"{model.name} was scored on other items of {task} than the base. Run the study "
            "again, so that both are scored on the same ones."
        )
    return [by_number[number] for number in base.doc_ids]


def _right(model: ModelResults, task: str, base: TaskItems) -> str:
    """A sign for each item; empty where one is neither right nor wrong."""
    values = _ordered(model.by_accuracy, task, base)
    if base.unit != "points" or any(value not in (0.0, 1.0) for value in values):
        return ""
    return "".join("1" if value == 1.0 else "0" for value in values)
