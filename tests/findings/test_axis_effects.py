"""Axes judged apart: matched combinations, planted differences computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from scipy import stats

from rankwise.findings.axes import Axis, AxisEffect, TrainTaskAxes, axis_effects
from rankwise.findings.options import OptionGains
from rankwise.findings.recommendation import recommend, recommend_for
from rankwise.findings.study import study_findings
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.study import PlannedRun
from rankwise.report.parts import Table
from rankwise.report.sections.by_rank import axis_section
from tests.planted.grid import ALL_LINEAR, ATTENTION, grid_run, planted_grid, relations
from tests.support.sentences import Sentences

TASKS = {"sums": relations(["sums"], retention=["facts"])}
BASE = {"sums": 0.50, "facts": 0.90}


def judged(
    plans: Sequence[PlannedRun],
    score: Callable[[PlannedRun], float],
    *,
    size: int = 100,
    delta: float = 2.0,
    diverged: Sequence[str] = (),
) -> TrainTaskAxes | None:
    """The axes of runs with these in-domain scores; retention is that of the base."""
    results = planted_grid(
        plans,
        TASKS,
        lambda plan, task: BASE[task] if plan is None or task == "facts" else score(plan),
        sizes=size,
        diverged=diverged,
        recommendation=RecommendationConfig(delta_points=delta, epsilon_points=5.0),
    ).of("sums")
    return axis_effects(OptionGains(results), recommend_for(results))


def axis_of(found: TrainTaskAxes | None, name: str) -> Axis:
    assert found is not None
    (axis,) = (each for each in found.axes if each.name == name)
    return axis


def only_effect(axis: Axis) -> AxisEffect:
    (effect,) = axis.effects
    return effect


def by_alpha(plan: PlannedRun) -> float:
    table = {(8, "2r"): 0.60, (8, "4r"): 0.62, (16, "2r"): 0.70, (16, "4r"): 0.66}
    assert plan.rank is not None
    return table[plan.rank, plan.alpha_labels[0]]


GRID = [grid_run("sums", rank, alpha_labels=(a,)) for rank in (8, 16) for a in ("2r", "4r")]


def test_an_effect_is_the_mean_over_matched_combinations() -> None:
    found = judged(GRID, by_alpha)
    alpha, rank = only_effect(axis_of(found, "alpha")), only_effect(axis_of(found, "rank"))
    assert (alpha.value, alpha.num_combinations, alpha.num_same_runs) == ("4r", 2, 0)
    assert alpha.lead is not None
    assert rank.lead is not None
    assert alpha.lead.estimate == pytest.approx((2.0 - 4.0) / 2)
    assert rank.lead.estimate == pytest.approx((10.0 + 4.0) / 2)
    # at rank 8 two items are learned, at rank 16 four others forgotten: 2 x +50, 4 x -50 of 100
    spread = (6 * 50.0**2 - 100 * 1.0**2) / 99
    stderr = math.sqrt((spread + 2 * 100.0**2 / 100) / 100)
    reach = float(stats.t.ppf(0.975, 99)) * stderr
    mean = alpha.lead
    assert (mean.num_examples, mean.num_tasks, mean.num_seeds, mean.unit) == (100, 1, 1, "points")
    assert mean.upper - mean.estimate == pytest.approx(reach, rel=0.03)  # and a little skewness
    assert mean.estimate - mean.lower == pytest.approx(reach, rel=0.03)
    assert alpha.retention_lead is not None
    assert alpha.retention_lead.estimate == 0.0
    assert alpha.retention_lead.p_value == 1.0


def test_a_run_under_two_labels_counts_for_both() -> None:
    plans = [
        grid_run("sums", 8, alpha_labels=("2r", "16")),
        grid_run("sums", 16, alpha_labels=("2r",)),
        grid_run("sums", 16, alpha_labels=("16",)),
    ]
    scores = {(8, 16.0): 0.60, (16, 32.0): 0.70, (16, 16.0): 0.64}
    found = judged(plans, lambda plan: scores[plan.rank or 0, plan.alpha or 0.0])
    alpha, rank = only_effect(axis_of(found, "alpha")), only_effect(axis_of(found, "rank"))
    assert (alpha.value, alpha.num_combinations, alpha.num_same_runs) == ("16", 2, 1)
    assert alpha.lead is not None
    assert alpha.lead.estimate == pytest.approx((0.0 - 6.0) / 2)
    # rank 16 against 8 under 2r, and under 16
    assert (rank.num_combinations, rank.num_same_runs) == (2, 0)
    assert rank.lead is not None
    assert rank.lead.estimate == pytest.approx((10.0 + 4.0) / 2)
    assert found is not None
    assert [(p.rank, p.settings["alpha"]) for p in found.points] == [
        (8, "2r"), (8, "16"), (16, "2r"), (16, "16"),
    ]  # fmt: skip


def test_values_that_were_never_trained_alike_are_not_compared() -> None:
    plans = [
        grid_run("sums", 8, rate_labels=("1e-4",)),
        grid_run("sums", 64, rate_labels=("5e-5",)),
        grid_run("sums", 64, rate_labels=("2e-4",)),
    ]
    found = judged(plans, lambda plan: 0.6)
    rank, rate = axis_of(found, "rank"), axis_of(found, "learning rate")
    assert only_effect(rank).num_combinations == 0
    assert only_effect(rank).lead is None
    assert rank.state is None
    assert rank.retention_state is None
    assert rate.values == ("5e-5", "1e-4", "2e-4")
    assert [effect.num_combinations for effect in rate.effects] == [0, 1]
    assert rate.state == "undecided"  # one of its values could not be compared


def test_seeds_are_crossed_with_items() -> None:
    plans = [
        grid_run("sums", 8, alpha_labels=(alpha,), seed=seed)
        for alpha in ("2r", "4r")
        for seed in (0, 1, 2)
    ]
    four = {0: 0.60, 1: 0.66, 2: 0.72}
    found = judged(plans, lambda p: 0.6 if p.alpha_labels == ("2r",) else four[p.seed or 0])
    mean = only_effect(axis_of(found, "alpha")).lead
    assert mean is not None
    assert mean.num_seeds == 3
    assert mean.estimate == pytest.approx(6.0)
    # item means: six items at 2/3 of 100, six at 1/3; seed means 0, 6 and 12
    sizes = [200 / 3] * 6 + [100 / 3] * 6 + [0.0] * 88
    items = (sum((v - 6.0) ** 2 for v in sizes) / 99 + 200.0) / 100
    seeds = 36.0 / 3
    quantile = (items * stats.t.ppf(0.975, 99) + seeds * stats.t.ppf(0.975, 2)) / (items + seeds)
    stderr = math.sqrt(items + seeds)
    assert mean.estimate - mean.lower == pytest.approx(quantile * stderr, rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "delta", "state"),
    [
        ((0.60, 0.65), 2.0, "different"),
        ((0.60, 0.601), 2.0, "alike"),
        ((0.60, 0.62), 5.0, "slightly different"),
        ((0.60, 0.601), 0.1, "undecided"),
    ],
)
def test_an_axis_matters_or_not_or_it_is_not_known(
    scores: tuple[float, float], delta: float, state: str
) -> None:
    plans = [grid_run("sums", 8, epochs=epochs) for epochs in (1, 2)]
    found = judged(plans, lambda plan: scores[(plan.epochs or 0) - 1], size=2000, delta=delta)
    axis = axis_of(found, "epochs")
    assert axis.state == state
    assert axis.retention_state == "alike"


def test_p_values_are_corrected_over_the_values_of_an_axis() -> None:
    scores = {1: 0.60, 2: 0.62, 3: 0.66, 10: 0.64}
    plans = [grid_run("sums", 8, epochs=epochs) for epochs in (3, 10, 1, 2)]
    found = judged(plans, lambda plan: scores[plan.epochs or 0])
    axis = axis_of(found, "epochs")
    assert axis.values == ("1", "2", "3", "10")
    p_values = [effect.lead.p_value for effect in axis.effects if effect.lead]
    corrected = [effect.lead.holm_p_value for effect in axis.effects if effect.lead]
    first, second, third = p_values  # of +2, +6 and +4 points
    assert second < third < first
    assert corrected[1] == pytest.approx(3 * second)
    assert corrected[2] == pytest.approx(max(2 * third, 3 * second))
    assert corrected[0] == pytest.approx(max(first, corrected[2]))
    # the p value is that of the interval: it is below 5 % where zero is outside
    for effect in axis.effects:
        assert effect.lead is not None
        assert (effect.lead.p_value < 0.05) == (effect.lead.sign() != 0)


def test_values_stand_in_a_sensible_order() -> None:
    plans = [
        grid_run("sums", rank, alpha_labels=(alpha,), target_modules=modules)
        for alpha in ("4r", "32", "1r", "8", "2r")
        for modules in (ALL_LINEAR, ATTENTION)
        for rank in (128, 16, 64)
    ]
    found = judged(plans, lambda plan: 0.6)
    assert axis_of(found, "rank").values == ("16", "64", "128")
    assert axis_of(found, "alpha").values == ("1r", "2r", "4r", "8", "32")
    modules = axis_of(found, "target modules")
    assert modules.values == ("q/k/v/o", "q/k/v/o/gate/up/down")
    assert only_effect(modules).num_combinations == 15


def test_rank_alone_is_no_matter_for_this() -> None:
    assert judged([grid_run("sums", rank) for rank in (8, 16)], lambda plan: 0.6) is None


def test_full_fine_tuning_is_apart() -> None:
    plans = [grid_run("sums", rank) for rank in (8, 16)]
    plans += [grid_run("sums", None, rate_labels=(rate,)) for rate in ("1e-5", "5e-5")]
    found = judged(plans, lambda plan: 0.7 if plan.learning_rate == 5e-5 else 0.6)
    axis = axis_of(found, "learning rate")
    assert (axis.method, axis.values) == ("full", ("1e-5", "5e-5"))
    difference = only_effect(axis).lead
    assert difference is not None
    assert difference.estimate == pytest.approx(10.0)
    assert [each.method for each in found.axes] == ["lora", "full"] if found else False


def test_an_option_that_lost_a_seed_takes_no_part_and_is_named() -> None:
    plans = [
        grid_run("sums", 8, alpha_labels=(alpha,), seed=seed)
        for alpha in ("2r", "4r", "8r")
        for seed in (0, 1)
    ]
    found = judged(plans, lambda plan: 0.6, diverged=[plans[-1].name])
    assert axis_of(found, "alpha").values == ("2r", "4r")
    assert found is not None
    assert found.left_out == ("rank 8, alpha 8r",)
    assert len(found.points) == 2


def on_rows(run: PlannedRun, number: int, **changed: object) -> PlannedRun:
    """The same setting on some of its 480 rows."""
    fewer = {
        "name": f"{run.name}-n{number}",
        "fingerprint": f"{run.fingerprint}{number}",
        "role": "fewer_rows",
        "of": run.as_whole,
        "num_examples": number,
    }
    return run.model_copy(update=fewer | changed)


def by_rows(plan: PlannedRun) -> float:
    """8 points for each doubling of the rows, 2 for each of the rank."""
    return 0.2 + 0.08 * math.log2(plan.num_examples / 120) + 0.02 * math.log2((plan.rank or 4) / 4)


WHOLE = [grid_run("sums", rank, seed=seed) for rank in (4, 8, 16) for seed in (0, 1)]
ON_ROWS = [*WHOLE, *(on_rows(run, number) for run in WHOLE for number in (120, 240))]


def test_rows_are_an_axis_and_the_fewest_come_first(sentence: Sentences) -> None:
    found = judged(ON_ROWS, by_rows, size=1000)
    rows, rank = axis_of(found, "rows"), axis_of(found, "rank")
    assert rows.values == ("120", "240", "480")
    gains = [each.lead.estimate for each in rows.effects if each.lead]
    assert gains == pytest.approx([8.0, 16.0])
    assert [each.num_combinations for each in rows.effects] == [3, 3]  # a rank each
    assert [each.num_combinations for each in rank.effects] == [3, 3]  # a number of rows each
    assert found is not None
    assert found.rows_at == "epochs"
    assert len(found.points) == 9
    assert found.of_rows is not None
    sentence(found.of_rows, names=("480", "120", "+16.0"))


def test_rows_that_gain_nothing_are_not_shown_to(sentence: Sentences) -> None:
    found = judged(ON_ROWS, lambda plan: 0.5 + 0.01 * ((plan.seed or 0) - 0.5))
    assert found is not None
    assert found.of_rows is not None
    sentence(found.of_rows, names=("480", "120", "0.0"))


def test_at_equal_steps_more_epochs_on_fewer_rows_are_no_axis() -> None:
    plans = [*WHOLE, *(on_rows(run, 120, epochs=8) for run in WHOLE)]
    found = judged(plans, by_rows)
    assert found is not None
    assert [axis.name for axis in found.axes] == ["rank", "rows"]
    assert only_effect(axis_of(found, "rows")).num_combinations == 3


def test_fewer_rows_that_lost_a_seed_take_no_part_and_are_named() -> None:
    lost = next(run for run in ON_ROWS if (run.rank, run.num_examples, run.seed) == (16, 120, 1))
    found = judged(ON_ROWS, by_rows, diverged=[lost.name])
    assert found is not None
    assert found.left_out == ("rank 16, 120 rows",)
    assert [each.num_combinations for each in axis_of(found, "rows").effects] == [2, 2]


def test_all_on_one_number_of_rows_have_no_axis_of_rows() -> None:
    found = judged(GRID, by_alpha)
    assert found is not None
    assert found.rows_at is None
    assert found.of_rows is None


def test_the_card_says_what_more_rows_gain(sentence: Sentences) -> None:
    results = planted_grid(
        ON_ROWS,
        TASKS,
        lambda plan, task: BASE[task] if plan is None or task == "facts" else by_rows(plan),
        sizes=1000,
    )
    (card,) = study_findings(results, recommend(results)).cards
    sentence(card.remark, names=("480", "120", "+16.0"), part=True)


def test_a_chart_by_rows_has_a_line_for_each_setting() -> None:
    found = judged(ON_ROWS, by_rows)
    assert found is not None
    section = axis_section([found])
    gain, retention = section.figures
    assert (gain.name, retention.name) == ("axis-rows-gain", "axis-rows-retention")
    assert "Training rows (log scale)" in str(gain.drawing)
    titles = [each.title for each in section.tables]
    assert titles == ["By number of rows", "Every number"]
    table = section.tables[0].table
    assert isinstance(table, Table)
    assert [group.title for group in table.groups] == ["rank 4", "rank 8", "rank 16"]
    assert [row[0].value for row in table.groups[0].rows] == ["120", "240", "480"]
