"""What buys most: planted gains of rows, rank and rate, learning curves, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from rankwise.findings.doubling import TrainTaskDoubling, doubling
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import finding_tables, study_findings
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun
from rankwise.report.sections.doubling import doubling_section
from tests.planted.grid import grid_run, planted_grid, relations

BASE, RETAINED, MOST = 0.2, 0.8, 480


def on_rows(run: PlannedRun, number: int) -> PlannedRun:
    changed = {
        "name": f"{run.name}-n{number}",
        "fingerprint": f"{run.fingerprint}{number}",
        "role": "fewer_rows",
        "of": run.as_whole,
        "num_examples": number,
        "num_steps": number // 8,
    }
    return run.model_copy(update=changed)


def planted(
    gain: Callable[[PlannedRun], float],
    *,
    rows: Sequence[int] = (120, 240),
    ranks: Sequence[int] = (4, 8, 16),
    rates: Sequence[str] = ("2e-4", "4e-4"),
    seeds: Sequence[int] = (0, 1),
    noise: float = 0.0,
    is_diverged: Callable[[PlannedRun], bool] = lambda _: False,
) -> StudyResults:
    """Every rank and rate on fewer rows and on 480; the gain of each is known."""
    whole = [
        grid_run("sums", rank, rate_labels=(rate,), seed=seed)
        for rank in ranks
        for rate in rates
        for seed in seeds
    ]
    plans = [*whole, *(on_rows(run, number) for run in whole for number in rows)]

    def score(plan: PlannedRun | None, task: str) -> float:
        if task != "sums":
            return RETAINED
        return BASE if plan is None else BASE + gain(plan)

    return planted_grid(
        plans,
        {"sums": relations(["sums"], (), ["capitals"])},
        score,
        sizes=1000,
        noise=noise,
        diverged=[plan.name for plan in plans if is_diverged(plan)],
    )


def found(results: StudyResults) -> TrainTaskDoubling | None:
    (source,) = option_gains(results)
    return doubling(source, recommend(results).by_train_task[0])


def of(results: StudyResults) -> TrainTaskDoubling:
    one = found(results)
    assert one is not None
    return one


def doublings_of(plan: PlannedRun) -> tuple[float, float, float]:
    """Of rows, of rank and of the rate, from the smallest of each."""
    assert plan.rank is not None
    assert plan.learning_rate is not None
    return (
        math.log2(plan.num_examples / 120),
        math.log2(plan.rank / 4),
        math.log2(plan.learning_rate / 2e-4),
    )


def additive(plan: PlannedRun) -> float:
    """8 points for each doubling of the rows, 2 of the rank, 4 of the rate."""
    rows, rank, rate = doublings_of(plan)
    return 0.08 * rows + 0.02 * rank + 0.04 * rate


def test_every_doubling_begins_at_the_middle_and_has_its_planted_gain() -> None:
    one = of(planted(additive))
    assert one.middle == "rank 8, rate 2e-4, 240 rows"
    assert [(each.of, each.before, each.after) for each in one.doublings] == [
        ("rows", "240", "480"),
        ("rank", "8", "16"),
        ("learning rate", "2e-4", "4e-4"),
    ]
    assert [each.gain.estimate for each in one.doublings] == pytest.approx([8.0, 2.0, 4.0])
    for each in one.doublings:
        assert each.gain.lower < each.gain.estimate < each.gain.upper


def test_a_step_of_two_doublings_counts_half_of_its_gain() -> None:
    one = of(planted(additive, rows=(30, 120), ranks=(4, 16), rates=("2e-4",)))
    assert one.middle == "rank 4, 120 rows"
    assert [each.num_doublings for each in one.doublings] == [2.0, 2.0]
    assert [each.gain.estimate for each in one.doublings] == pytest.approx([8.0, 2.0])


def test_what_gains_more_is_paired_and_corrected() -> None:
    one = of(planted(additive))
    leads = {(each.of, each.than): each for each in one.compared}
    assert {*leads} == {("rows", "rank"), ("rows", "learning rate"), ("learning rate", "rank")}
    assert leads["rows", "rank"].difference.estimate == pytest.approx(6.0)
    assert all(each.is_shown == (each.holm_p_value < 0.05) for each in one.compared)
    assert one.rows_over_rank == leads["rows", "rank"]


def test_the_card_says_when_rows_gain_more_than_rank() -> None:
    def card(gain: Callable[[PlannedRun], float]) -> str:
        results = planted(gain)
        return study_findings(results, recommend(results)).cards[0].remark

    assert "Twice the rows gain more than twice the rank: by +6.0 points" in card(additive)

    def by_rank(plan: PlannedRun) -> float:
        rows, rank, rate = doublings_of(plan)
        return 0.02 * rows + 0.08 * rank + 0.04 * rate

    assert "Twice the rows" not in card(by_rank)


def test_a_difference_in_the_noise_is_not_shown() -> None:
    def alike(plan: PlannedRun) -> float:
        rows, rank, _ = doublings_of(plan)
        return 0.02 * (rows + rank)

    one = of(planted(alike, noise=0.3))
    assert not any(each.is_shown for each in one.compared)
    assert one.rows_over_rank is None
    assert "Which of these doublings gains more is not shown." in one.statements


def test_what_a_study_does_not_vary_is_left_out() -> None:
    one = of(planted(additive, ranks=(8,), rates=("2e-4",)))
    assert [each.of for each in one.doublings] == ["rows"]
    assert one.compared == ()
    assert one.rank_by_rows is None


def test_without_fewer_rows_there_is_nothing() -> None:
    assert found(planted(additive, rows=())) is None


def test_a_larger_rank_that_helps_from_some_rows_on() -> None:
    def capacity(plan: PlannedRun) -> float:
        rows, rank, _ = doublings_of(plan)
        return 0.05 * rows + (0.05 * rank if plan.num_examples >= 240 else 0.0)

    by_rows = of(planted(capacity, rates=("2e-4",))).rank_by_rows
    assert by_rows is not None
    assert (by_rows.small, by_rows.large, by_rows.num_rows) == (4, 16, (120, 240, 480))
    assert [lead.estimate for lead in by_rows.leads] == pytest.approx([0.0, 10.0, 10.0])
    assert by_rows.interaction.estimate == pytest.approx(10.0)
    assert (by_rows.is_shown, by_rows.from_rows) == (True, 240)


def test_a_rank_that_helps_everywhere_shows_no_interaction() -> None:
    one = of(planted(additive, rates=("2e-4",)))
    by_rows = one.rank_by_rows
    assert by_rows is not None
    assert [lead.estimate for lead in by_rows.leads] == pytest.approx([4.0, 4.0, 4.0])
    assert (by_rows.is_shown, by_rows.from_rows) == (False, 120)
    assert one.statements[-1].startswith("Rank 16 gains more than rank 4 from 120 rows on.")
    assert one.statements[-1].endswith("that it changes with rows is not shown.")


def test_the_figure_has_two_numbers_of_rows_and_more() -> None:
    (figure,) = doubling_section([of(planted(additive, rows=(120,)))]).figures
    assert "Training rows (log scale)" in str(figure.drawing)


def test_a_setting_with_a_missing_seed_is_left_out() -> None:
    def is_diverged(plan: PlannedRun) -> bool:
        return (plan.rank, plan.num_examples, plan.seed) == (16, 120, 1)

    one = of(planted(additive, rates=("2e-4",), is_diverged=is_diverged))
    assert one.left_out == ("rank 16, 120 rows",)
    assert [p.num_rows for p in one.points if p.rank == 16] == [240, 480]
    by_rows = one.rank_by_rows
    assert by_rows is not None
    assert by_rows.num_rows == (240, 480)


def test_the_page_and_the_table_have_every_number() -> None:
    results = planted(additive)
    findings = study_findings(results, recommend(results))
    rows = finding_tables(findings, results)["doubling"]
    kinds = [row["what"] for row in rows]
    assert (kinds.count("doubling"), kinds.count("point")) == (3, 18)
    section = doubling_section(findings.doubling)
    assert [each.title for each in section.tables] == ["One doubling", "By number of rows"]
    assert [*findings.lines("sums")][-len(findings.doubling[0].statements) :] == [
        *findings.doubling[0].statements
    ]
