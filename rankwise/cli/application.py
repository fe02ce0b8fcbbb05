"""What every verb shares: the application, its two streams, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console

from rankwise.errors import ConfigError, PlanError, RankwiseError, TaskError

P = ParamSpec("P")

OK, RUN_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="rankwise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "How much LoRA rank is enough for a task, and what does the model forget? Trains every "
        "rank and full fine-tuning on one frozen base, measures gain and retention with paired "
        "statistics, and says which rank to use, or that the data cannot tell."
    ),
)
# piped output is not folded at 80 columns
stdout = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
stderr = Console(stderr=True)

StudyFile = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY.YAML] [KEY=VALUE]...",
        help="A study file (default: the quickstart preset) and overrides such as train.epochs=1.",
    ),
]
StudyDir = Annotated[
    Path | None,
    typer.Option("--study-dir", help="The study's folder (default: studies/<name>)."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]


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


def reported(verb: Callable[P, int]) -> Callable[P, None]:
    """Turn errors that we raise on purpose into a message and an exit code."""

    @wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = verb(*args, **kwargs)
        except (ConfigError, PlanError, TaskError) as error:
            print_error(error)
            code = USAGE
        except RankwiseError as error:
            print_error(error)
            code = RUN_FAILED
        except KeyboardInterrupt:
            stderr.print("stopped; what is finished is kept, run the same command to go on")
            code = INTERRUPTED
        raise typer.Exit(code)

    return wrapped


def print_error(error: RankwiseError) -> None:
    """An error's name and text, in red."""
    stderr.print(
        f"{type(error).__name__}: {error}",
        style="red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def note(text: str) -> None:
    """A line beside the results."""
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The study file, if there is one, and the overrides behind it."""
    rest = list(arguments or [])
    path = Path(rest.pop(0)) if rest and "=" not in rest[0] else None
    return path, rest


def quiet_libraries() -> None:
    """Their progress bars and remarks off; must run before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|datasets)"
    )
