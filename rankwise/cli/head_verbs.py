"""The verb that measures what a run's attention heads do."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.application import (
    OK,
    Folder,
    Json,
    emit,
    note,
    quiet_libraries,
    say,
    stderr,
    verb,
)
from rankwise.cli.audit_verbs import ADAPTERS
from rankwise.errors import ConfigError

if TYPE_CHECKING:
    from rankwise.records.heads import HeadRepair


class Mode(StrEnum):
    """How a head is switched off."""

    ABLATE = "ablate"
    ABLATE_MEAN = "ablate-mean"
    REVERT = "revert"


@verb(ADAPTERS)
def heads(
    directory: Folder,
    run: Annotated[
        str, typer.Option("--run", metavar="ID", help="A run's name, or the beginning of it.")
    ],
    tasks: Annotated[
        str,
        typer.Option("--tasks", metavar="TASK,TASK", help="Tasks scored by likelihood."),
    ],
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="How to switch a head off: replace its output by zeros (ablate) or by its mean "
            "(ablate-mean), or undo what training changed in it (revert).",
        ),
    ] = Mode.ABLATE,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            metavar="N",
            help="Score only the N heads with the largest effects by gradient (default: all).",
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(
            "--items", min=4, metavar="N", help="Items of each task (default: the study's)."
        ),
    ] = None,
    keys_and_values: Annotated[
        bool,
        typer.Option(
            "--keys-and-values",
            help="With --mode revert, also undo the rows of k and v that heads share.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Switch a run's attention heads off one by one and score tasks.

    Every head of the trained model is switched off in turn, and as a control
    every head of the base. The effects are exact, with standard errors, and
    their intervals are corrected for the number of heads.

    With --mode revert, the adapter loses its delta in one head: rows of q,
    columns of o, and rows of k and v that no other head reads. The control is
    the base with the delta of that head alone. If one of the tasks is in-domain
    and another is not, a set of heads is then chosen whose reversion restores
    the other task at the least cost in-domain. It is chosen on half of the
    items, confirmed on the other half, and written as an adapter to
    runs/ID/heads/repaired.

    The records are kept in the study's folder and shown in its report. Effects
    that are recorded are not computed again.
    """
    names = tuple(dict.fromkeys(part.strip() for part in tasks.split(",") if part.strip()))
    if not names:
        raise ConfigError("heads", ["--tasks names no task; name at least one"])
    if keys_and_values and mode is not Mode.REVERT:
        raise ConfigError("heads", ["--keys-and-values works only with --mode revert; add it"])
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    study = folder.read_study()
    quiet_libraries()
    from rankwise.cli.progress import TerminalObserver
    from rankwise.cli.terminal import head_lines
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
        return emit({"effects": effects, "repair": repair})
    for task in effects:
        for line in head_lines(task):
            say(line)
    if repair is not None:
        _say_repair(repair)
    note(f"records: {folder.model_folder(chosen.name) / 'heads'}; rankwise report {directory}")
    return OK


def _say_repair(repair: HeadRepair) -> None:
    say(repair.statement)
    for task in repair.tasks:
        say(
            f"  {task.task}: base {task.base_score:.2f}, adapter {task.adapted_score:.2f}, "
            f"repaired {task.repaired_score:.2f} {task.unit} on {task.num_items} items"
        )
    if repair.folder is not None:
        say(f"repaired adapter: {repair.folder}", folded=False)
