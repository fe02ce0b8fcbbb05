"""Everything that the documentation tells people to type is read: verbs, options, keys, names."""

from __future__ import annotations

import re
import subprocess

import pytest

from rankwise.records.study_file import preset_names, preset_text
from tests.support.documented import (
    ROOT,
    Block,
    advised_commands,
    blocks,
    command_problems,
    commands_in,
    inline_commands,
    inline_problems,
    pages,
    problems_of,
)
from tests.support.sources import package_sources


def block(language: str, text: str) -> Block:
    return Block("planted.md", 1, language, text, None)


@pytest.mark.parametrize("page", pages())
def test_a_page_says_nothing_that_does_not_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = {each.place: problems_of(each) for each in blocks(page)}
    sentences = {command: inline_problems(command) for command in inline_commands(text)}
    assert {place: problems for place, problems in found.items() if problems} == {}
    assert {command: problems for command, problems in sentences.items() if problems} == {}


def test_no_message_advises_what_does_not_exist() -> None:
    named = [
        command
        for source in package_sources().values()
        for command in advised_commands(source.nodes)
        if not command.startswith("rankwise lm-eval ")  # lm-eval's own options
    ]
    assert {"rankwise extend DIR --items X", "rankwise verdict FILES --output DIR"} <= {*named}
    assert len(named) > 8
    found = {command: inline_problems(command) for command in {*named}}
    assert {command: problems for command, problems in found.items() if problems} == {}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_advises_what_exists(name: str) -> None:
    text = re.sub(r"\\\n# *", "", preset_text(name))
    line = re.compile(r"^# +(rankwise .+?)(?: {2,}.*)?$", re.MULTILINE)
    found = {command: command_problems(command) for command in line.findall(text)}
    found |= {each: inline_problems(each) for each in commands_in(line.sub("", text))}
    assert "rankwise verdict DIR --delta 2" in found
    assert {command: problems for command, problems in found.items() if problems} == {}


def test_the_readme_is_read() -> None:
    read = blocks("README.md")
    assert any("rankwise run" in command for each in read for command in each.commands)
    assert inline_commands((ROOT / "README.md").read_text(encoding="utf-8"))


RUN_BY = {
    "make demo": ".ci/run",
    'pip install ".[train]" --constraint constraints.txt': "benchmarks/installation.py",
    "rankwise run": "benchmarks/installation.py",
    "rankwise try my_rows.csv": "tests/cli/test_try.py",
}
"""Every command of the README -> what runs it, from the installation on."""


def test_every_command_of_the_readme_is_run() -> None:
    """Word for word, but for the rows of ``try``, which are a test's own."""
    typed = [line for each in blocks("README.md") for line in each.commands]
    commands = [line.partition("#")[0].strip() for line in typed]
    assert commands == [*RUN_BY]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (find,) = re.findall(r"^command=\$\((.+)\)$", script, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", find], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == commands[0]
    assert 'eval "$command"' in script
    for command, place in RUN_BY.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        verb = command.removesuffix(" my_rows.csv").removeprefix("rankwise ")
        assert command in text or f'"{verb}"' in text or place == ".ci/run", command


def test_blocks_are_found_with_their_marks_and_lines() -> None:
    text = "a\n\n<!-- not run: slow -->\n```console\n$ rankwise run \\\n    a.yaml\nout\n```\n\n"
    text += "```yaml\na: 1\n```\n```text\n$ no\n```\n"
    first, second = blocks("x.md", text)
    assert first == Block("x.md", 3, "console", "$ rankwise run \\\n    a.yaml\nout\n", "slow")
    assert first.commands == ["rankwise run      a.yaml"]
    assert second == Block("x.md", 10, "yaml", "a: 1\n", None)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("rankwise runn study.yaml", "No such command 'runn'."),
        ("rankwise plan --bugdet 1h", "No such option: --bugdet"),
        ("rankwise heads DIR --top many --run a --tasks b", "Invalid value for '--top'"),
        ("rankwise check my-base --tasks a", "Missing"),
        ("rankwise run study.yaml train.epoch=1", "train.epoch: unknown key"),
        ("rankwise run variants.yaml methods.variants.names=[doora]", "methods.variants.names"),
        ("rankwise plan train.epochs=none", "train.epochs"),
        ("make tests", "no target 'tests' in the Makefile"),
        ("pip install rankwise[quantisation]", "no extra 'quantisation'"),
        ("python -m benchmarks.gpus", "no module 'benchmarks.gpus'"),
        ("rankwize run", "nothing knows how to check"),
    ],
)
def test_what_is_wrong_with_a_command_is_found(command: str, problem: str) -> None:
    found = command_problems(command)
    assert any(each.startswith(problem) for each in found), found


@pytest.mark.parametrize(
    ("language", "text", "problem"),
    [
        ("yaml", "a: {data: b.jsonl, judged_by: exact, max_los: 2}", "contract.a.max_los"),
        ("yaml", "train: {epoch: 2}", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("yaml", "methods: {lora: {ranks: [0]}}", "methods.lora.ranks[0]"),
        ("python", "import rankwise as rw\nrw.opn('a')", "rankwise has no opn"),
        ("python", "from rankwise import Retention", "rankwise has no Retention"),
        ("python", "RetentionCallback(['a'], evry=2)", "RetentionCallback: got an unexpected"),
        ("python", "rw.new(task='kinship', base='a', train={'epoch': 1})", "train.epoch"),
    ],
)
def test_what_is_wrong_with_a_block_is_found(language: str, text: str, problem: str) -> None:
    found = problems_of(block(language, text))
    assert any(each.startswith(problem) for each in found), found


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("rankwise reprot DIR", "No such command 'reprot'."),
        ("rankwise repair DIR --run ID --max-losses 1", "No such option: --max-losses"),
        ("rankwise repair BASE ADAPTER --by energy=0.9 ...", "Missing option '--max-loss'"),
        ("rankwise extend DIR --seeds none", "Invalid value for '--seeds'"),
        ("rankwise --verison", "rankwise has no option --verison"),
    ],
)
def test_what_is_wrong_in_a_sentence_is_found(command: str, problem: str) -> None:
    (found,) = inline_problems(command)
    assert found.startswith(problem)


@pytest.mark.parametrize("command", ["rankwise check --forms", "rankwise extend DIR --seeds X"])
def test_an_option_that_is_named_and_a_value_that_is_filled_in_are_no_faults(command: str) -> None:
    assert inline_problems(command) == []
