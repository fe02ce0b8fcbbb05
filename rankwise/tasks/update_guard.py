"""Checks that adapters are applied: a base scored in their place would seem to forget nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import UnchangedOutputsError
from rankwise.tasks.questions import Continuation, LogLikelihood, Scorer
from rankwise.tasks.requests import Request

# Texts, and tokens of each: each adapter reads a few alone, which is little beside a scoring.
_FEW_PROBES, _MOST_PROBES, _MOST_TOKENS = 4, 64, 32
# Share of the distance by which an update moves the probes. A model within it answers as the base.
_AT_THE_BASE = 0.1


def probes(requests: Sequence[Request]) -> list[Continuation]:
    """The ends of a few of a task's own texts, including prompts of generations.

    Two different models have no reason to give them the same log-likelihoods.
    """
    ends = [(request.context + request.continuation)[-_MOST_TOKENS - 1 :] for request in requests]
    distinct = dict.fromkeys(end for end in ends if len(end) > 1)
    return [Continuation(end[:1], end[1:]) for end in list(distinct)[:_MOST_PROBES]]


def refuse_unapplied(
    scorer: Scorer, adapters: Sequence[str], items: Sequence[Continuation]
) -> None:
    """Score probes with each adapter alone and with all together; none may answer as the base does.

    An engine that does not apply an adapter computes the base's numbers bit by bit, if the adapter
    is scored alone. Together, other shapes may round differently. So an adapter's answers must then
    differ clearly from the base's, if its answers alone do. A few texts are scored first, and all
    of them if an update is too small to show on the few.

    Args:
        scorer: the adapters are attached to it.
        adapters: names of adapters whose updates are not zero.
        items: texts from ``probes``.

    Raises:
        UnchangedOutputsError: an adapter is not applied.
    """
    few = items[:_FEW_PROBES]
    (base,) = scorer.log_likelihoods([None], few)
    together = scorer.log_likelihoods([None, *adapters], few)[1:]
    for name, in_company in zip(adapters, together, strict=True):
        (alone,) = scorer.log_likelihoods([name], few)
        if _distance(alone, base) == 0:
            both = [scorer.log_likelihoods([model], items)[0] for model in (None, name)]
            refuse_equal(name, *both)
        if _distance(in_company, base) < _AT_THE_BASE * _distance(alone, base):
            raise not_applied(name, f"together with other adapters gives {len(few)} texts")


def refuse_equal(name: str, base: Sequence[LogLikelihood], own: Sequence[LogLikelihood]) -> None:
    """Raise ``UnchangedOutputsError`` if an adapter's answers equal the base's, each alone."""
    if own and _distance(own, base) == 0:
        raise not_applied(name, f"gives {len(own)} texts")


def _distance(one: Sequence[LogLikelihood], other: Sequence[LogLikelihood]) -> float:
    """The sum of absolute differences, in nats."""
    return sum(abs(a.nats - b.nats) for a, b in zip(one, other, strict=True))


def not_applied(name: str, answers: str) -> UnchangedOutputsError:
    """The error of an adapter that answers as the base does.

    Args:
        name: of the adapter.
        answers: to what it answers so, as "gives 4 texts".
    """
    return UnchangedOutputsError(
        f"{name} has a non-zero update and {answers} the base model's log-likelihoods: the update "
        "was not applied. Please report this with the base model's name and target_modules."
    )
