"""Reading the items of a scoring back, by the metric that decides."""

from __future__ import annotations

from rankwise.errors import RankwiseError, RecordError
from rankwise.records.clusters import candidate_fields, cluster_numbers, ties_of
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.results import JudgedItems, judged_items
from rankwise.records.study import TaskEvaluation


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
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, RankwiseError):
            raise
        problem = f"an item lacks or spoils {error}"
        raise RecordError(f"{path} cannot be read: {problem}. {again}") from error
    if record.model != BASE:  # the other models have the same documents
        return judged
    judged = judged._replace(ties=ties_of(samples))
    documents = {int(line["doc_id"]): line.get("doc") for line in samples}
    if cluster_field is None:
        return judged.with_items(candidates=candidate_fields(documents))
    setting = f"evaluation.clusters.{record.task.partition('@')[0]}"
    numbers = cluster_numbers(documents, cluster_field, setting, record.task)
    return judged.with_items(clusters=numbers)
