"""Users' own rows: trained on, and a part of them held out and scored."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError
from rankwise.records.config.own_rows import (
    TEXTS_SUFFIX,
    CheckConfig,
    Judge,
    OwnSetConfig,
    judges_of_texts,
    rows_name,
)
from rankwise.records.config.study import ENDING_SUFFIX
from rankwise.records.config.training import TrainConfig
from rankwise.records.grouping import grouped
from rankwise.records.own_data import OwnData
from rankwise.tasks.answer_checks import Check, checker, metrics_of
from rankwise.tasks.formats import TrainedFormat, options_of
from rankwise.tasks.own_rows import OwnRow, OwnRows, read_own_rows
from rankwise.tasks.resolution import LoadedTask, quiet_lm_eval
from rankwise.tasks.training_rows import TextEncoder, TrainingRow

LEAST_NEW_TOKENS = 256
"""A model may write as much in any case: lm-eval's own limit."""

ROOM = 1.5
"""What a model may write, in lengths of the longest right answer. The same JSON with an indent, in
a block of code, has up to 1.3 times its tokens."""

MOST_ANSWERS = 100
"""The most answers to choose among; each is scored behind every question."""

_NUMBER = re.compile(r"(?s).*####\s*\$?-?[\d,.]+\s*")


class UserData(NamedTuple):
    """Rows of users, split into training and held-out rows.

    Attributes:
        training: rows to train on.
        tasks: the held-out rows as tasks, the one that decides first.
        trained_items: all rows that are not held out as a task, scored as the task of ``name``.
        left: those of ``tasks`` that decide, by name, made of all rows that are not held out.
        format: ``letters`` if every completion is a letter; conversations if all rows are.
        name: of the task that scores held-out rows as the trained items are scored.
        read: what was read, and how.
    """

    training: list[TrainingRow]
    tasks: tuple[LoadedTask, ...]
    trained_items: LoadedTask
    left: dict[str, LoadedTask]
    format: TrainedFormat
    name: str
    read: OwnData


def load_user_data(
    train: TrainConfig,
    tokenizer: Any,
    *,
    chat_template: bool,
    max_length: int | None = None,
    allow_code: bool = False,
) -> UserData:
    """Read rows, and hold a part of them out.

    Of a conversation, the last turn, which must be the assistant's, is the completion; with
    ``turns: all`` earlier ones are learned too, and not scored. Rows that are equal as text are
    kept once, so that no held-out row was trained on.

    Args:
        train: the section of a study with ``data``; of the held-out rows one is left at least.
        tokenizer: renders messages.
        chat_template: render prompts that are texts as a user's turn too.
        max_length: tokens that the model reads and writes at most; None: any number.
        allow_code: whether answers may be judged by a user's code.

    Raises:
        DataError: no such file, no rows, rows without a prompt or an answer (the message names
            the first ten), or rows that cannot be judged so.
        TaskError: a user's code fails.
    """
    own, answers = _read(train, tokenizer, chat_template=chat_template)
    rows = own.rows
    # held out at random and always the same, one at least; rows of a cluster stay together
    order = list(grouped((row.cluster or index, index) for index, row in enumerate(rows)).values())
    random.Random(0).shuffle(order)
    chosen: set[int] = set()
    for its in order[:-1]:
        if len(chosen) >= max(1, round(train.held_out_fraction * len(rows))):
            break
        chosen.update(its)
    held_out = [rows[index] for index in sorted(chosen)]
    others = [row for index, row in enumerate(rows) if index not in chosen]
    trained = others[: train.most_examples]

    assert train.data is not None
    name = rows_name(train.data)
    trained_items = _of_likelihoods(f"{name}@train", others, train.judged_by, answers)
    tasks = [_of_likelihoods(name, held_out, train.judged_by, answers)]
    of_texts = judges_of_texts(train.judged_by)
    is_loss = not answers and "preference" not in train.judged_by
    left = {} if of_texts and is_loss else {name: trained_items}
    if of_texts:
        room = _room(train.max_new_tokens, held_out, tokenizer, max_length)
        called = f"{name}{TEXTS_SUFFIX}"
        texts, left[called] = (
            _texts(called, own._replace(rows=part), of_texts, room, tokenizer, allow_code)
            for part in (held_out, others)
        )
        tasks.insert(0 if train.judged_by[0] in of_texts else 1, texts)
    distinct = sorted({row.completion.strip() for row in rows})
    is_letters = len(distinct) > 1 and options_of([distinct]) == "letters"
    return UserData(
        training=[row.as_trained for row in trained],
        tasks=tuple(tasks),
        trained_items=trained_items,
        left=left,
        format=TrainedFormat(
            "letters" if is_letters else None, all(row.is_conversation for row in rows)
        ),
        name=name,
        read=_record(own, len(held_out), train.judged_by, answers).model_copy(
            update={
                "turns": train.turns,
                "num_turns": sum(len(row.turns) or 1 for row in trained if row.is_conversation),
            }
        ),
    )


class OwnSet(NamedTuple):
    """Own rows that are scored and not trained on, as tasks.

    Attributes:
        tasks: the one that decides first. It has the name of the set.
        read: what was read, and how.
    """

    tasks: tuple[LoadedTask, ...]
    read: OwnData


def load_own_set(
    name: str,
    own_set: OwnSetConfig,
    tokenizer: Any,
    *,
    chat_template: bool,
    max_length: int | None = None,
    allow_code: bool = False,
) -> OwnSet:
    """Read a set of ``evaluation.own``, and make tasks of it; see ``load_user_data``.

    What a model writes is one task, whatever it is judged by. Where answers' likelihoods are
    judged too, these are another one: ``<name>_loss`` or ``<name>_choice``, or ``<name>_texts``
    where the likelihoods decide.

    Raises:
        DataError: as ``load_user_data``.
        TaskError: likewise.
    """
    own, answers = _read(own_set, tokenizer, chat_template=chat_template)
    of_texts = judges_of_texts(own_set.judged_by)
    tasks: list[LoadedTask] = []
    for judge in own_set.judged_by:
        suffix = TEXTS_SUFFIX if judge in of_texts else f"_{judge}"
        called = f"{name}{suffix}" if tasks else name
        if judge not in of_texts:
            tasks.append(_of_likelihoods(called, own.rows, own_set.judged_by, answers))
        elif judge == of_texts[0]:
            room = _room(own_set.max_new_tokens, own.rows, tokenizer, max_length)
            tasks.append(_texts(called, own, of_texts, room, tokenizer, allow_code))
    return OwnSet(
        tuple(task._replace(cluster=own.cluster) for task in tasks),
        _record(own, len(own.rows), own_set.judged_by, answers),
    )


def _read(
    of: TrainConfig | OwnSetConfig, tokenizer: Any, *, chat_template: bool
) -> tuple[OwnRows, tuple[str, ...]]:
    """Rows that can be judged as they are to be, and the answers to choose among."""
    assert of.data is not None
    own = read_own_rows(
        of.data,
        tokenizer,
        chat_template=chat_template,
        columns=of.columns,
        in_pairs="preference" in of.judged_by,
        all_turns=isinstance(of, TrainConfig) and of.turns == "all",
        template=of.template if isinstance(of, TrainConfig) else None,
    )
    if len(own.rows) < 2:
        raise DataError(f"{of.data} has {len(own.rows)} distinct rows; at least 2 are needed.")
    if "number" in of.judged_by:
        without = sum(not ends_in_number(row.completion) for row in own.rows)
        if without:
            raise DataError(
                f"{without} answers of {own.raw.source} do not end in '#### ' and a number. Add "
                "it, or set judged_by: loss."
            )
    if "choice" not in of.judged_by:
        return own, ()
    answers = tuple(sorted({row.completion for row in own.rows}))
    if not 2 <= len(answers) <= MOST_ANSWERS:
        raise DataError(
            f"{own.raw.source} has {len(answers)} distinct answers, and a choice is among 2 to "
            f"{MOST_ANSWERS}. Set judged_by: loss."
        )
    return own, answers


def _record(
    own: OwnRows, num_scored: int, judged_by: tuple[Judge, ...], answers: tuple[str, ...]
) -> OwnData:
    return OwnData(
        source=own.raw.source,
        format=own.raw.format,
        revision=own.raw.revision,
        sha256=own.raw.sha256,
        columns=own.columns,
        num_rows=len(own.raw.rows),
        num_distinct=len(own.rows),
        num_without_answer=own.num_without_answer,
        num_conversations=sum(row.is_conversation for row in own.rows),
        num_held_out=num_scored,
        judged_by=judged_by,
        answers=answers,
        cluster=own.cluster,
    )


def read_rows(
    path: Path, tokenizer: Any, *, chat_template: bool, all_turns: bool = False
) -> list[TrainingRow]:
    """Every distinct row of what ``load_user_data`` takes, with none held out.

    Raises:
        DataError: as ``load_user_data``.
    """
    own = read_own_rows(path, tokenizer, chat_template=chat_template, all_turns=all_turns)
    if not own.rows:
        raise DataError(f"{path} has no rows. Give it some.")
    return [row.as_trained for row in own.rows]


def ends_in_number(answer: str) -> bool:
    """Whether an answer ends in ``####`` and a number, as those of GSM8K do."""
    return _NUMBER.fullmatch(answer) is not None


def ending_items(name: str, rows: Sequence[TrainingRow]) -> LoadedTask:
    """Does a model stop where it was taught to? Rows that were trained on, without their end.

    Each asks for the likelihood of the end behind the prompt and the right answer. The metric
    ``acc`` is the share of the rows where nothing is more likely. The task is named ``<name>@end``.
    """
    whole = [
        OwnRow(f"{row.prompt}{row.completion.removesuffix(row.end)}", "", row.end, False)
        for row in rows
    ]
    return _likelihoods(f"{name}{ENDING_SUFFIX}", whole)


@dataclass(frozen=True)
class _BehindRows:
    """Writes a row's prompt behind other rows; lm-eval calls it, and fingerprints have its repr."""

    shown: str
    bos: str

    def __call__(self, doc: Mapping[str, str]) -> str:
        return self.shown + doc["prompt"].removeprefix(self.bos)


def behind_rows(
    loaded: LoadedTask, rows: Sequence[TrainingRow], name: str, *, is_chat: bool, bos: str
) -> LoadedTask:
    """A copy of a task of own rows that asks each question behind rows with their answers.

    Args:
        loaded: the task.
        rows: in the order in which they stand in the prompt.
        name: of the copy.
        is_chat: rows are conversations, and end as they are trained on. Others are followed by an
            empty line: a model starts anew behind its end-of-text token.
        bos: what every rendered prompt may begin with, and stands once; "" for none.
    """
    texts: list[str] = []
    for row in rows:
        prompt = row.prompt.removeprefix(bos) if texts else row.prompt
        answer = row.completion if is_chat else row.completion.removesuffix(row.end) + "\n\n"
        texts.append(prompt + answer)
    if not texts:
        return loaded.changed(name)
    return loaded.changed(name, doc_to_text=_BehindRows("".join(texts), bos))


def _doc(row: OwnRow, completion: str | int) -> dict[str, Any]:
    return {**dict(row.cluster), "prompt": row.prompt, "completion": completion}


def _of_likelihoods(
    name: str, rows: Sequence[OwnRow], judged_by: Sequence[Judge], answers: Sequence[str]
) -> LoadedTask:
    if "preference" in judged_by:
        return _pairs(name, rows)
    return _choices(name, rows, answers) if answers else _likelihoods(name, rows)


def _likelihoods(name: str, rows: Sequence[OwnRow]) -> LoadedTask:
    """The likelihood of every completion with its end; its loss per token decides."""
    docs = [_doc(row, row.completion + row.end) for row in rows]
    return _task(name, docs, "loglikelihood", _metric("acc"))


def _choices(name: str, rows: Sequence[OwnRow], answers: Sequence[str]) -> LoadedTask:
    """Every completion among all answers, each with the row's end."""
    docs = [
        _doc(row, answers.index(row.completion))
        | {"choices": [f"{answer}{row.end}" for answer in answers]}
        for row in rows
    ]
    choices: dict[str, Any] = {"doc_to_choice": "choices", "target_delimiter": ""}
    return _task(name, docs, "multiple_choice", _metric("acc"), **choices)


def _pairs(name: str, rows: Sequence[OwnRow]) -> LoadedTask:
    """The likelihoods of the chosen and the rejected answer, each with the row's end.

    How they are judged needs the base's, which lm-eval does not know: see ``judgement``.
    """
    docs = [
        _doc(row, row.completion + row.end) | {"rejected": f"{row.rejected}{row.end}"}
        for row in rows
    ]
    loaded = _task(name, docs, "loglikelihood", _metric("acc"))
    single = loaded.task.construct_requests

    def both(doc: Any, ctx: str, **kwargs: Any) -> list[Any]:
        chosen = single(doc, ctx, **kwargs)
        return [chosen, dataclasses.replace(chosen, arguments=(ctx, doc["rejected"]), idx=1)]

    loaded.task.construct_requests = both
    return loaded._replace(has_pairs=True)


@dataclass(frozen=True)
class _Checks:
    """Judges what a model writes; lm-eval calls it.

    Its repr goes into fingerprints, so it says what the checks do, and holds no address.
    """

    content: tuple[str, ...]
    checks: tuple[Check, ...] = field(repr=False)

    def __call__(self, doc: Mapping[str, str], answers: Sequence[str]) -> dict[str, float | None]:
        numbers: dict[str, float | None] = {}
        for check in self.checks:
            numbers |= check(answers[0], doc)
        return numbers


class _AnswerRoom(NamedTuple):
    """What a model may write: ``num_tokens``, and what a user should know of it."""

    num_tokens: int
    warning: str | None


def _room(
    wanted: int | None, rows: Sequence[OwnRow], tokenizer: Any, max_length: int | None
) -> _AnswerRoom:
    """The room for as many tokens as are wanted, else as the longest right answer needs.

    Raises:
        DataError: the model has no room for them and a prompt.
    """
    encode = TextEncoder(tokenizer).encode
    answers = [len(encode(row.completion)) for row in rows]
    longest = max(answers)
    num_tokens = wanted or max(LEAST_NEW_TOKENS, math.ceil(ROOM * longest))
    remedy = f"set max_new_tokens to {longest} or more"
    if max_length is not None and wanted is not None and wanted >= max_length:
        raise DataError(
            f"max_new_tokens is {wanted}, and the model reads {max_length} tokens, those of the "
            "prompt with them. Lower it."
        )
    if max_length is not None and wanted is None and num_tokens > LEAST_NEW_TOKENS:
        rest = max_length - max(len(encode(row.prompt)) for row in rows)  # no prompt is cut for it
        num_tokens = max(LEAST_NEW_TOKENS, min(num_tokens, rest))
        remedy = f"the model reads {max_length}, the prompt's with them, so shorten the rows"
    num_lost = sum(number > num_tokens for number in answers)
    if not num_lost:
        return _AnswerRoom(num_tokens, None)
    return _AnswerRoom(
        num_tokens,
        f"{num_lost} of {len(rows)} right answers have more than {num_tokens} tokens, up to "
        f"{longest}, and a model may write no more: it cannot give them; {remedy}",
    )


def _texts(
    name: str,
    own: OwnRows,
    judges: Sequence[Judge],
    room: _AnswerRoom,
    tokenizer: Any,
    allow_code: bool,
) -> LoadedTask:
    """What a model writes, judged by every check; the first one's first number decides."""
    docs = [_doc(row, row.completion.strip()) for row in own.rows]
    places = [row.raw.place for row in own.rows if row.raw is not None]
    right = {place: doc["completion"] for place, doc in zip(places, docs, strict=True)}
    source = own.raw.source
    checks = tuple(
        checker(each, right, source, tokenizer=tokenizer, allow_code=allow_code) for each in judges
    )
    if any(isinstance(each, CheckConfig) and each.code is not None for each in judges):
        for doc, row in zip(docs, own.rows, strict=True):
            assert row.raw is not None
            doc |= {"row": json.dumps(row.raw.content, default=str), "place": row.raw.place}
    # lm-eval strips what this finds, which is all; patterns that strip take the square of the steps
    stripped = [{"function": "regex", "regex_pattern": "(?s)(.*)"}, {"function": "take_first"}]
    generates: dict[str, Any] = {
        "generation_kwargs": {
            "until": [own.rows[0].end],
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": room.num_tokens,
        },
        "filter_list": [{"name": "stripped", "filter": stripped}],
        "process_results": _Checks(tuple(check.content for check in checks), checks),
    }
    metrics = map(_metric, metrics_of(checks, docs))
    loaded = _task(name, docs, "generate_until", *metrics, **generates)
    needs_base = any(check.needs_base for check in checks)
    return loaded._replace(compares_with_base=needs_base, warning=room.warning)


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _task(
    name: str, docs: list[dict[str, Any]], output_type: str, *metrics: dict[str, Any], **more: Any
) -> LoadedTask:
    """The rows as a lm-eval task whose prompts are taken as they are."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(docs)}),
        "output_type": output_type,
        "test_split": "test",
        "doc_to_text": lambda doc: doc["prompt"],
        "doc_to_target": lambda doc: doc["completion"],
        "metric_list": list(metrics),
        "num_fewshot": 0,  # prompts are taken as they are
        "metadata": {"version": 1.0, "domain": "own data"},
        **more,
    }
    with quiet_lm_eval():
        return LoadedTask(name, ConfigurableTask(config=config), is_rendered=True)
