"""What options may truly be worth, also where two settings meet in one option."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rankwise.findings.stats.items import Items
from rankwise.findings.stats.posterior import (
    GAIN_PRIOR,
    Posterior,
    posterior,
    setting_correlations,
    smooth_correlations,
)
from rankwise.findings.stats.simultaneous import study_evidence

Labels = list[list[set[str]]]


def meeting(ranks: list[int], policies: list[str]) -> tuple[list[int], Labels]:
    """Ranks and alpha labels of the options of a grid; equal alphas of one rank are one option."""
    options: dict[tuple[int, int], set[str]] = {}
    for policy, rank in product(policies, ranks):
        alpha = int(policy[:-1]) * rank if policy.endswith("r") else int(policy)
        options.setdefault((rank, alpha), set()).add(policy)
    return [rank for rank, _ in options], [[labels] for labels in options.values()]


def believed(ranks: list[int], alike: np.ndarray, gains: np.ndarray) -> Posterior:
    """The posterior of 1,000 items whose gains have these means, in points."""
    rng = np.random.default_rng(0)
    items = rng.normal(0.0, 15.0, 1000) + rng.normal(0.0, 10.0, (len(gains), 1000))
    values = items - items.mean(axis=1, keepdims=True) + gains[:, None]
    evidence = study_evidence([Items(values[None], 60.0)], [])
    correlations = smooth_correlations(ranks, alike)
    return posterior(evidence.in_domain, correlations, GAIN_PRIOR, unit=1.0)


def test_settings_by_hand() -> None:
    """One label in common of two: (1 + 0.5) / 2, over the root of (1 + 0.5) / 2 of itself."""
    found = setting_correlations(
        [[{"2r"}, {1}], [{"2r", "16"}, {1}], [{"16"}, {1}], [{"16"}, {2}], [{"2r"}, {2}]]
    )
    root = 0.75**0.5
    assert found[0] == pytest.approx([1.0, root, 0.5, 0.25, 0.5])
    assert found[1] == pytest.approx([root, 1.0, root, root / 2, root / 2])


@pytest.mark.parametrize("ranks", [[4, 8, 16], [4, 8, 16, 32, 64], [8, 16, 32, 64, 128]])
def test_correlations_are_those_of_random_variables(ranks: list[int]) -> None:
    of, labels = meeting(ranks, ["1r", "2r", "16", "32"])
    assert any(len(setting) > 1 for (setting,) in labels)
    correlations = smooth_correlations(of, setting_correlations(labels))
    assert (np.linalg.eigvalsh(correlations) > 0.0).all()
    assert np.allclose(np.diagonal(correlations, axis1=1, axis2=2), 1.0)


def test_what_is_believed_lies_within_what_was_seen_where_settings_meet() -> None:
    ranks, labels = meeting([4, 8, 16, 32, 64], ["2r", "16"])
    gains = np.random.default_rng(1).normal(20.0, 4.0, len(ranks))
    of = believed(ranks, setting_correlations(labels), gains)
    mean = of.weights @ of.means
    assert gains.min() < mean.min() < mean.max() < gains.max()  # shrunk towards each other
    assert (np.linalg.eigvalsh(of.covariances) > 0.0).all()


def test_correlations_of_nothing_are_refused() -> None:
    """Rank 8 wholly like both of two options that differ from each other."""
    alike = np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.5, 1.0, 1.0]])
    with pytest.raises(ValueError, match="positive semidefinite"):
        believed([8, 8, 8], alike, np.array([10.0, 20.0, 15.0]))
