"""Following a policy's course through what is known, up to what is missing.

A course is a generator of decisions. It reads of what is known only what it asked for before, so
following it again over the same knowledge leads to the same place.
"""

from __future__ import annotations

from collections.abc import Generator

from rankwise.study.searches.policy import Decision, Known

Course = Generator[Decision, None, Decision]
"""Yields what is wanted, in order; returns the decision that ends the search."""


def follow(course: Course, known: Known) -> Decision:
    """The first decision of a course that asks for something unknown, or its last one.

    Args:
        course: a fresh one.
        known: everything so far. Of a decision that is known in part, the missing part is wanted.
    """
    try:
        while True:
            decision = next(course)
            missing = tuple(progress for progress in decision.wanted if progress not in known)
            if missing:
                return decision._replace(wanted=missing)
    except StopIteration as end:
        last: Decision = end.value
        return last
