"""Reading a study folder back: everything that is finished, as findings and the report need it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterable, Iterator

from rankwise.errors import RankwiseError, RecordError
from rankwise.records.behaviour import Behaviour
from rankwise.records.clusters import (
    candidate_fields,
    cluster_fields,
    cluster_numbers,
    linked_clusters,
    ties_of,
)
from rankwise.records.deployment import FormRecord
from rankwise.records.files import read_record
from rankwise.records.fingerprints import (
    behaviour_fingerprint,
    divergence_fingerprint,
    form_fingerprint,
    gauges_fingerprint,
    head_changes_fingerprint,
    scoring_fingerprint,
    spectra_fingerprint,
)
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.forms import model_in_form
from rankwise.records.heads import HeadChanges, of_most_items
from rankwise.records.results import (
    Divergence,
    FormResults,
    JudgedItems,
    ModelResults,
    StudyResults,
    judged_items,
)
from rankwise.records.search import SearchRecord
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import (
    COMPARED,
    PlannedRun,
    RunRecord,
    StudyRecord,
    TaskEvaluation,
)

MIN_ITEMS = 2
"""Of a scored task: a difference of one item has no standard error."""

_SHOW_LEFT = "`rankwise status` shows what is left"


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
    with without_collections():
        return _results(folder, folder.read_study() if study is None else study)


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


def _results(folder: StudyFolder, study: StudyRecord) -> StudyResults:
    unscored = _unscored(folder, study, None)
    if unscored:
        raise RecordError(
            f"the base model of {folder.root} is not scored on {', '.join(unscored)} yet: "
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
    clusters = {
        task: dict(zip(items.doc_ids, items.clusters, strict=True))
        for task, items in base.items.items()
        if items.clusters is not None
    }
    return StudyResults(
        study=study,
        base=base,
        models=tuple(
            read_model(folder, study, planned).in_clusters(clusters) for planned in complete
        ),
        search=folder.read_if_there(folder.search_file, SearchRecord),
        failures=folder.failures(),
        stacks=folder.accepted_stacks().stacks,
        left_out=left_out,
    )


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
    unscored = () if run.status == "diverged" else _unscored(folder, study, planned)
    return f"is not scored on {', '.join(unscored)}" if unscored else None


def _unscored(folder: StudyFolder, study: StudyRecord, planned: PlannedRun | None) -> list[str]:
    """The tasks without a score of a model under the study's present settings."""
    name, model = BASE, study.base_model_fingerprint
    if planned is not None:
        name, model = planned.name, planned.fingerprint
    return [
        task
        for task in study.tasks_of(planned)
        if not folder.is_finished(
            folder.evaluation_file(name, task),
            TaskEvaluation,
            scoring_fingerprint(study, model, task),
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
    run = None if planned is None else folder.finished_run(planned)
    assert planned is None or run is not None
    if run is not None and planned is not None:
        # a run that a search chose was trained as one of its candidates
        now = run.planned.model_copy(update={"role": planned.role})
        run = run.model_copy(update={"planned": now})
    tasks = study.tasks_of(planned) if tasks is None else tasks
    if run is not None and run.status == "diverged":
        tasks = ()
    return _model_results(folder, study, BASE if run is None else run.planned.name, run, tasks)


def _model_results(
    folder: StudyFolder, study: StudyRecord, name: str, run: RunRecord | None, tasks: Iterable[str]
) -> ModelResults:
    evaluations = {
        task: read_record(folder.evaluation_file(name, task), TaskEvaluation) for task in tasks
    }
    model = study.base_model_fingerprint if run is None else run.planned.fingerprint
    fields = cluster_fields(study.config.evaluation.clusters, study)
    judged = {
        task: read_judged(folder, record, study.config.evaluation.metric_of(task), fields.get(task))
        for task, record in evaluations.items()
    }
    if run is None:
        named = {t: each.items.clusters for t, each in judged.items() if each.items.clusters}
        linked = linked_clusters({task: each.ties for task, each in judged.items()}, named)
        judged = {t: each.with_items(clusters=linked[t]) for t, each in judged.items()}
    full_runs = study.full_runs_compared if run is None else (study.full_run_of(run.planned),)
    found = [
        folder.finished(
            folder.divergence_file(name, full.name),
            Divergence,
            divergence_fingerprint(study, model, full),
        )
        for full in full_runs
        if full is not None
    ]
    effects = () if run is None else folder.head_effects(study, name)
    repair = None if run is None else folder.head_repair(name)
    if repair is not None and not {each.fingerprint for each in effects} >= {*repair.effects}:
        repair = None  # made from what is no longer so
    return ModelResults(
        name=name,
        run=run,
        evaluations={task: each.record for task, each in judged.items()},
        items={task: each.items for task, each in judged.items()},
        divergences=tuple(each for each in found if each is not None),
        from_base=run
        and folder.finished(
            folder.gauges_file(name), Divergence, gauges_fingerprint(study, run.planned)
        ),
        behaviour=folder.finished(
            folder.behaviour_file(name), Behaviour, behaviour_fingerprint(study, model)
        ),
        spectra=run
        and folder.finished(
            folder.spectra_file(name), SpectraRecord, spectra_fingerprint(study, run.planned)
        ),
        head_changes=run
        and folder.finished(
            folder.head_changes_file(name),
            HeadChanges,
            head_changes_fingerprint(study, run.planned),
        ),
        head_effects=of_most_items(effects),
        head_repair=repair,
        adapter_repair=run and folder.adapter_repair(study, run.planned),
        forms=() if run is None else tuple(_forms(folder, study, run.planned)),
    )


def _forms(folder: StudyFolder, study: StudyRecord, run: PlannedRun) -> Iterator[FormResults]:
    """A run in the forms in which it was checked, under the study's present settings."""
    for form in study.forms:
        path = folder.form_file(run.name, form)
        record = folder.finished(path, FormRecord, form_fingerprint(study, run, form))
        name, metric_of = model_in_form(run.name, form), study.config.evaluation.metric_of
        files = {
            task: folder.evaluation_file(name, task)
            for task in study.compared_tasks(run.train_task)
        }
        if record is None or not all(map(folder.has, files.values())):
            continue
        judged = {
            task: read_judged(folder, folder.read(file, TaskEvaluation), metric_of(task))
            for task, file in files.items()
        }
        scores = ModelResults(
            name=form,
            run=None,
            evaluations={task: each.record for task, each in judged.items()},
            items={task: each.items for task, each in judged.items()},
        )
        yield FormResults(record=record, scores=scores)


def read_judged(
    folder: StudyFolder,
    record: TaskEvaluation,
    metric: str | None = None,
    cluster_field: str | None = None,
) -> JudgedItems:
    """A scoring's items by the metric that decides; the base's with all that may cluster them.

    Args:
        folder: of the study.
        record: of the scoring.
        metric: the configured metric; None: see ``judged_items``.
        cluster_field: of the documents, which numbers their clusters; None: candidates are
            looked for.

    Raises:
        RecordError: the items cannot be read, or are not those of the record.
        TaskError: the documents have no such field.
    """
    path = folder.samples_file(record.model, record.task)
    samples = folder.read_samples(record.model, record.task, record)
    samples = [line for line in samples if line.get("filter") == record.decision_filter]
    again = f"Run the study again: {record.model} is scored on {record.task} again."
    if len(samples) != record.num_examples:
        raise RecordError(
            f"{path} has {len(samples)} items and its record {record.num_examples}. {again}"
        )
    try:
        judged = judged_items(record, samples, metric)
        documents = {int(line["doc_id"]): line.get("doc") for line in samples}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, RankwiseError):
            raise
        problem = f"an item lacks or spoils {error}"
        raise RecordError(f"{path} cannot be read: {problem}. {again}") from error
    if record.model != BASE:  # the other models have the same documents
        return judged
    judged = judged._replace(ties=ties_of(samples))
    if cluster_field is None:
        return judged.with_items(candidates=candidate_fields(documents))
    setting = f"evaluation.clusters.{record.task.partition('@')[0]}"
    numbers = cluster_numbers(documents, cluster_field, setting, record.task)
    return judged.with_items(clusters=numbers)
