"""Lost items that come back in the trained format: counted by hand."""

from __future__ import annotations

import pytest
from statsmodels.stats.proportion import proportion_confint

from rankwise.findings.lost_items import TrainTaskLostItems, lost_items
from rankwise.findings.options import option_gains
from rankwise.records.results import ModelResults, StudyResults, TaskItems
from rankwise.report.sections.gauges import lost_item_section
from tests.planted.results import planted_evaluation, planted_study
from tests.support.tables import csv_rows

STANDARD, TRAINED = "capitals", "capitals@trained"
SIZE = 200


def items_of(task: str, right: list[bool], order: list[int]) -> TaskItems:
    return TaskItems(
        task=task,
        metric="acc",
        unit="points",
        higher_is_better=True,
        doc_ids=tuple(order),
        values=tuple(float(right[doc_id]) for doc_id in order),
    )


def study(num_back: int, num_kept_right: int = 36) -> StudyResults:
    """The base has items 0 to 99 right; the run loses 0 to 59, and has ``num_back`` of them back.

    In the trained format the run has ``num_kept_right`` of the 40 kept items right, and item 150
    that it never had.
    """
    results = planted_study({4: 0.8}, {4: 0.9})
    forwards, backwards = list(range(SIZE)), list(reversed(range(SIZE)))

    def changed(model: ModelResults) -> ModelResults:
        is_base = model.run is None
        right = [doc < 100 and (is_base or doc >= 60) for doc in range(SIZE)]
        there = [
            doc < num_back or 60 <= doc < 60 + num_kept_right or doc == 150 for doc in range(SIZE)
        ]
        own = {
            STANDARD: items_of(STANDARD, right, forwards),
            TRAINED: items_of(TRAINED, right if is_base else there, backwards),
        }
        evaluations = {
            name: planted_evaluation(model.name, i, model.run) for name, i in own.items()
        }
        return model.model_copy(
            update={"items": model.items | own, "evaluations": model.evaluations | evaluations}
        )

    formats = {"trained_formats": {"kinship": {STANDARD: TRAINED}}}
    return results.model_copy(
        update={
            "base": changed(results.base),
            "models": tuple(map(changed, results.runs)),
            "study": results.study.model_copy(update=formats),
        }
    )


def found(num_back: int, num_kept_right: int = 36) -> TrainTaskLostItems:
    (source,) = option_gains(study(num_back, num_kept_right))
    part = lost_items(source)
    assert part is not None
    return part


def test_lost_and_kept_items_are_counted_by_number() -> None:
    (row,) = found(45).rows
    assert (row.task, row.scored_as) == (STANDARD, TRAINED)
    assert (row.num_lost, row.num_back, row.num_kept, row.num_kept_right) == (60, 45, 40, 36)
    assert row.chance == 0.25
    assert row.share_back is not None
    assert row.share_back.estimate == 0.75
    lower, upper = proportion_confint(45, 60, alpha=0.05, method="wilson")
    assert (row.share_back.lower, row.share_back.upper) == pytest.approx((lower, upper))


@pytest.mark.parametrize(
    ("num_back", "words"),
    [
        (50, "most of the loss is one of format"),
        (15, "is not one of format"),
        (35, "cannot be told"),
    ],
)
def test_what_comes_back_is_set_against_kept_items_and_guessing(num_back: int, words: str) -> None:
    (statement,) = found(num_back).statements
    assert words in statement
    assert "90 %" in statement
    assert "25 %" in statement


@pytest.mark.parametrize(("num_back", "num_kept_right"), [(24, 8), (24, 12), (50, 10)])
def test_a_format_in_which_nothing_is_known_tells_nothing(
    num_back: int, num_kept_right: int
) -> None:
    """Of 40 kept items 8 to 12 are right, and guessing has a quarter: no format is known."""
    (statement,) = found(num_back, num_kept_right).statements
    assert "whether most of the loss is one of format cannot be told" in statement


def test_each_task_s_kept_items_count_as_its_lost_ones() -> None:
    """Kept items are mostly of a task that is well formatted, lost ones of another."""
    results = planted_study({4: 0.8}, {4: 0.9})
    # task -> kept items, those of them right in the trained format, lost items, those back
    planted = {"capitals": (900, 810, 100, 90), "elements": (100, 30, 900, 270)}

    def changed(model: ModelResults) -> ModelResults:
        own: dict[str, TaskItems] = {}
        for task, (kept, kept_right, lost, back) in planted.items():
            docs, is_base = range(kept + lost), model.run is None
            right = [is_base or doc < kept for doc in docs]
            there = [doc < kept_right or kept <= doc < kept + back for doc in docs]
            own[task] = items_of(task, right, [*docs])
            own[f"{task}@trained"] = items_of(f"{task}@trained", there, [*docs])
        evaluations = {
            name: planted_evaluation(model.name, i, model.run) for name, i in own.items()
        }
        return model.model_copy(
            update={"items": model.items | own, "evaluations": model.evaluations | evaluations}
        )

    formats = {"trained_formats": {"kinship": {task: f"{task}@trained" for task in planted}}}
    (source,) = option_gains(
        results.model_copy(
            update={
                "base": changed(results.base),
                "models": tuple(map(changed, results.runs)),
                "study": results.study.model_copy(update=formats),
            }
        )
    )
    part = lost_items(source)
    assert part is not None
    assert [(row.num_lost, row.kept_share) for row in part.rows] == [(100, 0.9), (900, 0.3)]
    # 360 of 1,000 are back: as many as 0.1 * 0.9 + 0.9 * 0.3 of them, though kept items have 0.84
    (statement,) = part.statements
    assert "would be 36 %" in statement
    assert "most of the loss is one of format" in statement


def test_a_run_that_lost_nothing_is_not_spoken_of() -> None:
    results = study(0)
    base = results.base.model_copy(
        update={
            "items": results.base.items
            | {STANDARD: items_of(STANDARD, [60 <= d < 100 for d in range(SIZE)], [*range(SIZE)])}
        }
    )
    (source,) = option_gains(results.model_copy(update={"base": base}))
    part = lost_items(source)
    assert part is not None
    assert (part.rows[0].num_lost, part.rows[0].share_back, part.statements) == (0, None, ())


def test_without_the_trained_format_there_is_nothing() -> None:
    (source,) = option_gains(planted_study({4: 0.8}, {4: 0.9}))
    assert lost_items(source) is None


def test_the_section_has_a_row_for_each_run_and_task() -> None:
    part = found(45)
    section = lost_item_section([part])
    (table,) = section.tables
    (row,) = table.table.groups[0].rows
    assert [str(cell) for cell in row][:4] == ["rank 4", STANDARD, "60", "45"]
    assert len(csv_rows("lost-items", planted_study(), lost_items=[part])) == 1
