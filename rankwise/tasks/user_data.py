"""Users' own rows: JSON Lines in TRL's conventions, trained on and scored by completion loss."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError, TaskError
from rankwise.records.config.study import ENDING_SUFFIX
from rankwise.tasks.formats import TrainedFormat, options_of
from rankwise.tasks.resolution import LoadedTask, quiet_lm_eval
from rankwise.tasks.task_files import task_code
from rankwise.tasks.training_rows import TrainingRow, end_of_turn, render_chat

MAX_GENERATED_TOKENS = 256

_NOTHING = (None, "", [], {})


class UserData(NamedTuple):
    """A file of rows, split into training and held-out rows.

    Attributes:
        training: rows to train on.
        tasks: the held-out rows as tasks: by completion loss, and by exact match if wanted.
        trained_items: the training rows as a task, by completion loss like the held-out ones.
        format: ``letters`` if every completion is a letter; conversations if all rows are.
    """

    training: list[TrainingRow]
    tasks: tuple[LoadedTask, ...]
    trained_items: LoadedTask
    format: TrainedFormat


def load_user_data(
    path: Path,
    tokenizer: Any,
    *,
    chat_template: bool,
    held_out_fraction: float,
    max_examples: int | None,
    exact_match: bool,
) -> UserData:
    """Read JSON Lines of ``prompt``/``completion`` or ``messages``, and hold a part of them out.

    ``prompt`` and ``completion`` are strings, or lists of messages. In ``messages`` the last
    turn, which must be the assistant's, is the completion. Rows that are equal as text are kept
    once, so that no held-out row was trained on.

    Args:
        path: the file, UTF-8, one JSON object per line.
        tokenizer: renders messages.
        chat_template: render ``prompt`` strings as a user's turn too.
        held_out_fraction: share of the rows that is scored and not trained on; at least one row.
        max_examples: train on this many at most; None: all.
        exact_match: also score greedy generations against the completions.

    Raises:
        DataError: no such file, no rows, or rows without a prompt or an answer (the message names
            the first ten).
    """
    rows = _distinct_rows(path, tokenizer, chat_template)
    if len(rows) < 2:
        raise DataError(f"{path} has {len(rows)} distinct rows; at least 2 are needed.")
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    num_held_out = min(max(1, round(held_out_fraction * len(rows))), len(rows) - 1)
    held_out = [rows[index] for index in sorted(order[:num_held_out])]
    trained = [rows[index] for index in sorted(order[num_held_out:])][:max_examples]
    name = f"data_{path.stem}"
    tasks = [_task(name, held_out)]
    if exact_match:
        tasks.append(_task(f"{name}_exact_match", held_out, generates=True))
    return UserData(
        training=[row.as_trained for row in trained],
        tasks=tuple(tasks),
        trained_items=_task(f"{name}@train", trained),
        format=_format(rows),
    )


class _Row(NamedTuple):
    prompt: str
    completion: str
    end: str
    is_conversation: bool

    @property
    def as_trained(self) -> TrainingRow:
        return TrainingRow(self.prompt, self.completion + self.end, self.end)


def read_rows(path: Path, tokenizer: Any, *, chat_template: bool) -> list[TrainingRow]:
    """Every distinct row of a file that ``load_user_data`` takes, with none held out.

    Raises:
        DataError: as ``load_user_data``.
    """
    rows = _distinct_rows(path, tokenizer, chat_template)
    if not rows:
        raise DataError(f"{path} has no rows. Give it some.")
    return [row.as_trained for row in rows]


def _format(rows: list[_Row]) -> TrainedFormat:
    answers = {row.completion.strip() for row in rows}
    is_letters = len(answers) > 1 and options_of([sorted(answers)]) == "letters"
    return TrainedFormat(
        "letters" if is_letters else None, all(row.is_conversation for row in rows)
    )


def _distinct_rows(path: Path, tokenizer: Any, chat_template: bool) -> list[_Row]:
    try:
        # not splitlines(): JSON texts may contain U+0085, U+2028 and the like
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:  # also of a path with a NUL
        is_text = not isinstance(error, UnicodeDecodeError)
        remedy = "Check the path." if is_text else "Save it as JSON Lines in UTF-8."
        raise DataError(f"{path} cannot be read: {error}. {remedy}") from error
    rows: list[_Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(json.loads(line), tokenizer, chat_template)
            (row.prompt + row.completion).encode()  # JSON can hold half a surrogate pair
            rows.append(row)
        except UnicodeEncodeError:
            problems.append(f"line {number}: half a surrogate pair; correct the character")
        except (DataError, TaskError, json.JSONDecodeError) as error:
            problems.append(f"line {number}: {error}")
        except ValueError:  # Python reads no number of more than 4300 digits
            problems.append(f"line {number}: a number has thousands of digits; shorten it")
        except RecursionError:
            problems.append(f"line {number}: nested too deep; flatten it")
    if problems:
        shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        hint = "" if rows else "; write JSON Lines, one object with prompt and completion a line"
        raise DataError("\n  ".join([f"{path.name} has {len(problems)} bad rows{hint}", *shown]))
    return list(dict.fromkeys(rows))


def _parsed(row: Any, tokenizer: Any, chat_template: bool) -> _Row:
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    if row.get("tools"):
        raise DataError("has tools, which would be lost; write them into a system message")
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        return _conversation(messages[:-1], messages[-1], tokenizer)
    if "prompt" not in row or "completion" not in row:
        raise DataError(
            f"has {', '.join(sorted(row)) or 'no fields'}; needs prompt and completion, or messages"
        )
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        answer = _messages(completion, "completion")
        return _conversation(_messages(prompt, "prompt") + answer[:-1], answer[-1], tokenizer)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise DataError("prompt and completion must be text, or lists of messages")
    if not completion.strip():
        raise DataError("the completion is empty")
    if chat_template:
        turn = {"role": "assistant", "content": completion}
        return _conversation([{"role": "user", "content": prompt}], turn, tokenizer)
    return _Row(prompt, completion, end_of_turn(tokenizer, chat_template=False), False)


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    ok = (
        isinstance(value, list)
        and value
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in value
        )
    )
    if not ok:
        raise DataError(f"{field} must be a list of objects with role and content")
    for index, turn in enumerate(value):
        if lost := [
            key for key in turn if key not in ("role", "content") and turn[key] not in _NOTHING
        ]:
            raise DataError(
                f"{field}[{index}] has {', '.join(lost)}, which would be lost; write it into "
                "content, or leave the row out"
            )
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _conversation(before: list[dict[str, str]], answer: dict[str, str], tokenizer: Any) -> _Row:
    if answer["role"] != "assistant" or not answer["content"].strip():
        raise DataError("the last turn must be the assistant's, and not empty")
    if not before:
        raise DataError("there is no turn before the assistant's answer")
    if not tokenizer.chat_template:
        raise DataError("the base model's tokenizer has no chat template to render messages with")
    with task_code("the chat template refuses the messages", "Change the row or the template."):
        prompt = render_chat(tokenizer, before)
        end = end_of_turn(tokenizer, chat_template=True)
    shown = "".join(prompt.split())
    for index, turn in enumerate(before):
        # templates may leave out a system's turn, which lm-eval allows, and an assistant's thoughts
        is_kept = turn["role"] in ("system", "assistant")
        if not is_kept and "".join(turn["content"].split()) not in shown:
            raise DataError(
                f"the chat template leaves out turn {index}, whose role is {turn['role']!r}; "
                "change the role to user, or leave the row out"
            )
    return _Row(prompt, answer["content"], end, True)


def ending_items(name: str, rows: Sequence[TrainingRow]) -> LoadedTask:
    """Does a model stop where it was taught to? Rows that were trained on, without their end.

    Each asks for the likelihood of the end behind the prompt and the right answer. The metric
    ``acc`` is the share of the rows where nothing is more likely. The task is named ``<name>@end``.
    """
    whole = [
        _Row(f"{row.prompt}{row.completion.removesuffix(row.end)}", "", row.end, False)
        for row in rows
    ]
    return _task(f"{name}{ENDING_SUFFIX}", whole)


def _task(name: str, rows: list[_Row], *, generates: bool = False) -> LoadedTask:
    """The rows as a lm-eval task whose prompts are taken as they are."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    docs = [
        {
            "prompt": row.prompt,
            "completion": row.completion.strip() if generates else row.completion + row.end,
        }
        for row in rows
    ]
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(docs)}),
        "output_type": "generate_until" if generates else "loglikelihood",
        "test_split": "test",
        "doc_to_text": lambda doc: doc["prompt"],
        "doc_to_target": lambda doc: doc["completion"],
        "metric_list": [
            {
                "metric": "exact_match" if generates else "acc",
                "aggregation": "mean",
                "higher_is_better": True,
            }
        ],
        "num_fewshot": 0,  # prompts are taken as they are
        "metadata": {"version": 1.0, "domain": "own data"},
    }
    if generates:
        config["generation_kwargs"] = {
            "until": [rows[0].end],
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": MAX_GENERATED_TOKENS,
        }
        config["filter_list"] = [
            {
                "name": "stripped",
                "filter": [
                    {"function": "regex", "regex_pattern": r"(?s)^\s*(.*?)\s*$"},
                    {"function": "take_first"},
                ],
            }
        ]
    with quiet_lm_eval():
        return LoadedTask(name, ConfigurableTask(config=config), is_rendered=True)
