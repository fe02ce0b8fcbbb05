"""Pseudo-items: known answers, and variances against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rankwise.findings.pairs import Pair, pair_items, paired_test, size_of
from rankwise.findings.stats.blocks import GAIN_RUNS, block, crossed, lead_variances
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import POINTS, Clusters, Floats, Items, by_cluster
from rankwise.findings.stats.reference import pseudo_items
from rankwise.records.results import ModelResults, TaskItems
from tests.support.sentences import Sentences

TOTAL, SCORED = 500, 120


def population(
    rng: np.random.Generator, total: int = TOTAL, apart: float = 0.4
) -> tuple[Floats, Floats, Floats]:
    """A base, one reference and a model (total,) whose mean change is 2, of R² 0.86 at 0.4."""
    difficulty, common, own = rng.standard_normal((3, total))
    base = 50.0 + 10.0 * difficulty
    reference = base + 3.0 + common - 0.5 * difficulty
    return base, reference, base + 2.0 + common - 0.3 * difficulty + apart * own


def test_it_is_unbiased_over_repeated_draws() -> None:
    # a finite population, of which every draw answers another part: a curved relation too
    rng = np.random.default_rng(1)
    base, reference, model = population(rng)
    model = model + 0.5 * (reference - base) ** 2 + 30.0 * (rng.random(TOTAL) < 0.01)
    means: list[float] = []
    for _ in range(4000):
        order = rng.permutation(TOTAL)
        found = pseudo_items(base[order], reference[None, order], model[order[:SCORED]])
        means.append(float(found.values.mean()))
    error = np.std(means, ddof=1) / math.sqrt(len(means))
    assert abs(np.mean(means) - model.mean()) < 4.0 * error
    assert np.std(means) < 0.7 * model.std() / math.sqrt(SCORED)


def test_of_items_that_are_all_answered_it_is_the_answers() -> None:
    base, reference, model = population(np.random.default_rng(2))
    found = pseudo_items(base, reference[None], model)
    assert np.abs(found.values - model).max() < 1e-12
    assert 0.8 < found.r_squared < 0.95


def test_where_the_references_explain_all_every_item_is_known() -> None:
    base, reference, _ = population(np.random.default_rng(3), 5000)
    model = base + 0.25 * (reference - base) + 1.0
    found = pseudo_items(base, reference[None], model[:2000])
    assert found.r_squared > 0.9999
    # the ridge leaves one part in the 1,800 items of nine folds
    assert np.abs(found.values - model).max() < 0.02
    assert found.values.mean() == pytest.approx(model.mean(), abs=1e-4)


def test_a_model_that_changed_nothing_is_the_base() -> None:
    base, reference, _ = population(np.random.default_rng(4))
    found = pseudo_items(base, reference[None], base[:SCORED])
    assert (found.values == base).all()
    assert found.r_squared == 0.0


def test_it_is_a_regression_and_a_correction_by_another_implementation() -> None:
    # numpy's least squares fold by fold, with the penalty as further rows
    base, reference, model = population(np.random.default_rng(5))
    number, changes = SCORED, (model - base)[:SCORED]
    both = np.vstack([reference - base, base])
    both = (both - both.mean(axis=1, keepdims=True)) / both.std(axis=1, keepdims=True)
    predicted, unseen = np.zeros(number), np.zeros(TOTAL - number)
    for fold in range(10):
        own = np.arange(number) % 10 == fold
        x, y = both[:, :number][:, ~own], changes[~own]
        centred = np.vstack([(x - x.mean(axis=1, keepdims=True)).T, np.eye(2)])
        slopes = np.linalg.lstsq(centred, np.append(y - y.mean(), [0.0, 0.0]), rcond=None)[0]
        at = y.mean() - slopes @ x.mean(axis=1)
        predicted[own] = at + slopes @ both[:, :number][:, own]
        unseen += own.mean() * (at + slopes @ both[:, number:])
    expected = base + np.append(predicted + TOTAL / number * (changes - predicted), unseen)
    found = pseudo_items(base, reference[None], model[:number])
    assert np.allclose(found.values, expected, rtol=0.0, atol=1e-10)
    wanted = 1.0 - ((changes - predicted) ** 2).mean() / changes.var()
    assert found.r_squared == pytest.approx(wanted, abs=1e-12)


def test_leads_are_estimated_as_if_they_were_answers() -> None:
    # the same regression for all models: linear in the answers
    rng = np.random.default_rng(6)
    base, reference, first = population(rng)
    second = first + rng.standard_normal(TOTAL)
    one, other, lead = (
        pseudo_items(base, reference[None], base[:SCORED] + values[:SCORED]).values - base
        for values in (first, second, second - first)
    )
    assert np.allclose(other - one, lead, rtol=0.0, atol=1e-10)


def estimate_of(base: Floats, estimated: Floats, clusters: Clusters | None = None) -> Items:
    scored = np.arange(len(base)) < SCORED
    return Items(estimated - base, 0.0, clusters=clusters, scored=scored)


@pytest.mark.parametrize("apart", [0.3, 3.0])
def test_the_variance_is_that_of_repeated_studies(apart: float) -> None:
    # V = A/N + B/n: the items are drawn too
    rng = np.random.default_rng(7)
    means, variances, inside = list[float](), list[float](), 0
    for _ in range(3000):
        base, reference, model = population(rng, apart=apart)
        found = pseudo_items(base, reference[None], model[:SCORED])
        estimate = mean_over_tasks([estimate_of(base, found.values)])
        means.append(estimate.value)
        variances.append(estimate.stderr**2)
        lower, upper = estimate.interval(0.95)
        inside += lower <= 2.0 <= upper
    ratio = np.mean(variances) / np.var(means, ddof=1)
    assert abs(ratio - 1.0) < 4.0 * math.sqrt(2.0 / len(means)) + 0.02
    # of one change: its variance over N, and what is not predicted over n
    changed, left = 1.0 + 0.09 + apart**2, apart**2
    # the reference's change less half of the difficulty, and the base: everything but the own part
    expected = changed / TOTAL + left * (1.0 / SCORED - 1.0 / TOTAL)
    assert np.var(means, ddof=1) == pytest.approx(expected, rel=0.13)
    assert 0.935 < inside / len(means) < 0.965


def test_the_variance_in_clusters_is_that_of_repeated_studies() -> None:
    # 125 clusters of 4 items, of which 120 items are drawn, whatever their clusters
    rng, number, size = np.random.default_rng(8), 125, 4
    means, variances, inside = list[float](), list[float](), 0
    labels = np.repeat(np.arange(number), size)
    scored = np.arange(len(labels)) < SCORED
    for _ in range(3000):
        common, own, of_base = rng.standard_normal((3, number))
        base = 50.0 + 10.0 * np.repeat(of_base, size)
        reference = base + np.repeat(common, size) + 0.3 * rng.standard_normal(len(base))
        model = base + 2.0 + np.repeat(common + own, size) + 0.3 * rng.standard_normal(len(base))
        order = rng.permutation(len(labels))
        base, reference, model = (each[order] for each in (base, reference, model))
        its = labels[order]
        found = pseudo_items(base, reference[None], model[:SCORED], its)
        items = Items(found.values - base, 0.0, clusters=its, scored=scored)
        estimate = mean_over_tasks([items])
        drawn = len(np.unique(its[:SCORED]))
        assert by_cluster([items])[0].num_scored == drawn
        assert float(estimate.spread.item_freedom) == pytest.approx(drawn - 1)
        means.append(estimate.value)
        variances.append(estimate.stderr**2)
        lower, upper = estimate.interval(0.95)
        inside += lower <= 2.0 <= upper
    ratio = np.mean(variances) / np.var(means, ddof=1)
    assert abs(ratio - 1.0) < 4.0 * math.sqrt(2.0 / len(means)) + 0.02
    assert abs(np.mean(means) - 2.0) < 4.0 * np.std(means) / math.sqrt(len(means))
    assert 0.93 < inside / len(means) < 0.97


def test_the_interval_knows_how_many_were_answered() -> None:
    base, reference, model = population(np.random.default_rng(9))
    found = pseudo_items(base, reference[None], model[:SCORED])
    items = estimate_of(base, found.values)
    estimate = mean_over_tasks([items])
    assert float(estimate.spread.item_freedom) == SCORED - 1
    quantile = float(stats.t.ppf(0.975, SCORED - 1))
    values = found.values - base
    expected = values.mean() + quantile * values.std(ddof=1) / math.sqrt(TOTAL)
    assert estimate._replace(skewness=0.0).interval(0.95)[1] == pytest.approx(expected, rel=1e-9)
    # a verdict takes the same variance of an option, with its pseudo-items
    gains = items._replace(values=np.stack([values, values]))
    of = block([gains], crossed(1, 2), GAIN_RUNS)
    assert np.diagonal(of.covariance) == pytest.approx([estimate.stderr**2] * 2)


def test_an_unseen_whole_item_counts_as_often_as_an_answered_one() -> None:
    # nobody differs on 120 answered items of 500: two pseudo-items of 120, not of 500
    base = np.full(TOTAL, POINTS)
    scored = np.arange(TOTAL) < SCORED
    answers = Pair(base[:SCORED], base[:SCORED], 1.0, True)
    pair = Pair(base, base.copy(), 1.0, True, None, scored, answers)
    assert pair.item_size == pytest.approx(POINTS * TOTAL / SCORED)
    estimate = mean_over_tasks([pair.items])
    assert estimate.stderr == pytest.approx(POINTS * math.sqrt(2.0) / SCORED)
    # options that all say the same have a lead of that size too
    same = [Items(np.zeros((2, TOTAL)), pair.item_size, scored=scored)]
    lead = lead_variances(block(same, crossed(1, 2), GAIN_RUNS).covariance)[0, 1]
    assert math.sqrt(lead) == pytest.approx(POINTS * math.sqrt(2.0) / SCORED)


def test_an_unseen_change_counts_as_often_as_answers_stand_for() -> None:
    base, reference, model = population(np.random.default_rng(10))
    reference[-10:] -= 60.0  # a rare large change that no answer has
    found = pseudo_items(base, reference[None], model[:SCORED])
    scored = np.arange(TOTAL) < SCORED
    answers = Pair(base[:SCORED], model[:SCORED], 1.0, False)
    pair = Pair(base, found.values, 1.0, False, None, scored, answers)
    assert found.r_squared > 0.2  # what is predicted well is not counted less for that

    def quantile(*parts: Floats) -> float:
        return float(np.quantile(np.abs(np.concatenate(parts)), 0.995, method="higher"))

    answered = model[:SCORED] - base[:SCORED]
    assert pair.item_size == pytest.approx(TOTAL / SCORED * quantile(answered))
    others = quantile(answered, reference - base)
    assert others > 50.0
    whole = Pair(base, reference, 1.0, False)
    assert size_of([pair, whole]) == pytest.approx(TOTAL / SCORED * others)


def test_one_model_against_another_is_of_what_both_answered() -> None:
    rng = np.random.default_rng(11)
    base, reference, model = population(rng)
    pairs: list[Pair] = []
    for number in (SCORED, 200):
        answers = Pair(base[:number], model[:number], 1.0, False)
        values = pseudo_items(base, reference[None], model[:number]).values
        pairs.append(Pair(base, values, 1.0, False, None, np.arange(TOTAL) < number, answers))
        model = model + rng.standard_normal(TOTAL)
    lead = pairs[1].over(pairs[0])
    assert lead.scored is not None
    assert int(lead.scored.sum()) == SCORED
    assert (lead.answered.base == pairs[0].answered.adapted).all()
    assert (lead.answered.adapted == pairs[1].answered.adapted[:SCORED]).all()
    over_whole = pairs[1].over(Pair(base, reference, 1.0, False))
    assert (over_whole.answered.base == reference[:200]).all()
    assert over_whole.gain == pytest.approx(pairs[1].adapted - reference)


def test_without_a_reference_the_base_alone_predicts() -> None:
    # it regresses to the mean: of the change's variance 4 of 5 parts
    base, _, _ = population(np.random.default_rng(12))
    model = 0.8 * base + np.random.default_rng(13).standard_normal(TOTAL)
    found = pseudo_items(base, np.empty((0, TOTAL)), model[:SCORED])
    assert 0.7 < found.r_squared < 0.9
    whole = pseudo_items(base, np.empty((0, TOTAL)), model)
    assert np.abs(whole.values - model).max() < 1e-12


def test_what_cannot_be_estimated_is_refused(sentence: Sentences) -> None:
    base, reference, model = population(np.random.default_rng(13))
    with pytest.raises(ValueError, match="99") as caught:
        pseudo_items(base, reference[None], model[:99])
    sentence(caught.value, names=("99", "100"))
    with pytest.raises(ValueError, match="in 1 clusters"):
        pseudo_items(base, reference[None], model[:200], np.zeros(TOTAL, dtype=np.int64))
    with pytest.raises(ValueError, match="not a finite"):
        pseudo_items(base, np.full((1, TOTAL), np.nan), model[:200])
    with pytest.raises(ValueError, match="same items"):
        pseudo_items(base, reference[None, 1:], model[:200])


def results(name: str, values: Floats, scored: TaskItems | None = None) -> ModelResults:
    items = task_items(range(len(values)), values).model_copy(update={"scored": scored})
    return ModelResults(name=name, run=None, evaluations={}, items={"a": items})


def task_items(doc_ids: range | list[int], values: Floats) -> TaskItems:
    return TaskItems(
        task="a",
        metric="acc",
        unit="points",
        higher_is_better=True,
        doc_ids=tuple(doc_ids),
        values=tuple(values.tolist()),
    )


def test_learned_and_forgotten_items_are_of_those_that_were_answered() -> None:
    rng = np.random.default_rng(14)
    base, reference, model = (rng.random((3, TOTAL)) < 0.5).astype(float)
    order = rng.permutation(TOTAL)
    estimated = np.empty(TOTAL)
    estimated[order] = pseudo_items(
        base[order], reference[None, order], model[order[:SCORED]]
    ).values
    places = order[:SCORED].tolist()
    scored = task_items(places, model[places])
    pair = pair_items(results("base", base), results("run", estimated, scored), "a")
    test = paired_test(pair, 0.95)
    assert test.counts is not None
    assert test.counts.learned == int((model[places] > base[places]).sum())
    assert test.counts.forgotten == int((model[places] < base[places]).sum())
    assert sum(test.counts) == SCORED
    assert test.mcnemar_p_value is not None
    assert test.adapted_score == pytest.approx(POINTS * estimated.mean())
    assert test.estimate.value == pytest.approx(POINTS * (estimated - base).mean())
    assert pair.item_size == pytest.approx(POINTS * TOTAL / SCORED)
