"""What a task makes of a model's log-likelihoods, item by item: its metric, and a finer measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rankwise.errors import TaskError
from rankwise.findings.stats.estimates import Floats
from rankwise.records.folder import LOSS_METRIC
from rankwise.records.study import Unit
from rankwise.tasks.judgement import Responses, judge
from rankwise.tasks.questions import Continuation, LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.training_rows import option_index

_LIKELIHOODS = ("multiple_choice", "loglikelihood")


class Question(NamedTuple):
    """One item: the numbers of its options among a task's requests, and which is right.

    ``right`` is None where the task names no right option. A target without options is its own
    only option, and its log-likelihood counts per token.
    """

    options: tuple[int, ...]
    right: int | None
    num_tokens: int

    def answer_nats(self, nats: Sequence[float]) -> float:
        """Log p(right option | options), or of a target per token; 0 if nothing is right."""
        if self.right is None:
            return 0.0
        own = [nats[index] for index in self.options]
        if len(own) == 1:
            return own[0] / self.num_tokens
        highest = max(own)
        return own[self.right] - highest - math.log(sum(math.exp(x - highest) for x in own))


class ItemValues(NamedTuple):
    """A model's values on a task.

    Attributes:
        metric: that decides.
        unit: of ``values``.
        score: the metric's mean, in its own unit and sign.
        values: (items,) in points or nats, positive better.
        answer_nats: (items,) see ``Question``.
    """

    metric: str
    unit: Unit
    score: float
    values: Floats
    answer_nats: Floats


def refuse_unasked(prepared: PreparedTask) -> None:
    """Refuse a task that is not scored by the likelihood of options or of a target.

    Raises:
        TaskError: it generates texts, or scores prose.
    """
    kind = prepared.loaded.output_type
    if kind not in _LIKELIHOODS:
        raise TaskError(
            f"task {prepared.name!r} is {kind}; heads are studied on {' and '.join(_LIKELIHOODS)}: "
            "every head is a model of its own, and these need no text from it. Choose such a form "
            "of the task."
        )


def continuations(prepared: PreparedTask) -> list[Continuation]:
    """What is scored, request by request."""
    return [Continuation(each.context, each.continuation) for each in prepared.requests]


def questions(prepared: PreparedTask) -> list[Question]:
    """The items of a task in order."""
    task, by_doc = prepared.loaded.task, dict[int, list[int]]()
    for number, request in enumerate(prepared.requests):
        by_doc.setdefault(prepared.instances[request.instance].doc_id, []).append(number)
    found: list[Question] = []
    for doc_id, numbers in by_doc.items():
        own = sorted(numbers, key=lambda n: prepared.instances[prepared.requests[n].instance].idx)
        if prepared.loaded.output_type != "multiple_choice":
            size = len(prepared.requests[own[0]].continuation)
            found.append(Question((own[0],), 0, size))
            continue
        doc = prepared.instances[prepared.requests[own[0]].instance].doc
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        options = tuple(own[: prepared.num_options[doc_id]])
        right = option_index(target, task, doc)
        known = right is not None and 0 <= right < len(options)
        found.append(Question(options, right if known else None, 1))
    return found


def item_values(
    prepared: PreparedTask,
    items: Sequence[Question],
    answers: Sequence[LogLikelihood],
    metric: str | None,
) -> ItemValues:
    """Let the task judge, as it judges a model in a study.

    Args:
        prepared: the task; each of its requests answers one instance.
        items: from ``questions``.
        answers: to its requests, in order.
        metric: which metric decides; None takes the task's first that has a number per item.

    Raises:
        TaskError: the task has no metric of that name with one number per item.
    """
    responses: list[Responses] = [((each.nats, each.is_greedy),) for each in answers]
    judgement = judge(prepared, responses, metric)
    decision = judgement.decision
    lines = [line for line in judgement.samples if line["filter"] == decision.filter]
    raw = np.array([float(line[decision.metric]) for line in lines])
    is_loss = decision.metric == LOSS_METRIC
    sign = 1.0 if decision.higher_is_better else -1.0
    nats = [each.nats for each in answers]
    return ItemValues(
        metric=decision.metric,
        unit="nats" if is_loss else "points",
        score=float(decision.value),
        values=sign * raw * (1.0 if is_loss else 100.0),
        answer_nats=np.array([item.answer_nats(nats) for item in items]),
    )
