"""Verbs that run a study and plan it."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli import application as cli
from rankwise.cli.budgets import affordable_here, budget_lines, given_seconds
from rankwise.cli.running import Telling, planned_study, run_and_report
from rankwise.errors import ConfigError
from rankwise.records.config.study import StudyConfig
from rankwise.records.fields import bytes_of, path_problem
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config

STUDIES = "Studies"

StudyFile = Annotated[
    list[str] | None,
    cli.argument(
        "[STUDY.YAML|DIR] [KEY=VALUE]...",
        "A study file (default: the quickstart preset), then overrides: train.epochs=1. "
        "Or a study's folder, to run it with its own settings.",
    ),
]
StudyDir = Annotated[
    Path | None, cli.path_option("--study-dir DIR", "The study's folder (default: studies/NAME).")
]


AcceptNewStack = Annotated[
    bool,
    cli.option(
        "--accept-new-stack",
        "Continue with other library versions or another device even if the base's scores change.",
    ),
]


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{text!r} is not a device; write cpu or cuda")
    return text


def _memory(text: str) -> int:
    try:
        return bytes_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{text!r} is not a number above 0; write one, such as 2.5")
    return number


@cli.verb(STUDIES, kind=Telling)
def run(
    study: StudyFile = None,
    study_dir: StudyDir = None,
    replace: Annotated[
        bool, cli.option("--replace", "Archive scores made with other settings.")
    ] = False,
    accept_new_stack: AcceptNewStack = False,
    allow_task_code: cli.AllowTaskCode = False,
    workers: Annotated[
        int | None,
        cli.option("--workers N", "Run N units in parallel on this machine, through Ray.", min=1),
    ] = None,
    gpus: Annotated[
        str | None, cli.option("--gpus all|0,1", "Run one unit on each of these GPUs, through Ray.")
    ] = None,
    address: Annotated[
        str | None, cli.option("--address HOST:PORT|auto", "Run units on this Ray cluster.")
    ] = None,
    quiet: cli.Quiet = False,
    as_json: cli.AsEvents = False,
) -> int:
    """Run a study: train, score, recommend and report.

    Run the same command again to resume a stopped study, or to do what was
    added to its file. Finished work is kept; damaged files are moved to
    DIR/quarantine and made again.

    --gpus all uses every GPU of this machine, --workers 4 runs four units in
    parallel on its CPU, and --address auto uses the Ray cluster that this
    machine belongs to. All three need the extra ray.
    """
    cluster = None
    if workers is not None or gpus is not None or address is not None:
        from rankwise.study.executors.ray import cluster_of

        cluster = partial(
            cluster_of, address, workers, gpus, cli.note, accept_new_stack=accept_new_stack
        )
    return run_and_report(
        lambda _: named(study, study_dir, allow_task_code),
        quiet=quiet,
        as_json=as_json,
        replace=replace,
        accept_new_stack=accept_new_stack,
        cluster=cluster,
    )


@cli.verb(STUDIES)
def plan(
    study: StudyFile = None,
    study_dir: StudyDir = None,
    allow_task_code: cli.AllowTaskCode = False,
    device: Annotated[
        str | None,
        cli.option(
            "--device cpu|cuda",
            "Plan for this device (default: the one in this machine).",
            parser=_device,
        ),
    ] = None,
    memory: Annotated[
        int | None,
        cli.option(
            "--memory SIZE",
            "Assume this much device memory: 80GB, 24GiB. This machine need not have it.",
            parser=_memory,
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        cli.option(
            "--tokens-per-second RATE",
            "Speed of LoRA training, to estimate the time (default with --device cuda: a third "
            "of an H100's peak, an assumption).",
            parser=_positive,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        cli.option(
            "--budget TIME",
            "Show what fits into TIME, and the smallest detectable difference.",
            parser=given_seconds,
        ),
    ] = None,
    as_json: cli.Json = False,
) -> int:
    """List a study's runs with steps, tokens, parameters and memory.

    Loads no weights and trains nothing. --device cuda --memory 80GB plans for
    such a card, which need not be in this machine: precision, passes, memory,
    disk and time. --budget 1h shows what fits into that time. Only --budget
    loads the model, to measure its speed, unless it is known: from a study that
    ran here, --tokens-per-second or --device cuda.
    """
    config, folder = named(study, study_dir, allow_task_code)
    machine = None  # the one that is here
    if device is not None or memory is not None:
        import torch

        from rankwise.engine.models.devices import Machine, choose_device

        is_said = device is not None and (device == "cpu" or memory is not None)
        here = torch.device(device) if device is not None and is_said else choose_device()
        if device == "cuda" and here.type != "cuda":
            problem = "--device cuda: there is no card here; say what it has, such as --memory 80GB"
            raise ConfigError("plan", [problem])
        machine = Machine(here, memory)
    planned = planned_study(config, folder, machine)
    from rankwise.cli.plans import show
    from rankwise.study.forecast import forecast

    shown = forecast(planned, folder, machine, tokens_per_second)
    cli.warn(f"damaged: {damage}; it is made again" for damage in shown.damages)
    found = None
    if budget is not None:
        found = affordable_here(config, planned, budget, shown.rate, machine)
    if as_json:
        from rankwise.study.budgets import resolution

        budgeted: dict[str, Any] | None = None
        if found is not None:
            asked = {"overrides": found.choice.overrides, "seconds": found.seconds}
            budgeted = {**asked, "fits": found.fits, **resolution(found.plan).content()}
        return cli.emit(shown.content() | {"budget": budgeted})
    show(shown)
    if budget is not None and found is not None:
        for line in budget_lines(found, budget):
            cli.say(line)
    return cli.OK


def named(
    arguments: list[str] | None, study_dir: Path | None, allow_task_code: bool
) -> tuple[StudyConfig, StudyFolder]:
    """The study of the file and the overrides among the arguments, and its folder."""
    overrides = list(arguments or [])
    has_place = bool(overrides) and "=" not in overrides[0]
    path = Path(overrides.pop(0)) if has_place else None
    if path is not None and (problem := path_problem(path)):
        raise ConfigError(str(path), [problem])
    if path is not None and os.path.isdir(path):
        if overrides or study_dir:
            problem = "a study's folder is run as it is; give overrides with its study file"
            raise ConfigError(str(path), [problem])
        folder = StudyFolder(path)
        if not folder.study_file.exists():
            problem = "the folder has no study.json; give a study file, or the folder of a study"
            raise ConfigError(str(folder.root), [problem])
        return folder.read_study().config, folder
    config = load_config(path, [*overrides, *(["allow_task_code=true"] * allow_task_code)])
    return config, StudyFolder(study_dir or Path("studies") / config.name)
