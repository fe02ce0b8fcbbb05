"""The course of a search on the page."""

from __future__ import annotations

from rankwise.findings.tuning import tuned_rates
from rankwise.records.results import StudyResults
from rankwise.records.search import (
    GrowthDecision,
    SearchDecision,
    SearchRecord,
    SearchRuling,
    SearchSetting,
    Shown,
    TrainTaskSearch,
)
from rankwise.records.study import Interval
from rankwise.report.sections.search import search_section
from tests.planted.results import planted_study
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows


def shown(rank: int, rate: float, share: float, gain: float | None) -> Shown:
    return Shown(
        run=f"r{rank}-{rate:g}-{share:g}",
        setting=f"rank {rank}",
        rank=rank,
        learning_rate=rate,
        seed=0,
        share=share,
        num_tokens=1000,
        gain=None if gain is None else Interval(estimate=gain, lower=gain - 1.0, upper=gain + 1.0),
        retention_loss=None if gain is None else Interval(estimate=1.0, lower=0.0, upper=2.0),
    )


def searched() -> StudyResults:
    first = (shown(8, 1e-3, 0.25, 3.0), shown(8, 1e-2, 0.25, None), shown(32, 1e-3, 0.25, 9.0))
    decisions = (
        SearchDecision(
            statement="3 trainings go on.",
            shown=(),
            ruled_out=(),
            wanted=tuple(each.run for each in first),
            finalists=(),
        ),
        SearchDecision(
            statement="rank 8 is ruled out: it is behind.",
            shown=first,
            ruled_out=(SearchRuling(setting="rank 8", learning_rate=None, reason="it is behind"),),
            wanted=("r32-0.001-1",),
            finalists=(),
        ),
        SearchDecision(
            statement="Left: rank 32.",
            shown=(shown(32, 1e-3, 1.0, 12.0),),
            ruled_out=(),
            wanted=(),
            finalists=("r32-0.001-1",),
        ),
    )
    part = TrainTaskSearch(
        train_task="kinship",
        unit="points",
        num_items={"kinship": 50, "capitals": 40},
        delta=2.0,
        epsilon_points=2.0,
        settings=(SearchSetting(label="rank 8", rank=8), SearchSetting(label="rank 32", rank=32)),
        decisions=decisions,
    )
    growth = GrowthDecision(
        statement="Next: 2 times the items.",
        limit=200,
        num_seeds=1,
        probability=0.7,
        seconds_spent=10.0,
        seconds_expected=5.0,
    )
    record = SearchRecord(policy="narrow", by_train_task=(part,), growths=(growth,))
    return planted_study().model_copy(update={"search": record})


def test_a_study_without_a_search_has_no_such_section() -> None:
    assert search_section((), planted_study()) is None


def test_every_decision_and_every_growth_is_said(sentence: Sentences) -> None:
    section = search_section((), searched())
    assert section is not None
    sentence(section.remarks, names=("Rank 8", "rank 32", "2 times"))


def test_the_table_says_what_became_of_each_training() -> None:
    section = search_section((), searched())
    assert section is not None
    (titled,) = section.tables
    rows = [[cell.value for cell in row] for group in titled.table.groups for row in group.rows]
    assert [row[-1].endswith("it is behind") for row in rows] == [True, True, False, False]
    assert [bool(row[-1]) for row in rows] == [True, True, False, True]
    assert rows[1][3] == "diverged"
    found = csv_rows("search", searched())
    assert [row["gain"] for row in found] == ["3.0", "", "9.0", "12.0"]


def test_rates_are_spoken_of_where_they_are_tuned() -> None:
    results = searched()
    assert tuned_rates(results) == ()
    rate = results.study.config.train.learning_rate.model_copy(update={"tune": True})
    train = results.study.config.train.model_copy(update={"learning_rate": rate})
    config = results.study.config.model_copy(update={"train": train})
    tuned = results.model_copy(
        update={"study": results.study.model_copy(update={"config": config})}
    )
    (found,) = tuned_rates(tuned)
    section = search_section([found], tuned)
    assert section is not None
    (figure,) = section.figures
    assert figure.name == "search-rates"
    assert found.statement in figure.caption
