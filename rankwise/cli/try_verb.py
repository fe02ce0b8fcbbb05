"""The verb that takes people's own rows and nothing else, and ends in a verdict."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rankwise.cli.application import (
    AsEvents,
    argument,
    given_name,
    is_terminal,
    note,
    option,
    say,
    usage_errors,
    verb,
    warn,
)
from rankwise.cli.budgets import given_seconds, measured_rate, told_lines
from rankwise.cli.run_verbs import STUDIES, StudyDir
from rankwise.cli.running import Telling, run_and_report
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError
from rankwise.records import quantities
from rankwise.records.config.own_rows import ColumnsConfig, data_name
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_regular, write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config, validated

if TYPE_CHECKING:
    from rankwise.cli.events import Events
    from rankwise.study.budgets import Fitted
    from rankwise.study.planning.plan import StudyPlan
    from rankwise.study.trial import Enough, Size, Trial

NUM_EXAMPLES = 3

MOST_SHOWN = 500
"""Characters of an example's prompt, and of its answer."""

_JUDGED_BY = {
    "choice": "as a choice among the {number} answers that occur, by the right one's probability",
    "json": "as JSON, field by field",
    "number": "by the number behind '####' that a model writes",
    "loss": "by the loss of their answers, in nats per token",
}


@verb(STUDIES, "try", kind=Telling)
def try_data(
    data: Annotated[
        str,
        argument(
            "DATA",
            "Your rows: a JSON Lines, JSON, CSV or Parquet file, or a data set on the Hub: "
            "org/name, or org/name:config@revision/split.",
            parser=given_name,
        ),
    ],
    model: Annotated[
        str, option("--model NAME", "An embedded model, folder or hub name.", parser=given_name)
    ] = "smollm2-135m-instruct",
    budget: Annotated[
        float, option("--budget TIME", "Target duration, such as 10m or 2h.", parser=given_seconds)
    ] = "10m",  # pyright: ignore[reportArgumentType]  # typer parses it
    column: Annotated[
        list[str] | None,
        option(
            "--column ROLE=COLUMN",
            "Map a column to prompt, input, system, completion or messages; can be repeated.",
        ),
    ] = None,
    study_dir: StudyDir = None,
    yes: Annotated[
        bool, option("--yes", "Do not ask whether a guess at the columns is right.")
    ] = False,
    as_json: AsEvents = False,
) -> int:
    """Run a study on your own rows within a time budget: from file to verdict.

    Shows the column mapping, how rows are rendered, which tokens are trained
    on, and a plan that fits the budget on this machine. Then runs the plan.
    Where the columns had to be guessed, a terminal is asked before.
    DIR/study.yaml has all settings: rankwise run resumes or repeats the study.
    """
    from rankwise.study import trial as trials
    from rankwise.tasks.own_rows import rows_kept

    quiet_libraries()
    place = Path(data).expanduser()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", data_name(place)).strip("-._") or "study"
    folder = StudyFolder(study_dir or Path("studies") / name)
    options = [f"--column {shlex.quote(each)}" for each in column or ()]
    options += [f"--model {shlex.quote(model)}", f"--budget {budget:g}s"]
    command = " ".join(["rankwise try", shlex.quote(data), *options])

    def find(events: Events | None) -> tuple[StudyConfig, StudyFolder]:
        if not _is_begun(folder, command):
            parts = [each.partition("=") for each in column or ()]
            roles = {role: name for role, _, name in parts}
            columns = validated(ColumnsConfig, roles, "--column") if roles else None
            with rows_kept():
                with usage_errors():
                    trial = trials.recognised(place, model, columns, note)
                fitted = _told_and_fitted(trial, name, budget, events)
            if trial.own.guessed and events is None and not yes:
                _ask_about(trial.own.guessed)
            settings = trials.settings_of(trial, fitted.choice, name, folder.root)
            text = trials.study_file_text(trial, settings, command)
            write_atomically(folder.settings_file, text)
        config = load_config(folder.settings_file)
        if events is None:
            say(f"study file: {folder.settings_file}", folded=False)
        return config, folder

    return run_and_report(find, quiet=False, as_json=as_json)


def _ask_about(guessed: Mapping[str, str]) -> None:
    """Ask whether the columns are right, where somebody can answer.

    Raises:
        ConfigError: they are not.
    """
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return
    if not typer.confirm("Train on these rows, as shown?", default=True, err=True):
        from rankwise.tasks.columns import column_options

        raise ConfigError("try", [f"name the columns, such as {column_options(guessed)}"])


def _is_begun(folder: StudyFolder, command: str) -> bool:
    """Whether this command has been here before, and is to go on."""
    file = folder.settings_file
    if not file.exists():
        if folder.study_file.exists():
            problem = "there is another study in the folder; give another --study-dir"
            raise ConfigError(str(folder.root), [problem])
        return False
    first_line, _, _ = read_regular(file).decode().partition("\n")
    if first_line != f"# {command}":
        problem = (
            f"it was written by another command ({first_line.removeprefix('# ')}); go on with it "
            f"by rankwise run {file}, or give another --study-dir"
        )
        raise ConfigError(str(file), [problem])
    note(f"going on with {file}")
    return True


def _told_and_fitted(trial: Trial, name: str, budget: float, events: Events | None) -> Fitted[Size]:
    """Measure and plan, and tell all of it: in words, or by an event."""
    from rankwise.study import trial as trials
    from rankwise.study.budgets import resolution
    from rankwise.study.planning.plan import plan_study

    for line in recognised_lines(trial) if events is None else ():
        say(line)
    # the smallest study of these rows says which model is asked for
    smallest = StudyConfig.model_validate(trials.settings_of(trial, trials.SIZES[0], name))
    rate = measured_rate(plan_study(smallest, note))
    fitted = trials.fitted(trial, name, budget, rate, partial(plan_study, report=note))
    planned = fitted.plan
    wanted = trials.enough(trial, name, fitted.choice, rate, partial(plan_study, report=note))
    if events is None:
        for line in (*example_lines(planned), *plan_lines(trial, fitted, budget, rate)):
            say(line)
        if wanted is not None:
            say(_too_small(fitted.choice, wanted))
    else:
        events.write(
            "fitted",
            own_data=planned.record.own_data,
            base_model=trial.base_model,
            has_chat_template=trial.has_chat_template,
            examples=[shown._asdict() for shown in _examples(planned)],
            size=fitted.choice._asdict(),
            num_items={name: task.num_items for name, task in planned.tasks.items()},
            **resolution(planned).content(),
            seconds=fitted.seconds,
            budget_seconds=budget,
            fits=fitted.fits,
            scored_tokens_per_second=rate,
            left_out=list(trials.left_out(trial, fitted.choice)),
            enough=None if wanted is None else wanted._asdict(),
        )
    warn(planned.record.warnings)
    return fitted


def _too_small(size: Size, wanted: Enough) -> str:
    """What a study of this size cannot say, and the budget of one that can."""
    what = "This budget holds few held-out rows: only large differences will show."
    if len(size.ranks) == 1:
        what = "This budget holds one rank: whether it helps will show, not which rank is enough."
    minutes = math.ceil(wanted.budget_seconds / 60.0)
    return (
        f"{what} --budget {minutes}m holds {wanted.num_ranks} ranks and "
        f"{quantities.counted(wanted.num_held_out, 'held-out row')}."
    )


def recognised_lines(trial: Trial) -> Iterator[str]:
    """What was read, and what was taken for what."""
    own = trial.own
    same = len(own.raw.rows) - len(own.rows) - own.num_without_answer
    repeated = f", {quantities.count(same)} of them repeated" if same else ""
    if own.num_without_answer:
        repeated += f", {quantities.count(own.num_without_answer)} without an answer left out"
    num_rows = quantities.counted(len(own.raw.rows), "row")
    yield f"{own.raw.source}: {own.raw.format}, {num_rows}{repeated}"
    for read in own.columns:
        roles = ", ".join(f"{role} = {column}" for role, column in read.columns.items())
        unread = f"; not read: {', '.join(read.unread)}" if read.unread else ""
        num_read = quantities.counted(read.num_rows, "row")
        how = "by a guess" if read.convention == "guess" else f"as {read.convention}"
        yield f"  {num_read} {how}: {roles}{unread}"
    if not trial.has_chat_template:
        yield f"chat template: none; {trial.base_model} has none, so rows are plain text"
    elif any(row.is_conversation for row in own.rows):
        yield f"chat template: the one of {trial.base_model}"
    else:
        yield "chat template: none; rows are whole texts"


class _ShownRow(NamedTuple):
    """A row as the model reads it, long texts cut."""

    prompt: str
    learned: str
    num_tokens: int
    num_loss_tokens: int


def _examples(plan: StudyPlan) -> Iterator[_ShownRow]:
    """The first rows that are trained on."""
    (examples,) = plan.examples.values()
    for example in examples[:NUM_EXAMPLES]:
        begin = len(example.tokens) - example.num_loss_tokens
        prompt, learned = (
            _cut(plan.tokenizer.decode(tokens))
            for tokens in (example.tokens[:begin], example.tokens[begin:])
        )
        yield _ShownRow(prompt, learned, len(example.tokens), example.num_loss_tokens)


def example_lines(plan: StudyPlan) -> Iterator[str]:
    """Rows as the model reads them; what it learns stands between >> and <<."""
    shown = list(_examples(plan))
    yield f"{quantities.counted(len(shown), 'row')} as read; >>this<< is learned:"
    for example in shown:
        num_learned = quantities.counted(example.num_loss_tokens, "token")
        yield f"--- {num_learned} of {example.num_tokens} learned"
        yield f"{example.prompt}>>{example.learned}<<"
    yield "---"


def _cut(text: str) -> str:
    if len(text) <= MOST_SHOWN:
        return text
    half = MOST_SHOWN // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def plan_lines(
    trial: Trial, fitted: Fitted[Size], budget: float, rate: float | None
) -> Iterator[str]:
    """What is trained and scored, how long it takes, and what it will be able to tell."""
    from rankwise.study.trial import left_out

    size, plan = fitted.choice, fitted.plan
    (examples,) = plan.examples.values()
    ranks = quantities.listed([str(rank) for rank in size.ranks])
    full = " and full fine-tuning" if size.has_full else ""
    rows = quantities.counted(len(examples), "row")
    times = "once" if size.epochs == 1 else f"{size.epochs} times"
    yield f"trained: rank {ranks}{full}, on {rows}, {times}"
    (relations,) = plan.record.tasks.values()
    own = plan.record.own_data
    held_out = plan.tasks[relations["in_domain"][0]].num_items
    how = _JUDGED_BY[trial.judged_by].format(number=0 if own is None else len(own.answers))
    yield f"scored: {quantities.counted(held_out, 'held-out row')}, {how}"
    others = [*relations["retention"], *relations["held_out_text"]]
    items = ", ".join(f"{name} ({plan.tasks[name].num_items})" for name in others)
    yield f"and what the base knows: {items}"
    yield from told_lines(plan)
    speed = "by what the last study of this model took here"
    if rate is not None:
        speed = f"this machine scores {quantities.count(round(rate))} tokens per second"
    within = f"{quantities.seconds(fitted.seconds)} of {quantities.seconds(budget)}"
    yield f"time: about {within}; {speed}"
    if not fitted.fits:
        yield "That is longer than the time that was given; smaller studies tell nothing."
    yield f"left out: {'; '.join(left_out(trial, size))}"
