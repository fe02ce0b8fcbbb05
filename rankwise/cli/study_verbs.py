"""Verbs that make, extend and read a study."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.application import (
    OK,
    RUN_FAILED,
    AsEvents,
    Folder,
    Json,
    Overwrite,
    Quiet,
    emit,
    given_path,
    note,
    note_damage,
    say,
    stdout,
    verb,
)
from rankwise.cli.run_verbs import STUDIES, AcceptNewStack
from rankwise.cli.running import (
    note_left_out,
    report_on,
    run_and_report,
    say_deployed,
    verdict_content,
)
from rankwise.errors import ConfigError, RecordError, StorageError
from rankwise.records.reading import read_results

if TYPE_CHECKING:
    from rankwise.cli.events import Events
    from rankwise.integrations.study_text import StudyText
    from rankwise.records.config.study import StudyConfig
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import OtherMargins, StudyOutcome


@verb(STUDIES)
def report(
    directory: Folder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FOLDER", help="Where to write (default: DIR).", parser=given_path
        ),
    ] = None,
    overwrite: Overwrite = False,
    without_texts: Annotated[
        bool,
        typer.Option("--without-texts", help="Leave out prompts and answers, for sharing."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Write report.html and the folder report/ again.

    Both are made from the study's records; nothing is trained or scored. Of a
    study that is not finished, they show what is.
    """
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import conclude

    folder = StudyFolder(directory)
    outcome = conclude(folder)
    note_damage(folder)
    _keep(folder, outcome)
    try:
        return report_on(
            folder,
            outcome,
            output,
            overwrite=overwrite,
            with_texts=not without_texts,
            as_json=as_json,
        )
    except StorageError as error:
        if output is not None:
            raise
        raise StorageError(f"{error} The report may go elsewhere: --output FOLDER.") from error


@verb(STUDIES)
def status(directory: Folder, as_json: Json = False) -> int:
    """Show what of a study is done, what is left, and who works on it."""
    from rankwise.cli.terminal import status_table
    from rankwise.records.folder import StudyFolder
    from rankwise.study.status import study_status, worker_status

    folder = StudyFolder(directory)
    lines, workers = study_status(folder), worker_status(folder)
    if as_json:
        models = [line._asdict() for line in lines]
        return emit({"models": models, "workers": [worker._asdict() for worker in workers]})
    stdout.print(status_table(lines))
    for worker in workers:
        say(str(worker))
    for line in lines:
        for failure in line.failed:
            say(f"failed: {line.model}: {failure}")
        for damage in line.damaged:
            say(f"damaged: {damage}", folded=False)
    return OK


@verb(STUDIES)
def verify(directory: Folder, as_json: Json = False) -> int:
    """Read every file of a study and compare it with its digest.

    Records, weights, items, losses and adapters. Says what is damaged and what
    made it, and what of the plan is left: not made yet, or gone. rankwise run
    DIR sets aside what is damaged and makes what is left. The exit code is 1
    where anything is damaged or left.
    """
    from rankwise.records.folder import StudyFolder
    from rankwise.study.damage import find_damage
    from rankwise.study.status import what_is_left

    folder = StudyFolder(directory)
    if not folder.study_file.exists():
        raise RecordError(f"{folder.study_file} is not there; give the folder of a study.")
    damages = find_damage(folder, thorough=True)
    intact = folder.without({path for damage in damages for path in damage.spoils})
    left = what_is_left(intact, folder.read_study()) if intact.has(folder.study_file) else []
    if as_json:
        emit({"damages": [damage._asdict() for damage in damages], "left": left})
    else:
        for damage in damages:
            say(f"damaged: {damage}", folded=False)
        for each in left:
            say(f"left: {each}", folded=False)
    if damages or left:
        note(f"rankwise run {folder.address} sets aside what is damaged and makes what is left")
        return RUN_FAILED
    if not as_json:
        say("every file is as it was written")
    return OK


@verb(STUDIES)
def recommend(
    directory: Folder,
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            "--cluster",
            metavar="TASK=FIELD",
            help="Items of a task or group with equal FIELD belong together; can be repeated.",
        ),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option("--delta", help="Margin δ: ranks closer than this in-domain are equal."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="Margin ε: the acceptable retention loss, on average."),
    ] = None,
    worst_task: Annotated[
        float | None,
        typer.Option("--worst-task", help="The acceptable loss of any single retention task."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Say which rank to use, and why.

    The recommendation is made again from the records of a finished study.
    --delta, --epsilon and --worst-task judge it under other margins, in points
    (nats for the --delta of a loss), and write nothing: to keep them, set
    recommendation.delta_points and so on in the study file and run it again,
    which judges at once.
    --cluster drop=passage sets evaluation.clusters.drop of the study in DIR
    before that; drop= takes it away. Nothing is scored again. rankwise report
    DIR then shows it. Write it into the study file too, if you run that again.
    """
    from rankwise.findings.statements import with_folder
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import conclude

    folder, margins = StudyFolder(directory), _margins(delta, epsilon, worst_task)
    if margins is not None and cluster:
        problem = "--cluster is kept in the study, and other margins are not; give one at a time"
        raise ConfigError("recommend", [problem])
    outcome = conclude(folder, _clusters(cluster or ()), margins)
    note_damage(folder)
    if margins is None:
        _keep(folder, outcome, settings=bool(cluster))
    else:
        note("judged under other margins than the study's; nothing was written")
    recommendation = outcome.recommendation
    note_left_out(outcome)
    if as_json:
        return emit(verdict_content(outcome))
    for part in recommendation.by_train_task:
        if len(recommendation.by_train_task) > 1:
            say(f"trained on {part.train_task}:")
        say(with_folder(part.statement, folder.address), style="bold")
        for reason in part.reasons:
            say(f"- {reason}")
        for signature in outcome.findings.signatures:
            if signature.train_task == part.train_task:
                say(f"- {signature.title}: {signature.statement}")
    say_deployed(outcome)
    return OK


@verb(STUDIES)
def init(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]", help="The file to write (default: study.yaml).", parser=given_path
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help=(
                "The preset to copy: quickstart (default), sanity, retention, stress, "
                "learning-rate, alpha, beyond-128, mitigation, variants, paper-llama, paper-qwen."
            ),
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE_OR_FOLDER",
            help="The config of a training, or its output folder.",
            parser=given_path,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Write a commented study file to start from.

    --from reads how you train today: the YAML of Axolotl, LLaMA-Factory or TRL,
    Unsloth's arguments, a PEFT adapter_config.json, or the output folder of a
    Trainer. Your settings become one arm of the study, with ranks around yours.
    What a study cannot say, and what to check, is listed in the file and on
    stderr.
    """
    from rankwise.records.outputs import write_outputs
    from rankwise.records.study_file import preset_text

    if source is not None and preset is not None:
        raise ConfigError("init", ["--preset and --from are both given; give one of them"])
    file = path or Path("study.yaml")
    made = None if source is None else _made_from(source, file)
    text = preset_text(preset or "quickstart") if made is None else made.text
    write_outputs(file.parent, {file.name: text}, overwrite=overwrite)
    if as_json:
        remarks = {} if made is None else made._asdict()
        remarks.pop("text", None)
        return emit({"study_file": file, **remarks})
    say(f"wrote {file}; next: rankwise plan {file}")
    return OK


@verb(STUDIES, tells_events=True)
def extend(
    directory: Folder,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Number of seeds to add.")] = 0,
    items: Annotated[
        int, typer.Option("--items", min=0, help="Number of items to add to each task's limit.")
    ] = 0,
    ranks: Annotated[
        str, typer.Option("--ranks", metavar="R,R", help="Ranks to add, such as 8,128.")
    ] = "",
    accept_new_stack: AcceptNewStack = False,
    quiet: Quiet = False,
    as_json: AsEvents = False,
) -> int:
    """Add seeds, items or ranks to a study and run them.

    Only the new runs and items are trained and scored. If that is stopped,
    rankwise run DIR goes on with it.
    """
    from rankwise.records.folder import StudyFolder
    from rankwise.study.extension import Extension, extended

    def find(_: Events | None) -> tuple[StudyConfig, StudyFolder]:
        folder = StudyFolder(directory)
        config = folder.read_study().config
        return extended(config, Extension(seeds, items, _ranks(ranks))), folder

    return run_and_report(find, quiet=quiet, as_json=as_json, accept_new_stack=accept_new_stack)


@verb(STUDIES)
def claims(directory: Folder, as_json: Json = False) -> int:
    """Compare a finished study with the reference paper's claims."""
    from rankwise.findings.claims import paper_claims
    from rankwise.findings.options import option_gains
    from rankwise.findings.recommendation import recommend as recommend_study
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    results = read_results(folder)
    note_damage(folder)
    recommendation = recommend_study(results, folder.read_looks())
    tested = paper_claims(option_gains(results, recommendation), recommendation)
    if as_json:
        return emit(tested)
    for claim in tested:
        say(f"{claim.judgement}: {claim.statement}")
        for sentence in claim.evidence:
            say(f"  - {sentence}")
    return OK


def _made_from(source: Path, path: Path) -> StudyText:
    """The study file made from a tool's config; says what differs."""
    from rankwise.integrations.sources import read_source
    from rankwise.integrations.study_text import study_text

    made = study_text(read_source(source), path.parent)
    for sentence in made.not_carried:
        note(f"not carried over: {sentence}")
    for sentence in made.to_check:
        note(f"to check: {sentence}")
    return made


def _keep(folder: StudyFolder, outcome: StudyOutcome, *, settings: bool = False) -> None:
    """Write what was concluded; a folder that cannot be written is read all the same."""
    from rankwise.study.conclusion import keep

    try:
        keep(folder, outcome, settings=settings)
    except StorageError as error:
        if settings:
            raise
        note(f"not kept, and not counted as a look: {error}")


def _margins(
    delta: float | None, epsilon: float | None, worst_task: float | None
) -> OtherMargins | None:
    """None where none is given."""
    from rankwise.study.conclusion import OtherMargins

    given = {"--delta": delta, "--epsilon": epsilon, "--worst-task": worst_task}
    for option, value in given.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(
                "recommend", [f"{option} {value:g} is no margin; give a number above 0"]
            )
    found = OtherMargins(delta, epsilon, worst_task)
    return found if any(value is not None for value in found) else None


def _clusters(settings: Iterable[str]) -> dict[str, str]:
    """Task or group -> field, from TASK=FIELD."""
    parts = {setting: setting.partition("=") for setting in settings}
    for setting, (task, equals, _) in parts.items():
        if not task or not equals:
            problem = (
                f"--cluster: {setting!r} is no setting; write TASK=FIELD, such as drop=passage"
            )
            raise ConfigError("recommend", [problem])
    return {task: field for task, _, field in parts.values()}


def _ranks(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise ConfigError("extend", [f"--ranks: {part!r} is not a rank; write 8 or 8,128"])
    ranks = [int(part) for part in parts]
    for rank in ranks:
        if ranks.count(rank) > 1:
            raise ConfigError("extend", [f"--ranks: rank {rank} is given twice; give it once"])
    return tuple(ranks)
