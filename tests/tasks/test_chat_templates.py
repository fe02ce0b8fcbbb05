"""Chat templates: what transformers writes, letter by letter, and nothing that takes for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import TaskError
from rankwise.tasks import chat_templates, template_process
from rankwise.tasks.chat_templates import applied_template, chat_template_fault, render_chat
from tests.support.sentences import Sentences
from tests.support.tiny_tasks import CHAT_TEMPLATE

SYSTEM = {"role": "system", "content": "Be brief.\n"}
USER = {"role": "user", "content": "  Is it? <|im_end|> \u2028 é 👩‍🚀 {{ x }}\t"}
ASSISTANT = {"role": "assistant", "content": "yes"}
CONVERSATIONS = (
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, ASSISTANT],
    [USER, ASSISTANT, USER, ASSISTANT],
    [{"role": "user", "content": ""}, ASSISTANT],
    [{"role": "tool", "content": "4", "name": "sum"}, ASSISTANT],
    [{"role": "assistant", "reasoning_content": "so", "content": "x <think>"}],
)
# as the templates of models have them
TEMPLATES = {
    "tiny": CHAT_TEMPLATE,
    "SmolLM2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
        "trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "tools": (
        "{%- if tools is defined and tools %}{{ tools | tojson(indent=2) }}{% endif -%}\n"
        "{%- set ns = namespace(last='', seen=[]) %}\n"
        "  {%- for m in messages %}{% if loop.index0 > 8 %}{% break %}{% endif %}\n"
        "    {%- set ns.last = m.role | upper %}[{{ ns.last }}] {{ m.content | trim | tojson }}\n"
        "    {%- generation %}{{ m.get('reasoning_content', '') }}{% endgeneration %}\n"
        "  {% endfor %}{{ bos_token ~ eos_token }}{{ documents is none }}\n\n"
    ),
    "macros": (
        "{% macro turn(m) %}<{{ m['role'] }}>{{ m['content'].strip() }}</{{ m['role'] }}>"
        "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}{{ pad_token }}"
        "{{ dict(a=1) }}{{ range(3) | list }}{{ messages | map(attribute='role') | join(', ') }}"
    ),
    "a date": "{{ strftime_now('%d %b') }}{{ messages[-1]['content'] }}",
    "no system": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    ),
    "undefined": "{{ messages[0].content }}{{ nothing }}{{ nothing.at_all }}",
    "not jinja": "{% for",
    "divided": "{{ 1 / 0 }}{{ messages[0].content }}",
}


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def outcome(render: Any, *arguments: Any, **options: Any) -> tuple[Any, ...]:
    """A text, or the error in its place, as callers and users see it."""
    try:
        return ("text", render(*arguments, **options))
    except Exception as error:  # noqa: BLE001 (a template may raise anything)
        return (type(error).__name__, str(error), isinstance(error, jinja2.TemplateError))


@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_writes_the_same(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    for messages in CONVERSATIONS:
        for options in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
            expected = outcome(tokenizer.apply_chat_template, messages, tokenize=False, **options)
            assert outcome(applied_template, tokenizer, messages, **options) == expected


def test_several_templates_of_which_one_is_usual(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": "a{{ messages[0].content }}", "tool_use": "b"}
    assert applied_template(tokenizer, [ASSISTANT]) == "ayes"


def test_a_tokenizer_that_renders_without_a_template() -> None:
    """Mistral's own, for example, is a library's code."""

    class Own:
        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            return f"{messages} {sorted(options)}"

    assert applied_template(Own(), [USER]) == f"{[USER]} ['tokenize']"


LONG = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "loops": (LONG, "takes more than"),
    "a power": ("{{ 10 ** (10 ** 8) }}", "takes more than"),
    "a long text": ("{{ 'a' * 10 ** 10 }}", "takes more than 1 GiB"),
    "centred": ("{{ 'a'.center(10 ** 10) }}", "takes more than 1 GiB"),
    "a format": ("{{ '%099999999999d' % 1 }}", "takes more than 1 GiB"),
    "doubled": (
        "{% set n = namespace(a='ab') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}"
        "{% endfor %}",
        "takes more than",
    ),
    "many letters": ("{{ 'a' * 200000 }}", "it makes 200,000 characters of"),
    "many times": ("{{ messages[0].content * 99999 }}", "it makes "),
    "a long message": ("{{ raise_exception('x' * 10 ** 6) }}", "xxx"),
    "a long template": ("a" * 1_000_001, "has 1,000,001 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "_process", chat_templates.TemplateProcess(seconds=0.5))
    tokenizer.chat_template, problem = HOSTILE[name]
    with pytest.raises((TaskError, jinja2.TemplateError), match=problem) as caught:
        render_chat(tokenizer, [USER])
    assert len(str(caught.value)) < 2_000
    tokenizer.chat_template = CHAT_TEMPLATE
    assert render_chat(tokenizer, [USER]).endswith("assistant\n")  # a good one is rendered still
    assert problem in str(chat_template_fault(with_template(tokenizer, HOSTILE[name][0])))


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_rows_that_each_take_long_are_too_long_together() -> None:
    template = "{% for i in range(20) %}{% for j in range(60000) %}{% endfor %}{% endfor %}"
    request = {"messages": [USER], "chat_template": f"{template}{{{{ messages[0].content }}}}"}
    process = chat_templates.TemplateProcess(seconds=1.0, seconds_each=0.001)
    found = {outcome(process.rendered, request)[0] for _ in range(100)}
    assert found == {"text", "TaskError"}


def test_the_process_loads_no_torch_and_no_rankwise() -> None:
    code = (
        "import runpy, sys; m = runpy.run_path(sys.argv[1]); m['_transformers_renderer'](); "
        "print([n for n in ('torch', 'rankwise', 'lm_eval', 'tokenizers') if n in sys.modules])"
    )
    command = [sys.executable, "-P", "-c", code, template_process.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_module_of_the_current_folder_is_not_imported(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "jinja2.py", "resource.py"):
        (tmp_path / name).write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    process = chat_templates.TemplateProcess()
    request = {"messages": [USER], "chat_template": "{{ messages[0].role }}"}
    assert process.rendered(request) == "user"
    assert not (tmp_path / "ran").exists()


def test_an_answer_that_nobody_waited_for_is_no_answer_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = chat_templates.TemplateProcess()
    request = {"messages": [USER], "chat_template": "{{ messages[0].role }}"}
    assert process.rendered(request) == "user"
    before = process.pid

    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_read", ring)
    with pytest.raises(KeyboardInterrupt):
        process.rendered(request | {"chat_template": "first"})
    monkeypatch.undo()
    assert process.rendered(request) == "user"
    assert process.pid != before


def test_a_process_that_the_system_ends(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    process, ended = chat_templates.TemplateProcess(), chat_templates.TemplateProcess._read
    request = {"messages": [USER], "chat_template": "{{ messages[0].role }}"}
    assert process.rendered(request) == "user"
    read: Any = ended

    def killed(of: Any) -> bytes:
        os.kill(of.pid, signal.SIGKILL)
        return read(of) and b'{"text": "us'  # the beginning of an answer

    monkeypatch.setattr(process, "_read", killed)
    with pytest.raises(TaskError) as caught:
        process.rendered(request)
    sentence(caught.value)
    monkeypatch.undo()
    assert process.rendered(request) == "user"
