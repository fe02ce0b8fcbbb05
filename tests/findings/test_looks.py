"""What each look may spend: no more than all, whatever is looked at, and in simulated studies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import special

from rankwise.findings.looks import PLANNED, alpha_of_look

QUARTERS = (0.25, 0.5, 0.75, 1.0)


class Seen(NamedTuple):
    share: float
    alpha: float


def levels(shares: tuple[float, ...], alpha: float, *statements: int) -> list[float]:
    """The part of alpha of each of these looks, at which so many statements share it."""
    looks = list[Seen]()
    for place, share in enumerate(shares):
        count = statements[place % len(statements)] if statements else 1
        looks.append(Seen(share, alpha_of_look(looks, share, alpha, count)))
    return [look.alpha for look in looks]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    st.floats(1e-6, 0.5),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
def test_any_sequence_of_looks_spends_no_more_than_alpha(
    thousandths: list[int], alpha: float, statements: list[int]
) -> None:
    spent = levels(tuple(number / 1000 for number in thousandths), alpha, *statements)
    assert min(spent) >= 0.0
    assert sum(spent) <= alpha * (1.0 + 1e-9)


def test_looks_at_the_plan_spend_four_fifths() -> None:
    assert levels((1.0,), 0.05) == pytest.approx([0.04])
    quarters = levels(QUARTERS, 0.05)
    # 2 (1 - Phi(2.0537 / sqrt(t))) at .25, .5, .75: by a table of the normal law
    assert np.cumsum(quarters)[:3] == pytest.approx([4e-5, 3.68e-3, 1.772e-2], rel=0.02)
    assert sum(quarters) == pytest.approx(0.04)
    assert levels((0.25, 1.0), 0.05) == pytest.approx([quarters[0], 0.04 - quarters[0]])


def test_each_of_several_statements_spends_its_own_part() -> None:
    """As if it alone had a sixth of alpha: more is left to the last look."""
    six, alone = levels(QUARTERS, 0.05, 6), levels(QUARTERS, 0.05 / 6)
    assert six == pytest.approx([6 * level for level in alone])
    assert sum(six) == pytest.approx(0.04)
    assert six[-1] > 1.3 * levels(QUARTERS, 0.05)[-1]


def test_looks_that_see_no_more_of_the_plan_share_the_last_fifth() -> None:
    beyond = levels((1.0, 1.0, 1.0, 1.0), 0.05)
    assert beyond[1:] == pytest.approx([0.01 / 2, 0.01 / 6, 0.01 / 12])
    (half,) = levels((0.5,), 0.05)  # then other data of the same size, in the middle of the plan
    again = [half, 0.01 / 2, 0.01 / 6, 0.04 - half]
    assert levels((0.5, 0.5, 0.25, 1.0), 0.05) == pytest.approx(again)
    assert sum(levels((*QUARTERS, *[1.0] * 10_000), 0.05)) == pytest.approx(0.05, abs=1e-5)


def test_four_looks_err_no_more_often_than_one_may_and_decide_with_fewer_items() -> None:
    """Means of n normal items, looked at in quarters: a truth of zero, and one of 2.5 errors."""
    random, alpha, studies = np.random.default_rng(0), PLANNED * 0.05, 20_000
    limits = -special.ndtri(levels(QUARTERS, 0.05))
    steps = random.standard_normal((studies, 4)) / 2.0
    sums = np.cumsum(steps, axis=1) / np.sqrt(QUARTERS)  # a standard normal error at each look

    def decided_at(truth: float) -> np.ndarray:
        """(studies, 4) whether a study is called better at a look."""
        return sums + truth * np.sqrt(QUARTERS) > limits

    wrong = decided_at(0.0).any(axis=1).mean()
    assert 0.5 * alpha < wrong <= alpha + 3.0 * np.sqrt(alpha / studies)
    found = decided_at(2.5)
    one_look = (sums[:, -1] + 2.5 > -special.ndtri(alpha)).mean()
    assert one_look - found.any(axis=1).mean() < 0.1  # the price of a union bound
    first = found[found.any(axis=1)].argmax(axis=1)
    assert np.mean([QUARTERS[place] for place in first]) < 0.9
    # each look at all of alpha errs more often
    assert (sums > -special.ndtri(alpha)).any(axis=1).mean() > 2.0 * alpha
