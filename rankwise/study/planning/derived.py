"""Runs made from others: arms against forgetting."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.engine.models.own_texts import NUM_TEXTS, NUM_TOKENS
from rankwise.errors import DataError, TaskError
from rankwise.records.config.mitigations import MitigationConfig, RowsConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.fields import ADDED
from rankwise.records.fingerprints import fingerprint
from rankwise.records.study import PlannedRun
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel
from rankwise.study.planning.runs import examples_digest
from rankwise.study.planning.tasks import TaskPlan
from rankwise.tasks.overlap import find_overlap
from rankwise.tasks.resolution import TaskNotFound, load_tasks
from rankwise.tasks.training_rows import Example, task_rows, tokenise_rows
from rankwise.tasks.user_data import read_rows

MOST_ROWS = 2000
"""The most rows of another task: more than any small share needs, and tokenised in seconds."""

MITIGATION_REVISION = 1
"""A revision, as those in ``records.fingerprints``."""

# Of an arm, what names it and the places of its rows: their content counts.
_WHERE_ROWS_ARE: Any = {"name": True, "kl": {"rows"}, "replay": {"rows"}}

Others = Mapping[RowsConfig, tuple[Example, ...]]
"""The rows beside those of the trained tasks, tokenised, by where the study file has them from."""


def other_examples(
    config: StudyConfig, model: StudyModel, tasks: TaskPlan, issues: Issues
) -> dict[RowsConfig, tuple[Example, ...]]:
    """The rows that arms read beside those of the trained tasks; none may have scored items.

    Args:
        config: of the study.
        model: whose tokenizer is used.
        tasks: what is trained on, and scored.
        issues: gets every problem.
    """
    found: dict[RowsConfig, tuple[Example, ...]] = {}
    for index, arm in enumerate(config.mitigations):
        for _, rows in reversed(_besides(arm)):
            if rows is not None and rows not in found:
                with issues.of(f"mitigations[{index}]"):
                    found[rows] = _examples(rows, config, model, tasks)
    return found


def _besides(arm: MitigationConfig) -> list[tuple[float, RowsConfig | None]]:
    """What an arm reads beside the trained rows: shares of the rows of a step, and which these are.

    None: texts that the base wrote.
    """
    besides = [] if arm.replay is None else [(arm.replay.share, arm.replay.rows)]
    if arm.kl is not None and arm.kl.has_rows:
        besides.append((arm.kl.share_of_rows, arm.kl.rows))
    return besides


def _examples(
    rows: RowsConfig, config: StudyConfig, model: StudyModel, tasks: TaskPlan
) -> tuple[Example, ...]:
    has_chat = config.train.chat_template and model.has_chat_template
    trained, scored = config.train.tasks, tasks.prepared
    # in a sequence, what the first task taught may be read again
    is_first = config.train.sequence is not None and rows.task == trained[0]
    if is_first:
        of_rows = tasks.scored.trained_items[trained[0]].values()
        own = {*of_rows, tasks.scored.ending_items.get(trained[0])}
        scored = [task for task in scored if task.name not in own]
    if rows.data is not None:
        read = read_rows(
            rows.data,
            model.tokenizer,
            chat_template=has_chat,
            all_turns=config.train.turns == "all",
        )
    elif is_first and rows.split is None:
        read = tasks.rows[trained[0]]
    else:
        assert rows.task is not None
        if rows.task in trained and not is_first:
            raise TaskError(f"{rows.task!r} is already trained on. Name another task.")
        loaded = load_tasks([rows.task], config.tasks_path, allow_code=config.allow_task_code)
        named = loaded[rows.task]
        if isinstance(named, TaskNotFound | TaskError):
            raise TaskError(str(named))
        # the first rows of a split, of each task of a group in equal shares
        most = math.ceil(MOST_ROWS / len(named))
        read = [
            row
            for task in named
            for row in task_rows(
                task, model.tokenizer, chat_template=has_chat, max_examples=most, split=rows.split
            )
        ]
    overlap = find_overlap({rows.name: read}, scored, model.tokenizer)
    if config.train.drop_overlapping:
        read = [read[place] for place in overlap.other_rows[rows.name]]
        if not read:
            raise DataError(f"each row of {rows.name} contains a scored item. Use other rows.")
    elif overlap.num_rows:
        raise DataError(
            f"of {rows.name} {overlap}. A score on these would say what was replayed, not what was "
            "kept. Take other rows, or set train.drop_overlapping=true to leave these out."
        )
    return tuple(tokenise_rows(read, model.tokenizer, config.train, model.max_length))


def largest_step(config: StudyConfig) -> int:
    """Examples of an optimizer step of the arm that reads the most."""
    most = 1.0
    for arm in config.mitigations:  # how many rows it reads for each row of the trained task
        factor = 1.0
        for share, _ in _besides(arm):
            factor /= 1.0 - share
        most = max(most, factor)
    train = config.train
    texts = 1 if train.written is None else train.written.num_generations  # of each row
    return math.ceil(train.batch_size * train.gradient_accumulation_steps * texts * most)


def longest_other(config: StudyConfig, others: Others) -> int:
    """Read tokens of the longest example beside the trained task's; 0 without any."""
    lengths = [example.num_inputs for examples in others.values() for example in examples]
    return max([*lengths, NUM_TOKENS - 1 if any(map(has_own_texts, config.mitigations)) else 0])


def has_own_texts(arm: MitigationConfig) -> bool:
    """Whether an arm reads texts that the base wrote."""
    return any(rows is None for _, rows in _besides(arm))


def plan_mitigated(
    config: StudyConfig, runs: Sequence[PlannedRun], others: Others
) -> tuple[PlannedRun, ...]:
    """Every LoRA run that is trained here, once more for each arm.

    In a sequence of tasks those that go on from another: the first has nothing of it to forget.
    """
    models: list[PlannedRun] = []
    trained = [
        run
        for run in runs
        if run.method == "lora"
        and run.role != "imported"
        and (run.after is not None or config.train.sequence is None)
    ]
    for run, arm in itertools.product(trained, config.mitigations):
        assert run.learning_rate is not None
        assert run.alpha is not None
        assert run.scaling is not None
        besides = _besides(arm)
        read = [others[rows] for _, rows in reversed(besides) if rows is not None]
        digest = fingerprint(
            {
                "mitigation_revision": MITIGATION_REVISION,
                "run": run.fingerprint,
                "arm": arm.model_dump(
                    mode="json", exclude=_WHERE_ROWS_ARE, exclude_none=True, context=ADDED
                ),
                "others": list(map(examples_digest, read)),
                "own_texts": [NUM_TEXTS, NUM_TOKENS] if has_own_texts(arm) else None,
            }
        )
        # tokens of the rows that it reads besides, by the mean length of a row
        num_rows, other_tokens = run.num_examples * (run.epochs or 1), 0.0
        for share, rows in besides:
            more = num_rows * share / (1.0 - share)
            num_rows += round(more)
            lengths = [NUM_TOKENS] if rows is None else [len(each.tokens) for each in others[rows]]
            other_tokens += more * (sum(lengths) / len(lengths))
        slug = re.sub(r"[^A-Za-z0-9]+", "-", arm.label.replace("×", "x")).strip("-").lower()
        rate, alpha = arm.learning_rate_factor or 1.0, arm.alpha_factor or 1.0
        changed: dict[str, Any] = {
            "name": f"{run.name}-{slug[:40]}-{digest[:8]}",
            "fingerprint": digest,
            "learning_rate": float(f"{run.learning_rate * rate:.6g}"),
            "alpha": run.alpha * alpha,
            "scaling": run.scaling * alpha,
            "role": "mitigated",
            "of": run.as_whole,
            "mitigation": arm,
            "num_tokens": run.num_tokens + round(other_tokens),
            "num_shared_tokens": 0 if arm.kl is not None else run.num_shared_tokens,
        }
        models.append(run.model_copy(update=changed))
    return tuple(models)
