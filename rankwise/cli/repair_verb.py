"""The verb that repairs an adapter without training it again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rankwise.cli import adapter_verbs
from rankwise.cli import application as cli
from rankwise.cli.running import judge_again
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, did_you_mean
from rankwise.records.folder import StudyFolder
from rankwise.records.names import find_run
from rankwise.records.repairs import (
    METHODS,
    OVER_ALL_LAYERS,
    REPAIR_FAMILIES,
    AdapterRepair,
    Repair,
    RepairFamily,
)

if TYPE_CHECKING:
    from rankwise.weights.audit import Audited
    from rankwise.weights.session import ScoreSettings


@cli.verb(adapter_verbs.ADAPTERS)
def repair(
    targets: Annotated[
        list[str],
        cli.argument(
            "DIR|BASE ADAPTER",
            "A study's folder, with --run; or a base and an adapter, each a folder or a hub "
            "repository. Additional adapters are averaged with the first.",
        ),
    ],
    max_retention_loss: Annotated[
        float,
        cli.option(
            "--max-loss POINTS",
            "Largest acceptable fall of the mean score over the retention tasks.",
            min=0.0,
        ),
    ],
    run: Annotated[str | None, cli.option("--run ID", adapter_verbs.RUN)] = None,
    by: Annotated[
        str | None,
        cli.option(
            "--by KIND[=VALUE],KIND",
            "Kinds of repair to try (default: all), or one with its value: scale=0.5, "
            "lines=0.25, energy=0.9, energy-global=0.9, heads=16, average=ties.",
        ),
    ] = None,
    tasks: Annotated[
        str, cli.option("--tasks TASK,TASK", "Tasks the adapter was trained for.")
    ] = "",
    retention: Annotated[
        str, cli.option("--retention TASK,TASK", "Tasks it should not forget.")
    ] = "",
    output: Annotated[
        Path | None,
        cli.path_option("--output FOLDER", "The folder to write; it must be new or empty."),
    ] = None,
    tasks_path: cli.TasksPath = None,
    allow_task_code: cli.AllowTaskCode = False,
    limit: adapter_verbs.ScoredLimit = None,
    num_fewshot: adapter_verbs.NumFewshot = None,
    chat_template: adapter_verbs.ChatTemplate = False,
    precision: adapter_verbs.ScorePrecision = "auto",
    any_base: adapter_verbs.AnyBase = False,
    as_json: cli.Json = False,
) -> int:
    """Change a trained adapter so that it forgets less, without training.

    Kinds of repair: scale (delta times 0.1 to 1), lines (less change in the
    first layers, LiNeS), energy (of each matrix the leading singular directions
    that hold 0.5 to 0.99 of its squared norm, or that of all matrices together),
    heads (the 1, 4, 16 ... most changed heads revert to the base), average (with
    the setting's other seeds, or with the additional adapters). The base and all
    repairs are scored in one pass.

    Among the repairs that are shown to keep the retention loss within the
    limit, the one with the largest gain is chosen. It is written with a model
    card, in a study to runs/ID/repair/adapter. If none is shown to gain and to
    keep enough, nothing is written.

    With --run, the tasks and settings are the study's: of the other options
    only --max-loss, --by and --json apply. Recorded scores are not computed
    again, even with another limit.
    """
    kinds = _kinds(by, max_retention_loss)
    problems: list[str] = []
    if run is not None:
        given = {
            "--tasks": tasks, "--retention": retention, "--output": output, "--limit": limit,
            "--num-fewshot": num_fewshot is not None, "--chat-template": chat_template,
            "--tasks-path": tasks_path, "--allow-task-code": allow_task_code,
            "--precision": precision != "auto", "--any-base": any_base,
        }  # fmt: skip
        names = [name for name, value in given.items() if value]
        problems += [f"{name} does not go with --run: the study has its own" for name in names]
        if len(targets) != 1:
            problems.append("--run is of one study's folder; give that alone")
        if problems:
            raise ConfigError("repair", problems)
        record = _of_run(cli.given_path(targets[0]), run, kinds, max_retention_loss)
    else:
        own, kept = cli.listed_names(tasks), cli.listed_names(retention)
        if len(targets) == 1:
            problems.append("give a base and an adapter, or a study's folder and --run")
        problems += ["--tasks names no task; name what was trained"] * (not own)
        problems += ["--retention names no task; name what should be kept"] * (not kept)
        problems += ["--output is missing; give a new folder"] * (output is None)
        if problems or output is None:
            raise ConfigError("repair", problems)
        quiet_libraries()
        from rankwise.engine.models.base_folder import trained_folder
        from rankwise.weights.audit import find_adapter
        from rankwise.weights.session import ScoreSettings

        settings = ScoreSettings(
            own,
            tuple(tasks_path or ()),
            allow_task_code,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=chat_template,
            precision=precision,
        )
        with cli.usage_errors():
            adapter_verbs.refuse_replacing(output)
            base, *names = targets
            folders = [trained_folder(cli.given_name(name), cli.note) for name in names]
            adapters = [
                find_adapter(base, folder, "repaired", any_base=any_base, report=cli.note)
                for folder in folders
            ]
            record = _of_adapters(adapters, settings, kept, kinds, max_retention_loss, output)
    if as_json:
        return cli.emit(record)
    _show(record)
    return cli.OK


def _show(record: AdapterRepair) -> None:
    from rankwise.cli.terminal import as_shown
    from rankwise.findings.repairs import ranks_statement
    from rankwise.report.sections.mitigations import repair_table

    cli.warn(record.warnings)
    cli.stdout.print(as_shown(repair_table(record.choice)))
    cli.say(record.choice.statement, style="bold")
    if (ranks := ranks_statement(record)) is not None:
        cli.say(ranks)
    if record.folder is not None:
        cli.say(f"repaired adapter: {record.folder}", folded=False)


Kinds = tuple[RepairFamily | Repair, ...]
"""What a repair may be: any of a family, or one of its repairs."""


def _of_run(directory: Path, name: str, kinds: Kinds, max_loss_points: float) -> AdapterRepair:
    """Repair a run of a study."""
    folder = StudyFolder(directory)
    study = folder.read_study()
    quiet_libraries()
    from rankwise.study.adapter_repair import RunRepairer, repair_tasks
    from rankwise.study.context import StudyContext
    from rankwise.study.planning.reopen import reopen_study
    from rankwise.study.progress import TerminalObserver
    from rankwise.study.stages.stage import check_trained

    chosen = find_run(study, name, "repair")
    tasks = repair_tasks(study, chosen)
    check_trained(folder, chosen)
    plan = reopen_study(study, (*tasks.in_domain, *tasks.retention), None, cli.note)
    with folder.lock(), TerminalObserver(cli.stderr) as observer:
        context = StudyContext.of(plan, folder, observer)
        record = RunRepairer(context, chosen, tasks, kinds).repair(max_loss_points)
    judge_again(folder)
    cli.note(f"records: {folder.adapter_repair_file(chosen.name).parent}")
    return record


def _of_adapters(
    adapters: list[Audited],
    settings: ScoreSettings,
    retention: tuple[str, ...],
    kinds: Kinds,
    max_loss_points: float,
    output: Path,
) -> AdapterRepair:
    """Repair the first adapter; the settings name the tasks in-domain."""
    from rankwise.weights.adapter_repair import AdapterRepairer, AskedTask, repair_adapter
    from rankwise.weights.session import ScoringSession, prepared_tasks

    first, *_ = adapters
    named = [(str(each.target), each.adapter) for each in adapters if each.adapter is not None]
    (name, adapter), *others = named
    precision = settings.resolved_precision
    own, kept = (
        prepared_tasks(first, settings._replace(tasks=names))
        for names in (settings.tasks, retention)
    )
    both = sorted({task.name for task in own} & {task.name for task in kept})
    if both:
        problem = f"{', '.join(both)} is in --tasks and in --retention; name it in one of them"
        raise ConfigError("repair", [problem])
    repairer = AdapterRepairer(
        model=name,
        adapter=adapter,
        base=first.base,
        in_domain=[AskedTask(task) for task in own],
        retention=[AskedTask(task) for task in kept],
        kinds=kinds,
        open_session=lambda: ScoringSession.of(first.base, precision),
        others=others,
        warnings=tuple(warning for each in adapters for warning in each.warnings),
    )
    repairer.refuse_unjudgeable()
    cli.note("deriving the candidates")
    num_models = 1 + len(repairer.derived)
    num_tokens = num_models * sum(task.num_tokens for task in (*own, *kept))
    with adapter_verbs.counted("scoring, tokens", num_tokens) as add:
        return repair_adapter(
            repairer, precision, max_loss_points=max_loss_points, output=output, advance=add
        )


def _kinds(by: str | None, max_loss_points: float) -> Kinds:
    """The kinds in their own order, and behind them those with a value: energy=0.9.

    Raises:
        ConfigError: there is no such kind, or it has no such repair, or the limit is not finite.
    """
    problems: list[str] = []
    families: list[RepairFamily] = []
    singles: list[Repair] = []
    for entry in REPAIR_FAMILIES if by is None else cli.listed_names(by):
        name, has_value, text = entry.partition("=")
        family: RepairFamily | None = next((each for each in REPAIR_FAMILIES if each == name), None)
        if family is None and name != OVER_ALL_LAYERS:
            known = (*REPAIR_FAMILIES, OVER_ALL_LAYERS)
            hint = did_you_mean(name, known) or f"there is {', '.join(known)}"
            problems.append(f"--by: no kind of repair is named {name!r}; {hint}")
        elif family is not None and not has_value:
            families.append(family)
        elif (single := Repair.asked(name, text)) is not None:
            singles.append(single)
        else:
            takes = METHODS[family or "energy"].takes
            problems.append(f"--by: {entry} is not a repair; {name} takes {takes}")
    if not math.isfinite(max_loss_points):  # NaN passes the option's own bound
        problems.append("--max-loss is not a finite number; give one")
    if not families and not singles and not problems:
        problems.append(f"--by names no kind of repair; there is {', '.join(REPAIR_FAMILIES)}")
    if problems:
        raise ConfigError("repair", problems)
    return *(each for each in REPAIR_FAMILIES if each in families), *singles
