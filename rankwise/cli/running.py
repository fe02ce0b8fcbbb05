"""Runs a study for a verb, and says what came of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.cli import application as cli
from rankwise.cli.cards import idle_cards, unseen_card
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, RecordError, StorageError
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import refuse_foreign

if TYPE_CHECKING:
    from rankwise.cli.events import Events
    from rankwise.engine.models.devices import Machine
    from rankwise.study.conclusion import StudyOutcome
    from rankwise.study.executors.ray import RayExecutor
    from rankwise.study.planning.plan import StudyPlan


class Telling(cli.Answering):
    """A verb that prints events: the last of them tells of wrong options."""

    def tell(self, name: str, message: str) -> None:
        """Print the only event."""
        from rankwise.cli.events import Events, print_event

        Events(print_event).ended("error", cli.USAGE, message=f"{name}: {message}")


def planned_study(
    config: StudyConfig,
    folder: StudyFolder,
    machine: Machine | None = None,
    report: Callable[[str], None] = cli.note,
    num_workers: int = 1,
) -> StudyPlan:
    """Plan a study as it goes on in its folder, for some workers, and print its warnings."""
    quiet_libraries()
    from rankwise.study.planning.plan import plan_study

    plan = plan_study(config, report, folder=folder, machine=machine, num_workers=num_workers)
    cli.warn(plan.record.warnings)
    return plan


def run_and_report(
    find: Callable[[Events | None], tuple[StudyConfig, StudyFolder]],
    *,
    quiet: bool,
    as_json: bool,
    replace: bool = False,
    accept_new_stack: bool = False,
    cluster: Callable[[], contextlib.AbstractContextManager[RayExecutor]] | None = None,
) -> int:
    """Do what is left of a study, and report.

    Args:
        find: gives the study; it may tell of it by events, if there are any.
        quiet: show warnings alone.
        as_json: write events, and no text.
        replace: see ``run_study``, as for the next.
        accept_new_stack: put scores beside those of another stack.
        cluster: has the units done; None: this process does them.
    """
    quiet_libraries()
    from rankwise.cli.events import EventObserver, Events, print_event
    from rankwise.integrations.tracking import followed
    from rankwise.study.conclusion import judged_again
    from rankwise.study.progress import Follower, QuietObserver, TerminalObserver
    from rankwise.study.stopping import Stopped
    from rankwise.study.unchanged import concluded_again

    # a cluster redirects stdout
    events = Events(partial(print_event, output=sys.stdout)) if as_json else None
    place = ""
    try:
        with events or contextlib.nullcontext(), contextlib.ExitStack() as stack:
            if quiet and as_json:
                problem = "--quiet does not go with --json, which shows no other progress; give one"
                raise ConfigError("run", [problem])
            config, folder = find(events)
            reported = partial(_reported, folder, events)
            report = (lambda _: None) if quiet or as_json else cli.note
            place = str(folder.root)
            # before hours of work, where the page would take the place of a user's
            remedy = f"move it away, or replace it by `rankwise report {place} --overwrite`"
            refuse_foreign(folder.root, [folder.report_file.name], remedy=remedy)
            if (judged := judged_again(folder, config)) is not None:
                cli.note("only the margins differ: the finished study is judged again")
                return reported(judged)
            if (again := concluded_again(folder, config)) is not None:
                cli.warn(again.results.study.warnings)
                report("everything is done; nothing is trained or scored again")
                return reported(again)
            from rankwise.study.growing import run_to_verdict
            from rankwise.study.run import RunTerms

            shown: Follower
            if events is not None:
                shown = EventObserver(events, folder)
            elif quiet:
                shown = QuietObserver(cli.stderr, folder)
            else:
                shown = TerminalObserver(cli.stderr, folder, is_open=config.is_open)
            places = None if cluster is None else stack.enter_context(cluster())
            machine, number = (None, 1) if places is None else (places.machine, places.num_workers)
            if places is None:
                _say_cards(place, report)
            with followed(shown, folder, config) as (observer, concluded):
                outcome = run_to_verdict(
                    config,
                    lambda grown: planned_study(grown, folder, machine, report, number),
                    folder,
                    observer,
                    RunTerms(replace, accept_new_stack, places),
                )
                concluded(outcome)
            if places is None:  # elsewhere work takes another time
                shown.remember()
            stack.close()
            return reported(outcome)
    except Stopped as stopped:
        cli.note(f"stopped by {stopped}; finished work is kept. To go on: rankwise run {place}")
        return 128 + stopped.number


def _say_cards(place: str, report: Callable[[str], None]) -> None:
    """Warn of a card that is not seen, and say how to use those that idle."""
    cli.warn(filter(None, [unseen_card()]))
    if (idle := idle_cards(place)) is not None:
        report(idle)


def _reported(folder: StudyFolder, events: Events | None, outcome: StudyOutcome) -> int:
    """Write the report, and print the verdict or the last event; 1 if something failed."""
    if events is None:
        return report_on(folder, outcome)
    from rankwise.api import written_report
    from rankwise.findings.statements import in_commands

    path, code = written_report(folder, outcome), _exit_code(outcome)
    fields = {"train_task", "outcome", "rank", "mean_rank", "statement"}
    parts = outcome.recommendation.by_train_task
    said = [in_commands(part.model_dump(include=fields), folder.root) for part in parts]
    events.ended("incomplete" if code else "done", code, recommendations=said, report=path)
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
    from rankwise.cli.terminal import verdict_cards

    if not as_json:
        cli.stdout.print(*verdict_cards(*outcome, folder.root), sep="\n")
    path = written_report(folder, outcome, output, overwrite=overwrite, with_texts=with_texts)
    if as_json:
        cli.emit({**verdict_content(outcome, folder.root), "report": path})
    else:
        cli.say(f"report: {path}", folded=False)
    return _exit_code(outcome)


def verdict_content(outcome: StudyOutcome, root: Path | None) -> dict[str, Any]:
    """What a program reads of a verdict: the record, what people are shown beside it, and why.

    Commands name the study's folder, if there is one.
    """
    from rankwise.findings.statements import in_commands

    content = {
        **outcome.recommendation.model_dump(mode="json"),
        **outcome.findings.with_lines,
        "left_out": outcome.results.left_out,
        "failures": outcome.failures,
    }
    return content if root is None else in_commands(content, root)


def _exit_code(outcome: StudyOutcome) -> int:
    """Say on stderr what is not in the verdict; 1 if a run diverged or a stage failed."""
    note_left_out(outcome)
    runs = [model.run for model in outcome.results.runs if model.run is not None]
    diverged = [run for run in runs if run.status != "trained"]
    for run in diverged:
        cli.note(f"{run.planned.name} {run.ending}; the others are compared without it")
    for failure in outcome.failures:
        cli.note(f"{failure.model}: {failure.what} failed: {failure.error}: {failure.message}")
    if outcome.failures:
        cli.note("What failed is left out. Run the same command to try it again.")
    return cli.RUN_FAILED if diverged or outcome.failures else cli.OK


def keep(folder: StudyFolder, outcome: StudyOutcome, *, settings: bool = False) -> None:
    """Write what was concluded; a folder that cannot be written is read all the same."""
    from rankwise.study import conclusion

    try:
        conclusion.keep(folder, outcome, settings=settings)
    except StorageError as error:
        if settings:
            raise
        cli.note(f"not kept, and not counted as a look: {error}")


def judge_again(folder: StudyFolder) -> None:
    """Write the verdict with what was found since, as far as anything can be concluded."""
    from rankwise.study.conclusion import conclude

    with contextlib.suppress(RecordError):
        keep(folder, conclude(folder))


def note_left_out(outcome: StudyOutcome) -> None:
    """Say what takes no part in a verdict, and why."""
    for name, reason in outcome.results.left_out.items():
        cli.note(f"left out: {name} {reason}")
    for note in outcome.results.notes:
        cli.note(note)
