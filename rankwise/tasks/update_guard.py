"""Is an adapter applied? A base that is scored in its place would look like a perfect memory."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import UnchangedOutputsError
from rankwise.tasks.questions import Continuation, LogLikelihood, Scorer
from rankwise.tasks.requests import Request

_FEW_PROBES, _MOST_PROBES, _MOST_TOKENS = 4, 64, 32
# Of the distance that an update moves the probes: a model within it is still where the base is.
_AT_THE_BASE = 0.1


def probes(requests: Sequence[Request]) -> list[Continuation]:
    """The ends of a few of a task's own texts, prompts of generations among them.

    Their log-likelihoods are numbers that two different models have no reason to share, whatever
    the task itself asks.
    """
    ends = [(each.context + each.continuation)[-_MOST_TOKENS - 1 :] for each in requests]
    distinct = dict.fromkeys(end for end in ends if len(end) > 1)
    return [Continuation(end[:1], end[1:]) for end in list(distinct)[:_MOST_PROBES]]


def refuse_unapplied(
    scorer: Scorer, adapters: Sequence[str], items: Sequence[Continuation]
) -> None:
    """Ask each adapter alone and all of them together; none may answer as the resident model does.

    Alone, an engine that forgets an adapter multiplies the same numbers as for the base and answers
    it bit by bit. Together, other shapes may round otherwise: then an adapter's answers must not
    lie where the base's are, if its own, asked alone, lie elsewhere. A few texts are asked, and all
    of them where an update is so small that a few do not show it.

    Args:
        scorer: knows the adapters.
        adapters: with updates that are not zero.
        items: from ``probes``.

    Raises:
        UnchangedOutputsError: of one of them.
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
            raise _unchanged(name, len(few), "beside other adapters, ")


def refuse_equal(name: str, base: Sequence[LogLikelihood], own: Sequence[LogLikelihood]) -> None:
    """Refuse answers of an adapter that are the base's, each asked alone on the same texts.

    Raises:
        UnchangedOutputsError: they are equal.
    """
    if own and _distance(own, base) == 0:
        raise _unchanged(name, len(own))


def _distance(one: Sequence[LogLikelihood], other: Sequence[LogLikelihood]) -> float:
    """The sum of absolute differences, in nats."""
    return sum(abs(a.nats - b.nats) for a, b in zip(one, other, strict=True))


def _unchanged(name: str, num_texts: int, where: str = "") -> UnchangedOutputsError:
    return UnchangedOutputsError(
        f"{name} has a non-zero update and, {where}gives {num_texts} texts the base model's "
        "log-likelihoods: the update was not applied. Please report this with the base model's "
        "name and target_modules."
    )
