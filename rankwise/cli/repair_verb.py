"""The verb that repairs an adapter without training it again."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from rankwise.cli.adapter_verbs import (
    ADAPTERS,
    RUN,
    AnyBase,
    ScorePrecision,
    counted,
    refuse_replacing,
    score_settings,
)
from rankwise.cli.application import (
    OK,
    AllowTaskCode,
    Json,
    TasksPath,
    argument,
    emit,
    given_name,
    given_path,
    listed_names,
    note,
    option,
    say,
    stderr,
    stdout,
    usage_errors,
    verb,
    warn,
)
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, did_you_mean
from rankwise.records.repairs import METHODS, REPAIR_FAMILIES, AdapterRepair, Repair, RepairFamily

if TYPE_CHECKING:
    from rankwise.weights.audit import Audited
    from rankwise.weights.session import ScoreSettings


@verb(ADAPTERS)
def repair(
    targets: Annotated[
        list[str],
        argument(
            "DIR|BASE ADAPTER",
            "A study's folder, with --run; or a base and an adapter, each a folder or a hub "
            "repository. Additional adapters are averaged with the first.",
        ),
    ],
    max_retention_loss: Annotated[
        float,
        option(
            "--max-loss POINTS",
            "Largest acceptable fall of the mean score over the retention tasks.",
            min=0.0,
        ),
    ],
    run: Annotated[str | None, option("--run ID", RUN)] = None,
    by: Annotated[
        str | None,
        option(
            "--by KIND,KIND",
            "Kinds of repair to try (default: all), or one with its value: truncate=8, "
            "intruders=0.5.",
        ),
    ] = None,
    tasks: Annotated[
        str, option("--tasks TASK,TASK", "Tasks the adapter was trained for (no study).")
    ] = "",
    retention: Annotated[
        str, option("--retention TASK,TASK", "Tasks it should not forget (no study).")
    ] = "",
    output: Annotated[
        Path | None,
        option(
            "--output FOLDER",
            "The folder to write; it must be new or empty (no study).",
            parser=given_path,
        ),
    ] = None,
    tasks_path: TasksPath = None,
    allow_task_code: AllowTaskCode = False,
    limit: Annotated[
        int | None,
        option("--limit N", "Score N items of each task, drawn at random (no study).", min=2),
    ] = None,
    num_fewshot: Annotated[
        int | None, option("--num-fewshot N", "Examples in each prompt (no study).", min=0)
    ] = None,
    chat_template: Annotated[
        bool, option("--chat-template", "Use the model's chat template (no study).")
    ] = False,
    precision: Annotated[
        ScorePrecision,
        option(f"--precision {'|'.join(ScorePrecision)}", "The precision of scoring (no study)."),
    ] = ScorePrecision.AUTO,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> int:
    """Change a trained adapter so that it forgets less, without training.

    Kinds of repair: scale (delta times 0.1 to 1), lines (less change in the
    first layers, LiNeS), truncate (half the rank, a quarter ...), refine
    (truncations that the study trained further), heads (the 1, 4, 16 ... most
    changed heads revert to the base), intruders (shrink the intruder
    dimensions), average (with the setting's other seeds, or with the additional
    adapters). The base and all repairs are scored in one pass.

    Among the repairs that are shown to keep the retention loss within the
    limit, the one with the largest gain is chosen. It is written with a model
    card, in a study to runs/ID/repair/adapter. If none is shown to gain and to
    keep enough, nothing is written. The table also has the KL divergence from
    the base on the in-domain prompts, and a line says how well it ranks the
    losses. KL does not affect the choice.

    In a study, the study's tasks are used (without --tasks-path,
    --allow-task-code and --any-base), and recorded scores are not computed
    again, even with another limit.
    """
    asked = _asked(by, max_retention_loss)
    if run is not None:
        given = {
            "--tasks": tasks, "--retention": retention, "--output": output, "--limit": limit,
            "--num-fewshot": num_fewshot is not None, "--chat-template": chat_template,
            "--tasks-path": tasks_path, "--allow-task-code": allow_task_code,
            "--precision": precision is not ScorePrecision.AUTO, "--any-base": any_base,
        }  # fmt: skip
        _refuse_with_study(targets, [name for name, value in given.items() if value])
        record = _of_run(given_path(targets[0]), run, asked)
    else:
        quiet_libraries()
        own, kept = listed_names(tasks), listed_names(retention)
        _refuse_incomplete(targets, own, kept, output)
        assert output is not None
        settings = score_settings(
            own,
            tasks_path,
            allow_task_code,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=chat_template,
            precision=precision,
        )
        adapters = _found(targets, output, any_base)
        record = _of_adapters(adapters, settings, kept, asked, output)
    if as_json:
        return emit(record)
    from rankwise.cli.terminal import as_shown
    from rankwise.report.sections.mitigations import repair_table

    warn(record.warnings)
    stdout.print(as_shown(repair_table(record.choice)))
    say(record.choice.statement, style="bold")
    if record.choice.kl_statement is not None:
        say(record.choice.kl_statement)
    if record.folder is not None:
        say(f"repaired adapter: {record.folder}", folded=False)
    return OK


class _Asked(NamedTuple):
    """What a repair is to be: of some kinds, within a limit in points."""

    kinds: tuple[RepairFamily | Repair, ...]
    max_loss_points: float


def _of_run(directory: Path, name: str, asked: _Asked) -> AdapterRepair:
    """Repair a run of a study."""
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    study = folder.read_study()
    quiet_libraries()
    from rankwise.records.names import find_run
    from rankwise.study.context import StudyContext
    from rankwise.study.planning.reopen import reopen_study
    from rankwise.study.progress import TerminalObserver
    from rankwise.study.stages.stage import check_trained
    from rankwise.study.work.adapter_repair import RunRepairer, repair_tasks

    chosen = find_run(study, name, "repair")
    tasks = repair_tasks(study, chosen)
    check_trained(folder, chosen)
    plan = reopen_study(study, (*tasks.in_domain, *tasks.retention), None, note)
    with folder.lock(), TerminalObserver(stderr) as observer:
        context = StudyContext.of(plan, folder, observer)
        repairer = RunRepairer(context, chosen, tasks, asked.kinds)
        record = repairer.repair(asked.max_loss_points)
    note(f"records: {folder.adapter_repair_file(chosen.name).parent}")
    return record


def _found(targets: list[str], output: Path, any_base: bool) -> list[Audited]:
    """The adapters of a base, checked against it."""
    from rankwise.engine.models.base import trained_folder
    from rankwise.weights.audit import find_adapter

    base, *names = targets
    with usage_errors():
        refuse_replacing(output)
        folders = [trained_folder(given_name(name), note) for name in names]
        return [
            find_adapter(base, folder, "repaired", any_base=any_base, report=note)
            for folder in folders
        ]


def _of_adapters(
    adapters: list[Audited],
    settings: ScoreSettings,
    retention: tuple[str, ...],
    asked: _Asked,
    output: Path,
) -> AdapterRepair:
    """Repair the first adapter; the settings name the tasks in-domain."""
    from rankwise.engine.models.base import load_tokenizer
    from rankwise.weights.adapter_repair import (
        AdapterRepairer,
        AskedTask,
        refuse_unjudgeable,
        repair_adapter,
    )
    from rankwise.weights.session import ScoringSession, prepared_tasks

    first, *others = adapters
    precision = settings.resolved_precision
    with usage_errors():
        own, kept = (
            prepared_tasks(first, settings._replace(tasks=names))
            for names in (settings.tasks, retention)
        )
        both = sorted({task.name for task in own} & {task.name for task in kept})
        if both:
            problem = f"{', '.join(both)} is in --tasks and in --retention; name it in one of them"
            raise ConfigError("repair", [problem])
        refuse_unjudgeable(own, kept)
        note("deriving the candidates")
        repairer = AdapterRepairer(
            model=str(first.target),
            folder=first.target,
            base=first.base,
            tokenizer=load_tokenizer(first.base.folder),
            in_domain=[AskedTask(task) for task in own],
            retention=[AskedTask(task) for task in kept],
            kinds=asked.kinds,
            open_session=lambda: ScoringSession.of(first.base, precision),
            others=[(str(other.target), other.target) for other in others],
            warnings=tuple(warning for each in adapters for warning in each.warnings),
        )
        num_models = 1 + len(repairer.derived)
        num_tokens = num_models * sum(task.num_tokens for task in (*own, *kept))
        with counted("scoring, tokens", num_tokens) as add:
            return repair_adapter(
                repairer,
                precision,
                max_loss_points=asked.max_loss_points,
                output=output,
                advance=add,
            )


def _asked(by: str | None, max_loss_points: float) -> _Asked:
    """The kinds in their own order, those with a value behind them, and the limit."""
    problems: list[str] = []
    kinds: list[RepairFamily | Repair] = []
    for entry in REPAIR_FAMILIES if by is None else listed_names(by):
        try:
            kinds.append(_kind(entry))
        except ValueError as error:
            problems.append(f"--by: {error}")
    if not math.isfinite(max_loss_points):  # NaN passes the option's own bound
        problems.append("--max-loss is not a finite number; give one")
    if not kinds and not problems:
        problems.append(f"--by names no kind of repair; there is {', '.join(REPAIR_FAMILIES)}")
    if problems:
        raise ConfigError("repair", problems)
    singles = [kind for kind in kinds if isinstance(kind, Repair)]
    return _Asked((*(each for each in REPAIR_FAMILIES if each in kinds), *singles), max_loss_points)


def _kind(entry: str) -> RepairFamily | Repair:
    """A family, or one repair of it: truncate=8.

    Raises:
        ValueError: there is no such family, or it has no such repair.
    """
    name, has_value, text = entry.partition("=")
    family: RepairFamily | None = next((each for each in REPAIR_FAMILIES if each == name), None)
    if family is None:
        hint = did_you_mean(name, REPAIR_FAMILIES) or f"there is {', '.join(REPAIR_FAMILIES)}"
        raise ValueError(f"no kind of repair is named {name!r}; {hint}")
    if not has_value:
        return family
    single = METHODS[family].single
    if single is not None and re.fullmatch(single, text):
        return Repair(family=family, value=float(text))
    raise ValueError(
        f"{entry} is not a repair; a value is for truncate (a rank of 1 or more) and for intruders "
        "(a factor from 0 to 1)"
    )


def _refuse_with_study(targets: list[str], given: list[str]) -> None:
    """Of a run of a study, everything but the run, the limit and the kinds is the study's."""
    problems = [f"{name} does not go with --run: the study has its own" for name in given]
    if len(targets) != 1:
        problems.append("--run is of one study's folder; give that alone")
    if problems:
        raise ConfigError("repair", problems)


def _refuse_incomplete(
    targets: list[str], own: tuple[str, ...], kept: tuple[str, ...], output: Path | None
) -> None:
    """Without a study, the adapters, the tasks and the output have to be named."""
    problems: list[str] = []
    if len(targets) == 1:
        problems.append("give a base and an adapter, or a study's folder and --run")
    problems += ["--tasks names no task; name what was trained"] * (not own)
    problems += ["--retention names no task; name what should be kept"] * (not kept)
    problems += ["--output is missing; give a new folder"] * (output is None)
    if problems:
        raise ConfigError("repair", problems)
