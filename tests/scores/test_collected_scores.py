"""Scores of studies that were really trained: each run gains in a table what its study recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prediction.collected import CollectedStudy
from benchmarks.prediction.collection import SHIPPED, read_collection
from benchmarks.prediction.scores import at_one_rate, main, table_of
from rankwise.scores.asked import Asked
from rankwise.scores.reading import rows_given
from rankwise.scores.study import scored_study
from rankwise.study.conclusion import concluded
from tests.planted.score_tables import Row

STUDIES = {study.file_name.rpartition("-")[0]: study for study in read_collection(SHIPPED)}
ROUNDED = 0.06
"""Points: values are kept in thousandths of a share."""


def rows_of(study: CollectedStudy) -> list[Row]:
    return [
        {key: value for key, value in row.items() if key != "correct"} for row in table_of(study)
    ]


@pytest.mark.parametrize("name", ["local_sciq-160", "kinship-40", "local_overruling-160"])
def test_each_run_gains_and_keeps_what_its_study_recorded(name: str) -> None:
    study = STUDIES[name]
    kept = tuple(items.task for items in study.items_of("retention"))
    asked = Asked(retention=kept)
    results = scored_study(rows_given(rows_of(study), asked), asked, name).results()
    (part,) = concluded(results).recommendation.by_train_task
    found = {(row.run, row.task): row for row in part.comparisons}
    assert len(results.runs) == len(study.runs)
    plans = {
        (plan.rank, plan.learning_rate, plan.seed): plan.name
        for run in results.runs
        if run.run and (plan := run.run.planned)
    }
    for run in study.runs:
        named = plans[run.rank, run.learning_rate, run.seed]
        for task, change in run.tasks.items():
            if (named, task) in found:
                # its error is another: the study knew which items share a text
                difference = found[named, task].difference.estimate
                assert difference == pytest.approx(change.estimate, abs=ROUNDED)


def test_the_guides_file_is_that_of_the_collection(tmp_path: Path) -> None:
    main("local_sciq-160", str(tmp_path / "sciq.csv"))
    shipped = Path(__file__).resolve().parents[2] / "docs" / "scores" / "sciq.csv"
    assert (tmp_path / "sciq.csv").read_text() == shipped.read_text()
    assert len({run.learning_rate for run in at_one_rate(STUDIES["local_sciq-160"]).runs}) == 7
