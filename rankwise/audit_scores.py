"""Scores of an audited model and its base on tasks, paired over the same items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from rankwise import models
from rankwise.audit import Audited
from rankwise.audit_records import AuditScore
from rankwise.comparisons import POINTS, pair_items, paired_test
from rankwise.config import EvaluationConfig, Precision
from rankwise.devices import choose_device, give_back_memory, resolve_precision
from rankwise.errors import TaskError
from rankwise.evaluation import ScoredModel, Scoring, evaluate
from rankwise.resident_scorer import ResidentScorer
from rankwise.results import ModelResults
from rankwise.store import BASE
from rankwise.task_items import task_items
from rankwise.tasks import PreparedTask, load_tasks, prepare_task
from rankwise.tasks.resolution import TaskNotFound
from rankwise.update_guard import probes, refuse_unapplied

ADAPTED = "adapted"


class ScoreSettings(NamedTuple):
    """Which tasks, and how they are asked; as in a study's ``evaluation`` section."""

    tasks: tuple[str, ...]
    tasks_path: tuple[Path, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    chat_template: bool = False
    precision: Precision = "auto"
    confidence: float = 0.95


def prepared_tasks(audited: Audited, settings: ScoreSettings) -> list[PreparedTask]:
    """Every task that is named, groups as their leaves, tokenised for the base.

    Raises:
        TaskError: a name is unknown, or a task cannot be scored; all unknown names at once.
        DataError: a prompt or an answer is empty.
    """
    tokenizer = models.load_tokenizer(audited.base.folder)
    skeleton: Any = models.model_skeleton(audited.base.folder)
    longest = models.context_length(skeleton.config, tokenizer)
    found = load_tasks(settings.tasks, settings.tasks_path)
    unknown = [str(each) for each in found.values() if isinstance(each, TaskNotFound)]
    if unknown:
        raise TaskError(f"{'; '.join(unknown)}. rankwise tasks lists what there is.")
    leaves = {
        task.name: task
        for each in found.values()
        if not isinstance(each, TaskNotFound)
        for task in each
    }
    return [
        prepare_task(
            task,
            tokenizer,
            max_length=longest,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            chat_template=settings.chat_template and bool(tokenizer.chat_template),
        )
        for task in leaves.values()
    ]


def audit_scores(
    audited: Audited,
    tasks: Sequence[PreparedTask],
    settings: ScoreSettings,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[AuditScore, ...]:
    """Score base and adapted model: an adapter beside the base in one call, a checkpoint after it.

    Args:
        audited: what is scored.
        tasks: from ``prepared_tasks``.
        settings: the same.
        advance: is told how many tokens were read or written, ``num_tokens`` of a task per model.

    Raises:
        ModelError: a model cannot be loaded.
        UnchangedOutputsError: an adapter with a non-zero update answers as the base does.
    """
    if audited.kind == "adapter":
        scorer = _scorer(_loaded(audited.base.folder, settings), audited)
        scorer.put_on(ADAPTED, audited.target)
        if any(update.frobenius_norm > 0 for update in audited.updates.values()):
            refuse_unapplied(scorer, [ADAPTED], probes(tasks[0].requests))
        both = [ScoredModel(BASE, BASE), ScoredModel(ADAPTED, ADAPTED, ADAPTED)]
        pairs = [evaluate(scorer, both, task, metric=None, advance=advance) for task in tasks]
        return tuple(
            _score(task, base, adapted, settings)
            for task, (base, adapted) in zip(tasks, pairs, strict=True)
        )
    of_model: list[list[Scoring]] = []
    for name, folder in ((BASE, audited.base.folder), (ADAPTED, audited.target)):
        scorer = _scorer(_loaded(folder, settings), audited)
        alone = [ScoredModel(name, name)]
        of_model.append(
            [evaluate(scorer, alone, task, metric=None, advance=advance)[0] for task in tasks]
        )
        del scorer
        give_back_memory(choose_device())
    return tuple(
        _score(task, base, adapted, settings)
        for task, base, adapted in zip(tasks, *of_model, strict=True)
    )


def _loaded(folder: Path, settings: ScoreSettings) -> nn.Module:
    device = choose_device()
    return models.load_frozen(folder, resolve_precision(settings.precision, device), device)


def _scorer(model: nn.Module, audited: Audited) -> ResidentScorer:
    tokenizer = models.load_tokenizer(audited.base.folder)
    return ResidentScorer(model, tokenizer, max_batch_tokens=EvaluationConfig().max_batch_tokens)


def _score(
    task: PreparedTask, base: Scoring, adapted: Scoring, settings: ScoreSettings
) -> AuditScore:
    first, second = (_results(each, task.name) for each in (base, adapted))
    pair = pair_items(first, second, task.name)
    test = paired_test(pair, settings.confidence)
    items = first.items[task.name]
    scale = POINTS if items.unit == "points" else 1.0
    means = [
        scale * sum(each.items[task.name].values) / len(items.values) for each in (first, second)
    ]
    return AuditScore(
        task=task.name,
        metric=items.metric,
        unit=items.unit,
        num_examples=len(items.values),
        base_score=means[0],
        adapted_score=means[1],
        difference=test.estimate.value,
        stderr=test.estimate.stderr,
        lower=test.lower,
        upper=test.upper,
        num_learned=None if test.counts is None else test.counts.learned,
        num_forgotten=None if test.counts is None else test.counts.forgotten,
        p_value=test.p_value,
    )


def _results(scoring: Scoring, task: str) -> ModelResults:
    record = scoring.record
    lines = [line for line in scoring.samples if line["filter"] == record.decision_filter]
    items = {task: task_items(record, lines)}
    return ModelResults(name=record.model, run=None, evaluations={task: record}, items=items)
