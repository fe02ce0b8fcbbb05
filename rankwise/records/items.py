"""Turns the lines of a samples file into one value for each item, and the chosen option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.records.results import TaskItems
from rankwise.records.study import TaskEvaluation

LOSS_METRIC = "loss_nats"

Line = Mapping[str, Any]


def task_items(record: TaskEvaluation, lines: Sequence[Line]) -> TaskItems:
    """The deciding metric of one model on one task, item by item.

    Args:
        record: the scoring's record.
        lines: its samples under the filter that decides, in order.
    """
    values = [float(line[record.decision_metric]) for line in lines]
    if record.decision_metric == LOSS_METRIC and record.output_type == "loglikelihood_rolling":
        values = weighted_by_tokens(values, [int(line["num_loss_tokens"]) for line in lines])
    has_options = record.output_type == "multiple_choice"
    return TaskItems(
        task=record.task,
        metric=record.decision_metric,
        unit="nats" if record.decision_metric == LOSS_METRIC else "points",
        higher_is_better=record.decision.higher_is_better,
        doc_ids=tuple(int(line["doc_id"]) for line in lines),
        values=tuple(values),
        choices=tuple(_choice(line) for line in lines) if has_options else None,
    )


def weighted_by_tokens(losses: Sequence[float], num_tokens: Sequence[int]) -> list[float]:
    """Weight texts' losses per token, so that their mean is the loss per token over all texts."""
    mean = sum(num_tokens) / len(num_tokens)
    return [loss * count / mean for loss, count in zip(losses, num_tokens, strict=True)]


def _choice(line: Line) -> int:
    """The first option with the highest log-likelihood.

    For ``acc_mutual_info``, every option is scored again without its context; those come last.
    """
    scores = [float(response[0][0]) for response in line["resps"]]
    if "acc_mutual_info" in line["metrics"]:
        scores = scores[: len(scores) // 2]
    return scores.index(max(scores))
