"""Verbs that make, run and read a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.application import (
    OK,
    RUN_FAILED,
    Folder,
    Json,
    StudyDir,
    StudyFile,
    app,
    note,
    quiet_libraries,
    reported,
    split,
    stderr,
    stdout,
)
from rankwise.errors import ConfigError

if TYPE_CHECKING:
    from rankwise.findings.study import StudyFindings
    from rankwise.records.folder import StudyFolder
    from rankwise.records.results import StudyResults
    from rankwise.records.study import StudyRecommendation
    from rankwise.study.planning.plan import StudyPlan


def _plan(arguments: list[str] | None, study_dir: Path | None) -> tuple[StudyPlan, StudyFolder]:
    from rankwise.records.folder import StudyFolder
    from rankwise.records.study_file import load_config

    path, overrides = split(arguments)
    config = load_config(path, overrides)
    quiet_libraries()
    from rankwise.study.planning.plan import plan_study

    plan = plan_study(config, note)
    for warning in plan.record.warnings:
        note(f"warning: {warning}")
    return plan, StudyFolder(study_dir or Path("studies") / config.name)


@app.command()
@reported
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
    from rankwise.records.folder import write_atomically
    from rankwise.records.study_file import preset_text

    text = preset_text(preset)
    if path.exists() and not force:
        raise ConfigError(str(path), ["is there already; choose another path or give --force"])
    write_atomically(path, text)
    stdout.print(f"wrote {path}; next: rankwise plan {path}", markup=False, highlight=False)
    return OK


@app.command()
@reported
def plan(study: StudyFile = None, study_dir: StudyDir = None, as_json: Json = False) -> int:
    """List the runs with steps, tokens, parameters and memory; load no weights, train nothing."""
    planned, folder = _plan(study, study_dir)
    from rankwise.cli.terminal import pass_lines, plan_table
    from rankwise.records.folder import BASE
    from rankwise.study.stages import is_scored

    record = planned.record
    done = {(run.name, None) for run in record.runs if folder.finished_run(run)}
    done |= {
        (BASE if run is None else run.name, name)
        for run in (None, *record.runs)
        for name in (record.scored_tasks(run.train_task) if run else record.scored_tasks())
        if is_scored(planned, folder, run, planned.tasks[name])
    }
    if as_json:
        runs = [
            run.model_dump(mode="json") | {"is_trained": (run.name, None) in done}
            for run in planned.record.runs
        ]
        passes = [each.model_dump(mode="json") for each in planned.record.passes]
        content = {"runs": runs, "passes": passes, "warnings": planned.record.warnings}
        print(json.dumps(content, indent=2))
        return OK
    stdout.print(plan_table(planned.record, done))
    for line in pass_lines(planned.record):
        stdout.print(line, markup=False, highlight=False)
    return OK


@app.command()
@reported
def run(study: StudyFile = None, study_dir: StudyDir = None) -> int:
    """Train, score, compare, recommend and report; run again to resume or to extend."""
    planned, folder = _plan(study, study_dir)
    return _run(planned, folder)


def _run(planned: StudyPlan, folder: StudyFolder) -> int:
    """Do what is planned and not done, and report."""
    from rankwise.cli.progress import TerminalObserver
    from rankwise.study.run import run_study

    with TerminalObserver(stderr) as observer:
        outcome = run_study(planned, folder, observer)
    return _report(folder, outcome.results, outcome.recommendation, outcome.findings)


@app.command()
@reported
def extend(
    directory: Folder,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="How many seeds to add.")] = 0,
    items: Annotated[
        int, typer.Option("--items", min=0, help="How many items to add to each task's limit.")
    ] = 0,
    ranks: Annotated[
        str, typer.Option("--ranks", metavar="R,R", help="Ranks to add, such as 8,128.")
    ] = "",
) -> int:
    """Add seeds, items or ranks to a study: only the new runs and items are done."""
    from rankwise.records.folder import StudyFolder
    from rankwise.study.extension import Extension, extended

    folder = StudyFolder(directory)
    config = extended(folder.read_study().config, Extension(seeds, items, _ranks(ranks)))
    quiet_libraries()
    from rankwise.study.planning.plan import plan_study

    planned = plan_study(config, note)
    for warning in planned.record.warnings:
        note(f"warning: {warning}")
    return _run(planned, folder)


def _ranks(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise ConfigError("extend", [f"--ranks: {part!r} is not a rank; write 8 or 8,128"])
    return tuple(int(part) for part in parts)


@app.command()
@reported
def status(directory: Folder, as_json: Json = False) -> int:
    """What of a study is done, and what is not."""
    from rankwise.cli.terminal import status_table
    from rankwise.records.folder import StudyFolder
    from rankwise.records.status import study_status

    lines = study_status(StudyFolder(directory))
    if as_json:
        print(json.dumps([line._asdict() for line in lines], indent=2))
    else:
        stdout.print(status_table(lines))
    return OK


@app.command()
@reported
def report(directory: Folder) -> int:
    """Write report.html and the folder report/ again from the records."""
    from rankwise.findings.study import StudyFindings
    from rankwise.records.folder import StudyFolder, read_record

    folder = StudyFolder(directory)
    results, recommendation = folder.read_results(), folder.read_recommendation()
    findings = read_record(folder.findings_file, StudyFindings)
    return _report(folder, results, recommendation, findings)


@app.command()
@reported
def recommend(directory: Folder, as_json: Json = False) -> int:
    """Say which rank to use, with its evidence, from the records of a finished study."""
    from rankwise.findings.recommendation import recommend as decide
    from rankwise.findings.study import study_findings
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    results = folder.read_results()
    recommendation = decide(results)
    folder.write(folder.recommendation_file, recommendation)
    findings = study_findings(results, recommendation)
    folder.write(folder.findings_file, findings)
    if as_json:
        print(recommendation.model_dump_json(indent=2))
        return OK
    for part in recommendation.by_train_task:
        if len(recommendation.by_train_task) > 1:
            stdout.print(f"trained on {part.train_task}:", markup=False, highlight=False)
        stdout.print(part.statement, style="bold", markup=False, highlight=False)
        for reason in part.reasons:
            stdout.print(f"- {reason}", markup=False, highlight=False)
        for each in findings.signatures:
            if each.train_task == part.train_task:
                stdout.print(f"- {each.title}: {each.statement}", markup=False, highlight=False)
    return OK


@app.command()
@reported
def claims(directory: Folder, as_json: Json = False) -> int:
    """Hold the reference paper's claims against a finished study, each with its numbers."""
    from rankwise.findings.claims import paper_claims
    from rankwise.findings.options import option_gains
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    found = paper_claims(option_gains(folder.read_results()), folder.read_recommendation())
    if as_json:
        print(json.dumps([claim.model_dump(mode="json") for claim in found], indent=2))
        return OK
    for claim in found:
        stdout.print(f"{claim.verdict}: {claim.statement}", markup=False, highlight=False)
        for sentence in claim.evidence:
            stdout.print(f"  - {sentence}", markup=False, highlight=False)
    return OK


def _report(
    folder: StudyFolder,
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
) -> int:
    """Write the report and print the verdict; a diverged run makes the exit code 1."""
    from rankwise.cli.terminal import verdict
    from rankwise.report.page import write_report

    path = write_report(folder.root, results, recommendation, findings)
    lines = verdict(results, recommendation, findings.signatures, stdout.width)
    stdout.print(*lines, sep="\n")
    stdout.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
    failed = [model.name for model in results.runs if model.run and model.run.status != "trained"]
    for name in failed:
        note(f"{name} diverged; the others are compared without it")
    return RUN_FAILED if failed else OK
