"""Scores several models on one task: their answers, and the task's verdict on them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rankwise.errors import ModelError
from rankwise.records.folder import BASE
from rankwise.records.grouping import grouped
from rankwise.records.study import TaskEvaluation
from rankwise.tasks.judgement import Responses, judge
from rankwise.tasks.questions import Advance, Continuation, Prompt, Scorer
from rankwise.tasks.requests import SAMPLING_SEED, PreparedTask, Request


class Known(NamedTuple):
    """A model's answers: all, or those of an earlier scoring of fewer items.

    Attributes:
        responses: number of a document -> the answers to its instances, in order.
        num_unfinished: generations among them that were cut at their maximum length.
        score_seconds: time that they took.
    """

    responses: Mapping[int, tuple[Responses, ...]] = MappingProxyType({})
    num_unfinished: int = 0
    score_seconds: float = 0.0


def responses_of(lines: Iterable[Mapping[str, Any]]) -> dict[int, tuple[Responses, ...]]:
    """Number of a document -> answers to its instances, which the lines of each filter repeat."""
    return {
        line["doc_id"]: tuple(
            tuple(tuple(response) if isinstance(response, list) else response for response in each)
            for each in line["resps"]
        )
        for line in lines
    }


class ScoredModel(NamedTuple):
    """A model that is scored.

    Attributes:
        name: its name in the record: "base", or the run's name.
        fingerprint: hash of everything that its scores on the task depend on.
        adapter: its name in the scorer; None is the resident model itself.
        known: answers of an earlier scoring of some of the items.
    """

    name: str
    fingerprint: str
    adapter: str | None = None
    known: Known = Known()


class Scoring(NamedTuple):
    """The record of a scoring, and one line per item and filter."""

    record: TaskEvaluation
    samples: list[dict[str, Any]]


def evaluate(
    scorer: Scorer,
    models: Sequence[ScoredModel],
    prepared: PreparedTask,
    *,
    metric: str | None,
    advance: Advance = lambda _: None,
    skipped: Advance | None = None,
    of_base: Mapping[int, tuple[Responses, ...]] | None = None,
) -> list[Scoring]:
    """Answer every request of a task with every model, and let the task judge the answers.

    Models with known answers to the same items are scored in one call of the scorer, and each gets
    an equal share of the call's seconds.

    Args:
        scorer: knows the models.
        models: the models to score.
        prepared: the task with its tokenised requests.
        metric: the metric that decides; None: the task's first with one number per item.
        advance: receives the number of tokens read or written, ``prepared.num_tokens`` per model.
        skipped: receives those of them whose answers were known; None: ``advance`` does.
        of_base: the base's answers, where pairs are judged and it is not among the models.

    Returns:
        One scoring per model, in their order.

    Raises:
        ModelError: a log-likelihood is not finite.
        TaskError: the task has no metric of that name with one number per item.
    """
    answers: dict[str, Known] = {}
    for known, group in grouped((frozenset(m.known.responses), m) for m in models).items():
        new = [r for r in prepared.requests if prepared.instances[r.instance].doc_id not in known]
        num_tokens = prepared.num_tokens - sum(request.num_tokens for request in new)
        (skipped or advance)(num_tokens * len(group))
        answers |= ask(scorer, group, prepared, new, advance)
    if BASE in answers:
        of_base = answers[BASE].responses
    generates = prepared.loaded.output_type == "generate_until"
    doc_ids = dict.fromkeys(instance.doc_id for instance in prepared.instances)
    base_in_order = None if of_base is None else [each for i in doc_ids for each in of_base[i]]
    scorings: list[Scoring] = []
    for model in models:
        started, own = time.perf_counter(), answers[model.name]
        in_order = [each for doc_id in doc_ids for each in own.responses[doc_id]]
        judgement = judge(prepared, in_order, metric, base_in_order)
        record = TaskEvaluation(
            model=model.name,
            task=prepared.name,
            task_version=prepared.loaded.version,
            fingerprint=model.fingerprint,
            output_type=prepared.loaded.output_type,
            domain=prepared.loaded.domain,
            metrics=tuple(judgement.metrics),
            decision_metric=judgement.decision.metric,
            decision_filter=judgement.decision.filter,
            num_examples=prepared.num_items,
            num_fewshot=prepared.num_fewshot,
            chat_template=prepared.chat_template,
            limit=prepared.limit,
            num_available=prepared.num_available,
            chance=prepared.chance,
            predicted_shares=judgement.predicted_shares,
            num_unfinished=own.num_unfinished if generates else None,
            num_draws=prepared.num_draws,
            sampling_seed=SAMPLING_SEED if prepared.num_draws else None,
            num_truncated=prepared.num_truncated,
            num_tokens=prepared.num_tokens,
            score_seconds=own.score_seconds + time.perf_counter() - started,
        )
        scorings.append(Scoring(record, judgement.samples))
    return scorings


def ask(
    scorer: Scorer,
    models: Sequence[ScoredModel],
    prepared: PreparedTask,
    requests: Sequence[Request],
    advance: Advance = lambda _: None,
) -> dict[str, Known]:
    """Model name -> answers, known and new, for models with known answers to the same items."""
    started = time.perf_counter()
    adapters = [model.adapter for model in models]
    unfinished = [0] * len(models)
    answers: list[list[Any]]
    if prepared.loaded.output_type == "generate_until":
        prompts = [
            Prompt(request.context, request.settings, request.draw)
            for request in requests
            if request.settings is not None
        ]
        generations = scorer.generate(adapters, prompts, advance)
        answers = [[text.text for text in texts] for texts in generations]
        unfinished = [sum(not text.is_finished for text in texts) for texts in generations]
    else:
        items = [Continuation(request.context, request.continuation) for request in requests]
        likelihoods = scorer.log_likelihoods(adapters, items, advance)
        answers = [[tuple(item) for item in model] for model in likelihoods]
        for model, own in zip(models, answers, strict=True):
            if not all(math.isfinite(nats) for nats, _ in own):
                raise ModelError(
                    f"{model.name} answers {prepared.name} with log-likelihoods that are not "
                    "finite: its weights, or an adapter's alpha, are too large. Leave it out, or "
                    "train it again."
                )
    seconds = (time.perf_counter() - started) / len(models)
    is_text = prepared.loaded.output_type == "loglikelihood_rolling"
    known: dict[str, Known] = {}
    for model, own, num_unfinished in zip(models, answers, unfinished, strict=True):
        pairs = zip(requests, own, strict=True)
        by_instance = grouped((request.instance, answer) for request, answer in pairs)
        by_document = grouped(
            # the windows of one text are summed to one answer
            (prepared.instances[i].doc_id, (sum(n for n, _ in its),) if is_text else tuple(its))
            for i, its in by_instance.items()
        )
        responses = {doc_id: tuple(its) for doc_id, its in by_document.items()}
        known[model.name] = Known(
            {**model.known.responses, **responses},
            model.known.num_unfinished + num_unfinished,
            model.known.score_seconds + seconds,
        )
    return known
