"""What the weights of a study say, from planted spectra beside planted scores."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rankwise.findings.options import option_gains
from rankwise.findings.stats.correlation import rank_correlation
from rankwise.findings.weights import ALL_MODULES, Association, TrainTaskWeights, weight_findings
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import PlannedRun
from tests.planted.grid import grid_run, imported, planted_grid, relations
from tests.planted.results import planted_study
from tests.planted.weights import (
    FORGET,
    KINDS,
    NUM_MATRICES,
    RANKS,
    SAME,
    logarithmic,
    matrix,
    record,
    spectra,
    two_tasks,
    with_spectra,
)
from tests.support.sentences import Sentences

MANY = {2**power: 0.88 - 0.02 * power for power in range(9)}
"""Ranks 1 to 256, each of which keeps less than the one before."""


def found(results: StudyResults, of: Any = logarithmic) -> TrainTaskWeights:
    (source,) = option_gains(with_spectra(results, of))
    part = weight_findings(source)
    assert part is not None
    return part


def association(part: TrainTaskWeights, measure: str, forgetting: str) -> Association:
    (each,) = (a for a in part.associations if (a.measure, a.forgetting) == (measure, forgetting))
    return each


# runs


def test_a_run_is_all_its_matrices() -> None:
    norms = dict(zip(KINDS, (3.0, 4.0), strict=True))

    def of(run: PlannedRun) -> SpectraRecord:
        return spectra(run, lambda kind: norms[kind], intruders=2.0, similarity=0.7, overlap=0.4)

    run = found(planted_study({4: 0.7}), of).runs[0]
    assert (run.option.label, run.option.rank, run.num_matrices) == ("rank 4", 4, NUM_MATRICES)
    norm = math.sqrt(3 * 9 + 3 * 16)
    assert run.frobenius_norm == pytest.approx(norm)
    assert run.relative_norm == pytest.approx(norm / (50 * math.sqrt(6)))
    assert run.effective_rank == 4.5  # 3.5, 4.5 and 5.5 by layer
    assert run.energy_rank_99 == 5.0
    pair = run.intruders  # at k = 10, ε = 0.5, not at k = 50
    assert (pair.observed, pair.gaussian, pair.haar) == (12.0, 6.0, 3.0)
    pair = run.similarity
    assert (pair.observed, pair.gaussian, pair.haar) == pytest.approx((0.7, 0.4, 0.4))
    assert run.full_overlap == pytest.approx(0.4)
    assert run.full_overlap_expected == pytest.approx((4 / 64 + 4 / 48) / 2)


def test_without_nulls_or_a_full_run_there_is_nothing_beside_it() -> None:
    part = found(planted_study({4: 0.7}), lambda run: spectra(run, lambda _: 1.0, nulls=False))
    run = part.runs[0]
    assert run.intruders.gaussian is run.intruders.haar is None
    assert run.similarity.gaussian is run.similarity.haar is None
    assert run.full_overlap is run.full_overlap_expected is None


def test_one_zero_matrix_takes_a_run_s_nulls_and_nothing_else() -> None:
    def of(run: PlannedRun) -> SpectraRecord:
        whole = matrix("q_proj", 0, rank=4, norm=1.0, intruders=4.0)
        return record(run, (whole, matrix("q_proj", 1, rank=4, norm=0.0, nulls=False)))

    run = found(planted_study({4: 0.7}), of).runs[0]
    assert (run.intruders.observed, run.intruders.haar) == (4.0, None)
    assert run.frobenius_norm == 1.0


def test_forgetting_is_how_much_worse_than_the_base() -> None:
    results = planted_study(
        {4: 0.7, "full": 0.7},
        {4: 0.85, "full": 0.80},
        held_out_loss_nats={4: 2.53, "full": 2.75},
    )
    lora, full = found(results).runs
    assert lora.forgetting["retention loss"] == pytest.approx(5.0)  # of 90 %
    assert full.forgetting["retention loss"] == pytest.approx(10.0)
    assert lora.forgetting["loss on held-out text"] == pytest.approx(0.03)
    assert full.option.rank is None
    nothing = planted_study({4: 0.7}, retention_tasks=(), held_out_tasks=())
    assert found(nothing).runs[0].forgetting == {}
    assert found(nothing).associations == ()


# norms against rank


def test_a_planted_growth_is_found_by_module_and_over_all() -> None:
    part = found(planted_study(SAME))
    trends = {trend.module: trend for trend in part.norm_trends}
    assert list(trends) == [ALL_MODULES, *KINDS]
    attention, mlp = (trends[kind] for kind in KINDS)
    assert attention.ranks == RANKS
    assert attention.norms == pytest.approx(
        [math.sqrt(3) * (1 + 0.5 * math.log2(rank)) for rank in RANKS]
    )
    assert attention.logarithmic.slope.estimate == pytest.approx(0.5 * math.sqrt(3))
    assert attention.logarithmic.intercept == pytest.approx(math.sqrt(3))
    assert attention.logarithmic.r_squared == pytest.approx(1.0)
    assert mlp.power_law.slope.estimate == pytest.approx(0.5)
    assert math.exp(mlp.power_law.intercept) == pytest.approx(0.25 * math.sqrt(3))
    both = [math.hypot(a, b) for a, b in zip(attention.norms, mlp.norms, strict=True)]
    assert trends[ALL_MODULES].norms == pytest.approx(both)
    (statement,) = (each for each in part.statements if each.startswith("The norm"))
    slope = trends[ALL_MODULES].logarithmic.slope
    lower = quantities.formatted(slope.lower, "+.3g")
    assert f"changes by {slope.estimate:+.3g} ({lower} to" in statement


def test_full_fine_tuning_and_the_imported_are_in_no_trend() -> None:
    plans = [grid_run("sums", rank) for rank in (4, 16, 64)]
    stranger = grid_run("sums", 32, seed=7).model_copy(
        update={"role": "imported", "imported": imported("theirs")}
    )
    plans += [grid_run("sums", None), stranger]
    tasks = {"sums": relations(["sums"], [], ["facts"])}
    part = found(planted_grid(plans, tasks, lambda *_: 0.5))
    assert len(part.runs) == 5
    assert {trend.ranks for trend in part.norm_trends} == {(4, 16, 64)}


def test_settings_have_trends_of_their_own() -> None:
    plans = [
        grid_run("sums", rank, alpha_labels=(alpha,)) for alpha in ("2r", "100") for rank in RANKS
    ]
    tasks = {"sums": relations(["sums"], [], ["facts"])}

    def of(run: PlannedRun) -> SpectraRecord:
        step = 2.0 if run.alpha_labels == ("100",) else 1.0
        return spectra(run, lambda _: step * math.log2(run.rank or 1))

    part = found(planted_grid(plans, tasks, lambda *_: 0.5), of)
    slopes = {
        trend.setting: trend.logarithmic.slope.estimate
        for trend in part.norm_trends
        if trend.module == ALL_MODULES
    }
    assert slopes == pytest.approx({"alpha 2r": 6**0.5, "alpha 100": 2 * 6**0.5})
    assert sum("(alpha 100)" in each for each in part.statements) == 1


def test_two_ranks_or_a_zero_update_have_no_trend() -> None:
    assert found(planted_study({4: 0.7, 16: 0.7})).norm_trends == ()
    part = found(
        planted_study(SAME),
        lambda run: spectra(run, lambda _: 0.0 if run.rank == 4 else 1.0),
    )
    assert part.norm_trends == ()


# weights and forgetting


def test_intruders_that_grow_with_forgetting_are_correlated(sentence: Sentences) -> None:
    part = found(planted_study(SAME, FORGET))
    each = association(part, "intruders", "retention loss")
    assert (each.unit, each.num_options, each.reason) == ("points", 5, None)
    assert each.correlation is not None
    by_hand = rank_correlation(range(5), range(5), part.confidence)
    assert by_hand is not None
    rho = each.correlation
    assert (rho.estimate, rho.lower, rho.upper) == by_hand[:3]
    assert rho.estimate == pytest.approx(1.0)
    statement = (
        f"Spearman's ρ 1.00 ({quantities.formatted(rho.lower, '.2f')} to 1.00) over 5 options"
    )
    (said,) = (each for each in part.statements if "retention loss" in each)
    sentence(said)
    assert statement in said
    # more seeds of the same options are no more options
    again = association(
        found(planted_study(SAME, FORGET, seeds=(0, 1, 2))), "intruders", "retention loss"
    )
    assert again.num_options == 5
    assert again.correlation == rho
    # more ranks of the same order, and now it is shown
    many = found(planted_study(dict.fromkeys(MANY, 0.7), MANY))
    rho = association(many, "intruders", "retention loss").correlation
    assert rho is not None
    assert rho.lower > 0.5
    assert any("more intruder dimensions have more retention loss" in s for s in many.statements)


def test_what_falls_with_forgetting_has_the_other_sign(sentence: Sentences) -> None:
    kept = {rank: 1.7 - score for rank, score in FORGET.items()}  # high ranks keep more
    rho = association(found(planted_study(SAME, kept)), "intruders", "retention loss").correlation
    assert rho is not None
    assert rho.estimate == pytest.approx(-1.0)
    kept_by_many = {rank: 1.7 - score for rank, score in MANY.items()}
    many = found(planted_study(dict.fromkeys(MANY, 0.7), kept_by_many))
    (said,) = (each for each in many.statements if "retention loss" in each)
    sentence(said)
    text = {rank: 2.5 + 0.1 * math.log2(rank) for rank in RANKS}  # and lose more of prose
    part = found(planted_study(SAME, kept, held_out_loss_nats=text))
    for measure in ("intruders", "norm of the update"):
        rho = association(part, measure, "loss on held-out text").correlation
        assert rho is not None
        assert rho.estimate == pytest.approx(1.0)


def test_turned_directions_count_as_more_where_vectors_are_less_alike() -> None:
    def of(run: PlannedRun) -> SpectraRecord:
        return spectra(run, lambda _: 1.0, similarity=1.0 - 0.05 * math.log2(run.rank or 1))

    part = found(planted_study(SAME, FORGET), of)
    rho = association(part, "turned directions", "retention loss").correlation
    assert rho is not None
    assert rho.estimate == pytest.approx(1.0)


def reasons(part: TrainTaskWeights) -> dict[str, str | None]:
    return {
        each.measure: each.reason
        for each in part.associations
        if each.forgetting == "retention loss"
    }


def test_too_few_runs_have_no_correlation_and_say_so() -> None:
    part = found(planted_study({4: 0.7, 16: 0.7, 64: 0.7}, FORGET))
    assert set(reasons(part).values()) == {"3 options, 4 are needed"}
    assert all(each.correlation is None for each in part.associations)
    assert not any("Spearman" in each for each in part.statements)


def test_what_is_the_same_in_all_runs_has_no_correlation_and_says_so() -> None:
    part = found(planted_study(SAME, FORGET), lambda run: spectra(run, lambda _: run.rank or 1.0))
    assert reasons(part) == {
        "intruders": "one of them is the same in all options",
        "norm of the update": None,
        "turned directions": "one of them is the same in all options",
    }
    assert any("No run has an intruder dimension" in each for each in part.statements)
    level = found(planted_study(SAME, dict.fromkeys(RANKS, 0.85)))
    assert set(reasons(level).values()) == {"one of them is the same in all options"}
    assert not any("No run has an intruder" in each for each in level.statements)


# who takes part


def test_what_is_no_plain_lora_is_left_out_with_its_reason() -> None:
    results = planted_study(SAME, FORGET)
    dora = results.runs[2].name

    def of(run: PlannedRun) -> SpectraRecord:
        return record(run, (), "it is DoRA") if run.name == dora else logarithmic(run)

    part = found(results, of)
    assert part.not_analysed == {dora: "it is DoRA"}
    assert [run.option.rank for run in part.runs] == [4, 8, 32, 64]
    assert part.norm_trends[0].ranks == (4, 8, 32, 64)
    assert association(part, "intruders", "retention loss").num_options == 4
    alone = found(results, lambda run: record(run, (), "it is DoRA"))
    assert (alone.runs, alone.norm_trends, alone.associations) == ((), (), ())
    assert alone.statements == ()
    assert len(alone.not_analysed) == 5


def test_a_diverged_run_takes_no_part() -> None:
    results = planted_study(SAME, FORGET, diverged=[(16, 0)])
    part = found(results, lambda run: None if run.rank == 16 else logarithmic(run))
    assert [run.option.rank for run in part.runs] == [4, 8, 32, 64]
    assert part.norm_trends[0].ranks == (4, 8, 32, 64)
    assert part.not_analysed == {}


def test_a_run_of_which_another_seed_diverged_stands_beside_the_fit() -> None:
    """Trends are over complete options only; correlations over all."""
    results = planted_study(SAME, FORGET, seeds=(0, 1), diverged=[(16, 1)])

    def of(run: PlannedRun) -> SpectraRecord | None:
        return None if (run.rank, run.seed) == (16, 1) else logarithmic(run)

    part = found(results, of)
    assert part.norm_trends[0].ranks == (4, 4, 8, 8, 32, 32, 64, 64)
    assert association(part, "intruders", "retention loss").num_options == 5


def test_a_study_whose_weights_nobody_looked_into_has_no_findings() -> None:
    (source,) = option_gains(planted_study(SAME))
    assert weight_findings(source) is None


def test_every_trained_task_is_looked_at_alone() -> None:
    sums, organs = map(weight_findings, option_gains(two_tasks()))
    assert sums is not None
    assert organs is not None
    assert (sums.train_task, organs.train_task) == ("sums", "organs")
    signs: list[float] = []
    for part in (sums, organs):
        assert len(part.runs) == 5
        rho = association(part, "intruders", "retention loss").correlation
        assert rho is not None
        signs.append(rho.estimate)
    assert signs == pytest.approx([-1.0, 1.0])
    results = two_tasks()
    only = with_spectra(results, lambda run: logarithmic(run) if run.train_task == "sums" else None)
    parts = [weight_findings(source) for source in option_gains(only)]
    assert [part.train_task for part in parts if part is not None] == ["sums"]
