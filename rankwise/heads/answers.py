"""A task's verdict on a model's log-likelihoods, item by item: its metric, and a finer measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rankwise.errors import TaskError
from rankwise.findings.stats.items import Floats
from rankwise.records.folder import LOSS_METRIC
from rankwise.records.grouping import grouped
from rankwise.records.study import Unit
from rankwise.tasks.judgement import Responses, judge
from rankwise.tasks.questions import Continuation, LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.training_rows import option_index

_LIKELIHOODS = ("multiple_choice", "loglikelihood")


class ItemOptions(NamedTuple):
    """One item's options.

    Attributes:
        options: their numbers among the task's requests. A target without options is the only one.
        right: number of the right option; None where the task names none.
        num_tokens: divides the log-likelihood of a target without options.
    """

    options: tuple[int, ...]
    right: int | None
    num_tokens: int

    def answer_nats(self, nats: Sequence[float]) -> float:
        """Log p(right option | options), or of a target per token; 0 if nothing is right."""
        if self.right is None:
            return 0.0
        of_options = [nats[index] for index in self.options]
        if len(of_options) == 1:
            return of_options[0] / self.num_tokens
        highest = max(of_options)
        sum_of_shares = sum(math.exp(x - highest) for x in of_options)
        return of_options[self.right] - highest - math.log(sum_of_shares)


class ItemValues(NamedTuple):
    """A model's values on a task.

    Attributes:
        metric: that decides.
        unit: of ``values``.
        score: the metric's mean, in its own unit and sign.
        values: (items,) in points or nats, positive better.
        answer_nats: (items,) see ``ItemOptions.answer_nats``.
    """

    metric: str
    unit: Unit
    score: float
    values: Floats
    answer_nats: Floats


def check_tasks(tasks: Sequence[PreparedTask]) -> None:
    """Refuse tasks on which heads cannot be studied.

    Raises:
        TaskError: there is none, or one has a single item, generates texts, scores prose, or
            compares pairs of answers with the base's.
    """
    if not tasks:
        raise TaskError("--tasks names no task.")
    for task in tasks:
        kind = task.loaded.output_type
        if task.loaded.has_pairs:
            raise TaskError(
                f"task {task.name!r} has pairs of answers, which are judged against the base's "
                "likelihoods; heads are not studied on them. Choose another task."
            )
        if kind not in _LIKELIHOODS:
            raise TaskError(
                f"task {task.name!r} is {kind}; heads are studied on {' and '.join(_LIKELIHOODS)} "
                "only: generating texts once for each head would take too long. Choose such a form "
                "of the task."
            )
        if task.num_items < 2:
            raise TaskError(f"task {task.name!r} has one item; an error needs two at least.")


def continuations(prepared: PreparedTask) -> list[Continuation]:
    """The continuation of each request."""
    return [Continuation(ask.context, ask.continuation) for ask in prepared.requests]


def parts(prepared: PreparedTask, most_tokens: int) -> list[list[int]]:
    """Numbers of the requests, in parts of whole items: of about so many tokens, or one item."""
    of_item = grouped(
        (prepared.instances[request.instance].doc_id, number)
        for number, request in enumerate(prepared.requests)
    )
    found: list[list[int]] = []
    tokens = 0
    for numbers in of_item.values():
        # options share their question, so the longest is nearly all that is read
        longest = max(len(prepared.requests[number].tokens_read) for number in numbers)
        if not found or tokens + longest > most_tokens:
            found.append([])
            tokens = 0
        found[-1] += numbers
        tokens += longest
    return found


def questions(prepared: PreparedTask) -> list[ItemOptions]:
    """The items of a task in order."""
    task, by_doc = prepared.loaded.task, dict[int, list[int]]()
    for number, request in enumerate(prepared.requests):
        by_doc.setdefault(prepared.instances[request.instance].doc_id, []).append(number)
    items: list[ItemOptions] = []
    for doc_id, numbers in by_doc.items():
        numbers.sort(key=lambda n: prepared.instances[prepared.requests[n].instance].idx)
        first = prepared.requests[numbers[0]]
        if prepared.loaded.output_type != "multiple_choice":
            items.append(ItemOptions((numbers[0],), 0, len(first.continuation)))
            continue
        doc = prepared.instances[first.instance].doc
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        # requests behind the options are those of another metric: log p(option) without the prompt
        options = tuple(numbers[: prepared.num_options[doc_id]])
        right = option_index(target, task, doc)
        known = right is not None and 0 <= right < len(options)
        items.append(ItemOptions(options, right if known else None, 1))
    return items


def item_values(
    prepared: PreparedTask,
    items: Sequence[ItemOptions],
    answers: Sequence[LogLikelihood],
    metric: str | None,
) -> ItemValues:
    """Let the task judge the answers, as it judges a model in a study.

    Args:
        prepared: the task; each of its requests answers one instance.
        items: from ``questions``.
        answers: to its requests, in order.
        metric: the metric that decides; None takes the task's first with a number per item.

    Raises:
        TaskError: the task has no metric of that name with one number per item.
    """
    responses: list[Responses] = [((answer.nats, answer.is_greedy),) for answer in answers]
    judgement = judge(prepared, responses, metric)
    decision = judgement.decision
    lines = [line for line in judgement.samples if line["filter"] == decision.filter]
    raw = np.array([float(line[decision.metric]) for line in lines])
    is_loss = decision.metric == LOSS_METRIC
    sign = 1.0 if decision.higher_is_better else -1.0
    nats = [answer.nats for answer in answers]
    return ItemValues(
        metric=decision.metric,
        unit="nats" if is_loss else "points",
        score=float(decision.value),
        values=sign * raw * (1.0 if is_loss else 100.0),
        answer_nats=np.array([item.answer_nats(nats) for item in items]),
    )
