"""Scores of an audited model and its base on tasks, paired over the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankwise.engine.models.devices import choose_device, give_back_memory
from rankwise.findings.pairs import accuracy_difference, pair_items, paired_test
from rankwise.records.audits import AuditScore
from rankwise.records.folder import BASE
from rankwise.records.results import ModelResults
from rankwise.tasks.questions import Advance, LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes
from rankwise.weights.audit import Audited, AuditScores, check_weights
from rankwise.weights.session import CONFIDENCE, ScoreSettings, ScoringSession, cut_warnings

ADAPTED = "adapted"


def audit_scores(
    audited: Audited,
    tasks: Sequence[PreparedTask],
    settings: ScoreSettings,
    advance: Advance = lambda _: None,
) -> AuditScores:
    """Score base and adapted model: an adapter together with the base, a checkpoint after it.

    Args:
        audited: adapter or checkpoint, with its base.
        tasks: from ``prepared_tasks``; at least one.
        settings: the same as there.
        advance: receives the number of tokens read or written; ``num_tokens`` per task and model.

    Raises:
        ModelError: a model cannot be loaded, or ``audit`` would refuse its weights.
        RecordError: a task has fewer than two items.
        UnchangedOutputsError: an adapter with a non-zero update answers as the base does.
    """
    check_weights(audited)
    precision, answers_as_base = settings.resolved_precision, False

    def alone(name: str) -> tuple[ModelResults, list[LogLikelihood]]:
        """A whole model's results, and its answers to a few texts that tell it from others."""
        weights = audited.base.folder if name == BASE else audited.target
        session = ScoringSession.of(audited.base, precision, advance, weights=weights)
        (own,) = session.results(tasks, name)
        (probed,) = session.scorer.log_likelihoods([None], probes(tasks[0].requests))
        return own, probed

    if audited.kind == "adapter":
        session = ScoringSession.of(audited.base, precision, advance)
        base, adapted = session.results(tasks, BASE, {ADAPTED: audited})
    else:
        (base, before), (adapted, after) = alone(BASE), alone(ADAPTED)
        answers_as_base = before == after
    give_back_memory(choose_device())
    return AuditScores(
        scores=tuple(_score(task, base, adapted) for task in tasks),
        confidence=CONFIDENCE,
        precision=precision,
        warnings=cut_warnings(tasks),
        answers_as_base=answers_as_base,
    )


def _score(task: PreparedTask, first: ModelResults, second: ModelResults) -> AuditScore:
    pair = pair_items(first, second, task.name)
    test = paired_test(pair, CONFIDENCE)
    items = first.items[task.name]
    own = paired_test(pair_items(first, second, task.name, by_accuracy=True), CONFIDENCE)
    size = len(pair.base)
    return AuditScore(
        task=task.name,
        task_version=task.loaded.version,
        metric=items.metric,
        filter=first.evaluations[task.name].decision_filter,
        unit=items.unit,
        higher_is_better=items.higher_is_better,
        num_examples=size,
        num_fewshot=task.num_fewshot,
        chat_template=task.chat_template,
        limit=task.limit,
        base_score=float(pair.base.mean()),
        base_stderr=float(pair.base.std(ddof=1)) / math.sqrt(size),
        adapted_score=float(pair.adapted.mean()),
        adapted_stderr=float(pair.adapted.std(ddof=1)) / math.sqrt(size),
        difference=test.estimate.value,
        stderr=test.estimate.stderr,
        lower=test.lower,
        upper=test.upper,
        num_learned=None if own.counts is None else own.counts.learned,
        num_forgotten=None if own.counts is None else own.counts.forgotten,
        p_value=test.p_value,
        accuracy=items.accuracy and accuracy_difference(items.accuracy.metric, test, own),
    )
