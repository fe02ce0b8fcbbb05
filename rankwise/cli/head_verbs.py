"""The verb that looks into a run's attention heads."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.application import (
    OK,
    Folder,
    Json,
    app,
    note,
    quiet_libraries,
    reported,
    stderr,
    stdout,
)
from rankwise.errors import ConfigError

if TYPE_CHECKING:
    from rankwise.records.heads import HeadRepair, TaskHeadEffects


class Mode(StrEnum):
    """What is done to a head."""

    ABLATE = "ablate"
    ABLATE_MEAN = "ablate-mean"
    REVERT = "revert"


@app.command()
@reported
def heads(
    directory: Folder,
    run: Annotated[
        str, typer.Option("--run", metavar="ID", help="A run's name, or how it begins.")
    ],
    tasks: Annotated[
        str,
        typer.Option("--tasks", metavar="TASK,TASK", help="Tasks that are scored by likelihood."),
    ],
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="Zeros or its mean in place of a head's output, or its delta taken out.",
        ),
    ] = Mode.ABLATE,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            metavar="N",
            help="Score only the heads of which a gradient expects most (default: all).",
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option("--items", min=4, metavar="N", help="Of each task (default: the study's)."),
    ] = None,
    keys_and_values: Annotated[
        bool,
        typer.Option(
            "--keys-and-values",
            help="Revert also rows of k and v that a head shares with its group.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Take a run's attention heads off one after another, and score tasks.

    Every head of the trained model, one at a time, and of the base as control:
    exact effects with errors, corrected over the heads. With --mode revert the
    adapter loses its delta of one head (rows of q, columns of o, rows of k and
    v that no other head reads); the base's control is the delta of that head
    alone. Where a task is in-domain and another is not, a set of heads whose
    reversion restores the other at least cost is then chosen on half of the
    items, confirmed on the other half, and written as an adapter to
    runs/ID/heads/repaired.

    The study's folder keeps the records and its report shows them; asked again,
    what is there is not computed again.
    """
    names = tuple(dict.fromkeys(part.strip() for part in tasks.split(",") if part.strip()))
    if not names:
        raise ConfigError("heads", ["--tasks: name one task at least"])
    if keys_and_values and mode is not Mode.REVERT:
        raise ConfigError("heads", ["--keys-and-values: belongs to --mode revert"])
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    study = folder.read_study()
    quiet_libraries()
    from rankwise.cli.progress import TerminalObserver
    from rankwise.study.context import StudyContext
    from rankwise.study.planning.reopen import reopen_study
    from rankwise.study.work.head_effects import HeadQuestion, HeadStudy
    from rankwise.study.work.head_repair import HeadRepairer, can_repair
    from rankwise.study.work.head_subjects import check_tasks, check_trained, find_run

    chosen = find_run(study, run)
    check_trained(folder, chosen)
    plan = reopen_study(study, names, items, note)
    prepared = list(plan.tasks.values())
    check_tasks(prepared)
    repair = None
    with folder.lock(), TerminalObserver(stderr) as observer:
        asked = HeadQuestion(mode.value, keys_and_values, top)
        context = StudyContext.of(plan, folder, observer)
        effects = HeadStudy(context, chosen).effects(prepared, asked)
        if mode is Mode.REVERT and can_repair(chosen, effects):
            observer.noted("choosing heads to revert together")
            repair = HeadRepairer(context, chosen).repair(prepared, effects)
    if as_json:
        content = {
            "effects": [each.model_dump(mode="json") for each in effects],
            "repair": None if repair is None else repair.model_dump(mode="json"),
        }
        print(json.dumps(content, indent=2))
        return OK
    for each in effects:
        _print_effects(each)
    if repair is not None:
        _print_repair(repair)
    note(f"records: {folder.model_folder(chosen.name) / 'heads'}; rankwise report {directory}")
    return OK


def _print_effects(effects: TaskHeadEffects) -> None:
    from rankwise.cli.terminal import head_lines

    for line in head_lines(effects):
        stdout.print(line, markup=False, highlight=False)


def _print_repair(repair: HeadRepair) -> None:
    stdout.print(repair.statement, markup=False, highlight=False)
    for task in repair.tasks:
        stdout.print(
            f"  {task.task}: base {task.base_score:.2f}, adapter {task.adapted_score:.2f}, "
            f"repaired {task.repaired_score:.2f} {task.unit} on {task.num_items} items",
            markup=False,
            highlight=False,
        )
    if repair.folder is not None:
        stdout.print(f"repaired adapter: {repair.folder}", markup=False, highlight=False)
