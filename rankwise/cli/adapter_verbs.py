"""Verbs for adapters and checkpoints: audit, ablate heads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from rankwise.cli.application import (
    OK,
    AllowTaskCode,
    Folder,
    Json,
    Overwrite,
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
from rankwise.errors import ConfigError
from rankwise.records.outputs import refuse_foreign
from rankwise.records.study_file import load_contract

if TYPE_CHECKING:
    from rankwise.records.config.own_rows import OwnSetConfig
    from rankwise.weights.session import ScoreSettings

ADAPTERS = "Adapters and checkpoints"

Base = Annotated[
    str, argument("BASE", "The base: smollm2-135m-instruct, a folder or a hub repository.")
]
Adapter = Annotated[
    str, argument("ADAPTER", "A PEFT LoRA folder, or a hub repository.", parser=given_name)
]
AnyBase = Annotated[
    bool, option("--any-base", "Accept an adapter trained on a base of another name.")
]
Contract = Annotated[
    Path | None,
    option(
        "--contract FILE",
        "Also score sets of your own rows. The YAML file lists them as `evaluation.own` of a study "
        "file does. Each may give its own max_loss.",
        parser=given_path,
    ),
]
ScoredLimit = Annotated[
    int | None, option("--limit N", "Score N items of each task, drawn at random.", min=2)
]
NumFewshot = Annotated[
    int | None,
    option("--num-fewshot N", "Examples in each prompt (default: the task's own number).", min=0),
]
ChatTemplate = Annotated[bool, option("--chat-template", "Use the model's chat template.")]


RUN = "The run: its name, its rank, or any unique part of the name (r4-s0)."


class ScorePrecision(StrEnum):
    """The precision in which models are scored."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Mode(StrEnum):
    """How a head is switched off."""

    ABLATE = "ablate"
    ABLATE_MEAN = "ablate-mean"
    REVERT = "revert"


@verb(ADAPTERS)
def audit(
    base: Base,
    adapter: Annotated[
        str,
        argument(
            "ADAPTER_OR_CHECKPOINT",
            "A PEFT LoRA folder, a whole model's folder, or a hub repository.",
            parser=given_name,
        ),
    ],
    tasks: Annotated[
        str | None, option("--tasks TASK,TASK", "Score base and adapted model on these tasks.")
    ] = None,
    contract: Contract = None,
    tasks_path: TasksPath = None,
    allow_task_code: AllowTaskCode = False,
    limit: ScoredLimit = None,
    num_fewshot: NumFewshot = None,
    top_k: Annotated[
        int, option("--top-k N", "Number of leading singular vectors to compare.", min=1)
    ] = 500,
    null_draws: Annotated[
        int, option("--null-draws N", "Number of random updates of each kind.", min=0)
    ] = 2,
    precision: Annotated[
        ScorePrecision,
        option(f"--precision {'|'.join(ScorePrecision)}", "The precision of scoring."),
    ] = ScorePrecision.AUTO,
    chat_template: ChatTemplate = False,
    any_base: AnyBase = False,
    output: Annotated[
        Path | None,
        option(
            "--output FOLDER", "The folder to write (default: audits/TARGET).", parser=given_path
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Analyse an adapter or a checkpoint without a study.

    Shows how large the update is and where, how many dimensions it uses, to
    which rank it can be truncated, and whether it has intruder dimensions, each
    compared with random updates of the same size. With --tasks, also scores
    the base and the adapted model, paired item by item. Writes audit.json and
    the page audit.html.
    """
    quiet_libraries()
    from rankwise.engine.models.base import trained_folder
    from rankwise.report.audit_page import PAGE_FILE, RECORD_FILE, target_name, write_audit
    from rankwise.weights.audit import AuditSettings, find_audited
    from rankwise.weights.audit import audit as look
    from rankwise.weights.session import audit_scores, prepared_tasks

    asked = score_settings(
        listed_names(tasks or ""),
        tasks_path,
        allow_task_code,
        own={} if contract is None else load_contract(contract),
        num_fewshot=num_fewshot,
        limit=limit,
        chat_template=chat_template,
        precision=precision,
    )
    with usage_errors():
        target = trained_folder(adapter, note)
        folder = output or Path("audits") / target_name(Path(os.path.realpath(adapter)))
        _refuse_inside(target, folder)
        refuse_foreign(folder, (RECORD_FILE, PAGE_FILE), overwrite=overwrite)
        audited = find_audited(base, target, any_base=any_base, report=note)
        prepared = prepared_tasks(audited, asked) if asked.tasks or asked.own else []
        scored = None
        if prepared:
            with counted("scoring, tokens", 2 * sum(task.num_tokens for task in prepared)) as add:
                scored = audit_scores(audited, prepared, asked, add)
        with counted("analysing the weights, matrices", len(audited.shapes)) as add:
            settings = AuditSettings(top_k, null_draws)
            record = look(audited, settings, scored=scored, advance=lambda *_: add(1))
    page = write_audit(folder, record, overwrite=overwrite)
    if as_json:
        return emit(record)
    warn(record.warnings)
    for sentence in record.statements:
        say(f"- {sentence}")
    say(f"page: {page}", folded=False)
    return OK


@verb(ADAPTERS)
def heads(
    directory: Folder,
    run: Annotated[str, option("--run ID", RUN)],
    tasks: Annotated[str, option("--tasks TASK,TASK", "Tasks scored by likelihood.")],
    mode: Annotated[
        Mode,
        option(
            "--mode MODE",
            "Replace the head's output by zeros (ablate) or by its mean (ablate-mean), or "
            "undo what training changed in it (revert).",
        ),
    ] = Mode.ABLATE,
    top: Annotated[
        int | None,
        option(
            "--top N",
            "Score only the N heads with the largest effects by gradient (default: all).",
            min=1,
        ),
    ] = None,
    items: Annotated[
        int | None, option("--items N", "Items of each task (default: the study's).", min=4)
    ] = None,
    keys_and_values: Annotated[
        bool,
        option(
            "--keys-and-values",
            "With --mode revert, also revert the rows of k and v that heads share.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Ablate a run's attention heads one at a time and score tasks.

    Every head of the trained model is ablated in turn, and as a control every
    head of the base. The effects are exact, with standard errors, and their
    intervals are corrected for the number of heads.

    --mode revert removes the adapter's update in one head: rows of q, columns
    of o, and rows of k and v that no other head reads. The control is the base
    with only that head's update.

    The records are kept in the study's folder and shown in its report. Recorded
    effects are not computed again.
    """
    names = listed_names(tasks)
    if not names:
        raise ConfigError("heads", ["--tasks names no task; name at least one"])
    if keys_and_values and mode is not Mode.REVERT:
        raise ConfigError("heads", ["--keys-and-values works only with --mode revert; add it"])
    from rankwise.records.folder import StudyFolder

    folder = StudyFolder(directory)
    study = folder.read_study()
    quiet_libraries()
    from rankwise.cli.terminal import as_shown
    from rankwise.findings.heads import mode_name
    from rankwise.records.names import find_run
    from rankwise.report.sections.heads import effect_table
    from rankwise.study.context import StudyContext
    from rankwise.study.planning.reopen import reopen_study
    from rankwise.study.progress import TerminalObserver
    from rankwise.study.stages.stage import check_trained
    from rankwise.study.work.head_effects import HeadQuestion, HeadStudy, check_tasks

    chosen = find_run(study, run)
    check_trained(folder, chosen)
    plan = reopen_study(study, names, items, note)
    prepared = list(plan.tasks.values())
    check_tasks(prepared)
    with folder.lock(), TerminalObserver(stderr) as observer:
        asked = HeadQuestion(mode.value, keys_and_values, top)
        context = StudyContext.of(plan, folder, observer)
        effects = HeadStudy(context, chosen, asked).effects(prepared)
    if as_json:
        return emit({"effects": effects})
    for task in effects:
        done = mode_name(task.mode, keys_and_values=task.keys_and_values)
        stdout.print(as_shown(effect_table(task), f"{task.task}: heads {done}"))
    note(f"records: {folder.model_folder(chosen.name) / 'heads'}; rankwise report {folder.root}")
    return OK


def score_settings(
    tasks: tuple[str, ...],
    tasks_path: Sequence[Path] | None,
    allow_task_code: bool,
    *,
    own: Mapping[str, OwnSetConfig] = MappingProxyType({}),
    num_fewshot: int | None,
    limit: int | None,
    chat_template: bool,
    precision: ScorePrecision,
) -> ScoreSettings:
    """What a verb's options say of scoring; imports torch."""
    from rankwise.weights.session import ScoreSettings

    return ScoreSettings(
        tasks,
        tuple(tasks_path or ()),
        allow_task_code,
        own,
        num_fewshot=num_fewshot,
        limit=limit,
        chat_template=chat_template,
        precision=precision.value,
    )


@contextlib.contextmanager
def counted(text: str, total: int) -> Generator[Callable[[int], None]]:
    """A line on stderr that counts up, if stderr is a terminal; yields what adds to the count."""
    done = 0
    with stderr.status(text) as status:

        def add(number: int) -> None:
            nonlocal done
            done += number
            status.update(f"{text}: {done:,} of {total:,}")

        yield add


def _refuse_inside(target: Path, output: Path) -> None:
    """Refuse an output folder that would change what is audited."""
    # realpath, as Path.resolve raises on links that lead to themselves
    audited, written = Path(os.path.realpath(target)), Path(os.path.realpath(output))
    if audited in (written, *written.parents):
        problem = f"--output {output} is inside what is audited; choose another folder"
        raise ConfigError("audit", [problem])


def refuse_replacing(output: Path) -> None:
    """Refuse an output folder that holds something.

    Raises:
        ConfigError: it exists and is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        problem = f"--output {output} exists and is not empty; choose another folder"
        raise ConfigError("rankwise", [problem])
