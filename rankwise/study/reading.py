"""Reading a study folder back: everything that is finished, as findings and the report need it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

from rankwise.errors import RecordError
from rankwise.records.clusters import cluster_fields
from rankwise.records.fingerprints import scoring_fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.heads import of_most_items
from rankwise.records.reading import in_clusters_of, linked, read_judged
from rankwise.records.results import (
    MIN_ITEMS,
    ModelResults,
    StudyResults,
    left_out_warnings,
    missing_items,
)
from rankwise.records.search import SearchRecord
from rankwise.records.study import COMPARED, PlannedRun, StudyRecord, TaskEvaluation
from rankwise.study.labels import with_labels
from rankwise.study.references import with_estimates
from rankwise.study.stages.graph import KINDS

_SHOW_LEFT = "`rankwise status` shows what is left"


@contextlib.contextmanager
def without_collections() -> Generator[None]:
    """Within the block no garbage is collected.

    Samples files and findings are millions of lists and dictionaries without cycles; looking for
    cycles among them took a third of the time of a study of a thousand runs.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # what is new becomes old without being walked
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@without_collections()
def read_results(folder: StudyFolder, study: StudyRecord | None = None) -> StudyResults:
    """Everything that is finished, as the recommendation and the report need it.

    A run that is not finished under the study's settings is left out and named, and so is a
    task of one item: differences need two.

    Args:
        folder: of the study.
        study: None: as it is in the folder.

    Raises:
        RecordError: the base is not scored or no run is finished, or a record cannot be read.
        TaskError: ``evaluation.clusters`` names what is not scored, or no field.
    """
    study, models, left_out, notes = read_judgements(folder, study)
    (base, *models), of_labels = with_labels(folder, study, models)
    return StudyResults(
        study=study,
        base=base,
        models=with_estimates(study, base, in_clusters_of(base, models)),
        search=folder.read_if_there(folder.search_file, SearchRecord),
        failures=folder.failures(),
        stacks=folder.accepted_stacks().stacks,
        left_out=left_out,
        notes=(*notes, *of_labels),
    )


class Judgements(NamedTuple):
    """What every model scored, as it was judged.

    Attributes:
        study: as it is judged.
        models: the base, and all that are finished, on the same items.
        left_out: what is not finished, and why.
        notes: on items that are left out.
    """

    study: StudyRecord
    models: list[ModelResults]
    left_out: dict[str, str]
    notes: tuple[str, ...]


def read_judgements(folder: StudyFolder, study: StudyRecord | None = None) -> Judgements:
    """What is finished before a person's labels correct it; see ``read_results``."""
    study = folder.read_study() if study is None else study
    lacks = unscored(folder, study, None)
    if lacks:
        raise RecordError(
            f"the base model of {folder.root} is not scored on {', '.join(lacks)} yet: "
            f"nothing can be concluded. Run the study to its end; {_SHOW_LEFT}."
        )
    study, left_out = _with_enough_items(folder, study)
    complete: list[PlannedRun] = []
    for planned in study.tested:
        left = left_of(folder, study, planned)
        if left is None:
            complete.append(planned)
        elif planned.role in COMPARED:
            left_out[planned.name] = left
    if not any(planned.role in COMPARED for planned in complete):
        raise RecordError(
            f"no run of {folder.root} is finished under its present settings: nothing can be "
            f"concluded. Run the study to its end; {_SHOW_LEFT}."
        )

    base = read_model(folder, study, None)
    models = [read_model(folder, study, each) for each in complete]
    missing = missing_items([base, *models])
    if missing:  # what is compared has the same items
        base, *models = (each.without_items(missing) for each in (base, *models))
    notes = tuple(left_out_warnings(missing))
    return Judgements(study, [base, *models], left_out, notes)


def _with_enough_items(
    folder: StudyFolder, study: StudyRecord
) -> tuple[StudyRecord, dict[str, str]]:
    """The study without tasks of which fewer than two items were scored, and these."""
    few: dict[str, str] = {}
    for task in study.scored_tasks():
        record = folder.earlier_evaluation(BASE, task)
        if record is not None and record.num_examples < MIN_ITEMS:
            few[task] = f"has {record.num_examples} item, and differences need {MIN_ITEMS}"
    study = study.without(few)
    for source, relations in study.tasks.items():
        if not relations.get("in_domain"):
            raise RecordError(
                f"{source} cannot be judged: its task in-domain {next(iter(few.values()))}. "
                "Give it more items (evaluation.limit, or train.held_out_fraction of your own "
                "data) in another --study-dir."
            )
    return study, few


def left_of(folder: StudyFolder, study: StudyRecord, planned: PlannedRun) -> str | None:
    """What a run lacks, in words; None where it is trained and scored, or has diverged."""
    run = folder.finished_run(planned)
    if run is None:
        return "is not trained"
    lacks = () if run.status == "diverged" else unscored(folder, study, planned)
    return f"is not scored on {', '.join(lacks)}" if lacks else None


def unscored(folder: StudyFolder, study: StudyRecord, planned: PlannedRun | None) -> list[str]:
    """The tasks without a score of a model under the study's present settings."""
    name = BASE if planned is None else planned.name
    return [
        task
        for task in study.tasks_of(planned)
        if not folder.is_finished(
            folder.evaluation_file(name, task),
            TaskEvaluation,
            scoring_fingerprint(study, planned, task),
        )
    ]


def read_model(
    folder: StudyFolder,
    study: StudyRecord,
    planned: PlannedRun | None,
    tasks: Iterable[str] | None = None,
) -> ModelResults:
    """Everything measured on a trained model, or on the base (None).

    ``tasks`` are those whose scores are wanted; None: all. A run that diverged has none.
    """
    run = None
    if planned is not None:
        run = folder.finished_run(planned)
        assert run is not None
        # a run that a search chose was trained as one of its candidates, and one on all rows may
        # have been trained before there were more
        now = run.planned.model_copy(update={"role": planned.role, "of": planned.of})
        run = run.model_copy(update={"planned": now})
    tasks = study.tasks_of(planned) if tasks is None else tasks
    if run is not None and run.status == "diverged":
        tasks = ()
    name, planned = (BASE, None) if run is None else (run.planned.name, run.planned)
    evaluations = {
        task: folder.read(folder.evaluation_file(name, task), TaskEvaluation) for task in tasks
    }
    config = study.config.evaluation
    fields = cluster_fields(config.clusters, study)
    judged = {
        task: read_judged(folder, record, config.metric_of(task), fields.get(task), config.slice)
        for task, record in evaluations.items()
    }
    if run is None:
        judged = linked(judged)
    measured: dict[str, Any] = {}
    for kind in KINDS:
        measured |= kind.results(folder, study, planned)
    effects = () if run is None else folder.head_effects(study, name)
    return ModelResults.of(
        name,
        run,
        judged,
        head_effects=of_most_items(effects),
        adapter_repair=run and folder.adapter_repair(study, run.planned),
        **measured,
    )
