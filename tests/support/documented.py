"""What the documentation tells people to type: commands, study files and Python, block by block.

A block of a page runs in a test, unless a comment before it says why not:
``<!-- not run: trains for minutes -->``. Then its commands are read like everything else that looks
like a command, and nothing is run.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import re
import shlex
import tomllib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from pydantic import ValidationError

import rankwise as rw
from rankwise.cli.main import app
from rankwise.errors import ConfigError
from rankwise.records.config.own_rows import ContractConfig
from rankwise.records.study_file import config_of, load_config, preset_names
from rankwise.records.yaml_reading import PlainLoader, parse_yaml

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "rankwise" / "records" / "presets"

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"(?<!`)`(rankwise [^`\n]+)`(?!`)")
_VALUE = r"(?:[A-Z_]+(?:\.[a-z]+)?|[a-z-]+\.(?:yaml|csv|jsonl)|[a-z]+_[a-z]+|\d[\d.,]*)"
_OPTION = r"--(?:format|to) [a-z-]+|--[a-z-]+"
_ADVISED = re.compile(rf"rankwise [a-z-]+(?: (?:{_OPTION}|{_VALUE}|[a-z_.]+=\S+))*")
_QUOTED = re.compile(r"`(rankwise [^`\n]+)`")
_FILLED = ("1", "a=1", "1h", "peft", "a")
"""What may stand where a message fills something in."""
_UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or that of typer's own copy of click
_NEEDED = {"base_model": "smollm2-135m-instruct", "train": {"task": "kinship"}}
"""What a part of a study file lacks to be one."""


class Block(NamedTuple):
    """A fenced block; ``why_not_run`` is None where a test runs it."""

    page: str
    line: int
    language: str
    text: str
    why_not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """What stands behind the prompts, continued lines joined."""
        joined = self.text.replace("\\\n", " ")
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def pages() -> list[str]:
    """All pages that people read, but for the list of verbs that is made from the verbs."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    written = {"docs/cli.md", "CHANGELOG.md"}
    names = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return [name for name in names if name not in written]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The console, YAML and Python blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, *found.group("language", "text", "why"))
        for found in _FENCE.finditer(text)
        if found["language"] in ("console", "yaml", "python")
    ]


def inline_commands(text: str) -> list[str]:
    """Commands in the middle of a sentence, where names in capitals stand for something."""
    return _INLINE.findall(text)


def advised_commands(nodes: Iterable[ast.AST]) -> list[str]:
    """Commands that a module's texts name; what is filled in is an X."""
    inside: set[int] = set()
    texts: list[str] = []
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            inside.update(map(id, node.values))
            parts = [getattr(part, "value", "") for part in node.values]
            texts.append("".join(part if isinstance(part, str) else "X" for part in parts))
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            texts.append(str(node.value))
    return [command for text in texts for command in commands_in(text)]


def commands_in(text: str) -> list[str]:
    """Commands in a text: those in backticks, and what looks like one of a verb that there is."""
    quoted = _QUOTED.findall(text)
    others = _ADVISED.findall(_QUOTED.sub("", text))
    return [*quoted, *(each for each in others if each.split()[1] in _verbs())]


def problems_of(block: Block) -> list[str]:
    """What is wrong with a block as far as reading it can tell."""
    if block.language == "yaml":
        return _study_problems(block.text)
    if block.language == "python":
        return list(_code_problems(block.text))
    return [problem for command in block.commands for problem in command_problems(command)]


def command_problems(command: str) -> list[str]:
    """What is wrong with a command: a verb, an option, a key or a name that does not exist."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    match words:
        case ["rankwise", *arguments]:
            return _verb_problems(arguments)
        case ["make", target]:
            known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return [] if target in known else [f"no target {target!r} in the Makefile"]
        case ["pip", "install", *names]:
            return [problem for name in names for problem in _extra_problems(name)]
        case ["python", "-m", module, *_]:
            is_there = importlib.util.find_spec(module) is not None
            return [] if is_there else [f"no module {module!r}"]
        case ["git", "clone" | "add" | "commit", *_] | ["check-jsonschema", *_]:
            return []
    return [f"nothing knows how to check {command!r}"]


def inline_problems(command: str) -> list[str]:
    """What is wrong with a command in a sentence, with any values where it is filled in.

    A verb alone, or with options alone, names these: what else they need may be left out.
    """
    _, *words = shlex.split(command)
    if words[0].startswith("-"):
        names = {name for option in typer.main.get_command(app).params for name in option.opts}
        return [
            f"rankwise has no option {word}" for word in words if word not in {*names, "--help"}
        ]
    is_whole = any("-" not in (one[0], two[0]) for one, two in itertools.pairwise(words))
    found: list[str] = []
    for value in _FILLED:
        found = [
            problem
            for problem in _verb_problems([re.sub(r"\bX\b", value, word) for word in words])
            if is_whole or not re.match(r"Missing|Option .* requires an argument", problem)
        ]
        if not found:
            break
    return found


def _verbs() -> Collection[str]:
    return _group().commands.keys()


def _group() -> Any:
    return typer.main.get_command(app)


def _verb_problems(arguments: list[str]) -> list[str]:
    group = _group()
    try:
        with group.make_context("rankwise", list(arguments)) as context:
            left = [*context._protected_args, *context.args]
            name, verb, rest = group.resolve_command(context, left)
            given = verb.make_context(name, list(rest), parent=context).params
    except typer.Exit:  # --help, --version
        return []
    except _UsageError as error:
        return [error.format_message()]
    return _override_problems(given["study"]) if given.get("study") else []


def _override_problems(study: list[str]) -> list[str]:
    """Keys and values behind a study file, read as keys of the preset of that name."""
    file, *overrides = study if "=" not in study[0] else ("", *study)
    preset = Path(file).stem if Path(file).stem in preset_names() else "quickstart"
    try:
        load_config(PRESETS / f"{preset}.yaml", overrides)
    except ConfigError as error:
        return list(error.problems)
    return []


def _study_problems(text: str) -> list[str]:
    """A whole study file, a part of one, or a contract."""
    settings = parse_yaml(text, PlainLoader)
    assert isinstance(settings, dict)
    own = [isinstance(each, dict) and "judged_by" in each for each in settings.values()]
    if all(own) and "train" not in settings:
        try:
            ContractConfig.model_validate({"contract": settings})
        except ValidationError as error:
            return [".".join(map(str, each["loc"])) for each in error.errors()]
        return []
    train = settings.get("train", {})
    whole = {**_NEEDED, **settings}
    if not {"task", "data", "sequence"} & train.keys():
        whole["train"] = {**_NEEDED["train"], **train}
    try:
        config_of(whole, "documentation", ROOT)
    except ConfigError as error:
        return list(error.problems)
    return []


def _code_problems(text: str) -> Iterator[str]:
    """Names of the package, and keyword arguments, that do not exist."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rw":
            if not hasattr(rw, node.attr):
                yield f"rankwise has no {node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "rankwise":
            yield from (
                f"rankwise has no {each.name}" for each in node.names if not hasattr(rw, each.name)
            )
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).removeprefix("rw.")
        if name in rw.__all__ and callable(getattr(rw, name)):
            yield from _argument_problems(name, node)


def _argument_problems(name: str, call: ast.Call) -> Iterator[str]:
    keywords = {each.arg: each.value for each in call.keywords if each.arg}
    try:
        inspect.signature(getattr(rw, name)).bind(*call.args, **keywords)
    except TypeError as error:
        yield f"{name}: {error}"
    if name == "new":
        try:
            rw.new(**{key: ast.literal_eval(value) for key, value in keywords.items()})
        except ConfigError as error:
            yield from error.problems


def _extra_problems(name: str) -> list[str]:
    found = re.fullmatch(r"rankwise\[(\w+)\]|\.\[(\w+)\]", name)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    extra = found and (found[1] or found[2])
    return [f"no extra {extra!r}"] if extra and extra not in extras else []
