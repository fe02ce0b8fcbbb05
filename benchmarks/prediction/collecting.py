"""From the folder of a finished study to what the collection keeps of it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from benchmarks.prediction.collected import (
    Change,
    CollectedItems,
    CollectedModel,
    CollectedRun,
    CollectedStudy,
    CollectedTraining,
    in_thousandths,
)
from rankwise.errors import RecordError
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import run_record
from rankwise.records import quantities
from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, TaskItems, TrainTaskResults
from rankwise.records.spectra import intruders_of
from rankwise.records.study import PlannedRun, Relation, Unit
from rankwise.study.reading import read_results

NUM_LOSSES = 8
MIN_RANKS = 2
_KEPT: tuple[Relation, ...] = ("in_domain", "retention")


def collected_studies(folder: StudyFolder) -> tuple[CollectedStudy, ...]:
    """What is kept of a finished study, one record for each trained task.

    Raises:
        RecordError: it is no study, it is not finished, it has fewer than two ranks, or settings
            differ besides rank, rate and seed.
    """
    results = read_results(folder)
    for name, reason in results.left_out.items():
        raise RecordError(
            f"{folder.root} is no finished study: {name} {reason}. Run it to its end "
            f"(`rankwise run {folder.root}`), then collect it."
        )
    return tuple(_collected(folder, part) for part in results.by_train_task)


def _collected(folder: StudyFolder, part: TrainTaskResults) -> CollectedStudy:
    runs = [run for run in part.runs if run_record(run).planned.role != "imported"]
    lora = [run_record(run).planned for run in runs if run_record(run).planned.rank is not None]
    ranks = {plan.rank for plan in lora}
    if len(ranks) < MIN_RANKS:
        found = f"rank {lora[0].rank} alone" if lora else "no rank of LoRA"
        raise RecordError(
            f"{folder.root} has {found} on {part.train_task}: a study tells which rank is best "
            f"only with {MIN_RANKS} ranks or more. Add some with `rankwise extend --ranks`."
        )
    varied = _varied(lora)
    if varied:
        raise RecordError(
            f"{folder.root} has runs on {part.train_task} that differ in "
            f"{quantities.listed(varied)} besides rank, rate and seed, and a rank stands for one "
            "setting only. Collect a study with one of them."
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
            [
                part.study.config.name,
                model.fingerprint,
                part.train_task,
                training.num_rows,
                training.epochs,
                training.target_modules,
            ]
        ),
        base_model=model,
        training=training,
        features=recorded_features(part, model, training),
        base_scores={task: _score(part.base.items[task]) for task in _tasks(part)},
        runs=tuple(_run(folder, source, run) for run in runs),
        items=tuple(_items(part, relation, task, runs) for relation, task in _kept_tasks(part)),
    )


def _varied(lora: Sequence[PlannedRun]) -> list[str]:
    """What differs between runs of one rank, or between ranks where it must not."""
    found = [
        name
        for name, values in {
            "target_modules": {plan.target_modules for plan in lora},
            "epochs": {plan.epochs for plan in lora},
        }.items()
        if len(values) > 1
    ]
    alphas = {(plan.rank, plan.alpha, plan.scaling) for plan in lora}
    return [*found, "alpha"] if len(alphas) > len({plan.rank for plan in lora}) else found


def recorded_features(
    part: TrainTaskResults, model: CollectedModel, training: CollectedTraining
) -> dict[str, float]:
    """What the records of a study tell that was known before training.

    The names and definitions are those of ``untrained``, which measures more, and on fewer
    items. ``base_accuracy`` is there where the tasks' own accuracy is the share of items whose
    right option the base puts first, which normalised accuracy is not.
    """
    found = {
        "train_rows": training.num_rows,
        "train_tokens": training.num_tokens / training.epochs,
        "train_loss_tokens": _learned_tokens(part) / training.epochs,
        "train_steps": training.num_steps,
        "rank_parameters": model.parameters_per_rank,
        "model_parameters": model.num_parameters,
    }
    items = [part.base.items[task] for task in part.tasks["in_domain"]]
    of_options = [each for each in items if each.choices is not None]
    if of_options and all(each.by_accuracy.metric == "acc" for each in of_options):
        found["base_accuracy"] = _mean([each.by_accuracy for each in of_options])
    if of_options and all(each.accuracy is not None for each in of_options):
        found["base_p_right"] = _mean(of_options)
    return {name: float(value) for name, value in found.items()}


def _learned_tokens(part: TrainTaskResults) -> int:
    """Over all epochs, of a run that was trained to its end; 0 where all diverged."""
    records = [run_record(run) for run in part.runs]
    return max((r.num_loss_tokens for r in records if r.status == "trained"), default=0)


def _mean(tasks: Sequence[TaskItems]) -> float:
    return statistics.fmean(statistics.fmean(items.values) for items in tasks)


def _without_folders(name: str) -> str:
    """A model's name; of a folder its last part, for the others are of one machine.

    One relative folder in another looks like a name of the Hub, and is kept.
    """
    path = PurePath(name)
    is_folder = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
    return path.name if is_folder else name


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
        alpha=None if plan.rank is None else plan.rank * (plan.scaling or 0.0),
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
        update_norm=math.hypot(*(m.update.frobenius_norm for m in matrices)) if matrices else None,
    )


def _change(source: OptionGains, run: ModelResults, tasks: Sequence[str]) -> Change:
    found = source.estimate([source.gains((run,), task) for task in tasks], tasks)
    unit = source.results.base.items[tasks[0]].unit
    return Change(unit=unit, estimate=round(found.value, 4), stderr=round(found.stderr, 4))


def _eighths(losses: Sequence[float]) -> tuple[float, ...]:
    """Means over equal parts of a training, in its order, as far as it has finite losses."""
    finite = list(itertools.takewhile(math.isfinite, losses))
    parts = np.array_split(np.array(finite), min(NUM_LOSSES, len(finite)) or 1)
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
        right=_right([_ordered(model.by_accuracy, task, base) for model in models], base.unit),
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


def _right(models: Sequence[Sequence[float]], unit: Unit) -> tuple[str, ...]:
    """A sign for each item of each model; empty where any is neither right nor wrong."""
    if unit == "nats" or any(value not in (0.0, 1.0) for values in models for value in values):
        return ("",) * len(models)
    return tuple("".join(str(int(value)) for value in values) for values in models)
