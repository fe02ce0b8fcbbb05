"""Users' own rows: trained on, and a part of them held out and scored."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError
from rankwise.records.config.own_rows import CheckConfig, JudgeName, data_name
from rankwise.records.config.study import ENDING_SUFFIX
from rankwise.records.config.training import TrainConfig
from rankwise.records.own_data import OwnData
from rankwise.tasks.answer_checks import Checker, checker, content_of
from rankwise.tasks.formats import TrainedFormat, options_of
from rankwise.tasks.own_rows import OwnRow, OwnRows, read_own_rows
from rankwise.tasks.resolution import LoadedTask, quiet_lm_eval
from rankwise.tasks.training_rows import TrainingRow

MAX_GENERATED_TOKENS = 256

MOST_ANSWERS = 100
"""To choose among; each is scored behind every question."""

_OF_LIKELIHOODS = ("loss", "choice", "preference")
"""Judges that ask how likely answers are; the others read what a model writes."""

_NUMBER = re.compile(r"(?s).*####\s*\$?-?[\d,.]+\s*")


class UserData(NamedTuple):
    """Rows of users, split into training and held-out rows.

    Attributes:
        training: rows to train on.
        tasks: the held-out rows as tasks, the one that decides first.
        trained_items: the training rows as a task, scored as the task of ``name``.
        format: ``letters`` if every completion is a letter; conversations if all rows are.
        name: of the task that scores held-out rows as the trained items are scored.
        read: what was read, and how.
    """

    training: list[TrainingRow]
    tasks: tuple[LoadedTask, ...]
    trained_items: LoadedTask
    format: TrainedFormat
    name: str
    read: OwnData


def load_user_data(train: TrainConfig, tokenizer: Any, *, chat_template: bool) -> UserData:
    """Read rows, and hold a part of them out.

    Of a conversation, the last turn, which must be the assistant's, is the completion. Rows that
    are equal as text are kept once, so that no held-out row was trained on.

    Args:
        train: the section of a study with ``data``; of the held-out rows one is left at least.
        tokenizer: renders messages.
        chat_template: render prompts that are texts as a user's turn too.

    Raises:
        DataError: no such file, no rows, rows without a prompt or an answer (the message names
            the first ten), or rows that cannot be judged so.
    """
    path, judged_by = train.data, train.judged_by
    assert path is not None
    in_pairs = train.dpo is not None
    own = read_own_rows(
        path, tokenizer, chat_template=chat_template, columns=train.columns, in_pairs=in_pairs
    )
    rows = own.rows
    if len(rows) < 2:
        raise DataError(f"{path} has {len(rows)} distinct rows; at least 2 are needed.")
    answers = _answers(own) if "choice" in judged_by else ()
    if "number" in judged_by:
        without = sum(not ends_in_number(row.completion) for row in rows)
        if without:
            raise DataError(
                f"{without} answers of {own.raw.source} do not end in '#### ' and a number. Add "
                "it, or set train.judged_by=loss."
            )
    held_out, trained = split_rows(rows, train.held_out_fraction)
    trained = trained[: train.most_examples]

    def of_likelihoods(name: str, rows: Sequence[OwnRow]) -> LoadedTask:
        if in_pairs:
            return _pairs(name, rows)
        return _choices(name, rows, answers) if answers else _likelihoods(name, rows)

    name = f"data_{data_name(path)}"
    tasks = [of_likelihoods(name, held_out)]
    of_texts: list[JudgeName | CheckConfig] = [
        check for check in judged_by if check not in _OF_LIKELIHOODS
    ]
    if of_texts:
        texts = _texts(f"{name}_texts", held_out, of_texts, own.raw.source)
        tasks.insert(len(tasks) if judged_by[0] in _OF_LIKELIHOODS else 0, texts)
    seen, distinct = f"{name}@train", sorted({row.completion.strip() for row in rows})
    is_letters = len(distinct) > 1 and options_of([distinct]) == "letters"
    return UserData(
        training=[row.as_trained for row in trained],
        tasks=tuple(tasks),
        trained_items=of_likelihoods(seen, trained),
        format=TrainedFormat(
            "letters" if is_letters else None, all(row.is_conversation for row in rows)
        ),
        name=name,
        read=OwnData(
            source=own.raw.source,
            format=own.raw.format,
            revision=own.raw.revision,
            sha256=own.raw.sha256,
            columns=own.columns,
            num_rows=len(own.raw.rows),
            num_distinct=len(rows),
            num_held_out=len(held_out),
            judged_by=judged_by,
            answers=answers,
        ),
    )


def split_rows(
    rows: Sequence[OwnRow], held_out_fraction: float
) -> tuple[list[OwnRow], list[OwnRow]]:
    """The rows that are held out, at random and always the same, and the others; one at least."""
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    num_held_out = min(max(1, round(held_out_fraction * len(rows))), len(rows) - 1)
    held_out, trained = sorted(order[:num_held_out]), sorted(order[num_held_out:])
    return [rows[index] for index in held_out], [rows[index] for index in trained]


def read_rows(path: Path, tokenizer: Any, *, chat_template: bool) -> list[TrainingRow]:
    """Every distinct row of what ``load_user_data`` takes, with none held out.

    Raises:
        DataError: as ``load_user_data``.
    """
    rows = read_own_rows(path, tokenizer, chat_template=chat_template).rows
    if not rows:
        raise DataError(f"{path} has no rows. Give it some.")
    return [row.as_trained for row in rows]


def _answers(own: OwnRows) -> tuple[str, ...]:
    """The distinct answers, to choose among."""
    answers = tuple(sorted({row.completion for row in own.rows}))
    if not 2 <= len(answers) <= MOST_ANSWERS:
        raise DataError(
            f"{own.raw.source} has {len(answers)} distinct answers, and a choice is among 2 to "
            f"{MOST_ANSWERS}. Set train.judged_by=loss."
        )
    return answers


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


def _likelihoods(name: str, rows: Sequence[OwnRow]) -> LoadedTask:
    """The likelihood of every completion with its end; its loss per token decides."""
    docs = [{"prompt": row.prompt, "completion": row.completion + row.end} for row in rows]
    return _task(name, docs, "loglikelihood", _metric("acc"))


def _choices(name: str, rows: Sequence[OwnRow], answers: Sequence[str]) -> LoadedTask:
    """Every completion among all answers, each with the row's end."""
    docs = [
        {
            "prompt": row.prompt,
            "completion": answers.index(row.completion),
            "choices": [f"{answer}{row.end}" for answer in answers],
        }
        for row in rows
    ]
    choices: dict[str, Any] = {"doc_to_choice": "choices", "target_delimiter": ""}
    return _task(name, docs, "multiple_choice", _metric("acc"), **choices)


def _pairs(name: str, rows: Sequence[OwnRow]) -> LoadedTask:
    """The likelihoods of the chosen and the rejected answer, each with the row's end.

    How they are judged needs the base's, which lm-eval does not know: see ``judgement``.
    """
    docs = [
        {
            "prompt": row.prompt,
            "completion": row.completion + row.end,
            "rejected": f"{row.rejected}{row.end}",
        }
        for row in rows
    ]
    loaded = _task(name, docs, "loglikelihood", _metric("acc"))
    single = loaded.task.construct_requests

    def both(doc: Any, ctx: str, **kwargs: Any) -> list[Any]:
        chosen = single(doc, ctx, **kwargs)
        arguments = (ctx, doc["rejected"])
        return [chosen, dataclasses.replace(chosen, arguments=arguments, idx=1)]

    loaded.task.construct_requests = both
    return loaded._replace(has_pairs=True)


@dataclass(frozen=True)
class _Checks:
    """Judges what a model writes; lm-eval calls it.

    Its repr goes into fingerprints, so it says what the checks do, and holds no address.
    """

    content: tuple[str, ...]
    checkers: tuple[Checker, ...] = field(repr=False)

    def __call__(self, doc: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for check in self.checkers:
            numbers |= check(answers[0], doc["completion"])
        return numbers


def _texts(
    name: str, rows: Sequence[OwnRow], checks: Sequence[JudgeName | CheckConfig], source: str
) -> LoadedTask:
    """What a model writes, judged by every check; the first one's first number decides."""
    docs = [{"prompt": row.prompt, "completion": row.completion.strip()} for row in rows]
    right = [doc["completion"] for doc in docs]
    checkers = tuple(checker(check, right, source) for check in checks)
    judged = _Checks(tuple(map(content_of, checks)), checkers)
    stripped = [
        {"function": "regex", "regex_pattern": r"(?s)^\s*(.*?)\s*$"},
        {"function": "take_first"},
    ]
    generates: dict[str, Any] = {
        "generation_kwargs": {
            "until": [rows[0].end],
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": MAX_GENERATED_TOKENS,
        },
        "filter_list": [{"name": "stripped", "filter": stripped}],
        "process_results": judged,
    }
    return _task(name, docs, "generate_until", _metric("exact_match"), **generates)


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _task(
    name: str, docs: list[dict[str, Any]], output_type: str, metric: dict[str, Any], **more: Any
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
        "metric_list": [metric],
        "num_fewshot": 0,  # prompts are taken as they are
        "metadata": {"version": 1.0, "domain": "own data"},
        **more,
    }
    with quiet_lm_eval():
        return LoadedTask(name, ConfigurableTask(config=config), is_rendered=True)
