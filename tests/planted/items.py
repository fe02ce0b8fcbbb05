"""Items with planted outcomes, and the page of a planted study that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankwise.findings.item_table import Answers, ItemTable, ShownItem, ShownModel, ShownTask
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import study_findings
from rankwise.records.results import StudyResults
from rankwise.report.page import write_report
from tests.planted.results import planted_study

MODELS = [ShownModel("base", "base"), ShownModel("rank 4", 4), ShownModel("rank 64", 64),
          ShownModel("full fine-tuning", "full")]  # fmt: skip
TASKS = [ShownTask("capitals", "retention"), ShownTask("kinship", "in_domain")]

# base, rank 4, rank 64, full; c is right as trained
OUTCOMES = ["1000", "1110", "1111", "0011", "0111", "0101", "0000", "1c11"]


def planted_items(
    outcomes: Sequence[str] = OUTCOMES,
    prompts: Sequence[str] | None = None,
    *,
    models: Sequence[ShownModel] = MODELS,
    tasks: Sequence[ShownTask] = TASKS,
) -> ItemTable:
    """Items by the outcome of each model, such as 1011; all are of the first task but the last."""
    asked = prompts or [f"question {number}" for number in range(len(outcomes))]
    items = [
        ShownItem(int(number == len(asked) - 1), number, text, "yes", ("no", "yes"))
        for number, text in enumerate(asked)
    ]
    answers = [
        Answers(
            [each[model] == "1" for each in outcomes],
            [1.0 if each[model] == "1" else -1.0 for each in outcomes],
            [1 if each[model] == "1" else 0 for each in outcomes],
            [each[model] == "c" for each in outcomes],
        )
        for model in range(len(models))
    ]
    return ItemTable(list(models), list(tasks), items, answers)


def written(
    folder: Path, items: ItemTable | None = None, results: StudyResults | None = None
) -> Path:
    """The page of a planted study."""
    results = results or planted_study()
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    return write_report(folder, results, recommendation, findings, items)
