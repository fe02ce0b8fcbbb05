"""Planted results as the folder of a finished study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults, TaskItems
from rankwise.records.study import TaskEvaluation


def samples_of(
    evaluation: TaskEvaluation, items: TaskItems, documents: Sequence[Any] | None = None
) -> list[dict[str, Any]]:
    """The lines of a samples file; without documents they have no ``doc``."""
    choices = items.choices or [0] * len(items.values)
    lines: list[dict[str, Any]] = [
        {
            "doc_id": index,
            "filter": evaluation.decision_filter,
            evaluation.decision_metric: value,
            "num_loss_tokens": 8,  # a power of two: scaling by it is exact
            "metrics": [evaluation.decision_metric],
            "resps": [[[-1.0 if option == choice else -2.0, False]] for option in range(4)],
        }
        for index, (value, choice) in enumerate(zip(items.values, choices, strict=True))
    ]
    if documents is not None:
        for line, document in zip(lines, documents, strict=True):
            line["doc"] = document
    return lines


def write_study(
    folder: StudyFolder, results: StudyResults, documents: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Write the records and samples; ``documents`` are those of a task."""
    folder.write(folder.study_file, results.study)
    for model in (results.base, *results.runs):
        if model.run is not None:
            folder.write(folder.run_file(model.name), model.run)
        for task, evaluation in model.evaluations.items():
            its = (documents or {}).get(task)
            folder.write_evaluation(evaluation, samples_of(evaluation, model.items[task], its))
