"""Judges a model's answers with lm-eval's filters and metrics, and picks the deciding metric."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rankwise.errors import TaskError
from rankwise.records.quantities import listed
from rankwise.records.results import FIELD, LOSS_METRIC, weighted_by_tokens
from rankwise.records.study import MetricScore
from rankwise.tasks.answer_checks import BASE_ANSWER
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.task_files import task_code
from rankwise.tasks.training_rows import target_text

Response = tuple[float, bool] | float | str
"""A log-likelihood with its greedy flag, a whole text's log-likelihood, or a generation."""

_MOST_CHECKED = 4
"""Items on which judging is tried; some statistics need more than two."""

Responses = tuple[Response, ...]
"""Answers to one of lm-eval's instances: one, or one per repeat."""

PREFERENCE = "preference"
"""The metric of pairs of answers: 1 where the chosen one has the larger implicit reward, which is
log(model / base) up to a factor; 0 where the rejected one has; 0.5 where both are equal, as they
are for the base itself."""

MARGIN = "margin_nats"
"""The difference of these log-ratios, chosen minus rejected."""

Values = dict[tuple[str, str], list[Any]]
"""(metric, filter) -> values, item by item."""


class Judgement(NamedTuple):
    """A task's verdict on a model's answers.

    Attributes:
        samples: one line per filter and item, with lm-eval's fields.
        metrics: the aggregated scores.
        decision: the score that decides.
        predicted_shares: how often each option was chosen; None without options.
    """

    samples: list[dict[str, Any]]
    metrics: list[MetricScore]
    decision: MetricScore
    predicted_shares: tuple[float, ...] | None


def judge(
    prepared: PreparedTask,
    responses: Sequence[Responses],
    metric: str | None,
    of_base: Sequence[Responses] | None = None,
) -> Judgement:
    """Let the task judge the answers to its instances, in order; see ``evaluation.evaluate``.

    ``of_base`` are the base's answers, with which pairs, and checks that compare, are compared.

    Raises:
        TaskError: its filters, functions or metrics fail on the answers, or none of its metrics is
            one number per item.
    """
    with task_code(
        f"{prepared.loaded.where} cannot judge the answers",
        "Correct its filter_list, process_results and metric_list.",
    ):
        samples, values = _samples(prepared, responses, of_base)
        metrics = list(_aggregate(prepared, values))
    return Judgement(
        samples,
        metrics,
        _decision(prepared, metrics, values, metric),
        _predicted_shares(prepared, responses),
    )


def check_judging(prepared: PreparedTask, metric: str | None) -> None:
    """Let the task judge made-up answers to its first items, before hours of training.

    Generations are answered right, so that whatever fails here fails on every answer.

    Raises:
        TaskError: as of ``judge``.
    """
    docs = {instance.doc_id: instance.doc for instance in prepared.instances}
    number = _MOST_CHECKED
    if metric is not None and metric.startswith(FIELD):  # not every right answer has every field
        key = f'"{metric.rpartition(".")[2]}"'
        has_key = (key in doc["completion"] for doc in docs.values())
        number = max(number, 1 + next((at for at, has in enumerate(has_key) if has), 0))
    first = set(list(docs)[:number])
    instances = list(
        itertools.takewhile(lambda instance: instance.doc_id in first, prepared.instances)
    )
    answers: list[Responses] = []
    with task_code(
        f"{prepared.loaded.where} cannot write a right answer", "Correct doc_to_target."
    ):
        for instance in instances:
            if instance.request_type == "loglikelihood_rolling":
                answers.append((-1.0,))
            elif instance.request_type != "generate_until":
                answers.append(((-1.0 - instance.idx, False),))
            else:
                task, doc = prepared.loaded.task, instance.doc
                target = task.doc_to_target(doc)
                text = target_text(task, doc, target, chat_template=prepared.chat_template)
                answers.append((text.strip(),))
    requests = [r for r in prepared.requests if r.instance < len(instances)]
    # beside empty texts, so that a check that compares is called
    of_base = [("",)] * len(answers) if prepared.loaded.compares_with_base else answers
    judge(prepared._replace(instances=instances, requests=requests), answers, metric, of_base)


def _samples(
    prepared: PreparedTask, responses: Sequence[Responses], of_base: Sequence[Responses] | None
) -> tuple[list[dict[str, Any]], Values]:
    """lm-eval's filters and metrics, item by item: sample lines, and values.

    A value of None says that the item is missing.
    """
    task, instances = prepared.loaded.task, prepared.instances
    by_doc: dict[int, list[int]] = defaultdict(list)
    for index, (instance, own) in enumerate(zip(instances, responses, strict=True)):
        instance.resps = list(own) if len(own) > 1 else list(own) * (instance.repeats or 1)
        instance.filtered_resps = {}
        by_doc[instance.doc_id].append(index)
    all_instances, task._instances = task._instances, instances  # these may be a part of the task
    try:
        task.apply_filters()
    finally:
        task._instances = all_instances
    num_loss_tokens = Counter[int]()  # of each instance
    for request in prepared.requests:
        num_loss_tokens[request.instance] += len(request.continuation)
    samples: list[dict[str, Any]] = []
    values: Values = defaultdict(list)
    for filter_name in instances[0].filtered_resps:
        for indices in by_doc.values():
            requests = sorted((instances[i] for i in indices), key=lambda request: request.idx)
            filtered = [request.filtered_resps[filter_name] for request in requests]
            doc = requests[0].doc
            if prepared.loaded.is_against_base and of_base is None:
                raise TaskError("answers are judged against the base's; score it too")
            if prepared.loaded.compares_with_base and of_base is not None:
                doc = {**doc, BASE_ANSWER: str(of_base[indices[0]][0]).strip()}
            metrics: dict[str, Any] = dict(task.process_results(doc, filtered))
            if prepared.loaded.has_pairs and of_base is not None:
                pair, of_pair = ([of[i] for i in indices] for of in (responses, of_base))
                metrics = _preference(pair, of_pair) | metrics  # the first one decides
            line = _line(prepared, requests, filter_name, filtered, list(metrics))
            if prepared.loaded.output_type in ("loglikelihood", "loglikelihood_rolling"):
                (response, *_), tokens = responses[indices[0]], num_loss_tokens[indices[0]]
                nats = response[0] if isinstance(response, tuple) else response
                line["num_loss_tokens"] = tokens
                metrics[LOSS_METRIC] = -float(nats) / tokens
            samples.append(line | metrics)
            for metric, value in metrics.items():
                values[metric, filter_name] += [] if value is None else [value]
    if prepared.loaded.output_type == "loglikelihood_rolling":
        key = (LOSS_METRIC, samples[0]["filter"])
        tokens = [line["num_loss_tokens"] for line in samples]
        values[key] = weighted_by_tokens(values[key], tokens)
    return samples, dict(values)


def _preference(own: Sequence[Responses], of_base: Sequence[Responses]) -> dict[str, float]:
    """The metrics of one pair of answers, the chosen one first."""
    chosen, rejected = (
        float(ours[0]) - float(base[0])
        for (ours, *_), (base, *_) in zip(own, of_base, strict=True)
        if isinstance(ours, tuple) and isinstance(base, tuple)
    )
    margin = chosen - rejected
    return {PREFERENCE: 0.5 if margin == 0 else float(margin > 0), MARGIN: margin}


def _line(
    prepared: PreparedTask,
    requests: Sequence[Any],
    filter_name: str,
    filtered: list[Any],
    metrics: list[str],
) -> dict[str, Any]:
    """The line that lm-eval logs for one item, without the values of its metrics."""
    from lm_eval.utils import handle_non_serializable, hash_string

    doc = requests[0].doc
    target = prepared.loaded.task.doc_to_target(doc)
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return {
        "doc_id": requests[0].doc_id,
        "doc": doc,
        "target": target,
        "arguments": [request.args for request in requests],
        "resps": [request.resps for request in requests],
        "filtered_resps": filtered,
        "filter": filter_name,
        "metrics": metrics,
        "doc_hash": hash_string(text),
        "prompt_hash": hash_string(requests[0].arguments[0]),
        "target_hash": hash_string(str(target)),
    }


def _aggregate(prepared: PreparedTask, values: Values) -> Iterator[MetricScore]:
    from lm_eval.api.metrics import mean, mean_stderr, stderr_for_metric

    task = prepared.loaded.task
    for (metric, filter_name), items in values.items():
        aggregate = task.aggregation().get(metric, mean)
        if not items:
            continue
        try:
            value = float(aggregate(items))
        except OverflowError:  # a word perplexity of prose without spaces
            continue
        if not math.isfinite(value):
            continue
        # a closed-form error where lm-eval has one; its bootstrap forks the whole process
        stderr_of: Any = stderr_for_metric(aggregate, bootstrap_iters=1)
        closed_form = stderr_of if stderr_of is mean_stderr else None
        higher = task.higher_is_better().get(metric)
        yield MetricScore(
            metric=metric,
            filter=filter_name,
            value=value,
            stderr=float(closed_form(items)) if closed_form and len(items) > 1 else None,
            num_examples=len(items),
            higher_is_better=metric != LOSS_METRIC if higher is None else bool(higher),
        )


def _decision(
    prepared: PreparedTask, metrics: Sequence[MetricScore], values: Values, wanted: str | None
) -> MetricScore:
    """The loss of prose and of rows as given, or the wanted metric, else the first usable one."""
    usable: list[MetricScore] = []  # those that are the mean of one number per item
    for score in metrics:
        items = values[score.metric, score.filter]
        if all(isinstance(item, int | float) for item in items):
            mean = sum(items) / len(items)  # not lm-eval's perplexity, made from log-likelihoods
            if math.isclose(score.value, mean, rel_tol=1e-6, abs_tol=1e-9):
                usable.append(score)
    loaded, kind = prepared.loaded, prepared.loaded.output_type
    is_by_loss = kind == "loglikelihood_rolling" or (loaded.is_rendered and kind == "loglikelihood")
    is_by_loss = is_by_loss and not loaded.has_pairs
    if is_by_loss if wanted is None else wanted.partition(",")[0] == LOSS_METRIC:
        wanted = LOSS_METRIC
    for score in usable:
        if wanted is None or wanted in (score.metric, f"{score.metric},{score.filter}"):
            return score
    names = ", ".join(f"{score.metric},{score.filter}" for score in usable)
    if empty := [metric for (metric, _), items in values.items() if not items]:
        raise TaskError(
            f"{prepared.loaded.where}: {empty[0]} has no number for any item, so that nothing can "
            "be compared. Correct what judges."
        )
    if not names:
        of_all = listed([score.metric for score in metrics])
        raise TaskError(
            f"{prepared.loaded.where} has no metric with one number per item, which statistics "
            f"need: {of_all or 'its metric'} is of all items together. Add one to its metric_list, "
            "such as acc, or score its rows as data of your own (evaluation.own), by choice, bleu, "
            "chrf or rouge."
        )
    raise TaskError(
        f"task {prepared.name!r} has no metric {wanted!r} with one number per item; it has: "
        f"{names}. Set evaluation.metric.{prepared.name} to one of them."
    )


def _predicted_shares(
    prepared: PreparedTask, responses: Sequence[Responses]
) -> tuple[float, ...] | None:
    """How often each option had the highest log-likelihood, by its position."""
    if prepared.loaded.output_type != "multiple_choice":
        return None
    options: dict[int, list[float]] = defaultdict(list)
    for instance, (response, *_) in zip(prepared.instances, responses, strict=True):
        assert isinstance(response, tuple)
        if instance.idx < prepared.num_options[instance.doc_id]:
            options[instance.doc_id].append(response[0])
    counts = [0] * max(len(scores) for scores in options.values())
    for scores in options.values():
        counts[scores.index(max(scores))] += 1
    return tuple(count / len(options) for count in counts)
