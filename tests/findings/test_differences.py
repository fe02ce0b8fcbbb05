"""One number has one interval, whichever table it stands in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from rankwise.report.page import study_tables
from rankwise.scores.asked import Asked
from rankwise.scores.reading import rows_given
from rankwise.scores.study import scored_study
from rankwise.study.conclusion import StudyOutcome, concluded
from tests.planted.score_tables import Row

TASKS = {"a": "in_domain", "b": "out_of_domain", "c": "retention", "d": "retention"}
MOVED = {"base": 0.0, "r4": 0.02, "r16": 0.05, "full": 0.3}
"""How far each model moves the scores, which are shares: their item sizes differ by as much."""


@pytest.fixture(scope="module")
def outcome() -> StudyOutcome:
    rng, rows = np.random.default_rng(3), list[Row]()
    for task in TASKS:
        base = rng.uniform(0.35, 0.65, 60)
        for model, sd in MOVED.items():
            values = (base + rng.normal(-sd, sd / 2, 60)).clip(0, 1)
            rows += [
                {"id": place, "model": model, "task": task, "f1": value}
                for place, value in enumerate(values.tolist())
            ]
    asked = Asked(in_domain=("a",), out_of_domain=("b",), retention=("c", "d"))
    return concluded(scored_study(rows_given(rows, asked), asked, "scores").results())


def intervals(outcome: StudyOutcome) -> Iterator[tuple[str, tuple[str, str], tuple[float, float]]]:
    """Table, model and task, and the bounds of its change from the base."""
    tables = study_tables(*outcome)
    for row in tables["differences"]:
        model = row["run"].rpartition("-")[0]
        bounds = row["difference_lower"], row["difference_upper"]
        yield "differences", (model, row["task"]), bounds
    called = {"rank 4": "r4", "rank 16": "r16", "full fine-tuning": "full"}
    for row in tables["transfer"]:
        bounds = row["change_lower"], row["change_upper"]
        yield "transfer", (called[row["label"]], row["test"]), bounds
    for row in tables["retention"]:
        if row["name"] in TASKS:
            bounds = row["change_lower"], row["change_upper"]
            yield "retention", (called[row["label"]], row["name"]), bounds
    for row in tables["runs"]:
        model = row["run"].rpartition("-")[0]
        if model:  # the base has no gain
            yield "runs", (model, "a"), (row["gain_lower"], row["gain_upper"])
    for row in tables["signatures"]:
        if row["name"] == "negative_transfer":  # a loss
            yield "signatures", (called[row["label"]], row["task"]), (-row["upper"], -row["lower"])


def test_the_interval_of_a_number_is_the_same_in_every_table(outcome: StudyOutcome) -> None:
    found = list(intervals(outcome))
    alone = {of: bounds for table, of, bounds in found if table == "differences"}
    for table, of, bounds in found:
        assert bounds == pytest.approx(alone[of], rel=1e-12), (table, of)
    assert {table for table, *_ in found} == {
        "differences", "transfer", "retention", "runs", "signatures",
    }  # fmt: skip
