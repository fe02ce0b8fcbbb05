"""What options may truly be worth: the mixture against draws from its prior, weighted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.findings.decision import Margins
from rankwise.findings.odds import most_worth, worth
from rankwise.findings.stats.blocks import block
from rankwise.findings.stats.items import Floats, Items
from rankwise.findings.stats.posterior import GAIN_PRIOR, posterior
from rankwise.findings.stats.simultaneous import study_evidence


def values_of(means: list[float], seed: int = 0, size: int = 400) -> Floats:
    """(1, K, n) whose means are these, exactly."""
    rng = np.random.default_rng(seed)
    items = rng.normal(0.0, 15.0, size) + rng.normal(0.0, 30.0, (len(means), size))
    return (items - items.mean(axis=1, keepdims=True) + np.array(means)[:, None])[None]


def test_the_mixture_is_the_prior_weighted_by_what_was_seen() -> None:
    of = block([Items(values_of([10.0, 14.0]), 60.0)])
    found = posterior(of, GAIN_PRIOR, unit=1.0)
    rng, number = np.random.default_rng(1), 1_500_000
    grid = np.geomspace(0.25, 20.0, 9)
    density = grid / (1.0 + (grid / 2.0) ** 2)
    chances = np.array([0.2, *(0.8 * density / density.sum())])
    amplitude = rng.choice([0.0, *grid], number, p=chances)
    sds = np.geomspace(0.25, 4.0, 9)
    prior = np.exp(-(np.log(sds / 0.8) ** 2) / (2.0 * 0.8**2))
    run_sd = rng.choice(sds, number, p=prior / prior.sum())
    # the level is drawn where the data are, and weighted back to its prior
    level = rng.normal(12.0, 6.0, number)
    log_weight = 0.5 * ((level - 12.0) / 6.0) ** 2 - 0.5 * (level / 40.0) ** 2
    spread = np.sqrt(amplitude**2 + 0.3**2)[:, None]
    truths = level[:, None] + spread * rng.standard_normal((number, 2))
    # errors of items and runs, of which the run's part is drawn too
    runs = truths + run_sd[:, None] * rng.standard_normal((number, 2))
    error = of.mean - runs
    log_weight -= 0.5 * np.einsum("ni,ij,nj->n", error, np.linalg.inv(of.item_covariance), error)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ truths
    assert found.weights @ found.means == pytest.approx(mean, abs=0.1)
    lead = truths[:, 1] - truths[:, 0]
    ahead = found.draws(np.random.default_rng(2), 200_000)[0]
    assert (ahead[:, 1] > ahead[:, 0]).mean() == pytest.approx(weight @ (lead > 0), abs=0.02)


def test_what_is_believed_is_shrunk_towards_each_other() -> None:
    gains = [12.0, 16.0, 20.0, 24.0, 19.0]
    found = posterior(block([Items(values_of(gains), 60.0)]), GAIN_PRIOR, unit=1.0)
    mean = found.weights @ found.means
    assert 12.0 < mean.min() < mean.max() < 24.0
    assert (np.linalg.eigvalsh(found.covariances) > 0.0).all()


def test_the_best_bet_is_worth_most_by_the_estimates() -> None:
    """Gains 10, 14, 20; the last loses 8 on average and 30 on one of two tasks, ε = 5, 15."""
    margins = Margins(5.0, 5.0, 15.0)
    gains = [Items(values_of([10.0, 14.0, 20.0]), 60.0)]
    losses = [
        Items(values_of([0.0, 4.0, -14.0], seed=1), 60.0),
        Items(values_of([0.0, 4.0, 30.0], seed=2), 60.0),
    ]
    # 20 - 2 max(8 - 5, 30 - 15) = -10: on average alone it would be 14, as much as the second
    assert worth(20.0, 8.0, margins, 1.0, worst=30.0) == pytest.approx(-10.0)
    assert worth(20.0, 8.0, margins, 1.0) == pytest.approx(14.0)
    assert most_worth(study_evidence(gains, losses), margins, 1.0) == 1
    assert most_worth(study_evidence(gains, []), Margins(5.0, None), 1.0) == 2
    nothing = [Items(values_of([-1.0, -0.1, -3.0]), 60.0)]
    assert most_worth(study_evidence(nothing, []), Margins(5.0, None), 1.0) is None
