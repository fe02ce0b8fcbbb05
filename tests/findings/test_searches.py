"""What is said of searches: step size against rank, by planted gains."""

from __future__ import annotations

from rankwise.findings.recommendation import recommend
from rankwise.findings.statements import headline
from rankwise.findings.tuning import TrainTaskRates, _rates
from rankwise.records.search import (
    SearchDecision,
    SearchRecord,
    SearchRuling,
    SearchSetting,
    Shown,
    TrainTaskSearch,
)
from rankwise.records.study import Interval
from tests.planted.results import planted_study
from tests.support.sentences import Sentences


def shown(rank: int, rate: float, gain: float, share: float = 0.25) -> Shown:
    return Shown(
        run=f"r{rank}-{rate}-{share}",
        setting=f"rank {rank}",
        rank=rank,
        learning_rate=rate,
        seed=0,
        share=share,
        num_tokens=100,
        gain=Interval(estimate=gain, lower=gain - 2.0, upper=gain + 2.0),
        retention_loss=None,
    )


def rates_of(*points: Shown) -> TrainTaskRates:
    decision = SearchDecision(
        statement="s", shown=points, ruled_out=(), wanted=(), finalists=("r8-1.0-0.25",)
    )
    settings = tuple(
        SearchSetting(label=f"rank {rank}", rank=rank) for rank in {p.rank for p in points}
    )
    found = _rates(
        TrainTaskSearch(
            train_task="t",
            unit="points",
            num_items={"t": 50},
            delta=1.0,
            epsilon_points=None,
            settings=settings,
            decisions=(decision,),
        )
    )
    assert found is not None
    return found


def test_an_effect_of_step_size_alone_is_said_to_be_one(sentence: Sentences) -> None:
    # at its own rate every rank gains 10; at the common rate 1.0 the larger one is far off
    found = rates_of(
        shown(8, 1.0, 10.0), shown(8, 0.5, 6.0), shown(64, 1.0, 2.0), shown(64, 0.5, 10.0)
    )
    assert [point.learning_rate for point in found.own] == [1.0, 0.5]
    # the one rate that is best on average is 0.5: (6 + 10) / 2
    assert {point.learning_rate for point in found.common} == {0.5}
    assert [point.gain.estimate for point in found.common] == [6.0, 10.0]
    assert found.own_spread == 0.0
    sentence(found.statement, names=("4.0", "5e-1", "100"))


def test_an_effect_of_rank_that_no_rate_removes(sentence: Sentences) -> None:
    found = rates_of(
        shown(8, 1.0, 2.0), shown(8, 0.5, 1.0), shown(64, 1.0, 9.0), shown(64, 0.5, 8.0)
    )
    sentence(found.statement)


def test_only_the_first_comparison_counts_where_all_rates_are_left() -> None:
    found = rates_of(
        shown(8, 1.0, 3.0),
        shown(8, 0.5, 1.0),
        shown(64, 1.0, 4.0),
        shown(64, 0.5, 1.0),
        shown(8, 1.0, 30.0, share=1.0),
        shown(64, 1.0, 90.0, share=1.0),
    )
    assert found.share == 0.25
    assert [point.gain.estimate for point in found.own] == [3.0, 4.0]


def test_noise_is_no_effect(sentence: Sentences) -> None:
    found = rates_of(
        shown(8, 1.0, 3.0), shown(8, 0.5, 3.0), shown(64, 1.0, 5.5), shown(64, 0.5, 3.0)
    )
    sentence(found.statement)


def test_own_rates_that_tell_ranks_apart_are_no_noise(sentence: Sentences) -> None:
    """All alike at the common rate, and 15 points apart where each has its own."""
    found = rates_of(
        shown(8, 1.0, 5.0), shown(8, 0.5, -12.0), shown(64, 1.0, 6.0), shown(64, 0.5, 20.0)
    )
    sentence(found.statement, names=("1.0", "15.0"))


def test_ranks_without_a_rate_in_common(sentence: Sentences) -> None:
    found = rates_of(shown(8, 1.0, 3.0), shown(64, 0.5, 4.0))
    assert found.common == ()
    sentence(found.statement)


def test_a_best_rate_at_the_edge_is_named() -> None:
    found = rates_of(
        shown(8, 1.0, 3.0), shown(8, 0.5, 5.0), shown(8, 0.25, 1.0),
        shown(64, 1.0, 9.0), shown(64, 0.5, 5.0), shown(64, 0.25, 1.0),
    )  # fmt: skip
    assert found.at_the_edge == ("rank 64",)


def searched(num_left_out: int, num_untried: int) -> str:
    """Of a study of rank 8 alone, whose search ruled ranks out and did not come to others."""
    ruled, untried = list(range(2, 2 + num_left_out)), list(range(64, 64 + num_untried))
    settings = [SearchSetting(label=f"rank {r}", rank=r) for r in (*ruled, 8, *untried)]
    decision = SearchDecision(
        statement="s",
        shown=tuple(shown(rank, 1.0, 1.0) for rank in (*ruled, 8)),
        ruled_out=tuple(
            SearchRuling(setting=f"rank {r}", learning_rate=None, reason="it forgets")
            for r in ruled
        ),
        wanted=(),
        finalists=("r8",),
    )
    results = planted_study({8: 0.9}, {8: 0.9})
    part = TrainTaskSearch(
        train_task=next(iter(results.study.tasks)),
        unit="points",
        num_items={"t": 50},
        delta=1.0,
        epsilon_points=None,
        settings=tuple(settings),
        decisions=(decision,),
    )
    record = SearchRecord(policy="ladder", by_train_task=(part,), seconds=1.0)
    (verdict,) = recommend(results.model_copy(update={"search": record})).by_train_task
    return f"{headline(verdict)}\n{verdict.statement}"


def test_what_a_search_left_out_and_what_it_did_not_train_are_told_apart(
    sentence: Sentences,
) -> None:
    sentence(searched(2, 1), "both", names=("Rank 2", "rank 3", "Rank 64"))
    assert "no other rank was tried" not in searched(1, 0)
    assert "no other rank was tried" in searched(0, 2)
    assert "Rank 64 and rank 65 were not trained, and not compared." in searched(0, 2)
    assert "search" not in searched(0, 0)
