"""Whether a plan may be carried out in a folder: nothing that is finished is scored over."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import StorageError, StudyChangedError
from rankwise.records.files import free_bytes, in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.stage import Model, Stage, fingerprint_in, model_name
from rankwise.study.stages.training import Train
from rankwise.study.times import furthest
from rankwise.tasks.row_files import flat_row

# Sections and settings of a study file on which scores of a model depend.
_SCORED_BY = ("base_model.", "evaluation.", "train.precision", "train.base_precision")
_NO_SCORE_DEPENDS_ON = ("evaluation.clusters", "evaluation.max_batch_tokens")


def replaced_scores(
    plan: StudyPlan, folder: StudyFolder, graph: Sequence[Stage], earlier: StudyRecord | None
) -> tuple[list[Path], StudyChangedError | None]:
    """The files of finished scores that a plan would score again, and the error that says so.

    Adding ranks, seeds, tasks or items replaces nothing: of more items, those that are scored
    already are kept.

    Args:
        plan: the plan.
        folder: of the study.
        graph: the plan's stages.
        earlier: what ``study.json`` says before; None where it is missing.

    Returns:
        The files, and None where there are none.
    """
    finished = [
        (model_name(model), stage.task)
        for stage in graph
        if isinstance(stage, Score)
        for model in stage.left(folder)
        if _has_other_scores(plan, folder, stage, model)
    ]
    if not finished:
        return [], None
    tasks = sorted({task for _, task in finished})
    differences = [] if earlier is None else _differences(earlier, plan.record)
    if not differences:
        differences = [
            f"the items of {task}, or how they are asked, have changed" for task in tasks
        ]
    head = (
        f"{folder.root} has {len(finished)} finished scores of {', '.join(tasks)} with other "
        "settings:"
    )
    remedy = (
        "Keep the settings of the folder, choose another --study-dir, or give --replace to "
        "`rankwise run`: the old scores are then archived in quarantine/, and the tasks are "
        "scored again."
    )
    error = StudyChangedError("\n  ".join([head, *differences, remedy]))
    places = (folder.evaluation_file, folder.samples_file)
    return [place(model, task) for model, task in finished for place in places], error


def disk_left(stages: Sequence[Stage], folder: StudyFolder, num_devices: int = 1) -> int:
    """Bytes that what is left of some stages takes of the disk, about, when it takes most.

    Weights and answers stay. A state from which training can be resumed is there until its training
    ends, so of all passes the one with the largest states counts, and of its largest state a second
    copy: a new one is whole before the old one goes. Several devices have as many of these at once.
    A search ends passes before their trainings: these states stay.
    """
    stay, states, waiting = 0, list[int](), dict[str, int]()
    for stage in stages:
        if not isinstance(stage, Train):
            stay += round(stage.disk_bytes * len(stage.left(folder)) / max(1, len(stage.models)))
            continue
        left = [model for model in stage.left(folder) if model is not None]
        stay += sum(model.stored_bytes for model in left)
        passed = {model.training.name for model in left if model.is_part}
        sizes, of_pass = [0], 0
        for model in furthest(left):
            if not (stage.saves_states or model.training.name in passed):
                continue
            sizes.append(model.state_bytes)
            if folder.training_state_file(model.whole).exists():
                continue
            if model.is_part:
                waiting[model.training.name] = sizes[-1]
            else:
                of_pass += sizes[-1]
        states.append(of_pass + max(sizes))
    return stay + sum(heapq.nlargest(num_devices, states)) + sum(waiting.values())


def require_disk(folder: StudyFolder, graph: Sequence[Stage], num_workers: int = 1) -> None:
    """Refuse to begin what the disk has no room for when so many workers train at once.

    Raises:
        StorageError: what is left of the study takes more than is free.
    """
    needed = disk_left(graph, folder, num_workers)
    free = free_bytes(folder.root)
    if needed > free:
        by, fewer = "", ""
        if num_workers > 1:
            by, fewer = f" with {num_workers} units at a time", "do fewer at a time, "
        raise StorageError(
            f"the rest of the study needs about {in_words(needed)}{by} in {folder.root} and "
            f"{in_words(free)} are free. Free some space, {fewer}choose another --study-dir, or "
            "leave full fine-tuning out with methods.full=null."
        )


def _has_other_scores(plan: StudyPlan, folder: StudyFolder, stage: Score, model: Model) -> bool:
    if model is not None and folder.finished_run(model) is None:
        return False  # it is trained again, and its scores with it
    scored = folder.earlier_evaluation(model_name(model), stage.task)
    if scored is None or scored.fingerprint == stage.fingerprint_of(model):
        return False
    weights, task = fingerprint_in(plan.record, model), plan.task_of(model, stage.task)
    return not plan.begins_with(scored, weights, task)


def _differences(earlier: StudyRecord, now: StudyRecord) -> list[str]:
    """One line per setting that scores depend on and that differs."""
    before, after = _settings(earlier), _settings(now)
    name = "base_model.name"
    is_other_base = earlier.base_model_fingerprint != now.base_model_fingerprint
    if before[name] == after[name] and is_other_base:
        return [f"base_model: the weights of {after[name]} are not the weights that were scored"]
    return [
        f"{key}: {before.get(key)!r} when they were scored, {after.get(key)!r} now"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not key.startswith(_NO_SCORE_DEPENDS_ON)
    ]


def _settings(study: StudyRecord) -> dict[str, Any]:
    config = flat_row(study.config.model_dump(mode="json")).items()
    given = {key: value for key, value in config if key.startswith(_SCORED_BY) and value != {}}
    return {"precision": study.precision, **given}
