"""A policy as a course: decisions in order, followed through what is known up to what is missing.

A course reads of what is known only what it asked for before, so following it again over the same
knowledge leads to the same place.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from rankwise.study.searches.policy import Decision, Known, Progress, Ruling, Trial

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


class Journal:
    """What was ruled out and said since the last decision; the next one takes it."""

    def __init__(self) -> None:
        self._rulings: list[Ruling] = []
        self._notes: list[str] = []

    def say(self, sentence: str) -> None:
        """Add a sentence to the next statement."""
        self._notes.append(sentence)

    def rule_out(self, ruling: Ruling) -> None:
        """Add a ruling to the next decision."""
        self._rulings.append(ruling)

    def ask(self, wanted: Sequence[Progress], sentence: str) -> Decision:
        """A decision to train on."""
        return self._decision(tuple(wanted), (), sentence)

    def end(self, finalists: Sequence[Trial], sentence: str) -> Decision:
        """The decision that ends a search: the ends of these trials are compared."""
        return self._decision((), tuple(Progress(trial, 1.0) for trial in finalists), sentence)

    def _decision(
        self, wanted: tuple[Progress, ...], finalists: tuple[Progress, ...], sentence: str
    ) -> Decision:
        statement = " ".join([*self._notes, sentence])
        decision = Decision(wanted, finalists, tuple(self._rulings), statement)
        self._rulings, self._notes = [], []
        return decision
