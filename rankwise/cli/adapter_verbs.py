"""Verbs for adapters and checkpoints: audit, ablate heads, check what was lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Annotated

from rankwise.cli import application as cli
from rankwise.cli.running import judge_again
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, RankwiseError
from rankwise.records import fields
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.config.training import Precision
from rankwise.records.deployment import DeploymentCheck, FormVerdict, MergeMethod, worst
from rankwise.records.files import write_atomically, write_record
from rankwise.records.folder import StudyFolder
from rankwise.records.forms import is_served
from rankwise.records.heads import HeadMode
from rankwise.records.names import find_run
from rankwise.records.outputs import refuse_foreign
from rankwise.records.study_file import load_contract

ADAPTERS = "Adapters and checkpoints"

CHECK_RECORD, CHECK_REPORT = "deployment.json", "report.md"
EXIT_CODES: dict[FormVerdict, int] = {"keeps": cli.OK, "loses": 1, "cannot_tell": 3}

Base = Annotated[
    str,
    cli.argument(
        "BASE",
        "The base: smollm2-135m-instruct, a folder or a hub repository.",
        parser=cli.given_name,
    ),
]
AnyBase = Annotated[
    bool, cli.option("--any-base", "Accept an adapter trained on a base of another name.")
]
Contract = Annotated[
    Path | None,
    cli.path_option(
        "--contract FILE",
        "Also score sets of your own rows. The YAML file lists them as `evaluation.own` of a study "
        "file does. Each may give its own max_loss.",
    ),
]
ScoredLimit = Annotated[
    int | None, cli.option("--limit N", "Score N items of each task, drawn at random.", min=2)
]
NumFewshot = Annotated[
    int | None,
    cli.option(
        "--num-fewshot N", "Examples in each prompt (default: the task's own number).", min=0
    ),
]
ChatTemplate = Annotated[bool, cli.option("--chat-template", "Use the model's chat template.")]


RUN = "The run: its name, its rank, or any unique part of the name (r4-s0)."


PRECISION = "--precision auto|float32|bfloat16"
ScorePrecision = Annotated[Precision, cli.option(PRECISION, "The precision of scoring.")]


@cli.verb(ADAPTERS)
def audit(
    base: Base,
    adapter: Annotated[
        str,
        cli.argument(
            "ADAPTER_OR_CHECKPOINT",
            "A PEFT LoRA folder, a whole model's folder, or a hub repository.",
            parser=cli.given_name,
        ),
    ],
    tasks: Annotated[
        str | None, cli.option("--tasks TASK,TASK", "Score base and adapted model on these tasks.")
    ] = None,
    contract: Contract = None,
    tasks_path: cli.TasksPath = None,
    allow_task_code: cli.AllowTaskCode = False,
    limit: ScoredLimit = None,
    num_fewshot: NumFewshot = None,
    top_k: Annotated[
        int, cli.option("--top-k N", "Number of leading singular vectors to compare.", min=1)
    ] = 500,
    null_draws: Annotated[
        int, cli.option("--null-draws N", "Number of random updates of each kind.", min=0)
    ] = 2,
    precision: ScorePrecision = "auto",
    chat_template: ChatTemplate = False,
    any_base: AnyBase = False,
    output: Annotated[
        Path | None,
        cli.path_option("--output FOLDER", "The folder to write (default: audits/TARGET)."),
    ] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> int:
    """Analyse an adapter or a checkpoint without a study.

    Shows how large the update is and where, how many dimensions it uses, to
    which rank it can be cut, and whether it has intruder dimensions, each
    compared with random updates of the same size. With --tasks, also scores
    the base and the adapted model, paired item by item. Writes audit.json and
    the page audit.html.
    """
    quiet_libraries()
    from rankwise.engine.models.base_folder import trained_folder
    from rankwise.report.page import AUDIT_PAGE, AUDIT_RECORD, target_name, write_audit
    from rankwise.weights.audit import audit as look
    from rankwise.weights.audit import find_audited
    from rankwise.weights.session import ScoreSettings, audit_scores, prepared_tasks

    asked = ScoreSettings(
        cli.listed_names(tasks or ""),
        tuple(tasks_path or ()),
        allow_task_code,
        own={} if contract is None else load_contract(contract),
        num_fewshot=num_fewshot,
        limit=limit,
        chat_template=chat_template,
        precision=precision,
    )
    with cli.usage_errors():
        target = trained_folder(adapter, cli.note)
        folder = output or Path("audits") / target_name(Path(os.path.realpath(adapter)))
        # realpath, as Path.resolve raises on links that lead to themselves
        within, written = Path(os.path.realpath(target)), Path(os.path.realpath(folder))
        if within in (written, *written.parents):
            problem = f"--output {folder} is inside what is audited; choose another folder"
            raise ConfigError("audit", [problem])
        refuse_foreign(folder, (AUDIT_RECORD, AUDIT_PAGE), overwrite=overwrite)
        audited = find_audited(base, target, any_base=any_base, report=cli.note)
        prepared = prepared_tasks(audited, asked) if asked.tasks or asked.own else []
        scored = None
        if prepared:
            with counted("scoring, tokens", 2 * sum(task.num_tokens for task in prepared)) as add:
                scored = audit_scores(audited, prepared, asked, add)
        with counted("analysing the weights, matrices", len(audited.shapes)) as add:
            record = look(audited, top_k, null_draws, scored=scored, advance=lambda *_: add(1))
    page = write_audit(folder, record, overwrite=overwrite)
    if as_json:
        return cli.emit(record)
    cli.warn(record.warnings)
    for sentence in record.statements:
        cli.say(f"- {sentence}")
    cli.say(f"page: {page}", folded=False)
    return cli.OK


@cli.verb(ADAPTERS)
def heads(
    directory: cli.Folder,
    run: Annotated[str, cli.option("--run ID", RUN)],
    tasks: Annotated[str, cli.option("--tasks TASK,TASK", "Tasks scored by likelihood.")],
    mode: Annotated[
        HeadMode,
        cli.option(
            "--mode MODE",
            "Replace the head's output by zeros (ablate) or by its mean (ablate-mean).",
        ),
    ] = "ablate",
    top: Annotated[
        int | None,
        cli.option(
            "--top N",
            "Score only the N heads with the largest effects by gradient (default: all).",
            min=1,
        ),
    ] = None,
    items: Annotated[
        int | None, cli.option("--items N", "Items of each task (default: the study's).", min=4)
    ] = None,
    as_json: cli.Json = False,
) -> int:
    """Ablate a run's attention heads one at a time and score tasks.

    Every head of the trained model is ablated in turn, and as a control every
    head of the base. The effects are exact, with standard errors, and their
    intervals are corrected for the number of heads.

    The records are kept in the study's folder and shown in its report. Recorded
    effects are not computed again, and a stopped call goes on where it was.
    """
    folder = StudyFolder(directory)
    names = cli.listed_names(tasks)
    if not names:
        raise ConfigError("heads", ["--tasks names no task; name at least one"])

    study = folder.read_study()
    quiet_libraries()
    from rankwise.cli.terminal import as_shown
    from rankwise.findings.heads import MODE_NAMES
    from rankwise.heads.answers import check_tasks
    from rankwise.report.sections.heads import effect_table
    from rankwise.study.context import StudyContext
    from rankwise.study.head_effects import HeadQuestion, HeadStudy
    from rankwise.study.planning.reopen import reopen_study
    from rankwise.study.progress import TerminalObserver
    from rankwise.study.stages.stage import check_trained

    chosen = find_run(study, run)
    check_trained(folder, chosen)
    plan = reopen_study(study, names, items, cli.note)
    prepared = list(plan.tasks.values())
    check_tasks(prepared)
    with folder.lock(), TerminalObserver(cli.stderr) as observer:
        asked = HeadQuestion(mode, top)
        context = StudyContext.of(plan, folder, observer)
        effects = HeadStudy(context, chosen, asked).effects(prepared)
    judge_again(folder)
    if as_json:
        return cli.emit({"effects": effects})
    for task in effects:
        title = f"{task.task}: heads {MODE_NAMES[task.mode]}"
        cli.stdout.print(as_shown(effect_table(task), title))
    cli.note(
        f"records: {folder.model_folder(chosen.name) / 'heads'}; rankwise report {folder.root}"
    )
    return cli.OK


def _refuse_questions(
    adapters: Sequence[str],
    tasks: Sequence[str],
    *,
    forms: Sequence[str],
    contract: Path | None,
    merge: MergeMethod | None,
    margin: float,
) -> None:
    """Raises ConfigError with all that ``check`` cannot do as it is asked."""
    problems: list[str] = []
    try:
        fields.margin(margin)
    except ValueError as error:
        problems.append(f"--max-loss {error}")
    if not tasks and contract is None:
        problems.append("--tasks names no task; name at least one, or give a --contract")
    if merge and (len({*map(os.path.realpath, adapters)}) < max(2, len(adapters)) or forms):
        problems.append("--merge takes two different adapters at least, and no --forms")
    if not merge and len(adapters) > 1:
        problems.append(f"{len(adapters)} adapters are named; --merge says how to merge them")
    if problems:
        raise ConfigError("check", problems)


@cli.verb(ADAPTERS)
def check(
    base: Base,
    adapters: Annotated[
        list[str],
        cli.argument(
            "ADAPTER...",
            "A PEFT LoRA folder, or a hub repository; with --merge several.",
            parser=cli.given_name,
        ),
    ],
    tasks: Annotated[str, cli.option("--tasks TASK,TASK", "Tasks to score and compare.")] = "",
    contract: Contract = None,
    forms: Annotated[
        str,
        cli.option(
            "--forms FORM,FORM",
            "Check these deployed forms against the adapter: merged-bf16, merged-fp16, "
            "merged-fp32; with bitsandbytes merged-8bit, merged-4bit, and unmerged beside-8bit, "
            "beside-4bit (what QLoRA trains); gguf:q8_0, gguf:q5_1, gguf:q5_0, gguf:q4_1, "
            "gguf:q4_0; where llama-quantize is on the PATH, also gguf:q6_k, gguf:q5_k_m, "
            "gguf:q4_k_m and others. http://HOST:PORT/v1#MODEL asks a server.",
        ),
    ] = "",
    merge: Annotated[
        MergeMethod | None,
        cli.option(
            "--merge linear|ties|dare",
            "Merge the adapters by PEFT's add_weighted_adapter, each with weight 1, and compare "
            "the merged one with each alone.",
        ),
    ] = None,
    margin: Annotated[
        float,
        cli.option(
            "--max-loss, --max-retention-loss POINTS",
            "Largest acceptable fall of the mean score over the tasks. It also holds for each set "
            "of a contract without its own max_loss.",
        ),
    ] = 1.0,
    tasks_path: cli.TasksPath = None,
    allow_task_code: cli.AllowTaskCode = False,
    limit: ScoredLimit = None,
    num_fewshot: NumFewshot = None,
    chat_template: ChatTemplate = False,
    precision: Annotated[
        Precision | None,
        cli.option(PRECISION, "The precision of scoring (default: auto; with --forms float32)."),
    ] = None,
    any_base: AnyBase = False,
    output: Annotated[
        Path | None,
        cli.path_option(
            "--output FOLDER",
            f"Folder for {CHECK_RECORD} and {CHECK_REPORT}; it must be new or empty.",
        ),
    ] = None,
    as_json: cli.Json = False,
) -> int:
    """Check whether an adapter keeps its quality, as trained or deployed.

    Without --forms, compares the adapter with its base item by item: has it
    forgotten what the base knew? With --forms, puts base and adapter into each
    form (merged and rounded, or unmerged beside a rounded base), and compares
    that with the adapter as trained: does it survive deployment? A server that
    speaks OpenAI's completions is a form too: are its answers the adapter's?
    For merged forms the table also compares the rounding error with the
    adapter's update of the weights. Everything is done in memory.

    With --merge, compares several adapters merged into one with each of them:
    what does each lose by it? All are scored in one pass.

    With --contract, each set of your own rows is a clause: it is judged by
    itself, beside the mean over --tasks.

    Exit codes, for scripts: 0 if the mean loss, and that of each clause, is
    shown to be below --max-loss, 1 if one is shown to be above, 3 if undecided,
    2 for wrong usage or another error. A task that loses more by itself is
    named.
    """
    with cli.usage_errors((RankwiseError,)):
        wanted, names = cli.listed_names(forms), cli.listed_names(tasks)
        _refuse_questions(
            adapters, names, forms=wanted, contract=contract, merge=merge, margin=margin
        )
        clauses = {} if contract is None else load_contract(contract)
        if output is not None:
            refuse_replacing(output)
        quiet_libraries()
        from rankwise.engine.models.base_folder import trained_folder
        from rankwise.findings.deployment import LossRule
        from rankwise.weights.audit import find_adapter
        from rankwise.weights.combined import check_merge
        from rankwise.weights.deployment import Question, check_deployment, check_retention
        from rankwise.weights.forms import find_forms
        from rankwise.weights.session import CONFIDENCE, ScoreSettings, prepared_tasks

        settings = ScoreSettings(
            names,
            tuple(tasks_path or ()),
            allow_task_code,
            own=clauses,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=chat_template,
            precision=precision or ("float32" if wanted else "auto"),
        )
        servers = [each for each in wanted if is_served(each)]
        stored = [each for each in wanted if each not in servers]
        found_forms = find_forms(stored) if stored or (forms and not servers) else []
        use = "merged" if wanted or merge else "checked"
        folders = (trained_folder(each, cli.note) for each in adapters)
        found, *others = (
            find_adapter(base, each, use, any_base=any_base, report=cli.note) for each in folders
        )
        # tasks in nats have the margin of a study
        own = {name: clause.max_loss for name, clause in clauses.items()}
        rule = LossRule(margin, RecommendationConfig().delta_nats, CONFIDENCE, own)
        question = Question(prepared_tasks(found, settings), settings, rule)
        num_tokens = sum(task.num_tokens for task in question.tasks)
        num_models = 2 + len({*found_forms, *servers}) + len(adapters[1:]) + (merge is not None)
        with counted("scoring, tokens", num_models * num_tokens) as add:
            if merge:
                records = check_merge([found, *others], question, merge, add)
            elif wanted:
                records = (check_deployment(found, question, found_forms, add, servers=servers),)
            else:
                records = (check_retention(found, question, add),)
        if output is not None:
            numbered = [output / str(number + 1) for number in range(len(records))]
            _write_checks(records, numbered if merge else [output])
    if as_json:
        cli.emit({"checks": records} if merge else records[0])
    else:
        for record in records:
            if merge:
                cli.say(f"{record.adapter}:", folded=False)
            _say_check(record)
    return EXIT_CODES[worst([record.verdict for record in records])]


def _write_checks(records: Sequence[DeploymentCheck], folders: Sequence[Path]) -> None:
    from rankwise.findings.deployment import check_report

    for record, folder in zip(records, folders, strict=True):
        write_record(folder / CHECK_RECORD, record)
        write_atomically(folder / CHECK_REPORT, check_report(record))


def _say_check(record: DeploymentCheck) -> None:
    from rankwise.cli.terminal import as_shown
    from rankwise.report.sections.deployment import check_table

    cli.warn(record.warnings)
    cli.stdout.print(as_shown(check_table(record)))
    for form in record.forms:
        cli.say(f"- {form.statement}")


@contextlib.contextmanager
def counted(text: str, total: int) -> Generator[Callable[[int], None]]:
    """A line on stderr that counts up, if stderr is a terminal; yields what adds to the count."""
    done = 0
    with cli.stderr.status(text) as status:

        def add(number: int) -> None:
            nonlocal done
            done += number
            status.update(f"{text}: {done:,} of {total:,}")

        yield add


def refuse_replacing(output: Path) -> None:
    """Refuse an output folder that holds something.

    Raises:
        ConfigError: it exists and is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        problem = f"--output {output} exists and is not empty; choose another folder"
        raise ConfigError("rankwise", [problem])
