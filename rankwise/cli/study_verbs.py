"""Verbs that make, run and read a study."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwise.cli.application import (
    OK,
    RUN_FAILED,
    AllowTaskCode,
    AsEvents,
    Folder,
    Json,
    Quiet,
    emit,
    given_path,
    note,
    note_damage,
    say,
    stdout,
    verb,
    warn,
)
from rankwise.cli.budgets import budget_lines, given_seconds, measured_rate
from rankwise.cli.running import (
    Share,
    note_left_out,
    planned_study,
    report_on,
    run_and_report,
)
from rankwise.errors import ConfigError, RecordError, StorageError
from rankwise.records.fields import bytes_of
from rankwise.records.reading import read_results

if TYPE_CHECKING:
    from rankwise.engine.models.devices import Machine
    from rankwise.records.config.study import StudyConfig
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import StudyOutcome
    from rankwise.study.needs import Needs
    from rankwise.study.planning.plan import StudyPlan
    from rankwise.study.stages import Stage

STUDIES = "Studies"

StudyFile = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY.YAML|DIR] [KEY=VALUE]...",
        help=(
            "A study file (default: the quickstart preset), then overrides: train.epochs=1. "
            "Or the folder of a study, to go on with it as it is."
        ),
    ),
]
StudyDir = Annotated[
    Path | None,
    typer.Option(
        "--study-dir",
        metavar="DIR",
        help="The study's folder (default: studies/NAME).",
        parser=given_path,
    ),
]


Replace = Annotated[
    bool,
    typer.Option("--replace", help="Set finished scores aside that have other settings."),
]
AcceptNewStack = Annotated[
    bool,
    typer.Option(
        "--accept-new-stack",
        help="Go on under other versions or on another device, though the scores move.",
    ),
]


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{text!r} is no device; write cpu or cuda")
    return text


def _memory(text: str) -> int:
    try:
        return bytes_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise typer.BadParameter(f"{text!r} is no rate; write tokens per second, such as 10000")
    return rate


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda",
        help="Plan for this device (default: the one that is here).",
        parser=_device,
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Plan for so much memory: 80GB, 24GiB. A card of that size need not be here.",
        parser=_memory,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Say what of the study fits into so long, and which differences it can tell then.",
        parser=given_seconds,
    ),
]
TokensPerSecond = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-second",
        metavar="RATE",
        help=(
            "Estimate the time from this speed of LoRA training (default with --device cuda: a "
            "third of an H100's peak, which is assumed)."
        ),
        parser=_rate,
    ),
]


NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Share the study among so many processes of this machine; with --worker: plan for N.",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="all|0,1",
        help="Share the study among these cards, a process each.",
    ),
]
IsWorker = Annotated[
    bool,
    typer.Option(
        "--worker", help="Be one of the processes that share a study's folder, on any machine."
    ),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="UNIT", help="Do one unit of those that plan --json lists."),
]


@verb(STUDIES)
def run(
    study: StudyFile = None,
    study_dir: StudyDir = None,
    replace: Replace = False,
    accept_new_stack: AcceptNewStack = False,
    allow_task_code: AllowTaskCode = False,
    workers: NumWorkers = None,
    gpus: Gpus = None,
    worker: IsWorker = False,
    only: Only = None,
    quiet: Quiet = False,
    as_json: AsEvents = False,
) -> int:
    """Run a study: train, score, recommend and report.

    Run the same command again to resume a stopped study, or to do what was
    added to its file. Nothing that is finished is done again; what is damaged
    is moved to DIR/quarantine and done again.

    --gpus all starts a worker for each card, --workers 4 four of them on one
    CPU. Where processes are started by something else, as by Slurm on several
    machines that share DIR, each is rankwise run --worker.
    """
    share = Share(worker or only is not None, workers or 1, only)
    if gpus is not None or (workers is not None and not share.is_worker):
        from rankwise.cli.workers import run_workers, worker_places

        places = worker_places(workers, gpus, is_worker=share.is_worker)
        _, folder = _named(study, study_dir, allow_task_code)
        options = {
            f"--study-dir={study_dir}": study_dir is not None,
            "--replace": replace,
            "--accept-new-stack": accept_new_stack,
            "--allow-task-code": allow_task_code,
        }
        given = [*(study or []), *(option for option, is_given in options.items() if is_given)]
        return run_workers(given, places, folder, quiet=quiet, as_json=as_json)
    return run_and_report(
        lambda: _named(study, study_dir, allow_task_code),
        quiet=quiet,
        as_json=as_json,
        replace=replace,
        accept_new_stack=accept_new_stack,
        share=share,
    )


@verb(STUDIES)
def plan(
    study: StudyFile = None,
    study_dir: StudyDir = None,
    allow_task_code: AllowTaskCode = False,
    device: Device = None,
    memory: Memory = None,
    tokens_per_second: TokensPerSecond = None,
    budget: Budget = None,
    as_json: Json = False,
) -> int:
    """List a study's runs with steps, tokens, parameters and memory.

    Loads no weights and trains nothing. --device cuda --memory 80GB plans for
    such a card wherever it is: precision, passes, memory, disk and hours.
    --budget 1h says what fits into that time. Unless the speed is given, it
    is measured, for which the model is loaded.
    """
    config, folder = _named(study, study_dir, allow_task_code)
    machine = _machine(device, memory)
    planned = planned_study(config, folder, machine)
    from rankwise.cli.terminal import needs_lines, pass_lines, plan_table
    from rankwise.records.files import in_words
    from rankwise.study.damage import find_damage, models_of
    from rankwise.study.needs import assumed_rate, needs_of
    from rankwise.study.stages import finished_work, stages

    record, graph = planned.record, stages(planned.record)
    damages = find_damage(folder, models_of(record, folder))
    intact = folder.without({path for damage in damages for path in damage.spoils})
    done = finished_work(graph, intact)
    warn(f"damaged: {damage}; it is made again" for damage in damages)
    rate = tokens_per_second
    is_assumed = rate is None and machine is not None and planned.device.type == "cuda"
    if is_assumed:
        rate = assumed_rate(record.num_parameters)
    needs = needs_of(graph, intact, rate)
    if as_json:
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in done}
            for run in (*record.runs, *record.variants)
        ]
        content = {
            "runs": runs,
            "passes": record.passes,
            "stages": [stage.described(intact) for stage in graph],
            "units": _described_units(graph, intact, needs),
            "warnings": record.warnings,
            "device": planned.device.type,
            "precision": record.precision,
            **needs._asdict(),
            "is_rate_assumed": is_assumed,
        }
        return emit(content)
    stdout.print(plan_table(record, done))
    for line in pass_lines(record):
        say(line)
    if record.config.is_searched:
        say("search: these trainings begin it; what they show decides which go on")
    if machine is not None:
        available = in_words(machine.available_bytes())
        say(f"planned for {machine.name} with {available}, in {record.precision}")
    for line in needs_lines(needs, folder.root, is_assumed=is_assumed):
        say(line)
    if budget is not None:
        for line in _budget_lines(config, planned, budget, rate, machine):
            say(line)
    return OK


def _described_units(
    graph: Sequence[Stage], folder: StudyFolder, needs: Needs
) -> list[dict[str, Any]]:
    """The units that workers take, as JSON."""
    from rankwise.study.stages import TRAINING_WORK
    from rankwise.study.units import units

    rate = needs.tokens_per_second
    work_per_second = None if rate is None else rate * TRAINING_WORK["lora"]
    all_units = units(graph)
    return [unit.described(all_units, folder, work_per_second) for unit in all_units]


def _budget_lines(
    config: StudyConfig,
    planned: StudyPlan,
    budget: float,
    rate: float | None,
    machine: Machine | None,
) -> Iterable[str]:
    """What fits into a time; ``rate`` is of LoRA training, None: it is measured here."""
    from rankwise.study.planning.plan import plan_study
    from rankwise.study.stages import TRAINING_WORK

    if rate is None:
        precision = planned.record.precision
        scored = measured_rate(planned.base, planned.tokenizer, precision, planned.device)
    else:
        scored = rate * TRAINING_WORK["lora"]
    again = partial(plan_study, report=note, machine=machine)
    return budget_lines(config, planned, budget, scored, again)


@verb(STUDIES)
def report(
    directory: Folder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FOLDER", help="Where to write (default: DIR).", parser=given_path
        ),
    ] = None,
    without_texts: Annotated[
        bool,
        typer.Option("--without-texts", help="Leave out prompts and answers, for sharing."),
    ] = False,
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
        return report_on(folder, outcome, output, with_texts=not without_texts)
    except StorageError as error:
        if output is not None:
            raise
        raise StorageError(f"{error} The report may go elsewhere: --output FOLDER.") from error


@verb(STUDIES)
def status(directory: Folder, as_json: Json = False) -> int:
    """Show what of a study is done and what is left."""
    from rankwise.cli.terminal import status_table
    from rankwise.records.folder import StudyFolder
    from rankwise.study.status import study_status

    lines = study_status(StudyFolder(directory))
    if as_json:
        return emit([line._asdict() for line in lines])
    stdout.print(status_table(lines))
    for line in lines:
        for failure in line.failed:
            say(f"failed: {line.model}: {failure}")
        for damage in line.damaged:
            say(f"damaged: {damage}", folded=False)
    return OK


@verb(STUDIES)
def verify(directory: Folder) -> int:
    """Read every file of a study and compare it with its digest.

    Records, weights, items and adapters. Says what is damaged and what made
    it; rankwise run DIR sets that aside and makes it again. The exit code is 1
    where anything is damaged.
    """
    from rankwise.records.folder import StudyFolder
    from rankwise.study.damage import find_damage, unverifiable

    folder = StudyFolder(directory)
    if not folder.study_file.exists():
        raise RecordError(f"{folder.study_file} is not there; give the folder of a study.")
    damages = find_damage(folder, thorough=True)
    for damage in damages:
        say(f"damaged: {damage}", folded=False)
    if damages:
        note(f"rankwise run {directory} sets aside what is damaged and makes it again")
        return RUN_FAILED
    unknown = unverifiable(folder)
    say("every file is as it was written")
    if unknown:
        note(f"{unknown} trainings and scorings of an early version have no digests to compare")
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
    as_json: Json = False,
) -> int:
    """Say which rank to use, and why.

    The recommendation is made again from the records of a finished study.
    --cluster drop=passage sets evaluation.clusters.drop of the study in DIR
    before that; drop= takes it away. Nothing is scored again. rankwise report
    DIR then shows it. Write it into the study file too, if you run that again.
    """
    from rankwise.findings.statements import with_folder
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import conclude

    folder = StudyFolder(directory)
    outcome = conclude(folder, _clusters(cluster or ()))
    note_damage(folder)
    _keep(folder, outcome, settings=bool(cluster))
    recommendation = outcome.recommendation
    note_left_out(outcome)
    if as_json:
        return emit(recommendation)
    for part in recommendation.by_train_task:
        if len(recommendation.by_train_task) > 1:
            say(f"trained on {part.train_task}:")
        say(with_folder(part.statement, directory), style="bold")
        for reason in part.reasons:
            say(f"- {reason}")
        for signature in outcome.findings.signatures:
            if signature.train_task == part.train_task:
                say(f"- {signature.title}: {signature.statement}")
    return OK


@verb(STUDIES)
def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The file to write.")] = Path(
        "study.yaml"
    ),
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="The preset to copy, such as alpha (default: quickstart)."),
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
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> int:
    """Write a commented study file to start from.

    --from reads how you train today: the YAML of Axolotl, LLaMA-Factory or TRL,
    Unsloth's arguments, a PEFT adapter_config.json, or the output folder of a
    Trainer. Your settings become one arm of the study, with ranks around yours.
    What a study cannot say, and what to check, is listed in the file and on
    stderr.
    """
    from rankwise.records.files import write_atomically
    from rankwise.records.study_file import preset_text

    if source is not None and preset is not None:
        raise ConfigError("init", ["--preset and --from are both given; give one of them"])
    text = preset_text(preset or "quickstart") if source is None else _text_from(source, path)
    if path.exists() and not force:
        raise ConfigError(str(path), ["the file exists; choose another path or give --force"])
    write_atomically(path, text)
    say(f"wrote {path}; next: rankwise plan {path}")
    return OK


@verb(STUDIES)
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

    def find() -> tuple[StudyConfig, StudyFolder]:
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
    tested = paper_claims(option_gains(results), recommend_study(results, folder.read_looks()))
    if as_json:
        return emit(tested)
    for claim in tested:
        say(f"{claim.verdict}: {claim.statement}")
        for sentence in claim.evidence:
            say(f"  - {sentence}")
    return OK


def _text_from(source: Path, path: Path) -> str:
    """The study file made from a tool's config; says what differs."""
    from rankwise.integrations.sources import read_source
    from rankwise.integrations.study_text import study_text

    made = study_text(read_source(source), path.parent)
    for sentence in made.not_carried:
        note(f"not carried over: {sentence}")
    for sentence in made.to_check:
        note(f"to check: {sentence}")
    return made.text


def _named(
    arguments: list[str] | None, study_dir: Path | None, allow_task_code: bool
) -> tuple[StudyConfig, StudyFolder]:
    """The study of the file and the overrides among the arguments, and its folder."""
    from rankwise.records.folder import StudyFolder
    from rankwise.records.study_file import load_config

    overrides = list(arguments or [])
    path = Path(overrides.pop(0)) if overrides and "=" not in overrides[0] else None
    if path is not None and os.path.isdir(path):
        if overrides or study_dir:
            problem = "a study's folder is run as it is; give overrides with its study file"
            raise ConfigError(str(path), [problem])
        folder = StudyFolder(path)
        if not folder.study_file.exists():
            problem = "the folder has no study.json; give a study file, or the folder of a study"
            raise ConfigError(str(path), [problem])
        return folder.read_study().config, folder
    config = load_config(path, [*overrides, *(["allow_task_code=true"] * allow_task_code)])
    return config, StudyFolder(study_dir or Path("studies") / config.name)


def _machine(device: str | None, memory: int | None) -> Machine | None:
    """What is to be planned for; None: the machine that is here."""
    if device is None and memory is None:
        return None
    import torch

    from rankwise.engine.models.devices import Machine, choose_device

    if device is not None and (device == "cpu" or memory is not None):
        return Machine(torch.device(device), memory)
    here = choose_device()
    if device == "cuda" and here.type != "cuda":
        problem = "--device cuda: there is no card here; say what it has, such as --memory 80GB"
        raise ConfigError("plan", [problem])
    return Machine(here, memory)


def _keep(folder: StudyFolder, outcome: StudyOutcome, *, settings: bool = False) -> None:
    """Write what was concluded; a folder that cannot be written is read all the same."""
    from rankwise.study.conclusion import keep

    try:
        keep(folder, outcome, settings=settings)
    except StorageError as error:
        if settings:
            raise
        note(f"not kept, and not counted as a look: {error}")


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
