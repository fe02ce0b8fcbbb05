"""Verbs that need no study of their own: sample files, exports, tasks, lm-eval, doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.application import (
    OK,
    RUN_FAILED,
    Folder,
    Json,
    Overwrite,
    TasksPath,
    emit,
    given_path,
    note,
    note_damage,
    say,
    stdout,
    usage_errors,
    verb,
    warn,
)
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import RankwiseError

TOOLS = "Tasks and other tools"


class ExportFormat(StrEnum):
    """The file format that is written."""

    LM_EVAL = "lm-eval"
    CSV = "csv"
    PARQUET = "parquet"
    MARKDOWN = "markdown"
    LATEX = "latex"
    MODEL_CARD = "model-card"
    PEFT = "peft"
    AXOLOTL = "axolotl"
    LLAMA_FACTORY = "llamafactory"
    UNSLOTH = "unsloth"
    TRL = "trl"


@verb(TOOLS)
def export(
    directory: Folder,
    kind: Annotated[
        ExportFormat, typer.Option("--format", help="The format to write.")
    ] = ExportFormat.LM_EVAL,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="The folder to write (default: DIR/export/FORMAT).",
            parser=given_path,
        ),
    ] = None,
    overwrite: Overwrite = False,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ID",
            help="For one run: its name, or the beginning of it (default: the recommended).",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Write a study in another format.

    lm-eval: for the base and every trained run of a finished study, the files
    that lm_eval --log_samples would have written: results_<date>.json with the
    scores and samples_<task>_<date>.jsonl with the items. The date is that of
    the run, so a second export replaces the same files.

    csv, parquet: the tables of the report, whole and without rounding: runs,
    scores, differences from the base, and what each rank was judged on.

    markdown, latex: the table of all models with their intervals, to paste into
    a README or a paper (LaTeX needs the packages booktabs and graphicx).

    peft, trl, axolotl, llamafactory, unsloth: the recommended rank, alpha,
    rate, modules, epochs, batch and schedule as the config of that trainer.
    model-card: the card of the recommended run, with its scores, as README.md.
    Where the study recommends nothing, --run names the run to take.
    """
    from rankwise.integrations.formats import export_study
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    written = export_study(folder, kind.value, output, run, overwrite=overwrite)
    note_damage(folder)
    if as_json:
        return emit(
            [
                {
                    "name": exported.name,
                    "file": exported.file,
                    "remarks": exported.remarks,
                    "num_samples_files": len(exported.samples_files),
                }
                for exported in written
            ]
        )
    for exported in written:
        samples = len(exported.samples_files)
        beside = f" and {samples} samples files" if samples else ""
        say(f"{exported.name}: {exported.file}{beside}", folded=False)
        for remark in exported.remarks:
            note(f"to check: {remark}")
    return OK


@verb(TOOLS)
def push(
    directory: Folder,
    repo: Annotated[
        str, typer.Option("--repo", metavar="ORG/NAME", help="The repository on the Hub.")
    ],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ID",
            help="The run's name, or the beginning of it (default: the recommended).",
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="Let everybody read the repository (default: private)."),
    ] = False,
    with_items: Annotated[
        bool,
        typer.Option("--with-items", help="Also send the texts of the items and the answers."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes; send nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the files go.")] = False,
    as_json: Json = False,
) -> int:
    """Upload the recommended adapter to the Hugging Face Hub.

    With its model card, and the study's records and report in the folder study.
    Never sent are the base's weights, states of a training and caches; items'
    texts and answers are only with --with-items. Names of folders of this
    machine are left out, and a study with links in it is refused. The files are
    listed before they go; on a terminal you are asked. Log in before with
    hf auth login, or set HF_TOKEN.
    """
    quiet_libraries()
    from rankwise.integrations.hub import PushedFile, push_study
    from rankwise.records.files import in_words
    from rankwise.records.folder import StudyFolder

    def approve(files: Sequence[PushedFile]) -> bool:
        for file in files:
            note(f"{file.num_bytes:>13,}  {file.path}")
        is_asked = not (yes or as_json) and sys.stdin.isatty() and sys.stderr.isatty()
        return not is_asked or typer.confirm(f"Send these files to {repo}?", err=True)

    pushed = push_study(
        StudyFolder(directory),
        repo,
        run,
        public=public,
        with_items=with_items,
        dry_run=dry_run,
        approve=approve,
    )
    if as_json:
        return emit(pushed._asdict() | {"files": [file._asdict() for file in pushed.files]})
    for remark in pushed.remarks:
        note(f"to check: {remark}")
    if pushed.url is None and not dry_run:
        note("nothing was sent")
        return RUN_FAILED
    if dry_run:
        for file in pushed.files:
            say(f"{file.num_bytes:>13,}  {file.path}", folded=False)
    size = in_words(sum(file.num_bytes for file in pushed.files))
    who = "private" if pushed.is_private else "public"
    done = f"would go to {repo}" if pushed.url is None else f"are at {pushed.url}"
    say(f"{pushed.run}: {len(pushed.files)} files, {size}, {done} ({who})", folded=False)
    if public and pushed.is_private and pushed.url is not None:
        note(f"{repo} was there and private, and stays so; its settings on the Hub change that")
    return OK


@verb(TOOLS)
def compare_samples(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE.jsonl", help="The samples file to compare with.", parser=given_path
        ),
    ],
    candidates: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.jsonl",
            help="Samples files of other models on the same task.",
            parser=given_path,
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="The metric to compare (default: p_right with options, else the first of all).",
        ),
    ] = None,
    filter_name: Annotated[
        str | None,
        typer.Option("--filter", help="The lm-eval filter (default: the first of BASE.jsonl)."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="FIELD",
            help="A field of the documents, such as passage: items of equal value belong together.",
        ),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(
            "--confidence", help="Confidence of each interval, and of all verdicts together."
        ),
    ] = 0.95,
    anytime: Annotated[
        bool,
        typer.Option(
            "--anytime", help="Keep the verdicts right however often growing files are compared."
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Compare models item by item from lm-eval's sample files.

    Reads samples_<task>_<date>.jsonl files of lm_eval --log_samples, of any
    version. Needs no study and no model. Items are paired, and only those on
    which two models differ count, so this finds differences that two scores
    with their standard errors do not show. Each file is judged better, worse,
    or cannot tell (with the probability that more items would decide),
    corrected for the number of files (Holm). Questions about one text are not
    independent: with --cluster, the texts are what is counted.
    """
    from rankwise.cli.terminal import samples_verdict
    from rankwise.findings.samples import compare_samples as compare

    with usage_errors():
        verdicts = compare(
            base,
            candidates,
            metric=metric,
            filter_name=filter_name,
            cluster=cluster,
            confidence=confidence,
            anytime=anytime,
        )
    warn(verdicts.warnings)
    if as_json:
        return emit(verdicts)
    stdout.print(*samples_verdict(verdicts), sep="\n")
    return OK


@verb(TOOLS)
def tasks(
    tasks_path: TasksPath = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list lm-eval's own tasks; this takes longer.")
    ] = False,
    as_json: Json = False,
) -> int:
    """List the tasks that a study file can name."""
    quiet_libraries()
    from rankwise.tasks.resolution import list_tasks

    listing = list_tasks(tuple(tasks_path or ()), everything=everything)
    if as_json:
        return emit([line._asdict() for line in listing])
    for line in listing:
        say(f"{line.name}  ({line.kind}, {line.source})")
    if not everything:
        note("lm-eval's own tasks, groups and tags can be named too: rankwise tasks --all")
    return OK


@verb(
    TOOLS,
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[FLAGS OF LM-EVAL]...",
)
def lm_eval(context: typer.Context) -> int:
    """Run lm-eval on a base and all its adapters in one pass.

    All flags are lm-eval's (see lm-eval run --help) except --model, which is
    set here, and --allow-task-code, without which files of --include_path may
    not run Python code. --model_args takes pretrained (an embedded model, a
    folder or a hub repository), adapters ("NAME=FOLDER;NAME=FOLDER", PEFT's folders),
    dtype, max_length, max_batch_tokens and engine. In --output_path, lm-eval
    writes results_<date>.json and, with --log_samples, samples files: in one
    folder for the base, and in a folder NAME for each adapter.

    rankwise lm-eval --tasks arc_easy --num_fewshot 5 --output_path out
    --model_args "pretrained=smollm2-135m-instruct,adapters=r8=runs/r8;r64=runs/r64"
    """
    from rankwise.cli.lm_eval.command import run_lm_eval

    with usage_errors((RankwiseError,)):
        run_lm_eval(context.args)
    return OK


@verb("Installation")
def doctor(as_json: Json = False) -> int:
    """Check this installation: versions, devices, optional parts."""
    quiet_libraries()
    from rankwise.cli.doctor import examine

    findings = examine()
    if as_json:
        return emit(dict(findings))
    for name, finding in findings:
        say(f"{name:<34} {finding}", folded=False)
    return OK
