"""Which growth of a study to pay for next, and when to stop: ``until: decided`` and ``budget``.

The looks after each growth share alpha (``findings.looks``), so any number of growths may follow
each other, chosen by whatever was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.records.judgement import Prospect

LEAST_CHANCE = 0.1
"""A growth that decides with a smaller probability is not paid for."""


class Offer(NamedTuple):
    """A way to grow a study and what it costs, above 0, in any unit that all offers share."""

    prospect: Prospect
    cost: float


class Step(NamedTuple):
    """The growth to pay for next, or None: stop; and why, in a sentence."""

    offer: Offer | None
    statement: str


def next_growth(
    offers: Sequence[Offer],
    budget: float | None = None,
    least_chance: float = LEAST_CHANCE,
    written: Callable[[float], str] = "{:.3g}".format,
) -> Step:
    """The affordable growth with the largest probability of a decision per cost.

    The cheapest of equal ones. A growth that is likelier by little and dearer by much has to wait:
    if the cheaper one does not decide, it is judged again with what was learnt.

    Args:
        offers: every growth that is considered, from ``Betting.prospects``.
        budget: what may still be spent, in the unit of the costs; None without a limit.
        least_chance: 0..1; where no growth decides with this probability, nothing is worth it.
        written: a cost in words.
    """
    able = [offer for offer in offers if offer.prospect.probability >= least_chance]
    if not able:
        chance = max((offer.prospect.probability for offer in offers), default=0.0)
        return Step(
            None,
            f"Nothing that can be added is likely to decide: the largest probability is "
            f"{chance:.2f}.",
        )
    payable = [offer for offer in able if budget is None or offer.cost <= budget]
    if not payable:
        least = min(offer.cost for offer in able)
        return Step(
            None, f"The budget is spent: {written(budget or 0.0)} left, {written(least)} needed."
        )
    best = max(payable, key=lambda offer: (offer.prospect.probability / offer.cost, -offer.cost))
    of = best.prospect
    what = (
        f"{of.num_new_seeds} more seeds"
        if of.num_new_seeds
        else f"{of.factor:.2g} times the items of {', '.join(of.num_items)}"
    )
    return Step(best, f"Next: {what}, which decide with probability {of.probability:.2f}.")
