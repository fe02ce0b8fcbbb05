"""The verbs that say whether something was lost: in a deployed form, or against the base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.adapter_verbs import (
    ADAPTERS,
    BASE,
    Adapter,
    AnyBase,
    ChatTemplate,
    NumFewshot,
    ScoredLimit,
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
    emit,
    given_path,
    listed_names,
    note,
    say,
    stdout,
    usage_errors,
    verb,
    warn,
)
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, RankwiseError
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.deployment import DeploymentCheck, FormVerdict
from rankwise.records.files import write_record

if TYPE_CHECKING:
    from rankwise.weights.audit import Audited
    from rankwise.weights.audit_scores import ScoreSettings
    from rankwise.weights.deployment import Question

RECORD_FILE = "deployment.json"
EXIT_CODES: dict[FormVerdict, int] = {"keeps": OK, "loses": 1, "cannot_tell": 3}

Tasks = Annotated[
    str, typer.Option("--tasks", metavar="TASK,TASK", help="What is scored and compared.")
]


@verb(ADAPTERS, "deploy-check")
def deploy_check(
    base: Annotated[str, typer.Argument(metavar="BASE", help=BASE)],
    adapter: Adapter,
    tasks: Tasks,
    forms: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORM,FORM",
            help="merged-bf16, merged-fp16, merged-fp32, 8bit, 4bit (bitsandbytes), gguf:q8_0, "
            "gguf:q5_1, gguf:q5_0, gguf:q4_1, gguf:q4_0; where llama-quantize is on the PATH, "
            "also gguf:q6_k, gguf:q5_k_m, gguf:q4_k_m and others (default: merged-bf16, "
            "merged-fp16, gguf:q8_0, gguf:q4_0).",
            show_default=False,
        ),
    ] = "merged-bf16,merged-fp16,gguf:q8_0,gguf:q4_0",
    margin: Annotated[
        float,
        typer.Option(
            "--margin",
            metavar="POINTS",
            help="How much a form may score less, in points of the mean over the tasks.",
        ),
    ] = 1.0,
    tasks_path: TasksPath = None,
    allow_task_code: AllowTaskCode = False,
    limit: ScoredLimit = None,
    num_fewshot: NumFewshot = None,
    chat_template: ChatTemplate = False,
    precision: Annotated[
        ScorePrecision,
        typer.Option("--precision", help="The precision in which all forms are scored."),
    ] = ScorePrecision.FLOAT32,
    any_base: AnyBase = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            parser=given_path,
            help=f"Write {RECORD_FILE} there; it must be new or empty.",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check whether an adapter survives merging and quantising.

    Scores the adapter as trained, without merging it. Then merges it, rounds it
    to each form, and scores that on the same items. A form keeps enough if its loss is
    shown to be below the margin, and loses too much if it is shown to be above.
    The table also says how large the rounding is against the adapter's change
    of the weights, and how much of that change is left. Everything is done in
    memory, and nothing but the rounding of the weights differs.

    Exit codes: 0 every form keeps enough, 1 one loses too much, 3 it cannot be
    told, 2 wrong usage or another error.
    """
    with usage_errors((RankwiseError,)):
        wanted = listed_names(forms)
        _refuse_margin("--margin", margin, "deploy-check")
        if output is not None:
            refuse_replacing(output)
        quiet_libraries()
        from rankwise.weights.audit import find_adapter
        from rankwise.weights.deployment import check_deployment
        from rankwise.weights.forms import find_forms

        settings = score_settings(
            _named("deploy-check", tasks),
            tasks_path,
            allow_task_code,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=chat_template,
            precision=precision,
        )
        found_forms = find_forms(wanted)
        found = find_adapter(base, adapter, "merged", any_base=any_base, report=note)
        question = _question(found, settings, margin)
        with counted("scoring, tokens", question.num_tokens(2 + len(found_forms))) as add:
            record = check_deployment(found, question, found_forms, add)
        if output is not None:
            write_record(output / RECORD_FILE, record)
    return _answer(record, as_json=as_json)


@verb(ADAPTERS)
def check(
    adapter: Adapter,
    tasks: Tasks,
    max_retention_loss: Annotated[
        float,
        typer.Option(
            "--max-retention-loss",
            metavar="POINTS",
            help="The most that the mean score over the tasks may fall.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base (default: the one that the adapter names)."),
    ] = None,
    tasks_path: TasksPath = None,
    allow_task_code: AllowTaskCode = False,
    limit: ScoredLimit = None,
    num_fewshot: NumFewshot = None,
    chat_template: ChatTemplate = False,
    precision: Annotated[
        ScorePrecision, typer.Option("--precision", help="The precision of scoring.")
    ] = ScorePrecision.AUTO,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> int:
    """Check whether an adapter keeps what its base could do.

    Compares the adapter with its base item by item, for a script that has to
    decide: by its exit code. 0: the loss is shown to be below the limit, 1: it
    is shown to be above, 3: it cannot be told, 2: wrong usage or another error.
    """
    with usage_errors((RankwiseError,)):
        _refuse_margin("--max-retention-loss", max_retention_loss, "check")
        quiet_libraries()
        from rankwise.engine.models.adapter_config import recorded_base
        from rankwise.weights.audit import find_adapter
        from rankwise.weights.deployment import check_retention

        settings = score_settings(
            _named("check", tasks),
            tasks_path,
            allow_task_code,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=chat_template,
            precision=precision,
        )
        named = recorded_base(adapter) if base is None else base
        found = find_adapter(named, adapter, "checked", any_base=any_base, report=note)
        question = _question(found, settings, max_retention_loss)
        with counted("scoring, tokens", question.num_tokens(2)) as add:
            record = check_retention(found, question, add)
    return _answer(record, as_json=as_json)


def _question(found: Audited, settings: ScoreSettings, margin_points: float) -> Question:
    """The tasks, prepared; those in nats have the margin of a study."""
    from rankwise.findings.deployment import LossRule
    from rankwise.weights.audit_scores import CONFIDENCE, prepared_tasks
    from rankwise.weights.deployment import Question

    rule = LossRule(margin_points, RecommendationConfig().delta_nats, CONFIDENCE)
    return Question(prepared_tasks(found, settings), settings, rule)


def _named(command: str, tasks: str) -> tuple[str, ...]:
    names = listed_names(tasks)
    if not names:
        raise ConfigError(command, ["--tasks names no task; name at least one"])
    return names


def _refuse_margin(option: str, margin: float, command: str) -> None:
    if not (math.isfinite(margin) and margin > 0):
        problem = f"{option} {margin:g} is no margin; give a number above 0"
        raise ConfigError(command, [problem])


def _answer(record: DeploymentCheck, *, as_json: bool) -> int:
    if as_json:
        emit(record)
        return EXIT_CODES[record.verdict]
    from rankwise.cli.terminal import deployment_table

    warn(record.warnings)
    stdout.print(deployment_table(record))
    for form in record.forms:
        say(f"- {form.statement}")
    return EXIT_CODES[record.verdict]
