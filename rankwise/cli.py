"""The command line: the only place that prints and exits."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer
from rich.console import Console

from rankwise.errors import ConfigError, PlanError, RankwiseError, TaskError

if TYPE_CHECKING:
    from rankwise.planning import StudyPlan
    from rankwise.records import Recommendation, StudyResults
    from rankwise.store import StudyFolder

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
        from rankwise.provenance import package_version

        stdout.print(f"rankwise {package_version('rankwise') or '(not installed)'}")
        raise typer.Exit(OK)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that come before the verb."""


def _reported(verb: Callable[P, int]) -> Callable[P, None]:
    """Turn errors that we raise on purpose into a message and an exit code."""

    @wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = verb(*args, **kwargs)
        except (ConfigError, PlanError, TaskError) as error:
            _print_error(error)
            code = USAGE
        except RankwiseError as error:
            _print_error(error)
            code = RUN_FAILED
        except KeyboardInterrupt:
            stderr.print("stopped; what is finished is kept, run the same command to go on")
            code = INTERRUPTED
        raise typer.Exit(code)

    return wrapped


def _print_error(error: RankwiseError) -> None:
    stderr.print(
        f"{type(error).__name__}: {error}",
        style="red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _note(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def _split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The study file, if there is one, and the overrides behind it."""
    rest = list(arguments or [])
    path = Path(rest.pop(0)) if rest and "=" not in rest[0] else None
    return path, rest


def _quiet_libraries() -> None:
    """Their progress bars and remarks off; must run before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|datasets)"
    )


def _plan(arguments: list[str] | None, study_dir: Path | None) -> tuple[StudyPlan, StudyFolder]:
    from rankwise.config import load_config
    from rankwise.store import StudyFolder

    path, overrides = _split(arguments)
    config = load_config(path, overrides)
    _quiet_libraries()
    from rankwise.planning import plan_study

    plan = plan_study(config, _note)
    for warning in plan.record.warnings:
        _note(f"warning: {warning}")
    return plan, StudyFolder(study_dir or Path("studies") / config.name)


@app.command()
@_reported
def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="Where to write it.")] = Path(
        "study.yaml"
    ),
    preset: Annotated[str, typer.Option("--preset", help="Which shipped study file.")] = (
        "quickstart"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> int:
    """Write a commented study file to start from."""
    from rankwise.config import preset_text
    from rankwise.store import write_atomically

    text = preset_text(preset)
    if path.exists() and not force:
        raise ConfigError(str(path), ["is there already; choose another path or give --force"])
    write_atomically(path, text)
    stdout.print(f"wrote {path}; next: rankwise plan {path}", markup=False, highlight=False)
    return OK


@app.command()
@_reported
def plan(study: StudyFile = None, study_dir: StudyDir = None, as_json: Json = False) -> int:
    """List the runs with steps, tokens, parameters and memory; load no weights, train nothing."""
    planned, folder = _plan(study, study_dir)
    from rankwise.study import is_finished, stages
    from rankwise.terminal import plan_table

    done = {
        (stage.model, stage.task.name if stage.task else None)
        for stage in stages(planned)
        if is_finished(planned, folder, stage)
    }
    if as_json:
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in done}
            for run in planned.record.runs
        ]
        print(json.dumps({"runs": runs, "warnings": planned.record.warnings}, indent=2))
        return OK
    stdout.print(plan_table(planned.record, [task.name for task in planned.tasks], done))
    return OK


@app.command()
@_reported
def run(study: StudyFile = None, study_dir: StudyDir = None) -> int:
    """Train, score, compare, recommend and report; run again to resume or to extend."""
    planned, folder = _plan(study, study_dir)
    from rankwise.progress import TerminalObserver
    from rankwise.study import run_study

    with TerminalObserver(stderr) as observer:
        outcome = run_study(planned, folder, observer)
    return _report(folder, outcome.results, outcome.recommendation)


@app.command()
@_reported
def status(directory: Folder, as_json: Json = False) -> int:
    """What of a study is done, and what is not."""
    from rankwise.status import study_status
    from rankwise.store import StudyFolder
    from rankwise.terminal import status_table

    lines = study_status(StudyFolder(directory))
    if as_json:
        print(json.dumps([line._asdict() for line in lines], indent=2))
    else:
        stdout.print(status_table(lines))
    return OK


@app.command()
@_reported
def report(directory: Folder) -> int:
    """Write report.html and the folder report/ again from the records."""
    from rankwise.store import StudyFolder

    folder = StudyFolder(directory)
    return _report(folder, folder.read_results(), folder.read_recommendation())


@app.command()
@_reported
def recommend(directory: Folder, as_json: Json = False) -> int:
    """Say which rank to use, with its evidence, from the records of a finished study."""
    from rankwise.recommendation import recommend as decide
    from rankwise.store import StudyFolder

    folder = StudyFolder(directory)
    recommendation = decide(folder.read_results())
    folder.write(folder.recommendation_file, recommendation)
    if as_json:
        print(recommendation.model_dump_json(indent=2))
        return OK
    stdout.print(recommendation.statement, style="bold", markup=False, highlight=False)
    for reason in recommendation.reasons:
        stdout.print(f"- {reason}", markup=False, highlight=False)
    return OK


@app.command()
@_reported
def tasks(
    tasks_path: Annotated[
        list[Path] | None, typer.Option("--tasks-path", help="Folders with lm-eval YAML files.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also lm-eval's own (its index takes about 10 s).")
    ] = False,
    as_json: Json = False,
) -> int:
    """List the tasks that a study file can name."""
    _quiet_libraries()
    from rankwise.tasks import list_tasks

    listing = list_tasks(tuple(tasks_path or ()), everything=everything)
    if as_json:
        print(json.dumps([line._asdict() for line in listing], indent=2))
        return OK
    for line in listing:
        stdout.print(f"{line.name}  ({line.kind}, {line.source})", markup=False, highlight=False)
    if not everything:
        _note("and every task, group and tag of lm-eval: rankwise tasks --all")
    return OK


@app.command()
@_reported
def doctor(as_json: Json = False) -> int:
    """Versions, devices, precisions, and which optional parts are missing."""
    _quiet_libraries()
    from rankwise.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps(dict(findings), indent=2))
        return OK
    for name, finding in findings:
        stdout.print(f"{name:<28} {finding}", markup=False, highlight=False)
    return OK


def _report(folder: StudyFolder, results: StudyResults, recommendation: Recommendation) -> int:
    """Write the report and print the verdict; a diverged run makes the exit code 1."""
    from rankwise.report.page import write_report
    from rankwise.terminal import verdict

    path = write_report(folder.root, results, recommendation)
    stdout.print(*verdict(results, recommendation, stdout.width), sep="\n")
    stdout.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
    failed = [model.name for model in results.runs if model.run and model.run.status != "trained"]
    for name in failed:
        _note(f"{name} diverged; the others are compared without it")
    return RUN_FAILED if failed else OK


def entry_point() -> None:
    """What the ``rankwise`` command calls."""
    app(prog_name="rankwise")
