"""Items that come in clusters: variances by hand and by statsmodels, coverage, planted passages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from rankwise.findings.agreement import agreement_with_full
from rankwise.findings.differences import comparisons
from rankwise.findings.models import task_score
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import Pair, paired_test
from rankwise.findings.recommendation import recommend_for
from rankwise.findings.retention import retention_groups
from rankwise.findings.stats.blocks import GAIN_RUNS, block, crossed, lead_variances
from rankwise.findings.stats.estimates import mean_over_tasks, seed_spread, zero_p_value
from rankwise.findings.stats.items import (
    Clusters,
    Floats,
    Items,
    by_cluster,
    design_effects,
    num_clusters,
)
from rankwise.findings.stats.truths import deciding_level
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.results import ModelResults, TrainTaskResults
from tests.planted.results import planted_runs
from tests.support.sentences import Sentences

MARGINS = RecommendationConfig(delta_points=5.0, epsilon_points=6.0)

# --- by hand


def items(values: Sequence[float], clusters: Sequence[int], **settings: Any) -> Items:
    settings = {"item_size": 0.0} | settings
    return Items(np.array(values, dtype=np.float64), clusters=np.array(clusters), **settings)


def test_three_clusters_by_hand() -> None:
    task = items([1, 0, 0, 1, 1, 0], [7, 7, 7, 5, 5, 9], item_size=1.0)
    (part,) = by_cluster([task])
    # the mean is 1/2; the residuals sum to 1 in cluster 5, to -1/2 in 7 and in 9; G/n is 1/2
    assert part.values.tolist() == pytest.approx([1.0, 0.25, 0.25])
    assert part.item_size == pytest.approx(0.5)
    estimate = mean_over_tasks([task])
    robust = (1.0 + 0.25 + 0.25) / 6**2 * 3 / 2
    pseudo = 2 / 6**2  # as of single items
    assert estimate.value == pytest.approx(0.5)
    assert estimate.stderr == pytest.approx(math.sqrt(robust + pseudo))
    assert estimate.spread.item_freedom == pytest.approx(2.0)
    assert num_clusters([task]) == 3
    plain = 6 * 0.25 / 5 / 6
    assert design_effects(task.values, np.array(task.clusters)) == pytest.approx(robust / plain)


def test_two_tasks_that_share_clusters_by_hand() -> None:
    first = items([1, 0, 0], [1, 1, 2], item_size=1.0)
    second = items([0, 1], [1, 2], item_size=1.0)
    (part,) = by_cluster([first, second])
    # residuals by share/n: cluster 1 has (2/3 - 1/3)/6 - (1/2)/4 = -5/72, cluster 2 the opposite
    assert part.values.tolist() == pytest.approx([5 / 12 - 5 / 36, 5 / 12 + 5 / 36])
    assert part.weight == 2.0
    assert part.item_size / 2 == pytest.approx(math.sqrt((0.5 / 3) ** 2 + (0.5 / 2) ** 2))
    estimate = mean_over_tasks([first, second])
    assert estimate.value == pytest.approx((1 / 3 + 1 / 2) / 2)
    robust = 2 * (5 / 72) ** 2 * 2 / 1
    pseudo = 2 * (0.25 / 9 + 0.25 / 4)
    assert estimate.stderr == pytest.approx(math.sqrt(robust + pseudo))
    assert estimate.spread.item_freedom == pytest.approx(1.0)
    third = items([3, 5, 5], [4, 4, 6])
    assert len(by_cluster([first, third, second])) == 2
    assert num_clusters([first, third, second]) == 4


def test_tasks_are_joined_by_a_third_and_keep_their_weights() -> None:
    rng = np.random.default_rng(0)
    tasks = [
        items(rng.normal(size=4), [1, 1, 2, 3], weight=1.0),
        items(rng.normal(size=4), [4, 4, 5, 6], weight=2.0),
        items(rng.normal(size=2), [3, 6], weight=3.0),
    ]
    (part,) = by_cluster(tasks)
    assert part.num_items == 6
    assert part.weight == 6.0
    mean = sum(task.weight * task.values.mean() for task in tasks) / 6
    assert part.values.mean() == pytest.approx(mean)


def test_the_same_items_in_two_languages_count_once() -> None:
    values = np.random.default_rng(1).normal(size=50)
    own = np.arange(50)
    alone = mean_over_tasks([Items(values, 0.0)])
    twice = [Items(values, 0.0, clusters=own), Items(values, 0.0, clusters=own)]
    assert mean_over_tasks(twice).stderr == pytest.approx(alone.stderr)
    assert num_clusters(twice) == 50
    independent = [task._replace(clusters=None) for task in twice]
    assert mean_over_tasks(independent).stderr == pytest.approx(alone.stderr / math.sqrt(2))


# --- by other routes


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_clusters_of_one_item_change_nothing(num_seeds: int) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4 * num_seeds, 40)) * 30
    plain = [Items(values, 100.0), Items(values[..., :25] + 1.0, 80.0, 2.0)]
    own = [
        task._replace(clusters=rng.permutation(task.num_items) + 100 * place)
        for place, task in enumerate(plain)
    ]
    assert num_clusters(own) is None
    first, second = (block(tasks, crossed(num_seeds, 4), GAIN_RUNS) for tasks in (plain, own))
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.covariance, second.covariance)
    assert np.array_equal(lead_variances(first.covariance), lead_variances(second.covariance))
    assert np.array_equal(first.interaction, second.interaction)
    by_option = [[t._replace(values=t.values[::4]) for t in tasks] for tasks in (plain, own)]
    estimates = [mean_over_tasks(tasks) for tasks in by_option]
    assert estimates[0].interval(0.95) == estimates[1].interval(0.95)
    if num_seeds > 1:
        assert seed_spread(by_option[0], 0.95) == seed_spread(by_option[1], 0.95)


@pytest.mark.parametrize("sizes", [[3] * 12, [1, 2, 9, 4, 30, 7, 7]])
def test_the_variance_is_that_of_statsmodels(sizes: list[int]) -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.normal(size=len(sizes))[clusters] + rng.normal(size=len(clusters))
    order = rng.permutation(len(values))
    values, clusters = values[order], clusters[order]
    ols: Any = sm.OLS(values, np.ones_like(values))
    fitted = ols.fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    estimate = mean_over_tasks([Items(values, 0.0, clusters=clusters)])
    assert estimate.value == pytest.approx(fitted.params[0])
    assert estimate.stderr == pytest.approx(fitted.bse[0])
    symmetric = estimate._replace(skewness=0.0)
    assert symmetric.interval(0.95) == pytest.approx(tuple(fitted.conf_int()[0]))
    assert zero_p_value(symmetric) == pytest.approx(fitted.pvalues[0], rel=1e-6)
    robust = fitted.bse[0] ** 2 / (values.var(ddof=1) / len(values))
    assert design_effects(values, clusters) == pytest.approx(robust)


def test_leads_of_linearised_gains_are_linearised_leads() -> None:
    rng = np.random.default_rng(4)
    values, clusters = rng.normal(size=(2, 3, 30)), rng.integers(0, 8, 30)
    (part,) = by_cluster([Items(values, 1.0, clusters=clusters)])
    (lead,) = by_cluster([Items(values[:, 1] - values[:, 0], 1.0, clusters=clusters)])
    assert part.values[:, 1] - part.values[:, 0] == pytest.approx(lead.values)


# --- coverage


def outcomes(
    rng: np.random.Generator, num_models: int, clusters: Clusters, shared: float
) -> Floats:
    """(models, items) differences of -100, 0 or 100 with mean 0, alike within clusters."""
    z = rng.normal(size=(num_models, clusters.max() + 1))[:, clusters] * math.sqrt(shared)
    z += rng.normal(size=z.shape) * math.sqrt(1.0 - shared)
    return 100.0 * ((z > 0.8).astype(float) - (z < -0.8))


@pytest.mark.parametrize(("size", "most"), [(5, 0.90), (20, 0.80)])
def test_intervals_cover_with_clusters_and_not_without(size: int, most: float) -> None:
    rng = np.random.default_rng(size)
    clusters = np.repeat(np.arange(50), size)
    covered = {"without": 0, "with": 0}
    for _ in range(800):
        values = outcomes(rng, 1, clusters, 0.25)[0]
        for name, its in (("without", None), ("with", clusters)):
            lower, upper = mean_over_tasks([Items(values, 100.0, clusters=its)]).interval(0.95)
            covered[name] += lower <= 0.0 <= upper
    assert covered["without"] / 800 < most
    assert 0.93 < covered["with"] / 800 < 0.98


def test_no_rank_is_called_better_too_often_with_clusters() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 20)
    wrong = {"without": 0, "with": 0}
    for _ in range(300):
        values = outcomes(rng, 3, clusters, 0.2)
        for name, its in (("without", None), ("with", clusters)):
            task = Items(values, 100.0, clusters=its)
            of = block([task], crossed(1, 3), GAIN_RUNS)
            quantile = stats.t.ppf(deciding_level(3, 0.05), 799 if its is None else 39)
            assert of.freedom == pytest.approx(799 if its is None else 39)
            stderr = np.sqrt(np.diagonal(of.covariance))
            wrong[name] += bool((of.mean > quantile * stderr).any())
    assert wrong["without"] / 300 > 0.10
    assert wrong["with"] / 300 < 0.06


def test_the_spread_of_seeds_leaves_out_what_clusters_share() -> None:
    """Equal runs whose chance differences go by passage: no true spread between them."""
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(20), 10)
    shown = {"without": 0, "with": 0}
    for _ in range(300):
        values = rng.normal(size=(3, 20))[:, clusters] * 20 + rng.normal(size=(3, 200)) * 20
        for name, its in (("without", None), ("with", clusters)):
            shown[name] += seed_spread([Items(values, 0.0, clusters=its)], 0.95).lower > 0.0
    assert shown["without"] / 300 > 0.15
    assert shown["with"] / 300 < 0.06


# --- tests of one pair


def test_the_test_of_a_clustered_pair_is_that_of_its_interval() -> None:
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(30), 8)
    base = 100.0 * (rng.normal(size=30)[clusters] + rng.normal(size=240) > 0)
    adapted = 100.0 * (rng.normal(size=30)[clusters] + rng.normal(size=240) > -0.3)
    plain = Pair(base, adapted, 1.0, True)
    pair = plain._replace(clusters=clusters)
    test, unclustered = paired_test(pair, 0.95), paired_test(plain, 0.95)
    # McNemar's test takes items as independent
    assert test.mcnemar_p_value is None
    assert unclustered.mcnemar_p_value is not None
    assert (test.num_examples, test.num_clusters, unclustered.num_clusters) == (240, 30, None)
    assert test.counts == unclustered.counts
    assert test.p_value == zero_p_value(test.estimate) > unclustered.p_value
    assert (test.p_value < 0.05) == (test.difference.sign() != 0)
    single = paired_test(plain._replace(clusters=np.arange(240)), 0.95)
    assert single == unclustered


# --- a planted study


def in_passages(
    results: TrainTaskResults, task: str, numbers: Sequence[int], *, known: bool
) -> TrainTaskResults:
    """The results with passages: as a candidate of the base's documents, or as set in the study."""

    def changed(model: ModelResults) -> ModelResults:
        update: dict[str, Any] = {"clusters": tuple(numbers)}
        if not known:
            update = {"candidates": {"passage": tuple(numbers)}} if model.run is None else {}
        new = model.items[task].model_copy(update=update)
        return model.model_copy(update={"items": model.items | {task: new}})

    runs = tuple(map(changed, results.runs))
    return results.model_copy(update={"base": changed(results.base), "models": runs})


def by_difference(results: TrainTaskResults, task: str, size: int) -> list[int]:
    """Passages of ``size`` items, those together on which the first run and the last differ."""
    first, last = (np.array(results.runs[i].items[task].values) for i in (0, -1))
    numbers = np.empty(len(first), dtype=int)
    numbers[np.argsort(last - first, kind="stable")] = np.arange(len(first)) // size
    return numbers.tolist()


def test_a_study_names_the_setting_that_is_missing(sentence: Sentences) -> None:
    results = planted_runs(recommendation=MARGINS)
    numbers = by_difference(results, "kinship", 10)
    warned = recommend_for(in_passages(results, "kinship", numbers, known=False))
    (note,) = [reason for reason in warned.reasons if "evaluation.clusters" in reason]
    sentence(note, names=("300", "30", "passage"))
    assert "evaluation.clusters.kinship: passage" in note
    assert "--cluster kinship=passage" in note
    without = recommend_for(results)
    assert warned.verdicts == without.verdicts
    assert (*without.reasons, note) == warned.reasons


def test_passages_that_differences_do_not_go_by_are_not_named() -> None:
    results = planted_runs(recommendation=MARGINS)
    numbers = np.arange(300) // 3
    quiet = recommend_for(in_passages(results, "kinship", numbers.tolist(), known=False))
    assert quiet == recommend_for(results)


def test_with_the_setting_intervals_are_wider_and_clusters_are_counted(sentence: Sentences) -> None:
    results = planted_runs(recommendation=MARGINS)
    numbers = by_difference(results, "kinship", 15)
    clustered = in_passages(results, "kinship", numbers, known=True)
    without, answer = recommend_for(results), recommend_for(clustered)
    for before, after in zip(without.verdicts, answer.verdicts, strict=True):
        assert after.gain.estimate == pytest.approx(before.gain.estimate)
        assert after.gain.upper - after.gain.lower > before.gain.upper - before.gain.lower
        assert after.retention_loss is not None
        assert before.retention_loss is not None
        assert after.retention_loss.estimate == before.retention_loss.estimate
    assert (answer.num_items_in_domain, answer.num_clusters_in_domain) == (300, 20)
    assert any("kinship has 300 items in 20 clusters" in reason for reason in answer.reasons)
    assert any("kinship has 20 clusters only" in reason for reason in answer.reasons)
    rows = {(row.run, row.task): row for row in comparisons(OptionGains(clustered))}
    plain = {(row.run, row.task): row for row in comparisons(OptionGains(results))}
    run = clustered.runs[0].name
    row = rows[run, "kinship"]
    assert (row.num_examples, row.num_clusters, row.mcnemar_p_value) == (300, 20, None)
    assert row.stderr > plain[run, "kinship"].stderr
    assert rows[run, "capitals"] == plain[run, "capitals"]
    lower = planted_runs({4: 0.50, 16: 0.51}, recommendation=MARGINS)
    undecided = recommend_for(in_passages(lower, "kinship", numbers, known=True))
    sentence(undecided.statement, names=("300", "20"))


def test_every_finding_of_gains_knows_the_clusters() -> None:
    results = planted_runs(seeds=(0, 1), retention_tasks=("capitals", "elements"))
    numbers = by_difference(results, "kinship", 15)
    kept = by_difference(results, "capitals", 10)
    clustered = in_passages(results, "kinship", numbers, known=True)
    clustered = in_passages(clustered, "capitals", kept, known=True)
    before, after = OptionGains(results), OptionGains(clustered)
    first, last = (after.options[place] for place in (0, -1))
    lead, plain = (s.difference(last.runs, first.runs, ("kinship",)) for s in (after, before))
    assert (lead.num_examples, lead.num_clusters, plain.num_clusters) == (300, 20, None)
    assert lead.upper - lead.lower > plain.upper - plain.lower
    groups = retention_groups(after)
    assert groups is not None
    everything, capitals, elements = (*groups.groups, *groups.subjects)
    assert everything.base_score.num_examples == 400
    assert everything.base_score.num_clusters == 220  # 200 elements are each their own
    assert (capitals.base_score.num_clusters, elements.base_score.num_clusters) == (20, None)
    agreement, trends = agreement_with_full(after)
    alike, _ = agreement_with_full(before)
    for one, other in zip(agreement, alike, strict=True):
        assert one.same_outcome is not None
        assert other.same_outcome is not None
        assert (one.same_outcome.num_clusters, other.same_outcome.num_clusters) == (20, None)
        assert one.same_outcome.estimate == pytest.approx(other.same_outcome.estimate)
        assert one.kappa is not None
        assert other.kappa is not None
        assert one.kappa.estimate == pytest.approx(other.kappa.estimate)
        assert one.kappa != other.kappa
    assert {trend.change.num_clusters for trend in trends} == {20}
    parts = after.gap_parts(first.runs, {"kinship": "capitals"})
    assert num_clusters(parts) == len({*numbers, *kept})
    base = clustered.base
    score = task_score(base.evaluations["kinship"], base.items["kinship"], 0.95)
    assert (score.num_examples, score.num_clusters) == (300, 20)
