"""One run at every rank: shares of a gain, differences from training, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.shares import ratio_of_means
from rankwise.findings.stats.estimates import crossed_difference
from rankwise.findings.truncation import CurvePoint, TrainTaskTruncation, truncated_curves
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun
from tests.planted.grid import grid_run
from tests.planted.truncated import planted_truncated

GAINS = {
    "trained": {4: 0.20, 16: 0.28, 64: 0.30},
    "truncated": {4: 0.10, 16: 0.27},
    "refined": {4: 0.18, 16: 0.285},
}


def found_in(results: StudyResults) -> TrainTaskTruncation:
    (source,), (part,) = option_gains(results), recommend(results).by_train_task
    found = truncated_curves(source, part)
    assert found is not None
    return found


def points_of(found: TrainTaskTruncation) -> dict[tuple[str, int], CurvePoint]:
    (curve,) = found.curves
    return {(point.series, point.rank): point for point in curve.points}


def test_the_three_curves_have_the_gains_that_were_planted() -> None:
    found = found_in(planted_truncated(GAINS))
    points = points_of(found)
    assert {key: round(point.gain.estimate, 6) for key, point in points.items()} == {
        (series, rank): pytest.approx(100 * gain, abs=1e-6)
        for series, by_rank in GAINS.items()
        for rank, gain in by_rank.items()
    }
    for (series, rank), point in points.items():
        assert point.gain.lower < point.gain.estimate < point.gain.upper
        assert point.retention is not None
        assert (point.energy is None) == (series == "trained")
        assert point.num_steps == {"trained": 60, "truncated": 0, "refined": 3}[series]
        if series == "trained":
            assert point.gain_less_trained is None
        else:
            assert point.gain_less_trained is not None
            planted = 100 * (GAINS[series][rank] - GAINS["trained"][rank])
            assert point.gain_less_trained.estimate == pytest.approx(planted)
    assert points["truncated", 16].energy == pytest.approx(1 - 0.5**2)
    assert found.left_out == ()


def test_the_share_of_the_gain_is_of_the_largest_rank_s() -> None:
    points = points_of(found_in(planted_truncated(GAINS)))
    assert points["trained", 64].share_of_gain is None
    for key, share in ((("truncated", 16), 0.9), (("truncated", 4), 1 / 3), (("refined", 4), 0.6)):
        found = points[key].share_of_gain
        assert found is not None
        assert found.estimate == pytest.approx(share)
        assert found.lower is not None
        assert found.upper is not None
        assert found.lower < share < found.upper


def test_a_statement_says_what_it_is_an_estimate_of() -> None:
    (curve,) = found_in(planted_truncated(GAINS)).curves
    largest, smallest = curve.statements
    assert largest.startswith("Truncated to rank 16, the adapter of rank 64 keeps 90 % (")
    assert "and after 3 steps of refinement 95 % (" in largest
    assert "; refined, against training at rank 16: +0.5 points (" in largest
    assert ") in-domain, \u22122.0 points (" in largest
    assert largest.endswith(
        ") on retention. An estimate after one run: truncation is not training."
    )
    assert smallest.startswith("Truncated to rank 4, the adapter of rank 64 keeps 33 % (")


def test_pairs_are_of_the_same_items_and_seeds() -> None:
    """Nested items: the interval of a difference has only those on which two models differ."""
    gains = {
        name: {rank: (v, v + 0.02) for rank, v in each.items()} for name, each in GAINS.items()
    }
    found = found_in(planted_truncated(gains, seeds=(0, 1)))
    assert found.curves[0].num_seeds == 2
    points = points_of(found)
    lead, gain = points["truncated", 16].gain_less_trained, points["truncated", 16].gain
    assert lead is not None
    assert lead.num_seeds == gain.num_seeds == 2
    assert lead.estimate == pytest.approx(-1.0)
    # both seeds lead by the same, so the seeds add nothing to the error
    assert lead.upper - lead.lower < 0.3 * (gain.upper - gain.lower)


def test_a_rank_that_was_not_trained_has_nothing_beside_it() -> None:
    gains = {**GAINS, "trained": {64: 0.30}}
    found = found_in(planted_truncated(gains))
    points = points_of(found)
    assert points["truncated", 4].gain_less_trained is None
    assert "against training" not in " ".join(found.curves[0].statements)


def test_without_a_gain_there_is_no_share_of_it() -> None:
    nothing = {name: dict.fromkeys(each, 0.0) for name, each in GAINS.items()}
    found = found_in(planted_truncated(nothing))
    share = points_of(found)["truncated", 4].share_of_gain
    assert share is not None
    assert share.estimate is None
    assert share.reason == "what it is a share of is not shown to be above zero"
    assert "keeps 0.0 points (" in found.curves[0].statements[0]


def test_a_seed_that_is_missing_leaves_its_series_out() -> None:
    gains = {name: {rank: (v, v) for rank, v in each.items()} for name, each in GAINS.items()}
    results = planted_truncated(gains, seeds=(0, 1))
    first = next(m for m in results.of_role("truncated") if m.run and m.run.planned.num_steps == 0)
    rest = tuple(model for model in results.models if model is not first)
    found = found_in(results.model_copy(update={"models": rest}))
    assert found.left_out == ("rank 64, truncated to rank 4",)
    assert ("truncated", 4) not in points_of(found)
    assert ("refined", 4) in points_of(found)


def test_a_source_that_diverged_is_named() -> None:
    results = planted_truncated(GAINS, diverged=[64])
    found = found_in(results)
    assert found.curves == ()
    assert found.left_out == ("rank 64",)


def test_a_study_without_truncated_adapters_has_no_such_finding() -> None:
    results = planted_truncated({**GAINS, "truncated": {}, "refined": {}})
    (source,), (part,) = option_gains(results), recommend(results).by_train_task
    assert truncated_curves(source, part) is None


def fieller(numerator: Any, denominator: Any, confidence: float = 0.95) -> Any:
    one, other = (crossed_difference(values, item_size=0.0) for values in (numerator, denominator))
    both = crossed_difference(np.asarray(numerator) - np.asarray(denominator), item_size=0.0)
    return ratio_of_means(one, other, both, confidence)


def test_the_interval_of_a_ratio_is_where_the_two_may_be_alike() -> None:
    """By its definition: at its ends, numerator - θ denominator is just not shown to differ."""
    generator = np.random.default_rng(5)
    denominator = generator.normal(3.0, 2.0, 200)
    numerator = 0.8 * denominator + generator.normal(0.0, 1.0, 200)
    ratio = fieller(numerator, denominator)
    assert ratio.estimate == pytest.approx(numerator.mean() / denominator.mean())
    for end in (ratio.lower, ratio.upper):
        at_end = crossed_difference(numerator - end * denominator, item_size=0.0)
        quantile = float(at_end.spread.quantile(0.975))
        assert abs(at_end.value) == pytest.approx(quantile * at_end.stderr, rel=1e-6)


def test_the_interval_of_a_ratio_covers() -> None:
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(1000):
        denominator = generator.normal(1.0, 2.0, 60)
        numerator = 0.5 * denominator + generator.normal(0.0, 1.0, 60)
        ratio = fieller(numerator, denominator)
        hits += ratio.estimate is not None and ratio.lower <= 0.5 <= ratio.upper
        hits += ratio.estimate is None  # every θ may be right
    assert 0.93 <= hits / 1000 <= 0.975


def test_a_run_under_two_alphas_is_trained_beside_either() -> None:
    both = grid_run("sums", 8, alpha_labels=("2r", "16"))
    others: Sequence[PlannedRun] = (
        grid_run("sums", 64, alpha_labels=("2r",)),
        grid_run("sums", 64, alpha_labels=("16",)),
    )
    results = planted_truncated(GAINS, plans=(both, *others), ranks=(8,))
    found = found_in(results)
    assert len(found.curves) == 2
    for curve in found.curves:
        assert [(p.series, p.rank) for p in curve.points] == [
            ("trained", 8),
            ("trained", 64),
            ("truncated", 8),
            ("refined", 8),
        ]
