"""Rewrites a task into the format that a model was trained in.

A model that was trained to answer with a letter looks collapsed under a task that scores the
options' texts, and the reverse. So a task of another format is also scored in the training format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from rankwise.errors import TaskError
from rankwise.tasks.resolution import LoadedTask
from rankwise.tasks.task_files import task_code

Options = Literal["letters", "cloze"]

_OPTION_LINE = re.compile(r"\s*\(?([A-Z])[).:]\s+(.*)")
_CUE = "Answer:"


class TrainedFormat(NamedTuple):
    """How training prompts are written, always zero-shot.

    Attributes:
        options: whether a choice is answered by its letter or by its text; None if the training
            has no choices.
        chat_template: whether prompts are conversations.
    """

    options: Options | None
    chat_template: bool


def options_of(completions: Sequence[Sequence[str]]) -> Options:
    """``letters`` if the options of every item are A, B, C ...; else ``cloze``."""
    are_letters = all(
        [option.strip() for option in options] == list(ascii_uppercase[: len(options)])
        for options in completions
    )
    return "letters" if are_letters else "cloze"


def trained_format(trained: Sequence[LoadedTask], chat_template: bool) -> TrainedFormat:
    """The format of rows made from these tasks; its ``options`` is None unless all tasks agree."""
    options: set[Options | None] = {_task_options(task) for task in trained}
    return TrainedFormat(options.pop() if len(options) == 1 else None, chat_template)


def _task_options(loaded: LoadedTask) -> Options | None:
    """How a task asks for a choice; None if it is not a choice, or a choice of contexts."""
    task = loaded.task
    if loaded.output_type != "multiple_choice" or task.multiple_input or loaded.is_rendered:
        return None
    is_scored = task.has_test_docs() or task.has_validation_docs()
    try:
        with task_code("", ""):
            docs = task.eval_docs if is_scored else task.training_docs()
            return options_of([task.doc_to_choice(docs[i]) for i in range(min(len(docs), 50))])
    except TaskError:
        return None  # preparing the task says what is wrong


def in_trained_format(
    loaded: LoadedTask, trained: TrainedFormat, *, chat_template: bool, num_fewshot: int
) -> LoadedTask | str | None:
    """A copy of a task in the training format, named ``<task>@<format>``.

    The name lists what differs from the standard scoring: ``letters`` or ``cloze``, ``chat`` or
    ``plain``, ``zero-shot``.

    Args:
        loaded: the task as it is.
        trained: the format of the training prompts.
        chat_template: whether the standard scoring uses the chat template.
        num_fewshot: number of examples in the standard scoring.

    Returns:
        None if nothing differs, and a sentence if the task cannot be rewritten.
    """
    if loaded.output_type == "loglikelihood_rolling" or loaded.is_rendered:
        return None
    parts: list[str] = []
    standard = _task_options(loaded)
    other = trained.options if standard is not None and trained.options != standard else None
    if other is not None:
        parts.append(other)
    if trained.chat_template != chat_template:
        parts.append("chat" if trained.chat_template else "plain")
    if num_fewshot:
        parts.append("zero-shot")
    if not parts:
        return None
    name = f"{loaded.name}@{'-'.join(parts)}"
    if other is None:
        return loaded.changed(name)
    if loaded.task.config.process_results is not None:
        return f"{loaded.name} judges its answers with its own function"
    writes: type[_Letters | _Cloze] = _Letters if other == "letters" else _Cloze
    rewritten = loaded.changed(
        name,
        doc_to_text=writes(loaded.task, "prompt"),
        doc_to_choice=writes(loaded.task, "choices"),
        doc_to_target=_Gold(loaded.task),
    )
    task = rewritten.task
    try:
        with task_code(f"{loaded.name} cannot be written with {other}", ""):
            for doc in task.eval_docs:
                for read in (task.doc_to_text, task.doc_to_choice, task.doc_to_target):
                    read(doc)
    except TaskError as error:
        return str(error).strip()
    return rewritten


def with_letters(prompt: str, choices: Sequence[str]) -> str:
    """A prompt with its options listed under letters, before its last line if that is a cue."""
    listed = "".join(
        f"{ascii_uppercase[index]}. {choice.strip()}\n" for index, choice in enumerate(choices)
    )
    question, newline, cue = prompt.rpartition("\n")
    if newline and cue.rstrip().endswith(":"):
        return f"{question}\n{listed}{cue}"
    return f"{prompt.rstrip()}\n{listed}{_CUE}"


def without_letters(prompt: str, num_options: int) -> tuple[str, list[str]]:
    """A prompt without its list of options, and the options' texts.

    Raises:
        ValueError: the prompt does not list that many options, from A on, one a line.
    """
    lines = prompt.split("\n")
    starts: list[int] = []
    texts: list[str] = []
    for index, line in enumerate(lines):
        match = _OPTION_LINE.fullmatch(line)
        if match and len(texts) < num_options and match[1] == ascii_uppercase[len(texts)]:
            starts.append(index)
            texts.append(match[2].strip())
        elif starts and len(texts) < num_options:
            texts[-1] += f"\n{line}"  # an option of several lines
    if len(texts) != num_options or not all(texts):
        raise ValueError(f"a prompt does not list its {num_options} options one a line: {prompt!r}")
    return "\n".join(lines[: starts[0]] + lines[starts[-1] + 1 :]), texts


@dataclass(frozen=True)
class _Letters:
    """Writes the prompt or the choices of a document with letters; lm-eval calls it.

    Its repr goes into fingerprints, so it must not contain an address.
    """

    task: Any = field(repr=False)
    part: Literal["prompt", "choices"]

    def __call__(self, doc: Any) -> Any:
        choices = self.task.doc_to_choice(doc)
        if len(choices) > len(ascii_uppercase):
            raise ValueError(f"{len(choices)} options are more than there are letters")
        if self.part == "choices":
            return list(ascii_uppercase[: len(choices)])
        return with_letters(self.task.doc_to_text(doc), choices)


@dataclass(frozen=True)
class _Cloze:
    """Writes the prompt or the choices of a document without letters; lm-eval calls it."""

    task: Any = field(repr=False)
    part: Literal["prompt", "choices"]

    def __call__(self, doc: Any) -> Any:
        num_options = len(self.task.doc_to_choice(doc))
        prompt, texts = without_letters(self.task.doc_to_text(doc), num_options)
        return texts if self.part == "choices" else prompt


@dataclass(frozen=True)
class _Gold:
    """The index of the right option, whatever the task gives."""

    task: Any = field(repr=False)

    def __call__(self, doc: Any) -> Any:
        target = self.task.doc_to_target(doc)
        if isinstance(target, str):
            return self.task.doc_to_choice(doc).index(target)
        return target
