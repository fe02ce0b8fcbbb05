"""What all verbs share: the application, what it prints, and how errors become exit codes."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from rankwise.errors import (
    ConfigError,
    DataError,
    ModelError,
    OutOfMemoryError,
    PlanError,
    RankwiseError,
    RecordError,
    StorageError,
    redacted,
    to_install,
)
from rankwise.records.fields import path_problem
from rankwise.records.folder import StudyFolder
from rankwise.records.provenance import package_version
from rankwise.records.versions import untested
from rankwise.study.printer import Printer, print_line

P = ParamSpec("P")

OK, RUN_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; ``USAGE`` where the command was to be written otherwise."""

_STOPPED = "stopped; finished work is kept, run the same command to continue"
_UsageError: Any = typer.BadParameter.__bases__[0]  # of the click that typer uses

_START = """\
rankwise says how much LoRA rank is enough for a task, and what a model forgets.

Where to start:
  rankwise run                    the default study, to a report in minutes
  rankwise try ROWS.jsonl         a study of your own rows, in 10 minutes
  rankwise init                   a study file to change and run
  rankwise verdict scores.csv     a verdict from scores that you have
  rankwise check BASE ADAPTER --tasks arc_easy
                                  has an adapter forgotten what its base knew?
  rankwise --help                 all commands"""


class _Panels(TyperGroup):
    """Lists the verbs under the panels that they name."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Panels and verbs are in the order of registration."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel, []).append((name, command.short_help))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


app = typer.Typer(
    name="rankwise",
    cls=_Panels,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's panels leave 24 characters a line for a text at 80 columns
    help=(
        "How much LoRA rank is enough for a task, and what does the model forget? Rankwise trains "
        "every rank and full fine-tuning on one frozen base, measures gain and retention with "
        "paired statistics, and recommends a rank. If the data cannot decide, it gives odds."
    ),
)


# Piped output is not folded at 80 columns.
def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody is there; a stream that was closed, as by ``<&-``, is none."""
    return stream is not None and not stream.closed and stream.isatty()


stdout = Printer(width=None if is_terminal(sys.stdout) or "COLUMNS" in os.environ else 160)
stderr = Printer(stderr=True)


def option(shown: str, text: str, **settings: Any) -> Any:
    """An option as its help shows it: ``--quiet``, ``--limit N``; with two names ``--a, --b N``."""
    *others, last = shown.split(", ")
    name, _, value = last.partition(" ")
    return typer.Option(*others, name, metavar=value or None, help=text, **settings)


def argument(shown: str, text: str, **settings: Any) -> Any:
    """An argument as its help shows it: ``DIR``."""
    return typer.Argument(metavar=shown, help=text, **settings)


def given_path(text: str) -> Path:
    """A path of the command line; an empty one would be the current folder."""
    if not text.strip() or "\0" in text or "://" in text:
        raise typer.BadParameter(f"{redacted(text)!r} names no file or folder; write a path")
    if problem := path_problem(text):
        raise typer.BadParameter(problem)
    return Path(text)


def given_name(text: str) -> str:
    """A folder of the command line, or a repository of the hub."""
    try:
        given_path(text).expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(f"{text!r} is in no known home folder; correct it") from error
    return text


path_option = partial(option, parser=given_path)

Folder = Annotated[Path, argument("DIR", "A study's folder.", parser=given_path)]
TasksPath = Annotated[
    list[Path] | None,
    path_option("--tasks-path PATH", "A folder with lm-eval YAML files; can be repeated."),
]
AllowTaskCode = Annotated[
    bool,
    option(
        "--allow-task-code",
        "Let task files of tasks_path or --tasks-path run Python code (!function, class).",
    ),
]
Overwrite = Annotated[
    bool, option("--overwrite", "Also replace files that rankwise did not write.")
]
Quiet = Annotated[
    bool, option("--quiet", "Show no progress; warnings and errors still go to stderr.")
]
AsEvents = Annotated[
    bool,
    option(
        "--json",
        "Print events as JSON lines to stdout instead of text; ends with an `ended` event.",
    ),
]
Json = Annotated[bool, option("--json", "Print one JSON document to stdout instead of text.")]


def listed_names(text: str) -> tuple[str, ...]:
    """The names in a list with commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"rankwise {package_version('rankwise') or '(not installed)'}")
        raise typer.Exit(OK)


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, option("--version", "Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options that come before the verb."""
    if context.invoked_subcommand is None:
        say(_START, folded=False)


class Answering(TyperCommand):
    """A verb that answers once: with ``--json``, wrong options are its answer, as other errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Tell a program of wrong options before they are told to people."""
        asks_for_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if asks_for_json:
                self.tell("UsageError", redacted(error.format_message()))
            raise

    def tell(self, name: str, message: str) -> None:
        """Print what the options are wrong in."""
        emit_error(name, message, USAGE)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments as their help calls them."""
        return [self.options_metavar or "", *(name for name, _ in self._arguments())]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Names and texts; typer's own list repeats the types of Python."""
        options: list[Any] = [each for each in self.params if each.param_type_name == "option"]
        records = [each.get_help_record(ctx) for each in options]
        for title, rows in (("Arguments", self._arguments()), ("Options", records)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _arguments(self) -> list[tuple[str, str]]:
        found: list[Any] = [each for each in self.params if each.param_type_name == "argument"]
        return [(each.metavar, each.help or "") for each in found]


def verb(
    panel: str, name: str | None = None, *, kind: type[Answering] = Answering, **settings: Any
) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Make a function a verb of the command; its exit code is what the function returns.

    The help lists it under the panel. Errors that we raise on purpose become a message and an exit
    code, and with ``--json`` also an answer, or the last event of a verb whose kind tells events.
    """

    def register(function: Callable[P, int]) -> Callable[P, None]:
        summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]

        @app.command(name, cls=kind, rich_help_panel=panel, short_help=summary, **settings)
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            answers = bool(kwargs.get("as_json")) and kind is Answering
            try:
                _require_current_folder()
                code = function(*args, **kwargs)
            except (RankwiseError, OSError, MemoryError, ImportError) as caught:
                error = _said(caught)
                code = USAGE if error.is_usage else RUN_FAILED
                if answers:
                    problems = error.problems if isinstance(error, ConfigError | PlanError) else ()
                    emit_error(type(error).__name__, str(error), code, problems)
                note(f"{type(error).__name__}: {error}", style="red")
            except KeyboardInterrupt:
                code = INTERRUPTED
                if answers:
                    emit_error("KeyboardInterrupt", _STOPPED, code)
                note(_STOPPED)
            raise typer.Exit(code)

        return wrapped

    return register


OF_TRAINING = frozenset(
    {
        "accelerate", "datasets", "fsspec", "gguf", "huggingface_hub", "jaxtyping", "lm_eval",
        "peft", "pytablewriter", "requests", "rouge_score", "sacrebleu", "tenacity", "tokenizers",
        "torch", "tqdm", "transformers",
    }
)  # fmt: skip
"""The modules that the extra ``train`` brings."""


def without_training(name: str) -> str:
    """What to install where one of them is missing."""
    return f"{name} is missing: training and scoring need the extra train: {to_install('train')}"


_OF_THE_SYSTEM = {
    errno.EACCES: "Give yourself permission there",
    errno.EPERM: "Give yourself permission there",
    errno.EROFS: "The disk is read-only: make it writable",
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space within your quota",
    errno.EFBIG: "Raise the limit of files (`ulimit -f`)",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`)",
    errno.ELOOP: "Remove the link that leads to itself",
    errno.ENAMETOOLONG: "Use shorter names",
    errno.EIO: "Check the disk",
    errno.ESTALE: "Check the disk",
}
"""Errors that files and disks give anywhere, with the remedy; others are mistakes of ours."""


def _said(
    caught: RankwiseError | OSError | MemoryError | ImportError,
) -> RankwiseError:
    """An error in a sentence: also one of the system, which may come from anywhere.

    Raises:
        OSError: what was caught, where it is none of the system's alone.
        ImportError: what was caught, where the extra ``train`` does not bring the module, or all
            libraries are of a tested version.
    """
    if isinstance(caught, RankwiseError):
        return caught
    if isinstance(caught, ImportError):
        problem = untested()
        if isinstance(caught, ModuleNotFoundError) and caught.name in OF_TRAINING:
            return ConfigError("this installation", [without_training(caught.name)])
        if not problem:
            raise caught
        return ConfigError("this installation", [f"{caught}: {problem}"])
    if isinstance(caught, MemoryError):
        why = "no memory is left for this process. Free some, raise its limit (`ulimit -v`), or "
        return OutOfMemoryError(f"{why}take a smaller model.")
    remedy = _OF_THE_SYSTEM.get(caught.errno or 0)
    if remedy is None and not isinstance(caught, PermissionError):
        raise caught
    where = caught.filename or "a file or folder"
    remedy = remedy or _OF_THE_SYSTEM[errno.EACCES]
    return StorageError(f"{where}: {caught.strerror or caught}. {remedy}.")


def _require_current_folder() -> None:
    """Refuse to work from a folder that has been deleted, in which torch cannot be loaded."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise StorageError("the current folder was deleted. Change to another one.") from error


@contextlib.contextmanager
def usage_errors(
    kinds: tuple[type[RankwiseError], ...] = (ModelError, DataError, RecordError),
) -> Generator[None]:
    """Within the block, input that cannot be used is a usage error: nothing has run."""
    try:
        yield
    except kinds as error:
        error.is_usage = True
        raise


def say(text: str, style: str | None = None, *, folded: bool = True) -> None:
    """Print a result to stdout; lines with a path are not folded, so that it can be copied."""
    stdout.print(text, style=style, soft_wrap=not folded)


def json_text(content: Any, indent: int | None = None) -> str:
    """Records, or lists and dictionaries of them, as JSON in ASCII; NaN and infinities are null."""
    from pydantic_core import to_jsonable_python

    plain = json.dumps(to_jsonable_python(content))  # a record may have them at any depth
    return json.dumps(json.loads(plain, parse_constant=lambda _: None), indent=indent)


def emit(content: Any) -> int:
    """Print the one answer of a verb as JSON to stdout, at once; returns ``OK``."""
    print_line(json_text(content, indent=2))
    return OK


def emit_error(name: str, message: str, code: int, problems: Sequence[str] = ()) -> None:
    """Print an error as the answer; ``problems``, if it has several, one by one."""
    emit({"error": name, "message": message, "problems": problems, "exit_code": code})


def note(text: str, style: str | None = None) -> None:
    """Print a line to stderr, where it is not part of the results."""
    stderr.print(text, style=style, soft_wrap=True)


def note_damage(folder: StudyFolder) -> None:
    """Say what is not as it was written, where something can be concluded all the same."""
    from rankwise.study.damage import find_damage

    models = [model.name for model in folder.read_study().models]
    command = folder.made_again_by
    for damage in find_damage(folder, models):
        note(f"damaged: {damage}. {command} makes it again")


def warn(warnings: Iterable[str]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        note(f"warning: {warning}")
