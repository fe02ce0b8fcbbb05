"""Scores a few items of the base again where a study goes on under another stack."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rankwise.engine.models.devices import provenance_on
from rankwise.errors import StudyChangedError
from rankwise.records.folder import BASE
from rankwise.records.provenance import AcceptedStack, AcceptedStacks, Stack, differences, stack_of
from rankwise.records.study import TaskEvaluation
from rankwise.study.context import StudyContext
from rankwise.study.stages.scoring import Score, nats_of
from rankwise.study.stages.stage import Stage
from rankwise.tasks.evaluation import ScoredModel, responses_of
from rankwise.tasks.judgement import Responses

SHARE = 0.1
"""The share of the base's tokens that are scored again, or one task of each kind. Tasks are scored
as a whole: fewer items make other batches, which round otherwise."""

ROUNDING_NATS = 1e-4
"""Below this a log-likelihood is the same: batches of other items move one in float32 by as much
(docs/PERFORMANCE.md, "Scores equal lm-eval's")."""

NOISE = 2.0
"""A score has moved if it is another by more standard errors of its change, item by item."""


def check_stack(context: StudyContext, graph: Sequence[Stage], *, is_accepted: bool) -> None:
    """Before anything is scored, compare this stack with that of the scores which are there.

    Where it is another one, some tasks are scored again with the base. If its answers are the same,
    and its log-likelihoods but for rounding, the study goes on; on another device also where no
    task's score has moved by more than its own noise.

    Raises:
        StudyChangedError: they moved, and ``is_accepted`` is False.
    """
    folder = context.folder
    if all(stage.is_finished(folder) for stage in graph if stage.scores_tasks):
        return
    # the base's finished scores under the study's settings
    scored = [
        record
        for stage in graph
        if isinstance(stage, Score) and not stage.runs and stage.is_finished(folder)
        if (record := folder.earlier_evaluation(BASE, stage.task)) is not None
    ]
    stacks = [stack_of(record.provenance) for record in scored if record.provenance is not None]
    now = stack_of(provenance_on(context.plan.device))
    accepted = folder.accepted_stacks()
    known = [*stacks, *(entry.stack for entry in accepted.stacks)]
    if not stacks or now in known:
        return
    context.tell.noted(f"another stack than before: {differences(stacks[0], now)}")
    entry = _measured(context, _cheapest(context, scored), stacks[0], now)
    context.tell.noted(entry.shift)
    is_same = entry.largest_shift_nats <= ROUNDING_NATS and entry.num_changed == 0
    is_noise = entry.is_other_device and not entry.moved_tasks
    if not (is_same or is_noise or is_accepted):
        raise StudyChangedError(
            f"{folder.root} was scored on another stack: {entry.statement}. Give "
            "--accept-new-stack to put new scores beside the old ones, or choose another "
            "--study-dir."
        )
    folder.write(folder.stacks_file, AcceptedStacks(stacks=(*accepted.stacks, entry)))


def _cheapest(context: StudyContext, scored: Sequence[TaskEvaluation]) -> list[str]:
    """The tasks to score again: the shortest with options or texts, the shortest that generates."""
    tasks = sorted(
        (context.plan.tasks[record.task] for record in scored),
        key=lambda task: task.num_distinct_tokens,
    )
    most = SHARE * sum(task.num_distinct_tokens for task in tasks)
    taken, names, kinds = 0, list[str](), set[bool]()
    for task in tasks:
        generates = task.loaded.output_type == "generate_until"
        if generates not in kinds or taken + task.num_distinct_tokens <= most:
            taken += task.num_distinct_tokens
            names.append(task.name)
            kinds.add(generates)
    return names


def _measured(
    context: StudyContext, tasks: Sequence[str], before: Stack, now: Stack
) -> AcceptedStack:
    largest, num_changed, num_items, moved = 0.0, 0, 0, list[str]()
    for name in tasks:
        task = context.plan.tasks[name]
        lines = context.folder.read_samples(BASE, name)
        old = responses_of(lines)
        model = ScoredModel(BASE, context.plan.base.fingerprint)
        metric = context.study.config.evaluation.scored_by(name)
        (scoring,) = context.models.session().score([model], task, metric=metric)
        new = responses_of(scoring.samples)
        for doc_id, before_it in old.items():
            shift, is_changed = _moved(before_it, new[doc_id])
            largest, num_changed = max(largest, shift), num_changed + is_changed
        num_items += len(old)
        if _is_beyond_noise(
            _values(lines, scoring.record), _values(scoring.samples, scoring.record)
        ):
            moved.append(name)
    return AcceptedStack(
        stack=now,
        before=before,
        num_items=num_items,
        largest_shift_nats=largest,
        num_changed=num_changed,
        moved_tasks=tuple(moved),
        accepted_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _values(lines: Iterable[Mapping[str, Any]], record: TaskEvaluation) -> dict[int, float]:
    """Item -> its number under the metric that decides."""
    return {
        line["doc_id"]: float(line[record.decision_metric])
        for line in lines
        if line["filter"] == record.decision_filter and line.get(record.decision_metric) is not None
    }


def _is_beyond_noise(before: Mapping[int, float], now: Mapping[int, float]) -> bool:
    """Whether a score has moved: items that move to both sides are rounding."""
    changes = [now[item] - value for item, value in before.items() if item in now]
    if len(changes) < 2:
        return before != now
    error = statistics.stdev(changes) / len(changes) ** 0.5
    return abs(statistics.fmean(changes)) > NOISE * error + ROUNDING_NATS


def _moved(old: Sequence[Responses], new: Sequence[Responses]) -> tuple[float, bool]:
    """The largest change of an item's log-likelihoods, and whether its answer is another."""
    texts = [(a, b) for a, b in zip(old, new, strict=True) if isinstance(a[0], str)]
    if texts:
        return 0.0, any(a != b for a, b in texts)
    before, after = nats_of(old), nats_of(new)
    shift = max(abs(a - b) for a, b in zip(before, after, strict=True))
    return shift, before.index(max(before)) != after.index(max(after))
