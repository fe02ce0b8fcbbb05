"""What of a study is done, read from its folder alone and without torch."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import RecordError
from rankwise.records import quantities
from rankwise.records.files import read_regular
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.locking import StudyProgress
from rankwise.records.study import StudyRecord
from rankwise.study.conclusion import conclude
from rankwise.study.damage import find_damage, models_of
from rankwise.study.stages.graph import stages
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.stage import Stage, model_name
from rankwise.study.stages.training import Train

_ROUNDING = 1e-6
"""Less than is shown of any number, and more than the order of a sum makes."""


class ModelStatus(NamedTuple):
    """One model of a study: the base, or a run.

    Attributes:
        model: its name.
        training: "trained", "diverged", "started", "not started", or "none needed" for the base.
        num_steps_done: optimizer steps taken.
        num_steps: optimizer steps planned.
        reward: mean of the texts that it wrote for its newest step; None where it is not being
            trained, or on no rewarded texts of its own.
        tokens_per_text: of these texts, on average.
        tasks_scored: the tasks that it is scored on under the study's present settings.
        tasks_left: the tasks that it is still to be scored on.
        others_left: what else is still to be done after training: "divergence" (it is compared
            with full fine-tuning), "gauges" (with the base, token by token), "heads", "spectra",
            and the forms that it is checked in, where the verdict names it.
        failed: the stages of it that failed when they were last tried, and why.
        damaged: its files that are not as they were written; running the study makes them again.
    """

    model: str
    training: str
    num_steps_done: int
    num_steps: int
    reward: float | None
    tokens_per_text: float | None
    tasks_scored: tuple[str, ...]
    tasks_left: tuple[str, ...]
    others_left: tuple[str, ...]
    failed: tuple[str, ...]
    damaged: tuple[str, ...]

    @property
    def left(self) -> tuple[str, ...]:
        """What is still to be done after training, in words."""
        return *self.tasks_left, *self.others_left


class RunStatus(NamedTuple):
    """The process that runs a study.

    Attributes:
        process: its number and host, in words.
        progress: what it told last; None: nothing yet.
        doing: what it is at, in words: a line for each stage.
    """

    process: str
    progress: StudyProgress | None
    doing: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What there is to say of it."""
        if self.progress is None or not self.doing:
            return (f"{self.process} runs the study",)
        age = datetime.now(UTC) - datetime.fromisoformat(self.progress.told_at)
        told = f"told {quantities.seconds(age.total_seconds())} ago"
        left = sum(self.progress.seconds_left.values()) / len(self.doing)
        of_all = (f"about {quantities.seconds(left)} left of what is planned",) if left else ()
        return f"{self.process} runs the study; {told}", *self.doing, *of_all


def run_status(folder: StudyFolder) -> RunStatus | None:
    """Who runs a study and how far it is; None where nobody does.

    Raises:
        RecordError: the folder has no study, or its plan cannot be read.
    """
    leader = folder.leader()
    if leader is None:
        return None
    process, progress = leader
    by_id = {stage.id: stage for stage in stages(folder.read_study())}
    told = () if progress is None else progress.stages
    doing: list[str] = []
    for stage, each in ((by_id[each.stage], each) for each in told if each.stage in by_id):
        speed = each.tokens_per_second
        parts = [
            f"{stage.model}: {stage.name} is {quantities.share(each.share_done)} done",
            *([] if speed is None else [f"{quantities.count(round(speed))} tokens per second"]),
            f"peak memory {quantities.memory(each.peak_memory_bytes)}",
        ]
        doing.append(", ".join(parts))
    return RunStatus(process, progress, tuple(doing))


def study_status(folder: StudyFolder) -> list[ModelStatus]:
    """One line per model, from the stages that ``rankwise run`` would go through.

    What is damaged counts as left.

    Raises:
        RecordError: the folder has no study, or its plan cannot be read.
    """
    study = folder.read_study()
    graph = stages(study)
    damages = find_damage(folder, models_of(study, folder))
    spoilt = {path for damage in damages for path in damage.spoils}
    intact = folder.without(spoilt)
    failures = intact.failures()
    todo: dict[str, list[Stage]] = {BASE: [], **{run.name: [] for run in study.models}}
    for stage in graph:
        for model in stage.left(intact):
            todo[model_name(model)].append(stage)
    lines: list[ModelStatus] = []
    for model in (None, *study.models):
        name, tasks = model_name(model), study.tasks_of(model)
        training, done, texts = "none needed", 0, (None, None)
        if model is not None:
            record, metrics = intact.finished_run(model), folder.metrics_file(name)
            training = "not started"
            if record is not None:
                training, done = record.status, record.num_steps
                tasks = () if training == "diverged" else tasks
            elif intact.has(metrics):
                content = read_regular(metrics)
                training, done, texts = "started", content.count(b"\n"), _newest_texts(content)
        place, ids_left = folder.model_folder(name), {stage.id for stage in todo[name]}
        tasks_left = {stage.task for stage in todo[name] if isinstance(stage, Score)}
        others = [stage.name for stage in todo[name] if not isinstance(stage, Train | Score)]
        lines.append(
            ModelStatus(
                model=name,
                training=training,
                num_steps_done=done,
                num_steps=0 if model is None else model.num_steps,
                reward=texts[0],
                tokens_per_text=texts[1],
                tasks_scored=tuple(task for task in tasks if task not in tasks_left),
                tasks_left=tuple(task for task in tasks if task in tasks_left),
                others_left=tuple(dict.fromkeys(others)),
                failed=tuple(f"{f.what}: {f.message}" for f in failures if f.stage in ids_left),
                damaged=tuple(str(each) for each in damages if each.path.is_relative_to(place)),
            )
        )
    return lines


def _newest_texts(metrics: bytes) -> tuple[float | None, float | None]:
    """Reward and tokens of a text, by the last whole line of what a training writes down."""
    with contextlib.suppress(IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
        texts = json.loads(metrics.split(b"\n")[-2])["texts"]
        reward = None if texts["reward"] is None else float(texts["reward"])
        return reward, texts["num_tokens"] / texts["num_texts"]
    return None, None


def what_is_left(folder: StudyFolder, study: StudyRecord) -> list[str]:
    """What a plan expects and the folder has not, or of other settings: not made yet, or gone.

    Where nothing else is, so is a verdict that these records do not give: it is of others.
    """
    left = [
        f"{stage.name} of {model_name(m)}" for stage in stages(study) for m in stage.left(folder)
    ]
    verdict = (folder.looks_file, folder.recommendation_file, folder.findings_file)
    expected = (*verdict, folder.search_file) if study.config.is_searched else verdict
    left += [f"{path.name} of the study" for path in expected if not folder.has(path)]
    said = "of the study: it is not what the study's records give"
    return left or [f"{path.name} {said}" for path in _of_other_records(folder)]


def _of_other_records(folder: StudyFolder) -> Iterator[Path]:
    """The files of the verdict that are not what is concluded from the records now."""
    try:
        outcome = conclude(folder)
    except RecordError:  # one that no plan expects is damaged
        return
    for path, made in (
        (folder.recommendation_file, outcome.recommendation),
        (folder.findings_file, outcome.findings),
    ):
        if folder.has(path):
            written = folder.read(path, type(made))
            if not _are_alike(*(json.loads(each.model_dump_json()) for each in (written, made))):
                yield path


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two records say the same; another processor rounds otherwise."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_are_alike(one[k], other[k]) for k in one)
        case list(), list():
            return len(one) == len(other) and all(map(_are_alike, one, other))
        case float(), float():
            return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        case _:
            return one == other
