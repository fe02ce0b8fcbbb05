"""The graph of a study's stages: what there is to do, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study import PlannedPass, PlannedRun, StudyRecord
from rankwise.study.observer import StageOutline
from rankwise.study.stages.divergence import CompareDistributions
from rankwise.study.stages.form import CheckForm
from rankwise.study.stages.gauges import CompareWithBase
from rankwise.study.stages.heads import CompareHeads
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.stages.stage import Graph, Stage, model_name
from rankwise.study.stages.training import Train
from rankwise.study.times import training_work

KINDS: tuple[type[Stage], ...] = (
    Train,
    Score,
    CompareWithBase,
    CompareDistributions,
    CompareHeads,
    AnalyseWeights,
    CheckForm,
)
"""Every kind of stage, in the order in which a study does them."""


def stages(study: StudyRecord) -> tuple[Stage, ...]:
    """All stages of a study, in an order in which each comes after those that it needs.

    The base is scored; the runs of every pass are trained together and then scored together, and
    likewise the arms against forgetting. Then come the other kinds in their order. Of models that
    were trained and scored elsewhere nothing is done.
    """
    if study.scores is not None:
        return ()
    graph = Graph(study)
    for task in study.scored_tasks():
        stage = Score.of(graph, BASE, (None,), task)
        graph.stages.append(stage)
        graph.base_scoring_of[task] = stage.id
    for number, (planned_pass, runs) in enumerate(_passes(study), start=1):
        _train_and_score(graph, number, planned_pass, runs)
    for kind in KINDS:
        graph.stages += kind.planned(graph)
    return tuple(graph.stages)


def study_outline(
    graph: Sequence[Stage], folder: StudyFolder, remembered: Mapping[str, float] | None = None
) -> tuple[StageOutline, ...]:
    """The stages of a study in their order, as they are in its folder.

    Args:
        graph: of the study.
        folder: the study's.
        remembered: kind -> seconds per unit of work; None: nothing is remembered.

    Raises:
        RecordError: a record exists and cannot be read.
    """
    left = {stage.id: stage.left(folder) for stage in graph}
    # records of weights and heads are long: they are read where more of their kind is to be done
    kinds_left = {stage.kind for stage in graph if left[stage.id]}
    return tuple(
        StageOutline(
            id=stage.id,
            kind=stage.kind,
            name=stage.name,
            model=stage.model,
            work=stage.work,
            num_tokens=stage.num_tokens,
            work_left=stage.work_of(left[stage.id]),
            is_finished=not left[stage.id],
            seconds=None
            if left[stage.id] or stage.kind not in kinds_left
            else stage.seconds(folder),
            records=tuple(model_name(model) for model in stage.models),
            slowness=stage.slowness,
            remembered=(remembered or {}).get(stage.kind),
            by_arithmetic=stage.seconds_by_arithmetic,
        )
        for stage in graph
    )


def finished_work(graph: Sequence[Stage], folder: StudyFolder) -> set[tuple[str, str | None]]:
    """The (model, task) pairs that are scored, and (run, None) for each run that is trained.

    Raises:
        RecordError: a record exists and cannot be read.
    """
    done: set[tuple[str, str | None]] = set()
    for stage in graph:
        if isinstance(stage, Train | Score):
            task = stage.task if isinstance(stage, Score) else None
            left = set(map(model_name, stage.left(folder)))
            done |= {(name, task) for name in map(model_name, stage.models) if name not in left}
    return done


def _train_and_score(
    graph: Graph, number: int, planned_pass: PlannedPass | None, runs: tuple[PlannedRun, ...]
) -> None:
    study, role = graph.study, runs[0].role
    what = "adapters" if runs[0].method == "lora" else "checkpoints"
    what = f"mitigated {what}" if role == "mitigated" else what
    model = runs[0].name if len(runs) == 1 else f"pass {number}: {len(runs)} {what}"
    if len(runs) > 1 and planned_pass is None:
        model = f"imported: {len(runs)} adapters"
    train = Train(
        model,
        runs,
        tuple(run.fingerprint for run in runs),
        needs=graph.trainings_by_name(run.after.name for run in runs if run.after is not None),
        work=training_work(runs),
        memory_bytes=0 if planned_pass is None else planned_pass.estimated_memory_bytes,
        disk_bytes=sum(run.stored_bytes for run in runs),
        planned_pass=planned_pass,
        saves_states=planned_pass is not None and study.config.train.save_every is not None,
    )
    graph.stages.append(train)
    graph.training_of |= {run.name: train.id for run in runs}
    scored = {run.name: study.tasks_of(run) for run in runs}
    for task in study.scored_tasks():
        together = [run for run in runs if task in scored[run.name]]
        for is_whole in (True, False):  # references before those that are estimated from them
            alike = tuple(r for r in together if (study.part_of(r, task) is None) == is_whole)
            if alike:
                graph.stages.append(Score.of(graph, model, alike, task))


def _passes(study: StudyRecord) -> list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]]:
    """What is trained and scored together, in the study's order; imported models come last.

    Imported adapters are scored together too, each imported checkpoint alone.
    """
    by_name = {run.name: run for run in study.models}
    passes: list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]] = [
        (planned, tuple(by_name[name] for name in planned.runs)) for planned in study.passes
    ]
    in_pass = {name for planned in study.passes for name in planned.runs}
    imported = [run for run in study.runs if run.name not in in_pass]
    adapters = tuple(run for run in imported if run.method == "lora")
    passes += [(None, adapters)] if adapters else []
    return passes + [(None, (run,)) for run in imported if run.method == "full"]
