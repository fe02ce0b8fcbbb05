"""Reading the items of a scoring back, by the metric that decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rankwise.errors import RankwiseError, RecordError
from rankwise.records.clusters import candidate_fields, cluster_numbers, linked_clusters, ties_of
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.p_right import Line
from rankwise.records.results import JudgedItems, ModelResults, answered, judged_items
from rankwise.records.study import TaskEvaluation


def read_judged(
    folder: StudyFolder,
    record: TaskEvaluation,
    metric: str | None = None,
    cluster_field: str | None = None,
    slice_field: str | None = None,
) -> JudgedItems:
    """A scoring's items by the metric that decides; the base's with all that may cluster them.

    Args:
        folder: of the study.
        record: of the scoring.
        metric: the configured metric; None: see ``judged_items``.
        cluster_field: of the documents, which numbers their clusters; None: candidates are
            looked for.
        slice_field: of the documents, by whose values changes are shown.

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
        return judged_lines(record, samples, metric, cluster_field, slice_field)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, RankwiseError):
            raise
        problem = f"an item lacks or spoils {error}"
        raise RecordError(f"{path} cannot be read: {problem}. {again}") from error


def judged_lines(
    record: TaskEvaluation,
    samples: Sequence[Line],
    metric: str | None = None,
    cluster_field: str | None = None,
    slice_field: str | None = None,
) -> JudgedItems:
    """The same from the lines of the filter that decides.

    Raises:
        RecordError: p(right) was asked for, and the samples do not tell it.
        TaskError: the documents have no such field.
    """
    judged = judged_items(record, samples, metric)
    if record.model != BASE:  # the other models have the same documents
        return judged
    samples = answered(record, samples)
    documents = {int(line["doc_id"]): line.get("doc") for line in samples}
    judged = judged._replace(ties=ties_of(samples))
    if slice_field is not None:
        kinds = [
            doc.get(slice_field) if isinstance(doc, Mapping) else None for doc in documents.values()
        ]
        if None not in kinds:
            judged = judged.with_items(slices=tuple(map(str, kinds)))
    if cluster_field is None:
        return judged.with_items(candidates=candidate_fields(documents))
    setting = f"evaluation.clusters.{record.task.partition('@')[0]}"
    numbers = cluster_numbers(documents, cluster_field, setting, record.task)
    return judged.with_items(clusters=numbers)


def linked(judged: Mapping[str, JudgedItems]) -> dict[str, JudgedItems]:
    """The base's tasks with the clusters that their items are in, over all of them."""
    named = {task: each.items.clusters for task, each in judged.items() if each.items.clusters}
    clusters = linked_clusters({task: each.ties for task, each in judged.items()}, named)
    return {task: each.with_items(clusters=clusters[task]) for task, each in judged.items()}


def in_clusters_of(base: ModelResults, models: Iterable[ModelResults]) -> tuple[ModelResults, ...]:
    """The models with the clusters of the base's items."""
    clusters = {
        task: dict(zip(items.doc_ids, items.clusters, strict=True))
        for task, items in base.items.items()
        if items.clusters is not None
    }
    return tuple(model.in_clusters(clusters) for model in models)
