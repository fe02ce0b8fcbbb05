"""The verb that says whether something was lost: against the base, or in a deployed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from rankwise.cli.adapter_verbs import (
    ADAPTERS,
    Adapter,
    AnyBase,
    Base,
    ChatTemplate,
    Contract,
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
    option,
    say,
    stdout,
    usage_errors,
    verb,
    warn,
)
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, RankwiseError
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.deployment import FormVerdict
from rankwise.records.files import write_atomically, write_record
from rankwise.records.study_file import load_contract

RECORD_FILE, REPORT_FILE = "deployment.json", "report.md"
EXIT_CODES: dict[FormVerdict, int] = {"keeps": OK, "loses": 1, "cannot_tell": 3}


@verb(ADAPTERS)
def check(
    base: Base,
    adapter: Adapter,
    tasks: Annotated[str, option("--tasks TASK,TASK", "Tasks to score and compare.")] = "",
    contract: Contract = None,
    forms: Annotated[
        str,
        option(
            "--forms FORM,FORM",
            "Check these deployed forms against the adapter: merged-bf16, merged-fp16, "
            "merged-fp32, 8bit, 4bit (bitsandbytes), gguf:q8_0, gguf:q5_1, gguf:q5_0, gguf:q4_1, "
            "gguf:q4_0; where llama-quantize is on the PATH, also gguf:q6_k, gguf:q5_k_m, "
            "gguf:q4_k_m and others.",
        ),
    ] = "",
    margin: Annotated[
        float,
        option(
            "--max-loss, --max-retention-loss POINTS",
            "Largest acceptable fall of the mean score over the tasks. It also holds for each set "
            "of a contract without its own max_loss.",
        ),
    ] = 1.0,
    tasks_path: TasksPath = None,
    allow_task_code: AllowTaskCode = False,
    limit: ScoredLimit = None,
    num_fewshot: NumFewshot = None,
    chat_template: ChatTemplate = False,
    precision: Annotated[
        ScorePrecision | None,
        option(
            f"--precision {'|'.join(ScorePrecision)}",
            "The precision of scoring (default: auto; with --forms float32).",
        ),
    ] = None,
    any_base: AnyBase = False,
    output: Annotated[
        Path | None,
        option(
            "--output FOLDER",
            f"Folder for {RECORD_FILE} and {REPORT_FILE}; it must be new or empty.",
            parser=given_path,
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check whether an adapter keeps its quality, as trained or deployed.

    Without --forms, compares the adapter with its base item by item: has it
    forgotten what the base knew? With --forms, merges the adapter, rounds it to
    each form, and compares it with the adapter as trained, unmerged: does it
    survive deployment? The table then also compares the rounding error with the
    adapter's update of the weights. Everything is done in memory.

    With --contract, each set of your own rows is a clause: it is judged by
    itself, beside the mean over --tasks.

    Exit codes, for scripts: 0 if every loss is shown to be below --max-loss, 1
    if one is shown to be above, 3 if undecided, 2 for wrong usage or another
    error.
    """
    with usage_errors((RankwiseError,)):
        wanted, names = listed_names(forms), listed_names(tasks)
        _refuse(margin, names, contract)
        clauses = {} if contract is None else load_contract(contract)
        if output is not None:
            refuse_replacing(output)
        quiet_libraries()
        from rankwise.engine.models.base import trained_folder
        from rankwise.findings.deployment import LossRule, check_report
        from rankwise.weights.audit import find_adapter
        from rankwise.weights.deployment import Question, check_deployment, check_retention
        from rankwise.weights.forms import find_forms
        from rankwise.weights.session import CONFIDENCE, prepared_tasks

        settings = score_settings(
            names,
            tasks_path,
            allow_task_code,
            own=clauses,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=chat_template,
            precision=precision or (ScorePrecision.FLOAT32 if wanted else ScorePrecision.AUTO),
        )
        found_forms = find_forms(wanted) if forms else []
        folder = trained_folder(adapter, note)
        use = "merged" if wanted else "checked"
        found = find_adapter(base, folder, use, any_base=any_base, report=note)
        # tasks in nats have the margin of a study
        margins = {name: clause.max_loss for name, clause in clauses.items()}
        rule = LossRule(margin, RecommendationConfig().delta_nats, CONFIDENCE, margins)
        question = Question(prepared_tasks(found, settings), settings, rule)
        with counted("scoring, tokens", question.num_tokens(2 + len(found_forms))) as add:
            if found_forms:
                record = check_deployment(found, question, found_forms, add)
            else:
                record = check_retention(found, question, add)
        if output is not None:
            write_record(output / RECORD_FILE, record)
            write_atomically(output / REPORT_FILE, check_report(record))
    if as_json:
        emit(record)
        return EXIT_CODES[record.verdict]
    from rankwise.cli.terminal import deployment_table

    warn(record.warnings)
    stdout.print(deployment_table(record))
    for form in record.forms:
        say(f"- {form.statement}")
    return EXIT_CODES[record.verdict]


def _refuse(margin: float, tasks: tuple[str, ...], contract: Path | None) -> None:
    """Refuse a margin that is none, and nothing to score."""
    problems: list[str] = []
    if not (math.isfinite(margin) and margin > 0):
        problems.append(f"--max-loss {margin:g} is not a margin; give a number above 0")
    if not tasks and contract is None:
        problems.append("--tasks names no task; name at least one, or give a --contract")
    if problems:
        raise ConfigError("check", problems)
