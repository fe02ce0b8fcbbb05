"""Verbs that make, extend and read studies."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from time import sleep
from typing import Annotated

from rankwise.cli import application as cli
from rankwise.cli.run_verbs import STUDIES, AcceptNewStack
from rankwise.cli.running import Telling, keep, report_on, run_and_report
from rankwise.errors import ConfigError, RecordError, StorageError
from rankwise.records import quantities
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import write_outputs
from rankwise.records.study_file import preset_text


@cli.verb(STUDIES)
def report(
    directory: cli.Folder,
    output: Annotated[
        Path | None, cli.path_option("--output FOLDER", "Where to write (default: DIR).")
    ] = None,
    overwrite: cli.Overwrite = False,
    without_texts: Annotated[
        bool, cli.option("--without-texts", "Leave out prompts and answers, for sharing.")
    ] = False,
    as_json: cli.Json = False,
) -> int:
    """Rewrite report.html and the folder report/ from a study's records.

    Nothing is trained or scored. The report of an unfinished study shows what
    is done so far.
    """
    from rankwise.study.conclusion import conclude

    folder = StudyFolder(directory)
    outcome = conclude(folder)
    cli.note_damage(folder)
    keep(folder, outcome)
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


@cli.verb(STUDIES)
def status(
    directory: cli.Folder,
    watch: Annotated[
        bool, cli.option("--watch", "Print the status again until no process runs the study.")
    ] = False,
    every: Annotated[
        int, cli.option("--every SECONDS", "With --watch: interval between prints.", min=1)
    ] = 15,
    as_json: cli.Json = False,
) -> int:
    """Show what is done, running and left in a study.

    --watch with --json prints a document each time. Ctrl-C ends the watching;
    the study continues.
    """
    folder = StudyFolder(directory)
    is_running = _show_status(folder, as_json=as_json)
    with contextlib.suppress(KeyboardInterrupt):
        while watch and is_running:
            sleep(every)
            is_running = _show_status(folder, as_json=as_json)
    return cli.OK


def _show_status(folder: StudyFolder, *, as_json: bool) -> bool:
    """Print the status of a study; returns whether a process runs it."""
    from rankwise.cli.terminal import is_done, status_table
    from rankwise.study.status import run_status, study_status

    running = run_status(folder)  # first: after the end of the process, all that it did is read
    lines = study_status(folder)
    if as_json:
        models = [line._asdict() for line in lines]
        cli.emit({"models": models, "running": running and running._asdict()})
        return running is not None
    cli.stdout.print(status_table(lines, folder.read_study()))
    for line in () if running is None else running.lines:
        cli.say(line)
    if running is None and not all(map(is_done, lines)):
        cli.say(f"Next: rankwise run {shlex.quote(str(folder.root))}", folded=False)
    for line in lines:
        for failure in line.failed:
            cli.say(f"failed: {line.model}: {failure}")
        for damage in line.damaged:
            cli.say(f"damaged: {damage}", folded=False)
    return running is not None


@cli.verb(STUDIES)
def verify(directory: cli.Folder, as_json: cli.Json = False) -> int:
    """Verify every file of a study against its checksum.

    Checks records, weights, items, losses and adapters. Lists damaged files
    with the stage that made them, and stages whose files are missing: not done
    yet, or deleted. rankwise run DIR moves damaged files away and redoes these
    stages. The exit code is 1 if anything is damaged or missing.
    """
    from rankwise.study.damage import find_damage
    from rankwise.study.status import what_is_left

    folder = StudyFolder(directory)
    if not folder.study_file.exists():
        raise RecordError(f"{folder.study_file} is not there; give the folder of a study.")
    damages = find_damage(folder, thorough=True)
    intact = folder.without({path for damage in damages for path in damage.spoils})
    left = what_is_left(intact, folder.read_study()) if intact.has(folder.study_file) else []
    if as_json:
        cli.emit({"damages": [damage._asdict() for damage in damages], "left": left})
    else:
        for damage in damages:
            cli.say(f"damaged: {damage}", folded=False)
        for each in left:
            cli.say(f"left: {each}", folded=False)
    if damages or left:
        cli.note(f"to set aside what is damaged and make what is left: {folder.made_again_by}")
        return cli.RUN_FAILED
    if not as_json:
        cli.say("every file is as it was written")
    return cli.OK


@cli.verb(STUDIES)
def labels(directory: cli.Folder, as_json: cli.Json = False) -> int:
    """Write answers for a person to judge, as evaluation.labels says.

    DIR/labels/TASK.csv has answers of all models to some items, in an order
    that does not tell whose they are. Write 0 (wrong) to 1 (right) into the
    column label. When every answer has a label, rankwise report DIR corrects
    the judge's numbers by them. Labels that are there are kept.
    """
    from rankwise.study.labels import write_labels
    from rankwise.study.reading import read_judgements

    folder = StudyFolder(directory)
    found = read_judgements(folder)
    if not found.study.config.evaluation.labels:
        problem = "the study asks for none; write evaluation.labels: {TASK: 50} into its file"
        raise ConfigError("labels", [problem])
    written = write_labels(folder, found.study, found.models)
    if as_json:
        return cli.emit([each._asdict() for each in written])
    for each in written:
        cli.say(
            f"{each.path}: {each.num_left} of "
            f"{quantities.counted(each.num_answers, 'answer')} to "
            f"{quantities.counted(each.num_items, 'item')} to label",
            folded=False,
        )
    is_done = not any(each.num_left for each in written)
    again = f"rankwise {'report' if is_done else 'labels'} {shlex.quote(str(folder.root))}"
    cli.say(f"Next: {again}" if is_done else f"When they are labelled: {again}", folded=False)
    return cli.OK


@cli.verb(STUDIES)
def init(
    path: Annotated[
        Path | None,
        cli.argument("[PATH]", "The file to write (default: study.yaml).", parser=cli.given_path),
    ] = None,
    preset: Annotated[
        str | None,
        cli.option(
            "--preset NAME",
            "The preset to copy: quickstart (default), sanity, retention, stress, "
            "learning-rate, alpha, data-size, fine-tune-at-all, beyond-128, mitigation, "
            "variants, self-distillation, on-policy, paper-llama, paper-qwen.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        cli.path_option(
            "--from FILE_OR_FOLDER", "Your training config, or a Trainer's output folder."
        ),
    ] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> int:
    """Write a commented study file to start from.

    --from converts your training config: the YAML of Axolotl, LLaMA-Factory or
    TRL, Unsloth's arguments, a PEFT adapter_config.json, or the output folder
    of a Trainer. The study has your settings, with ranks around yours. Settings
    that it cannot express, and what to check, are listed in the file and on
    stderr.
    """
    if source is not None and preset is not None:
        raise ConfigError("init", ["--preset and --from are both given; give one of them"])
    file = path or Path("study.yaml")
    made, text = None, preset_text(preset or "quickstart")
    if source is not None:
        from rankwise.integrations.sources import read_source
        from rankwise.integrations.study_text import study_text

        made = study_text(read_source(source), file.parent)
        text = made.text
        for sentence in made.not_carried:
            cli.note(f"not carried over: {sentence}")
        for sentence in made.to_check:
            cli.note(f"to check: {sentence}")
    write_outputs(file.parent, {file.name: text}, overwrite=overwrite)
    if as_json:
        remarks = {} if made is None else made._asdict()
        remarks.pop("text", None)
        return cli.emit({"study_file": file, **remarks})
    cli.say(f"wrote {file}; next: rankwise plan {file}")
    return cli.OK


_RANK, _FACTOR = re.compile(r"0*[1-9]\d{0,5}"), re.compile(r"0*[1-9]\d{0,3}(\.\d+)?|0?\.0*[1-9]\d*")


def _listed(given: str, form: re.Pattern[str], option: str, what: str) -> tuple[float, ...]:
    """Numbers between commas, each of them once.

    Raises:
        ConfigError: one is not of this form, or is given twice.
    """
    parts = [part.strip() for part in given.split(",") if part.strip()]
    for part in parts:
        if form.fullmatch(part) is None:
            raise ConfigError("extend", [f"{option}: {part!r} is not {what}"])
    numbers = tuple(map(float, parts))
    for number in numbers:
        if numbers.count(number) > 1:
            problem = f"{option}: {quantities.number(number)} is given twice; give it once"
            raise ConfigError("extend", [problem])
    return numbers


@cli.verb(STUDIES, kind=Telling)
def extend(
    directory: cli.Folder,
    seeds: Annotated[int, cli.option("--seeds N", "Number of seeds to add.", min=0)] = 0,
    items: Annotated[
        int, cli.option("--items N", "Number of items to add to each task's limit.", min=0)
    ] = 0,
    ranks: Annotated[str, cli.option("--ranks R,R", "Ranks to add, such as 8,128.")] = "",
    rate_factors: Annotated[
        str,
        cli.option(
            "--rate-factors F,F",
            "LoRA learning rates to add, as factors of the first: 0.5,2 adds half of it and twice.",
        ),
    ] = "",
    accept_new_stack: AcceptNewStack = False,
    quiet: cli.Quiet = False,
    as_json: cli.AsEvents = False,
) -> int:
    """Add seeds, items, ranks or learning rates to a study and run them.

    Only the new runs and items are trained and scored. If interrupted,
    rankwise run DIR resumes it.
    """
    from rankwise.study.growing import Extension, extended

    folder = StudyFolder(directory)

    def find(_: object) -> tuple[StudyConfig, StudyFolder]:
        config = folder.read_study().config
        added = _listed(ranks, _RANK, "--ranks", "a rank; write 8 or 8,128")
        factors = _listed(rate_factors, _FACTOR, "--rate-factors", "a factor; write 2 or 0.5,2")
        whole = tuple(map(int, added))
        return extended(config, Extension(seeds, items, whole, factors)), folder

    return run_and_report(find, quiet=quiet, as_json=as_json, accept_new_stack=accept_new_stack)
