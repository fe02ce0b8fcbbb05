"""Verbs for tasks and other tools: export, tasks, lm-eval, doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import typer

from rankwise.cli import application as cli
from rankwise.cli.adapter_verbs import RUN
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, RankwiseError
from rankwise.records.files import in_words
from rankwise.records.folder import StudyFolder

TOOLS = "Tasks and other tools"


OfStudy = Literal["lm-eval", "csv", "parquet", "markdown", "latex", "figures"]
OfRun = Literal["model-card", "peft", "axolotl", "llamafactory", "unsloth", "trl"]
ExportFormat = Literal[OfStudy, OfRun]
"""The formats of ``integrations.formats``, which is not loaded for the help."""


@cli.verb(TOOLS)
def export(
    directory: cli.Folder,
    kind: Annotated[
        ExportFormat | None,
        cli.option("--format FORMAT", f"{', '.join(get_args(ExportFormat))} (default: lm-eval)."),
    ] = None,
    output: Annotated[
        Path | None,
        cli.path_option("--output FOLDER", "The folder to write (default: DIR/export/FORMAT)."),
    ] = None,
    overwrite: cli.Overwrite = False,
    run: Annotated[
        str | None,
        cli.option(
            "--run ID", f"Export one run (default: the recommended one, or the best bet). {RUN}"
        ),
    ] = None,
    to: Annotated[
        Literal["folder", "hub"], cli.option("--to folder|hub", "hub: upload the adapter.")
    ] = "folder",
    repo: Annotated[
        str | None, cli.option("--repo ORG/NAME", "With --to hub: the repository.")
    ] = None,
    public: Annotated[
        bool,
        cli.option("--public", "With --to hub: make the repository public (default: private)."),
    ] = False,
    with_items: Annotated[
        bool,
        cli.option("--with-items", "With --to hub: also upload the texts of items and answers."),
    ] = False,
    dry_run: Annotated[
        bool, cli.option("--dry-run", "With --to hub: list files and sizes; upload nothing.")
    ] = False,
    yes: Annotated[
        bool,
        cli.option(
            "--yes", "With --to hub: do not ask. Needed with --json and without a terminal."
        ),
    ] = False,
    as_json: cli.Json = False,
) -> int:
    """Write a study in another format, or upload its adapter to the Hugging Face Hub.

    lm-eval: for the base and every trained run of a finished study, the files
    that lm_eval --log_samples would write: results_<date>.json with the scores
    and samples_<task>_<date>.jsonl with the items. The date is that of the run,
    so a second export replaces the same files.

    csv, parquet: the complete, unrounded tables of the report: runs, scores,
    differences from the base, and the evidence for each rank.

    markdown, latex: the table of all models with their intervals, to paste into
    a README or a paper (LaTeX needs the packages booktabs and graphicx).

    figures: every chart of the report as SVG and PNG.

    peft, trl, axolotl, llamafactory, unsloth: the recommended rank, alpha,
    learning rate, modules, epochs, batch and schedule as a config for that
    trainer. model-card: the recommended run's card, with scores, as README.md.
    If nothing is settled, they use the best bet, and the file says so.

    --to hub --repo ORG/NAME uploads that adapter with its model card, and the
    study's records and report in the folder study. The base's weights, training
    states and caches are never uploaded. Local folder names are removed, and a
    study with links in it is refused. The files are listed first, and you are
    asked to confirm; where there is no terminal, nothing is sent without --yes.
    Log in with hf auth login, or set HF_TOKEN.
    """
    folder = StudyFolder(directory)
    hub_only = {
        "--repo": repo, "--public": public, "--with-items": with_items, "--dry-run": dry_run,
        "--yes": yes,
    }  # fmt: skip
    folder_only = {"--format": kind, "--output": output, "--overwrite": overwrite}
    is_hub = to == "hub"
    given = [name for name, value in (folder_only if is_hub else hub_only).items() if value]
    if given:
        why = "does not go with --to hub;" if is_hub else "is for --to hub; add that, or"
        raise ConfigError("export", [f"{', '.join(given)} {why} leave it out"])
    if is_hub:
        if repo is None:
            raise ConfigError("export", ["--repo ORG/NAME is missing; --to hub needs it"])
        sending = _Sending(repo, public=public, with_items=with_items, dry_run=dry_run)
        can_ask = not as_json and cli.is_terminal(sys.stdin) and cli.is_terminal(sys.stderr)
        if not (yes or dry_run or can_ask):
            problem = (
                "--to hub: with --json, or without a terminal, nobody is asked before files go; "
                "add --yes to send them, or --dry-run to list them"
            )
            raise ConfigError("export", [problem])
        return _send(folder, sending, run, is_asked=not yes, as_json=as_json)
    from rankwise.integrations.formats import export_study

    written = export_study(folder, kind or "lm-eval", output, run, overwrite=overwrite)
    cli.note_damage(folder)
    if as_json:
        contents = [exported._asdict() for exported in written]
        for content in contents:
            content["num_samples_files"] = len(content.pop("samples_files"))
        return cli.emit(contents)
    for exported in written:
        samples = len(exported.samples_files)
        beside = f" and {samples} samples files" if samples else ""
        cli.say(f"{exported.name}: {exported.file}{beside}", folded=False)
        for remark in exported.remarks:
            cli.note(f"to check: {remark}")
    return cli.OK


class _Sending(NamedTuple):
    """Where to on the Hub, and how."""

    repo: str
    public: bool
    with_items: bool
    dry_run: bool


def _send(
    folder: StudyFolder, sending: _Sending, run: str | None, *, is_asked: bool, as_json: bool
) -> int:
    """Upload a run's adapter and what the study has of it."""
    quiet_libraries()
    from rankwise.integrations.hub import PushedFile, push_study

    def approve(files: Sequence[PushedFile]) -> bool:
        for file in files:
            cli.note(f"{file.num_bytes:>13,}  {file.path}")
        return not is_asked or typer.confirm(f"Send these files to {sending.repo}?", err=True)

    pushed = push_study(folder, run=run, approve=approve, **sending._asdict())
    if as_json:
        return cli.emit(pushed._asdict() | {"files": [file._asdict() for file in pushed.files]})
    for remark in pushed.remarks:
        cli.note(f"to check: {remark}")
    if pushed.url is None and not sending.dry_run:
        cli.note("nothing was sent")
        return cli.RUN_FAILED
    if sending.dry_run:
        for file in pushed.files:
            cli.say(f"{file.num_bytes:>13,}  {file.path}", folded=False)
    size = in_words(sum(file.num_bytes for file in pushed.files))
    who = "private" if pushed.is_private else "public"
    done = f"would go to {sending.repo}" if pushed.url is None else f"are at {pushed.url}"
    cli.say(f"{pushed.run}: {len(pushed.files)} files, {size}, {done} ({who})", folded=False)
    if sending.public and pushed.is_private and pushed.url is not None:
        cli.note(
            f"{sending.repo} was there and private, and stays so; its settings on the Hub change "
            "that"
        )
    return cli.OK


@cli.verb(TOOLS)
def tasks(
    words: Annotated[
        list[str] | None,
        cli.argument(
            "[WORD]...",
            "List only tasks with these words in name or description, including lm-eval's.",
        ),
    ] = None,
    tasks_path: cli.TasksPath = None,
    everything: Annotated[
        bool, cli.option("--all", "Also list lm-eval's own tasks; this takes longer.")
    ] = False,
    as_json: cli.Json = False,
) -> int:
    """List and search the tasks, groups and retention sets that a study can use."""
    quiet_libraries()
    from rankwise.tasks.resolution import list_tasks

    search = " ".join(words or ())
    listing = list_tasks(
        tuple(tasks_path or ()), everything=everything or bool(search), search=search
    )
    if as_json:
        return cli.emit([line._asdict() for line in listing])
    for line in listing:
        said = f": {line.description}" if line.description else ""
        cli.say(f"{line.name}  ({line.kind}, {line.source}){said}", folded=False)
    if search and not listing:
        cli.note(
            f"no task has {search!r} in its name or description; rankwise tasks --all lists all"
        )
        return cli.RUN_FAILED
    if not everything and not search:
        cli.note(
            "lm-eval's own can be named too: rankwise tasks --all, or a word: rankwise tasks math"
        )
    return cli.OK


@cli.verb(
    TOOLS,
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[FLAGS OF LM-EVAL]...",
)
def lm_eval(context: typer.Context) -> int:
    """Run lm-eval on a base and all its adapters in one pass.

    All flags are lm-eval's (see lm-eval run --help), except that --model is set
    automatically, and that files in --include_path may run Python code only
    with --allow-task-code. --model_args takes pretrained (an embedded model, a
    folder or a hub repository), adapters ("NAME=FOLDER;NAME=FOLDER", PEFT's folders),
    dtype, max_length and max_batch_tokens. In --output_path, lm-eval
    writes results_<date>.json and, with --log_samples, samples files: in one
    folder for the base, and in a folder NAME for each adapter.

    rankwise lm-eval --tasks arc_easy --num_fewshot 5 --output_path out
    --model_args "pretrained=smollm2-135m-instruct,adapters=r8=runs/r8;r64=runs/r64"
    """
    from rankwise.cli.lm_eval.command import run_lm_eval

    with cli.usage_errors((RankwiseError,)):
        run_lm_eval(context.args)
    return cli.OK


@cli.verb("Installation")
def doctor(as_json: cli.Json = False) -> int:
    """Check this installation: versions, devices, optional parts."""
    quiet_libraries()
    from rankwise.cli.doctor import examine

    findings = dict(examine())
    if as_json:
        return cli.emit(findings)
    for name, finding in findings.items():
        cli.say(f"{name:<34} {finding}", folded=False)
    return cli.OK
