"""Conversations as text, by the chat template of a model: other people's code, in a sandbox.

A template can neither reach the machine nor take its time and memory: ``template_process`` renders
it, one process for all rows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rankwise.errors import TaskError
from rankwise.tasks import template_process
from rankwise.tasks.line_process import LineProcess
from rankwise.tasks.task_files import task_code

MAX_CHARACTERS = 1_000_000
"""The most characters of a template. Those of today have 20,000 at most."""

_REPAIR = "Repair the chat template of the model's tokenizer, or set chat_template: false."


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
) -> str:
    """Render messages as text, as lm-eval's Hugging Face back end does.

    If the template refuses a system message, the message is left out.

    Raises:
        TemplateError: of jinja; it refuses the messages.
        TaskError: it takes too much time or memory.
    """
    import jinja2

    def rendered(turns: Sequence[Mapping[str, str]]) -> str:
        return applied_template(
            tokenizer,
            turns,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    try:
        return rendered(messages)
    except jinja2.exceptions.TemplateError:
        return rendered([turn for turn in messages if turn["role"] != "system"])


def applied_template(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """What transformers' ``apply_chat_template`` writes, in bounded time and memory.

    Args:
        tokenizer: has a chat template, or its class renders without one.
        messages: one conversation.
        options: of ``apply_chat_template``: True and False.

    Raises:
        TaskError: the template takes too much, or cannot be rendered here.
        Exception: whatever it raises itself, under its name.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)  # no template's
    template = tokenizer.get_chat_template()
    if len(template) > MAX_CHARACTERS:
        raise TaskError(
            f"the chat template has {len(template):,} characters, and at most {MAX_CHARACTERS:,} "
            f"are read. {_REPAIR}"
        )
    if not messages:
        raise ValueError("no message is left to render")
    return _process.rendered(
        {
            "messages": messages,
            "chat_template": template,
            **options,
            **tokenizer.special_tokens_map,
        }
    )


def end_of_turn(tokenizer: Any, *, chat_template: bool) -> str:
    """The text after an answer: the template's end of an assistant turn, or the end of text."""
    if not chat_template:
        return str(tokenizer.eos_token)
    return _end_of_turn(Renderer.of(tokenizer))


@dataclass(frozen=True)
class Renderer:
    """A tokenizer, which equals others that render alike: of its class, template and tokens."""

    kind: type[Any]
    template: str
    tokens: str
    tokenizer: Any = field(compare=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Renderer:
        """Of this tokenizer."""
        template, tokens = str(tokenizer.chat_template), str(tokenizer.special_tokens_map)
        return cls(type(tokenizer), template, tokens, tokenizer)


@lru_cache(maxsize=8)  # each row of a user's asks for it
def _end_of_turn(of: Renderer) -> str:
    answer = "the answer"
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    with task_code("the chat template writes no answer", "Repair it, or set chat_template: false."):
        text = applied_template(of.tokenizer, conversation)
        return text[text.rindex(answer) + len(answer) :].rstrip() or str(of.tokenizer.eos_token)


def chat_template_fault(tokenizer: Any) -> str | None:
    """What is wrong with a tokenizer's chat template; None if it writes a conversation."""
    question, answer = "the question", "the answer"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        with task_code("it fails on a question and an answer", "Repair it."):
            prompt = render_chat(tokenizer, turns[:1])
            text = applied_template(tokenizer, turns)
    except TaskError as error:
        return str(error)
    missing = [kept for kept, where in ((question, prompt), (answer, text)) if kept not in where]
    return f"it leaves out {missing[0]} of a conversation. Repair it." if missing else None


class TemplateProcess(LineProcess):
    """The process that renders; after a template ended it, another one.

    Args:
        seconds: of processor time that one rendering may take.
        seconds_each: that each may take on average.
    """

    def __init__(
        self,
        seconds: float = template_process.SECONDS,
        seconds_each: float = template_process.SECONDS_EACH,
    ) -> None:
        super().__init__()
        self._limits = seconds, seconds_each

    def rendered(self, request: Mapping[str, Any]) -> str:
        """The text of a request, as ``template_process`` describes it.

        Raises:
            TaskError: the template takes too much.
            Exception: whatever it raises itself, under its name.
        """
        with self._lock:
            line, code = self._asked(json.dumps(request).encode() + b"\n")
        if code is not None:
            takes = f"takes more than {self._limits[0]:g} s"
            if code != -signal.SIGPROF:
                takes = f"ends the process that renders it (exit code {code})"
            raise TaskError(f"the chat template {takes}. {_REPAIR}")
        answer = json.loads(line)
        if (text := answer.get("text")) is not None:
            return text
        raise _error(answer["error"], answer["message"], answer["is_template_error"])

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: a file of the current folder is no module of Python's
        limits = map(str, self._limits)
        command = [sys.executable, "-P", template_process.__file__, *limits]
        pipe, environment = subprocess.PIPE, os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
        )


def _error(name: str, message: str, is_template_error: bool) -> Exception:
    """What a template raised, in the class that its callers ask for, and under its own name."""
    import jinja2

    if name == template_process.TooLongError.__name__:
        return TaskError(f"the chat template cannot be used: {message}. {_REPAIR}")
    if name == MemoryError.__name__:
        gibibytes = template_process.MEMORY_BYTES >> 30
        return TaskError(f"the chat template takes more than {gibibytes} GiB. {_REPAIR}")
    return _named(name, jinja2.TemplateError if is_template_error else ValueError)(message)


@lru_cache
def _named(name: str, base: type[Exception]) -> type[Exception]:
    return type(name, (base,), {})


_process = TemplateProcess()
