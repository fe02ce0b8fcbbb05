"""Scores of an audited model and its base on tasks, paired over the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from rankwise.engine.models import base as models
from rankwise.engine.models.devices import choose_device, give_back_memory, resolve_precision
from rankwise.engine.models.streamed import load_to_score
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ConfigError, ModelError
from rankwise.findings.pairs import accuracy_difference, pair_items, paired_test
from rankwise.records import quantities
from rankwise.records.audits import AuditScore
from rankwise.records.config.study import EvaluationConfig
from rankwise.records.config.training import Precision
from rankwise.records.folder import BASE
from rankwise.records.results import ModelResults, judged_items
from rankwise.tasks import requests
from rankwise.tasks.evaluation import ScoredModel, Scoring, evaluate
from rankwise.tasks.questions import Advance, LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.weights.audit import Audited, AuditScores, check_weights

ADAPTED = "adapted"
CONFIDENCE = 0.95
"""Of every interval here; a study has ``recommendation.confidence``."""


class ScoreSettings(NamedTuple):
    """Which tasks to score, and how; as in a study's ``evaluation`` section."""

    tasks: tuple[str, ...]
    tasks_path: tuple[Path, ...] = ()
    allow_task_code: bool = False
    num_fewshot: int | None = None
    limit: int | None = None
    chat_template: bool = False
    precision: Precision = "auto"

    @property
    def evaluation(self) -> EvaluationConfig:
        """The section of a study with these settings."""
        return EvaluationConfig(
            num_fewshot=self.num_fewshot, limit=self.limit, chat_template=self.chat_template
        )


def prepared_tasks(audited: Audited, settings: ScoreSettings) -> list[PreparedTask]:
    """Every named task, groups as their leaves, tokenised for the base.

    Raises:
        ConfigError: a chat template is wanted and the base has none.
        ModelError: a checkpoint has no embeddings for some of the base's tokens.
        TaskError: as ``requests.prepared_tasks``.
        DataError: likewise.
    """
    tokenizer = models.load_tokenizer(audited.base.folder)
    if settings.chat_template and not tokenizer.chat_template:
        problem = f"--chat-template: the tokenizer of {audited.base.name} has none; leave it out"
        raise ConfigError("rankwise", [problem])
    skeleton: Any = models.model_skeleton(audited.base.folder)
    _check_vocabulary(audited, min(len(tokenizer), _num_embeddings(skeleton)))
    longest = models.context_length(skeleton.config, tokenizer)
    return requests.prepared_tasks(
        settings.tasks,
        settings.tasks_path,
        tokenizer,
        longest,
        settings.evaluation,
        allow_code=settings.allow_task_code,
    )


def _check_vocabulary(audited: Audited, num_tokens: int) -> None:
    """Both models read the base's tokens; a checkpoint may have additional ones."""
    if audited.kind == "adapter":
        return
    size = _num_embeddings(models.model_skeleton(audited.target))
    if size < num_tokens:
        raise ModelError(
            f"{audited.target} has vocab_size {size}, and the tokenizer of {audited.base.name} "
            f"{num_tokens} tokens: it cannot read its base's prompts. Leave --tasks out to analyse "
            "its weights alone."
        )


def _num_embeddings(skeleton: Any) -> int:
    return int(skeleton.get_input_embeddings().weight.shape[0])


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
    device = choose_device()
    precision = resolve_precision(settings.precision, device)
    answers_as_base = False
    if audited.kind == "adapter":
        scorer = _scorer(load_to_score(audited.base.folder, precision, device), audited)
        scorer.put_on(ADAPTED, audited.target)
        if any(update.frobenius_norm > 0 for update in audited.updates.values()):
            refuse_unapplied(scorer, [ADAPTED], probes(tasks[0].requests))
        both = [ScoredModel(BASE, BASE), ScoredModel(ADAPTED, ADAPTED, ADAPTED)]
        scorings = [evaluate(scorer, both, task, metric=None, advance=advance) for task in tasks]
    else:
        base, adapted = (
            _alone(name, load_to_score(folder, precision, device), audited, tasks, advance)
            for name, folder in ((BASE, audited.base.folder), (ADAPTED, audited.target))
        )
        answers_as_base = base.probed == adapted.probed
        scorings = [list(pair) for pair in zip(base.scorings, adapted.scorings, strict=True)]
    give_back_memory(device)
    return AuditScores(
        scores=tuple(
            _score(task, before, after)
            for task, (before, after) in zip(tasks, scorings, strict=True)
        ),
        confidence=CONFIDENCE,
        precision=precision,
        warnings=tuple(cut_warning(task) for task in tasks if task.num_truncated),
        answers_as_base=answers_as_base,
    )


class _Alone(NamedTuple):
    """A whole model's answers: to the tasks, and to a few texts that tell it from another model."""

    scorings: list[Scoring]
    probed: list[LogLikelihood]


def _alone(
    name: str,
    model: nn.Module,
    audited: Audited,
    tasks: Sequence[PreparedTask],
    advance: Advance,
) -> _Alone:
    scorer, alone = _scorer(model, audited), [ScoredModel(name, name)]
    scorings = [evaluate(scorer, alone, task, metric=None, advance=advance)[0] for task in tasks]
    (probed,) = scorer.log_likelihoods([None], probes(tasks[0].requests))
    return _Alone(scorings, probed)


def _scorer(model: nn.Module, audited: Audited) -> ResidentScorer:
    tokenizer = models.load_tokenizer(audited.base.folder)
    return ResidentScorer(model, tokenizer)


def cut_warning(task: PreparedTask) -> str:
    """That some of a task's items are not read whole."""
    return (
        f"{task.name}: {quantities.counted(task.num_truncated, 'item')} of "
        f"{quantities.count(task.num_items)} are longer than the model reads and lose their left "
        "end."
    )


def _score(task: PreparedTask, base: Scoring, adapted: Scoring) -> AuditScore:
    first, second = model_results([base]), model_results([adapted])
    pair = pair_items(first, second, task.name)
    test = paired_test(pair, CONFIDENCE)
    items = first.items[task.name]
    own = paired_test(pair_items(first, second, task.name, by_accuracy=True), CONFIDENCE)
    size = len(pair.base)
    return AuditScore(
        task=task.name,
        task_version=task.loaded.version,
        metric=items.metric,
        filter=base.record.decision_filter,
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


def model_results(scorings: Sequence[Scoring]) -> ModelResults:
    """One model's scorings, at least one, by the metric that decides each."""
    judged = {
        each.record.task: judged_items(
            each.record, [s for s in each.samples if s["filter"] == each.record.decision_filter]
        )
        for each in scorings
    }
    return ModelResults(
        name=scorings[0].record.model,
        run=None,
        evaluations={task: each.record for task, each in judged.items()},
        items={task: each.items for task, each in judged.items()},
    )
