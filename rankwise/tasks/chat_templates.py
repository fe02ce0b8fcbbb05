"""Conversations as text, by the chat template of a model: other people's code, in a sandbox.

A template can neither reach the machine nor take its time and memory: ``template_process`` renders
it, one process for all rows.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from rankwise.errors import TaskError
from rankwise.tasks import template_process
from rankwise.tasks.line_process import LineProcess
from rankwise.tasks.task_files import task_code

T = TypeVar("T")

Turn = Mapping[str, str]
"""What one speaker says: role and content."""

Span = tuple[int, int]
"""Begin and end of characters in a text."""

MAX_CHARACTERS = 1_000_000
"""The most characters of a template. Those of today have 20,000 at most."""

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")

_REPAIR = "Repair the chat template of the model's tokenizer, or set chat_template: false."


def render_chat(
    tokenizer: Any, messages: Sequence[Turn], add_generation_prompt: bool = True
) -> str:
    """Render messages as text, as lm-eval's Hugging Face back end does.

    If the template refuses a system message, the message is left out.

    Raises:
        TemplateError: of jinja; it refuses the messages.
        TaskError: it takes too much time or memory.
    """
    options = {
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": not add_generation_prompt,
    }
    return _as_accepted(messages, lambda turns: applied_template(tokenizer, turns, **options))


def render_turns(
    tokenizer: Any, messages: Sequence[Turn], number: int
) -> tuple[str, tuple[Span, ...]]:
    """A prompt as ``render_chat`` writes it, and where the assistant's last turns stand in it.

    A turn goes up to its end, without white space behind that; an empty one stands nowhere. A
    template that marks turns, by ``{% generation %}``, says where they are. In another one they
    follow what asks for an answer.

    Args:
        tokenizer: has a chat template.
        messages: what stands before an answer.
        number: of turns of the assistant, from the last one back.

    Raises:
        TemplateError: of jinja; it refuses the messages.
        TaskError: it takes too much time or memory, marks no turn, or writes one differently where
            others follow.
    """
    end, found = end_of_turn(tokenizer, chat_template=True), list[Span]()

    def rendered(turns: Sequence[Turn]) -> tuple[str, Sequence[Span]]:
        if _has_template(tokenizer) and _MARKS_ANSWERS.search(tokenizer.get_chat_template()):
            options = {"add_generation_prompt": True, "return_assistant_tokens_mask": True}
            answer = _process.answer(_request(tokenizer, turns, **options))
            return answer["text"], answer["marked"]
        text = applied_template(tokenizer, turns, add_generation_prompt=True)
        answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
        said = [turns[index]["content"].strip() for index in answers]
        spans = _behind_headers(text, _header(Renderer.of(tokenizer)), said, end)
        last = answers[len(answers) - number :]
        return text, spans or [_as_added(tokenizer, turns[: index + 1], text) for index in last]

    text, spans = _as_accepted(messages, rendered)
    if number and not spans:
        raise TaskError(
            "the chat template has {% generation %}, and no assistant turn stands in it; put the "
            "answers between it and {% endgeneration %}, or set train.turns: last"
        )
    if number < sum(turn["role"] == "assistant" for turn in messages):
        spans = spans[max(len(spans) - number, 0) :]
    for begin, marked in spans:
        stop = begin + len(text[begin:marked].rstrip())
        if text.startswith(end, marked):
            stop = marked + len(end)
        if text[begin:stop].removesuffix(end).strip():
            found.append((begin, stop))
    return text, tuple(found)


@lru_cache(maxsize=8)
def _header(of: Renderer) -> str:
    """What a template writes to ask for an answer; empty: nothing."""
    question = [{"role": "user", "content": "?"}]
    text = applied_template(of.tokenizer, question, add_generation_prompt=True)
    before = applied_template(of.tokenizer, question)
    return text.removeprefix(before) if text.startswith(before) else ""


def _behind_headers(text: str, header: str, answers: Sequence[str], end: str) -> list[Span]:
    """Where answers stand if each follows a header, of which there are no others but the last."""
    parts = text.split(header) if header else []
    if len(parts) != len(answers) + 2:
        return []
    begin, spans = len(parts[0]) + len(header), list[Span]()
    for part, answer in zip(parts[1:], answers, strict=False):
        said = part.lstrip()
        rest = said[len(answer) :].lstrip()
        if not (said.startswith(answer) and rest.startswith(end)):
            return []
        spans.append((begin, begin + len(part) - len(rest) + len(end)))
        begin += len(part) + len(header)
    return spans


def _as_added(tokenizer: Any, turns: Sequence[Turn], text: str) -> Span:
    """Where the last of the turns stands in a text that goes on: what it adds to what asks for it.

    Raises:
        TaskError: it is written differently there.
    """
    upto, before = applied_template(tokenizer, turns), ""
    if len(turns) > 1:  # no template writes what asks for the first of all
        before = applied_template(tokenizer, turns[:-1], add_generation_prompt=True)
    if not (before and upto.startswith(before) and text.startswith(upto.rstrip())):
        raise TaskError(
            "the chat template writes an assistant turn differently once later turns follow it, so "
            "that turn cannot be learned; set train.turns: last, or mark the assistant's turns "
            "with {% generation %} in the template"
        )
    return len(before), len(upto.rstrip())


def _as_accepted(messages: Sequence[Turn], render: Callable[[Sequence[Turn]], T]) -> T:
    """What is rendered of messages, without the system's where the template refuses it."""
    import jinja2

    try:
        return render(messages)
    except jinja2.exceptions.TemplateError:
        return render([turn for turn in messages if turn["role"] != "system"])


def applied_template(tokenizer: Any, messages: Sequence[Turn], **options: Any) -> str:
    """What transformers' ``apply_chat_template`` writes, in bounded time and memory.

    Args:
        tokenizer: has a chat template, or its class renders without one.
        messages: one conversation.
        options: of ``apply_chat_template``: True and False.

    Raises:
        TaskError: the template takes too much, or cannot be rendered here.
        Exception: whatever it raises itself, under its name.
    """
    if not _has_template(tokenizer):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return _process.rendered(_request(tokenizer, messages, **options))


def _has_template(tokenizer: Any) -> bool:
    """Whether it renders by a template, and not by code of its class."""
    from transformers import PreTrainedTokenizerBase

    return type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template


def _request(tokenizer: Any, messages: Sequence[Turn], **options: Any) -> dict[str, Any]:
    """As ``template_process`` describes it."""
    template = tokenizer.get_chat_template()
    if len(template) > MAX_CHARACTERS:
        raise TaskError(
            f"the chat template has {len(template):,} characters, and at most {MAX_CHARACTERS:,} "
            f"are read. {_REPAIR}"
        )
    if not messages:
        raise ValueError("no message is left to render")
    return {
        "messages": messages,
        "chat_template": template,
        **options,
        **tokenizer.special_tokens_map,
    }


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
        """The text of a request; see ``answer``."""
        return self.answer(request)["text"]

    def answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a request, as ``template_process`` describes both.

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
        if "text" in answer:
            return answer
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
