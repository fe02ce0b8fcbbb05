"""What all verbs share: the application, what it prints, and how errors become exit codes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console
from typer.core import TyperCommand

from rankwise.errors import (
    ConfigError,
    DataError,
    ModelError,
    PlanError,
    RankwiseError,
    RecordError,
    StorageError,
    redacted,
)
from rankwise.records.fields import is_hidden

if TYPE_CHECKING:
    from rankwise.records.folder import StudyFolder

P = ParamSpec("P")

OK, RUN_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_STOPPED = "stopped; finished work is kept, run the same command to continue"
_UsageError: Any = typer.BadParameter.__bases__[0]  # of the click that typer uses

app = typer.Typer(
    name="rankwise",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "How much LoRA rank is enough for a task, and what does the model forget? Rankwise trains "
        "every rank and full fine-tuning on one frozen base, measures gain and retention with "
        "paired statistics, and says which rank to use, or that the data cannot tell."
    ),
)
# Piped output is not folded at 80 columns.
stdout = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
stderr = Console(stderr=True)


def given_path(text: str, *, or_url: bool = False) -> Path:
    """A path of the command line; an empty one would be the current folder."""
    if not text.strip() or "\0" in text or ("://" in text and not or_url):
        raise typer.BadParameter(f"{redacted(text)!r} names no file or folder; write a path")
    return Path(text)


def given_folder(text: str) -> Path:
    """The folder of a study on the command line; of one at a URL, the folder that mirrors it."""
    from rankwise.records.mirror import local_folder

    given_path(text, or_url=True)
    try:
        return local_folder(text)
    except ConfigError as error:
        raise typer.BadParameter(f"{error.source}: {error.problems[0]}") from error


Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A study's folder, or its URL.", parser=given_folder),
]
TasksPath = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks-path",
        metavar="PATH",
        help="A folder with lm-eval YAML files; can be repeated.",
        parser=given_path,
    ),
]
AllowTaskCode = Annotated[
    bool,
    typer.Option(
        "--allow-task-code",
        help="Let task files of tasks_path or --tasks-path run Python code (!function, class).",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Also replace files that rankwise did not write."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show no progress; warnings and errors still go to stderr.")
]
AsEvents = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print events to stdout instead of text, one JSON object a line; the last is the end.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout instead of text.")
]


def listed_names(text: str) -> tuple[str, ...]:
    """The names in a list with commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _version(wanted: bool) -> None:
    if wanted:
        from rankwise.records.provenance import package_version

        stdout.print(f"rankwise {package_version('rankwise') or '(not installed)'}")
        raise typer.Exit(OK)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that come before the verb."""


class _Answering(TyperCommand):
    """A verb that answers once: with ``--json``, wrong options are its answer, as other errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Tell a program of wrong options before they are told to people."""
        asks_for_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if asks_for_json:
                self.tell("UsageError", error.format_message())
            raise

    def tell(self, name: str, message: str) -> None:
        """Print what the options are wrong in."""
        emit_error(name, message, USAGE)


class _Telling(_Answering):
    """A verb that prints events: the last of them tells of wrong options."""

    def tell(self, name: str, message: str) -> None:
        """Print the only event."""
        from rankwise.cli.events import Events, print_line

        Events(print_line).ended("error", USAGE, message=f"{name}: {message}")


def verb(
    panel: str, name: str | None = None, *, tells_events: bool = False, **settings: Any
) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Make a function a verb of the command; its exit code is what the function returns.

    The help lists it under the panel. Errors that we raise on purpose become a message and an exit
    code, and with ``--json`` also an answer, or the last event of a verb that tells events.
    """
    kind = _Telling if tells_events else _Answering

    def register(function: Callable[P, int]) -> Callable[P, None]:
        summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]

        @app.command(name, cls=kind, rich_help_panel=panel, short_help=summary, **settings)
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            answers = bool(kwargs.get("as_json")) and not tells_events
            try:
                _require_current_folder()
                code = function(*args, **kwargs)
            except (RankwiseError, PermissionError) as caught:
                error = caught if isinstance(caught, RankwiseError) else _not_permitted(caught)
                code = exit_code_of(error)
                if answers:
                    problems = error.problems if isinstance(error, ConfigError | PlanError) else ()
                    emit_error(type(error).__name__, str(error), code, problems)
                print_error(error)
            except KeyboardInterrupt:
                code = INTERRUPTED
                if answers:
                    emit_error("KeyboardInterrupt", _STOPPED, code)
                note(_STOPPED)
            raise typer.Exit(code)

        return wrapped

    return register


def _require_current_folder() -> None:
    """Refuse to work from a folder that has been deleted, in which torch cannot be loaded."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise StorageError("the current folder was deleted. Change to another one.") from error


def _not_permitted(error: PermissionError) -> RankwiseError:
    """The system's refusal to enter a folder, or to read or write there, with the remedy."""
    where = error.filename or "a file or folder"
    return StorageError(f"{where}: {error.strerror or error}. Give yourself permission there.")


def exit_code_of(error: RankwiseError) -> int:
    """Whether the command was to be written otherwise, or something failed."""
    return USAGE if error.is_usage else RUN_FAILED


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


def printable(text: str) -> str:
    """A text without passwords, and with the code of what would move or hide the text beside it."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in "\n\t" and is_hidden(letter)
        else letter
        for letter in redacted(text, parameters=False)  # the address of `watch` has its token
    )


def say(text: str, style: str | None = None, *, folded: bool = True) -> None:
    """Print a result to stdout; lines with a path are not folded, so that it can be copied."""
    stdout.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=not folded)


def json_text(content: Any, indent: int | None = None) -> str:
    """Records, or lists and dictionaries of them, as JSON in ASCII; NaN and infinities are null."""
    from pydantic_core import to_jsonable_python

    plain = json.dumps(to_jsonable_python(content))  # a record may have them at any depth
    return json.dumps(json.loads(plain, parse_constant=lambda _: None), indent=indent)


def emit(content: Any) -> int:
    """Print the one answer of a verb as JSON to stdout, at once; returns ``OK``."""
    print(json_text(content, indent=2), flush=True)
    return OK


def emit_error(name: str, message: str, code: int, problems: Sequence[str] = ()) -> None:
    """Print an error as the answer; ``problems``, if it has several, one by one."""
    content = {"error": name, "message": message, "problems": problems, "exit_code": code}
    emit(content)


def note(text: str, style: str | None = None) -> None:
    """Print a line to stderr, where it is not part of the results."""
    stderr.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def note_damage(folder: StudyFolder) -> None:
    """Say what is not as it was written, where something can be concluded all the same."""
    from rankwise.study.damage import find_damage

    models = [model.name for model in folder.read_study().models]
    for damage in find_damage(folder, models):
        note(f"damaged: {damage}. rankwise run {folder.address} makes it again")


def warn(warnings: Iterable[str]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        note(f"warning: {warning}")


def print_error(error: RankwiseError) -> None:
    """Print an error's name and text to stderr, in red."""
    note(f"{type(error).__name__}: {error}", style="red")


def printable_streams() -> None:
    """Let a terminal that cannot show a character show its code (xe9 for an é), and go on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def patient_threads() -> None:
    """Let threads that wait for others sleep; call it before torch is imported.

    By default those of GNU OpenMP, which torch brings on Linux, spin for milliseconds at the end of
    every parallel part. Beside another busy process they so keep the core that the thread they wait
    for could run on (docs/PERFORMANCE.md has the figures). A policy that is set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def extend_cuda_memory() -> None:
    """Let PyTorch extend its pieces of a card's memory; call it before torch is imported.

    Every micro-batch has another shape, and pieces of fixed size leave gaps between them. A setting
    of the allocator that is there stays.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the second from torch 2.9 on
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # reports need no torch
        if any(name in os.environ for name in names):
            return
        major, minor = importlib.metadata.version("torch").split(".")[:2]
        name = names[(int(major), int(minor)) >= (2, 9)]
        os.environ[name] = "expandable_segments:True"
