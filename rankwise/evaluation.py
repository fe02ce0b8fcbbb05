"""Score one model on one task: log-likelihoods, generations, and lm-eval's metrics of them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.batching import left_padded, within_budget
from rankwise.errors import TaskError
from rankwise.records import MetricScore, TaskEvaluation
from rankwise.store import LOSS_METRIC
from rankwise.tasks.requests import PreparedTask, Request

Advance = Callable[[int], None]
Response = tuple[float, bool] | float | str


class Known(NamedTuple):
    """What an earlier scoring of fewer items found: nothing of it is computed again.

    Attributes:
        responses: to the first instances of the task, in order.
        num_unfinished: generations among them that did not end by themselves.
        score_seconds: what they took.
    """

    responses: tuple[Response, ...] = ()
    num_unfinished: int = 0
    score_seconds: float = 0.0


class Generation(NamedTuple):
    """What a model wrote behind a prompt; not finished if it was cut off at the longest length."""

    text: str
    is_finished: bool


class Scoring(NamedTuple):
    """What scoring returns: the record, and one line per item and filter."""

    record: TaskEvaluation
    samples: list[dict[str, Any]]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    prepared: PreparedTask,
    *,
    model_name: str,
    fingerprint: str,
    metric: str | None,
    max_batch_tokens: int,
    known: Known = Known(),  # noqa: B008 (it is frozen)
    advance: Advance = lambda _: None,
) -> Scoring:
    """Answer every request of a task and let the task itself judge the answers.

    Args:
        model: a causal language model in eval mode; the device is where its weights are.
        tokenizer: of the base model.
        prepared: the task with its tokenised requests.
        model_name: "base", or the run's name.
        fingerprint: of everything the scores depend on.
        metric: which metric decides; None takes the task's first that has a number per item.
        max_batch_tokens: padded tokens in one forward pass.
        known: of an earlier scoring of the first items.
        advance: is told how many tokens were read.

    Raises:
        TaskError: the task has no metric of that name with one number per item.
    """
    started = time.perf_counter()
    responses, num_loss_tokens, num_unfinished = _respond(
        model, tokenizer, prepared, known, max_batch_tokens, advance
    )
    samples, values = _judge(prepared, responses, num_loss_tokens)
    metrics = _aggregate(prepared, values)
    decision = _decision(prepared, metrics, values, metric)
    record = TaskEvaluation(
        model=model_name,
        task=prepared.name,
        task_version=prepared.loaded.version,
        fingerprint=fingerprint,
        output_type=prepared.loaded.output_type,
        domain=prepared.loaded.domain,
        metrics=tuple(metrics),
        decision_metric=decision.metric,
        decision_filter=decision.filter,
        num_examples=prepared.num_items,
        num_fewshot=prepared.num_fewshot,
        chat_template=prepared.chat_template,
        limit=prepared.limit,
        chance=prepared.chance,
        predicted_shares=_predicted_shares(prepared, responses),
        num_unfinished=num_unfinished,
        num_truncated=sum(request.is_truncated for request in prepared.requests),
        num_tokens=prepared.num_tokens,
        score_seconds=known.score_seconds + time.perf_counter() - started,
    )
    return Scoring(record, samples)


def _respond(
    model: nn.Module,
    tokenizer: Any,
    prepared: PreparedTask,
    known: Known,
    max_batch_tokens: int,
    advance: Advance,
) -> tuple[list[Response], list[int], int | None]:
    """One response per instance, how many tokens each was scored on, and how many did not end."""
    num_loss_tokens = [0] * len(prepared.instances)
    num_known = len(known.responses)
    new = [request for request in prepared.requests if request.instance >= num_known]
    if prepared.loaded.output_type == "generate_until":
        found = _generate(model, tokenizer, prepared, new, max_batch_tokens, advance)
        num_unfinished = known.num_unfinished + sum(not each.is_finished for each in found)
        texts = [each.text for each in found]
        return [*known.responses, *texts], num_loss_tokens, num_unfinished
    pairs = score_requests(model, new, tokenizer.pad_token_id, max_batch_tokens, advance)
    responses: list[Response] = [*known.responses, *pairs]
    if prepared.loaded.output_type == "loglikelihood_rolling":
        totals = [0.0] * (len(prepared.instances) - num_known)
        for request, (log_likelihood, _) in zip(new, pairs, strict=True):
            totals[request.instance - num_known] += log_likelihood
        responses = [*known.responses, *totals]
    for request in prepared.requests:
        num_loss_tokens[request.instance] += len(request.continuation)
    return responses, num_loss_tokens, None


@torch.inference_mode()
def score_requests(
    model: nn.Module,
    requests: Sequence[Request],
    pad_id: int,
    max_batch_tokens: int,
    advance: Advance = lambda _: None,
) -> list[tuple[float, bool]]:
    """The log-likelihood in nats of each continuation, and whether greedy decoding gives it.

    Requests that read the same tokens (options of one token) share one forward pass. Logits are
    computed from the first scored position on, and log-softmax is taken in float32.
    """
    device = next(model.parameters()).device
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        rows[request.tokens_read].append(index)
    inputs = list(rows)
    results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    for chosen in within_budget([len(row) for row in inputs], max_batch_tokens):
        batch = left_padded([inputs[i] for i in chosen], pad_id, device)
        kept = max(len(requests[j].continuation) for i in chosen for j in rows[inputs[i]])
        logits: torch.Tensor = model(**batch._asdict(), logits_to_keep=kept, use_cache=False).logits
        advance(sum(len(inputs[i]) for i in chosen))
        for row, index in enumerate(chosen):
            longest = max(len(requests[j].continuation) for j in rows[inputs[index]])
            log_probabilities = logits[row, -longest:].float().log_softmax(dim=-1)
            greedy = log_probabilities.argmax(dim=-1)
            for j in rows[inputs[index]]:
                continuation = torch.tensor(requests[j].continuation, device=device)
                scored = log_probabilities[-len(continuation) :]
                picked = scored.gather(1, continuation.unsqueeze(1))
                is_greedy = bool((greedy[-len(continuation) :] == continuation).all())
                results[j] = (float(picked.sum()), is_greedy)
    return results


@torch.inference_mode()
def _generate(
    model: nn.Module,
    tokenizer: Any,
    prepared: PreparedTask,
    requests: Sequence[Request],
    max_batch_tokens: int,
    advance: Advance,
) -> list[Generation]:
    """Continue each prompt, batched among requests with equal settings, cut at the stop strings."""
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )

    device = next(model.parameters()).device
    end_of_text = tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=False)
    ends = _end_tokens(model, tokenizer).to(device)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        groups[repr(prepared.instances[request.instance].args[1])].append(index)
    found = [Generation("", False)] * len(requests)
    for members in groups.values():
        settings: dict[str, Any] = dict(
            normalize_gen_kwargs(dict(prepared.instances[requests[members[0]].instance].args[1]))
        )
        stops = handle_stop_sequences(list(settings.pop("until", None) or []), eos=end_of_text)
        max_new_tokens = settings.pop("max_gen_toks")
        if not settings.get("do_sample"):
            settings.pop("temperature", None)
        prompts = [requests[index].context for index in members]
        lengths = [len(prompt) + max_new_tokens for prompt in prompts]
        for chosen in within_budget(lengths, max_batch_tokens):
            batch = left_padded([prompts[i] for i in chosen], tokenizer.pad_token_id, device)
            generate: Any = model.generate
            tokens = generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                stop_strings=stops,
                tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
                **settings,
            )
            for row, i in enumerate(chosen):
                new = tokens[row, batch.input_ids.shape[1] :]
                text = tokenizer.decode(new, skip_special_tokens=True)
                found[members[i]] = Generation(
                    postprocess_generated_text(text, stops, None),
                    len(new) < max_new_tokens
                    or bool(torch.isin(new, ends).any())
                    or any(stop in text for stop in stops),
                )
                advance(lengths[i])
    return found


def _end_tokens(model: nn.Module, tokenizer: Any) -> torch.Tensor:
    """The tokens that end a generation, and the one that fills a row which has ended."""
    config: Any = model.generation_config
    of_model = config.eos_token_id
    of_model = of_model if isinstance(of_model, list) else [of_model]
    known = {tokenizer.eos_token_id, tokenizer.pad_token_id, *of_model}
    return torch.tensor([token for token in known if token is not None])


def _judge(
    prepared: PreparedTask, responses: Sequence[Response], num_loss_tokens: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[Any]]]:
    """lm-eval's filters and metrics, item by item: sample lines, and values by (metric, filter)."""
    import json

    from lm_eval.utils import handle_non_serializable, hash_string

    task, instances = prepared.loaded.task, prepared.instances
    by_doc: dict[int, list[int]] = defaultdict(list)
    for index, (instance, response) in enumerate(zip(instances, responses, strict=True)):
        instance.resps = [response] * (instance.repeats or 1)
        instance.filtered_resps = {}
        by_doc[instance.doc_id].append(index)
    task.apply_filters()
    samples: list[dict[str, Any]] = []
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for filter_name in instances[0].filtered_resps:
        for doc_id, indices in by_doc.items():
            requests = sorted((instances[i] for i in indices), key=lambda request: request.idx)
            doc = requests[0].doc
            filtered = [request.filtered_resps[filter_name] for request in requests]
            metrics: dict[str, Any] = dict(task.process_results(doc, filtered))
            line: dict[str, Any] = {
                "doc_id": doc_id,
                "doc": doc,
                "target": task.doc_to_target(doc),
                "arguments": [request.args for request in requests],
                "resps": [request.resps for request in requests],
                "filtered_resps": filtered,
                "filter": filter_name,
                "metrics": list(metrics),
                "doc_hash": hash_string(
                    json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
                ),
                "prompt_hash": hash_string(requests[0].arguments[0]),
                "target_hash": hash_string(str(task.doc_to_target(doc))),
            }
            if prepared.loaded.output_type in ("loglikelihood", "loglikelihood_rolling"):
                response = responses[indices[0]]
                nats = response[0] if isinstance(response, tuple) else response
                line["num_loss_tokens"] = num_loss_tokens[indices[0]]
                metrics[LOSS_METRIC] = -float(nats) / num_loss_tokens[indices[0]]
            samples.append(line | metrics)
            for metric, value in metrics.items():
                values[metric, filter_name].append(value)
    if prepared.loaded.output_type == "loglikelihood_rolling":
        key = (LOSS_METRIC, samples[0]["filter"])
        tokens = [line["num_loss_tokens"] for line in samples]
        mean = sum(tokens) / len(tokens)
        values[key] = [v * n / mean for v, n in zip(values[key], tokens, strict=True)]
    return samples, dict(values)


def _aggregate(
    prepared: PreparedTask, values: dict[tuple[str, str], list[Any]]
) -> list[MetricScore]:
    from lm_eval.api.metrics import mean, mean_stderr, stderr_for_metric

    task = prepared.loaded.task
    scores: list[MetricScore] = []
    for (metric, filter_name), items in values.items():
        aggregate = task.aggregation().get(metric, mean)
        value = _finite(aggregate, items)
        if value is None:
            continue
        # a closed-form error where lm-eval has one; its bootstrap forks the whole process
        stderr_of: Any = stderr_for_metric(aggregate, bootstrap_iters=1)
        closed_form = stderr_of if stderr_of is mean_stderr else None
        higher = task.higher_is_better().get(metric)
        scores.append(
            MetricScore(
                metric=metric,
                filter=filter_name,
                value=value,
                stderr=float(closed_form(items)) if closed_form and len(items) > 1 else None,
                num_examples=len(items),
                higher_is_better=metric != LOSS_METRIC if higher is None else bool(higher),
            )
        )
    return scores


def _finite(aggregate: Callable[[list[Any]], Any], items: list[Any]) -> float | None:
    """The aggregate, or None where it is no number: a word perplexity of prose without spaces."""
    try:
        value = float(aggregate(items))
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _decision(
    prepared: PreparedTask,
    metrics: Sequence[MetricScore],
    values: dict[tuple[str, str], list[Any]],
    wanted: str | None,
) -> MetricScore:
    """The loss where it is the point, else the wanted metric, else the first usable one."""
    usable = [
        score for score in metrics if _is_mean(score.value, values[score.metric, score.filter])
    ]
    own_data = prepared.loaded.is_rendered and prepared.loaded.output_type == "loglikelihood"
    if wanted is None and (own_data or prepared.loaded.output_type == "loglikelihood_rolling"):
        wanted = LOSS_METRIC
    for score in usable:
        if wanted is None or wanted in (score.metric, f"{score.metric},{score.filter}"):
            return score
    names = ", ".join(f"{score.metric},{score.filter}" for score in usable) or "none"
    raise TaskError(
        f"task {prepared.name!r} has no metric {wanted!r} with one number per item; it has: "
        f"{names}. Set evaluation.metric.{prepared.name} to one of them."
    )


def _is_mean(value: float, items: list[Any]) -> bool:
    """Whether an aggregate is the mean of one number per item.

    lm-eval's perplexity of a continuation is not: its items are log-likelihoods.
    """
    if not all(isinstance(item, int | float) for item in items):
        return False
    return math.isclose(value, sum(items) / len(items), rel_tol=1e-6, abs_tol=1e-9)


def _predicted_shares(
    prepared: PreparedTask, responses: Sequence[Response]
) -> tuple[float, ...] | None:
    """How often each option had the highest log-likelihood, by its position."""
    if prepared.loaded.output_type != "multiple_choice":
        return None
    options: dict[int, list[float]] = defaultdict(list)
    for instance, response in zip(prepared.instances, responses, strict=True):
        assert isinstance(response, tuple)
        if instance.idx < prepared.num_options[instance.doc_id]:
            options[instance.doc_id].append(response[0])
    counts = [0] * max(len(scores) for scores in options.values())
    for scores in options.values():
        counts[scores.index(max(scores))] += 1
    return tuple(count / len(options) for count in counts)
