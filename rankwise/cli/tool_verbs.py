"""Verbs beside a study: exports, sample files, tasks, and what this machine has."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.application import (
    OK,
    USAGE,
    Folder,
    Json,
    app,
    note,
    print_error,
    quiet_libraries,
    reported,
    stdout,
)


class ExportFormat(StrEnum):
    """Whose files a study can be exported as."""

    LM_EVAL = "lm-eval"


@app.command()
@reported
def export(
    directory: Folder,
    kind: Annotated[ExportFormat, typer.Option("--format", help="Whose files to write.")] = (
        ExportFormat.LM_EVAL
    ),
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Where to write them (default: DIR/export/lm-eval)."),
    ] = None,
) -> int:
    """Write a finished study as the files of another tool.

    lm-eval: for the base and every trained run, what lm_eval --log_samples
    would have written: results_<date>.json with the scores and
    samples_<task>_<date>.jsonl with the items. The date is the run's own, so
    exporting again replaces the same files.
    """
    from rankwise.records.folder import StudyFolder
    from rankwise.records.lm_eval_export import export_lm_eval

    assert kind is ExportFormat.LM_EVAL
    for model in export_lm_eval(StudyFolder(directory), output):
        line = f"{model.name}: {model.results_file} and {len(model.samples_files)} samples files"
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    return OK


@app.command()
@reported
def compare_samples(
    base: Annotated[
        Path, typer.Argument(metavar="BASE.jsonl", help="The samples file to compare with.")
    ],
    candidates: Annotated[
        list[Path], typer.Argument(metavar="A.jsonl", help="Those of other models, same task.")
    ],
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Default: the first with one number per item in all files."),
    ] = None,
    filter_name: Annotated[
        str | None, typer.Option("--filter", help="Default: the first one of the base file.")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Of the intervals and of the verdicts together.")
    ] = 0.95,
    as_json: Json = False,
) -> int:
    """Say whether models are better or worse than another, item by item.

    Takes samples_<task>_<date>.jsonl files of lm_eval --log_samples, of any
    version; needs no study and no model. Items are matched one by one and only
    those on which two models differ count, so this sees what two scores with
    their standard errors do not show. Each file is judged better, worse, or
    cannot tell (and how many more items would decide), corrected for the
    number of files (Holm).
    """
    from rankwise.cli.terminal import samples_verdict
    from rankwise.errors import DataError, RecordError
    from rankwise.findings.samples import compare_samples as compare

    try:
        verdicts = compare(
            base, candidates, metric=metric, filter_name=filter_name, confidence=confidence
        )
    except (DataError, RecordError) as error:  # nothing was run: what is wrong is what was given
        print_error(error)
        return USAGE
    for warning in verdicts.warnings:
        note(f"warning: {warning}")
    if as_json:
        print(verdicts.model_dump_json(indent=2))
        return OK
    stdout.print(*samples_verdict(verdicts), sep="\n")
    return OK


@app.command()
@reported
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
    quiet_libraries()
    from rankwise.tasks.resolution import list_tasks

    listing = list_tasks(tuple(tasks_path or ()), everything=everything)
    if as_json:
        print(json.dumps([line._asdict() for line in listing], indent=2))
        return OK
    for line in listing:
        stdout.print(f"{line.name}  ({line.kind}, {line.source})", markup=False, highlight=False)
    if not everything:
        note("and every task, group and tag of lm-eval: rankwise tasks --all")
    return OK


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[FLAGS OF LM-EVAL]...",
)
@reported
def lm_eval(context: typer.Context) -> int:
    """Run lm-eval on a base model and its adapters, all of them in one pass.

    All flags are lm-eval's (see lm-eval run --help), but for --model, which
    is ours. --model_args takes pretrained (an embedded model, a folder or a
    hub repository), adapters ("NAME=FOLDER;NAME=FOLDER", PEFT's folders),
    dtype, max_length, max_batch_tokens and engine. In --output_path lm-eval
    writes results_<date>.json and, with --log_samples, samples files: in a
    folder for the base, and in one called NAME for each adapter.

    rankwise lm-eval --tasks arc_easy --num_fewshot 5 --output_path out
    --model_args "pretrained=smollm2-135m-instruct,adapters=r8=runs/r8;r64=runs/r64"
    """
    from rankwise.cli.lm_eval.command import run_lm_eval
    from rankwise.errors import RankwiseError

    try:
        run_lm_eval(context.args)
    except RankwiseError as error:  # what is wrong is what was given
        print_error(error)
        return USAGE
    return OK


@app.command()
@reported
def doctor(as_json: Json = False) -> int:
    """Versions, devices, precisions, and which optional parts are missing."""
    quiet_libraries()
    from rankwise.cli.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps(dict(findings), indent=2))
        return OK
    for name, finding in findings:
        stdout.print(f"{name:<28} {finding}", markup=False, highlight=False)
    return OK
