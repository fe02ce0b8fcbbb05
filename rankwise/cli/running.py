"""Runs a study for a verb, and says what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rankwise.cli.application import (
    OK,
    RUN_FAILED,
    emit,
    note,
    say,
    stderr,
    stdout,
    warn,
)
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError
from rankwise.records.outputs import refuse_foreign

if TYPE_CHECKING:
    from rankwise.cli.events import Events
    from rankwise.engine.models.devices import Machine
    from rankwise.records.config.study import StudyConfig
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import StudyOutcome
    from rankwise.study.planning.plan import StudyPlan
    from rankwise.study.stopping import Stopped


def planned_study(
    config: StudyConfig,
    folder: StudyFolder,
    machine: Machine | None = None,
    report: Callable[[str], None] = note,
    num_workers: int = 1,
) -> StudyPlan:
    """Plan a study as it goes on in its folder, for some workers, and print its warnings."""
    quiet_libraries()
    from rankwise.study.planning.plan import plan_study

    plan = plan_study(config, report, folder=folder, machine=machine, num_workers=num_workers)
    warn(plan.record.warnings)
    return plan


class Share(NamedTuple):
    """What a process does of a study.

    Attributes:
        is_worker: it shares the work with others, and leaves the report to who reads it.
        num_workers: that the study is planned for.
        only: the id of the one unit to do.
    """

    is_worker: bool = False
    num_workers: int = 1
    only: str | None = None


ALL_OF_IT = Share()


def check_output(*, quiet: bool, as_json: bool) -> None:
    """Whether progress can be shown as it is asked for.

    Raises:
        ConfigError: it cannot.
    """
    if quiet and as_json:
        problem = "--quiet does not go with --json, which shows no other progress; give one"
        raise ConfigError("run", [problem])


def check_page(folder: StudyFolder) -> None:
    """Refuse a study before hours of work where its page would take the place of a user's.

    Raises:
        ConfigError: it would.
    """
    remedy = f"move it away, or replace it by `rankwise report {folder.address} --overwrite`"
    refuse_foreign(folder.root, [folder.report_file.name], remedy=remedy)


def told_of_stop(stopped: Stopped, study: str) -> int:
    """Say how a study that a signal has stopped goes on; returns the exit code."""
    note(f"stopped by {stopped}; finished work is kept. To go on: rankwise run {study}")
    return 128 + stopped.number


def run_and_report(
    find: Callable[[Events | None], tuple[StudyConfig, StudyFolder]],
    *,
    quiet: bool,
    as_json: bool,
    replace: bool = False,
    accept_new_stack: bool = False,
    share: Share = ALL_OF_IT,
) -> int:
    """Do what is left of a study, or a share of it, and report.

    ``find`` gives the study; it may tell of it by events, if there are any.
    """
    quiet_libraries()
    from rankwise.cli.events import EventObserver, Events, print_line
    from rankwise.integrations.tracking import TrackedObserver
    from rankwise.study.conclusion import judged_again
    from rankwise.study.growing import do_unit_of, run_to_verdict
    from rankwise.study.progress import Follower, QuietObserver, TerminalObserver, peak_memory
    from rankwise.study.stopping import Stopped

    events = Events(print_line) if as_json else None
    address = ""
    try:
        with events or contextlib.nullcontext():
            check_output(quiet=quiet, as_json=as_json)
            config, folder = find(events)
            address, memory = folder.address, peak_memory()
            if not share.is_worker:
                check_page(folder)
                judged = judged_again(folder, config)
                if judged is not None:
                    note("only the margins differ: the finished study is judged again")
                    if events is None:
                        return report_on(folder, judged)
                    return report_events(folder, judged, events)
            observer: Follower
            if events is not None:
                observer = EventObserver(events, memory, folder)
            elif quiet:
                observer = QuietObserver(stderr, memory, folder)
            else:
                observer = TerminalObserver(stderr, memory, folder, is_open=config.is_open)
            report = (lambda _: None) if quiet or as_json else note
            terms: dict[str, Any] = {"replace": replace, "accept_new_stack": accept_new_stack}

            def plan(grown: StudyConfig) -> StudyPlan:
                return planned_study(grown, folder, report=report, num_workers=share.num_workers)

            with observer, TrackedObserver(observer, folder, config) as tracked:
                if share.only is not None:
                    failed = do_unit_of(config, plan, folder, tracked, share.only, **terms)
                    code = RUN_FAILED if failed else OK
                    if events is not None:
                        events.ended("incomplete" if failed else "done", code)
                    return code
                outcome = run_to_verdict(
                    config, plan, folder, tracked, shares=share.is_worker, **terms
                )
                tracked.concluded(outcome)
            if share.is_worker:
                return _end_of_work(folder, outcome, events)
            if events is None:
                return report_on(folder, outcome)
            return report_events(folder, outcome, events)
    except Stopped as stopped:
        return told_of_stop(stopped, address)


def _end_of_work(folder: StudyFolder, outcome: StudyOutcome, events: Events | None) -> int:
    """What a worker says when all units are done; the page is one process's to write."""
    code = _told(outcome)
    if events is not None:
        events.concluded(outcome, None, code)
    else:
        say(f"all units are done; for the verdict and the page: rankwise report {folder.address}")
    return code


def report_events(folder: StudyFolder, outcome: StudyOutcome, events: Events) -> int:
    """Write the report, and the last event; 1 if a run diverged or a stage failed."""
    from rankwise.api import written_report

    path = written_report(folder, outcome)
    code = _told(outcome)
    events.concluded(outcome, path, code)
    return code


def report_on(
    folder: StudyFolder,
    outcome: StudyOutcome,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    with_texts: bool = True,
    as_json: bool = False,
) -> int:
    """Write the report and print the verdict; 1 if a run diverged or a stage failed."""
    from rankwise.api import written_report
    from rankwise.cli.terminal import verdict

    results, recommendation, findings = outcome
    if not as_json:
        signatures, width = findings.signatures, stdout.width
        shown = verdict(results, recommendation, signatures, folder.address, width)
        stdout.print(*shown, sep="\n")
        say_deployed(outcome)
    path = written_report(folder, outcome, output, overwrite=overwrite, with_texts=with_texts)
    if as_json:
        emit({**verdict_content(outcome), "report": path})
    else:
        say(f"report: {path}", folded=False)
    return _told(outcome)


def say_deployed(outcome: StudyOutcome) -> None:
    """Say what the runs that the verdict names keep in their deployed forms."""
    for found in outcome.findings.deployed:
        for form in found.forms:
            say(f"- {found.run} ({found.named}), {form.statement}")


def verdict_content(outcome: StudyOutcome) -> dict[str, Any]:
    """What a program is told of a verdict: the record, what people are shown beside it, and why."""
    return {
        **outcome.recommendation.model_dump(mode="json"),
        "signatures": outcome.findings.signatures,
        "deployed": outcome.findings.deployed,
        "left_out": outcome.results.left_out,
        "failures": outcome.failures,
    }


def _told(outcome: StudyOutcome) -> int:
    """Say on stderr what is not in the verdict; 1 if a run diverged or a stage failed."""
    note_left_out(outcome)
    diverged = [run.name for run in outcome.results.runs if run.run and run.run.status != "trained"]
    for name in diverged:
        note(f"{name} diverged; the others are compared without it")
    for failure in outcome.failures:
        note(f"{failure.model}: {failure.what} failed: {failure.error}: {failure.message}")
    if outcome.failures:
        note("What failed is left out. Run the same command to try it again.")
    return RUN_FAILED if diverged or outcome.failures else OK


def note_left_out(outcome: StudyOutcome) -> None:
    """Say what takes no part in a verdict, and why."""
    for name, reason in outcome.results.left_out.items():
        note(f"left out: {name} {reason}")
