"""The verb that says which model to take: of a study, or of files with scores of items."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rankwise.cli.application import (
    OK,
    Json,
    Overwrite,
    argument,
    emit,
    given_path,
    listed_names,
    note,
    note_damage,
    option,
    say,
    stdout,
    usage_errors,
    verb,
    warn,
)
from rankwise.cli.run_verbs import STUDIES
from rankwise.cli.running import keep, note_left_out, verdict_content
from rankwise.errors import ConfigError

if TYPE_CHECKING:
    from rankwise.scores.asked import Asked
    from rankwise.study.conclusion import OtherMargins, StudyOutcome


@verb(STUDIES)
def verdict(
    paths: Annotated[
        list[Path],
        argument(
            "DIR|FILES...",
            "A study's folder; or files with scores of items: tables (CSV, JSON Lines, "
            "Parquet), samples files of lm-eval (the base's first), logs of Inspect or HELM.",
            parser=given_path,
        ),
    ],
    item: Annotated[str | None, option("--item COLUMN", "Of a table: what names an item.")] = None,
    score: Annotated[
        str | None, option("--score COLUMN", "Of a table: the score; score.f1 if it is nested.")
    ] = None,
    model: Annotated[
        str | None, option("--model COLUMN", "Of a table: what names a model.")
    ] = None,
    task: Annotated[str | None, option("--task COLUMN", "Of a table: what names a task.")] = None,
    base: Annotated[
        str | None, option("--base MODEL", "Of files: the model before fine-tuning.")
    ] = None,
    name: Annotated[
        str | None,
        option(
            "--name PATTERN",
            "Of files: what models' names mean, such as r{rank}_s{seed}; also {alpha}, "
            "{learning_rate}, {modules}, {epochs}.",
        ),
    ] = None,
    in_domain: Annotated[
        str | None,
        option(
            "--in-domain NAMES",
            "Of files: tasks to gain on, with commas (default: those that are named nowhere).",
        ),
    ] = None,
    retention: Annotated[
        str | None, option("--retention NAMES", "Of files: tasks that should not be forgotten.")
    ] = None,
    out_of_domain: Annotated[
        str | None, option("--out-of-domain NAMES", "Of files: tasks that are shown besides.")
    ] = None,
    lower_is_better: Annotated[
        bool, option("--lower-is-better", "Of files: less of the score is better.")
    ] = False,
    by_slice: Annotated[
        str | None,
        option(
            "--slice COLUMN",
            "Of files: say for each of its values which models got better or worse.",
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        option(
            "--cluster [TASK=]FIELD",
            "Items with equal FIELD, such as passage, belong together. Of a study with the "
            "TASK or group; can be repeated.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        option(
            "--metric NAME",
            "Of lm-eval, Inspect or HELM: what is compared (lm-eval's default: p_right with "
            "options, else the first).",
        ),
    ] = None,
    filter_name: Annotated[
        str | None,
        option("--filter NAME", "Of lm-eval: the filter (default: the first of the first file)."),
    ] = None,
    delta: Annotated[
        float | None,
        option(
            "--delta POINTS",
            "Models closer than this in-domain are equal; in the scores' own unit where "
            "they are no shares.",
        ),
    ] = None,
    epsilon: Annotated[
        float | None, option("--epsilon POINTS", "The retention loss that is accepted, on average.")
    ] = None,
    worst_task: Annotated[
        float | None,
        option("--worst-task POINTS", "The loss that is accepted of any single retention task."),
    ] = None,
    confidence: Annotated[
        float | None,
        option(
            "--confidence SHARE",
            "Of files: that no verdict is wrong, all together (default: 0.95).",
        ),
    ] = None,
    anytime: Annotated[
        bool,
        option(
            "--anytime",
            "Of files: keep better and worse right however often growing files are compared.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        option(
            "--output FOLDER", "Of files: keep them as a study, with its report.", parser=given_path
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Say which rank to use, or which model is better, and why.

    Of a study: the recommendation, made again from its records. --delta,
    --epsilon and --worst-task judge it under other margins (in points; nats for
    the --delta of a loss) and write nothing: to keep them, set
    recommendation.delta_points and so on in the study file and run it again,
    which judges at once. --cluster drop=passage sets evaluation.clusters.drop
    of the study before that; drop= takes it away. Nothing is scored again.

    Of files: the same rule for models that you have trained and scored. It
    needs no study and no model. A table has one row an item and model; columns
    are recognised by their names (id, acc, model, task, seed, rank...) or said.
    Scores of 0 to 1, and true and false, are shares and count in points; a
    column called loss is nats, less is better; of other numbers, such as
    rewards, say with --delta which difference matters. Items are paired: only
    those on which models differ count. A model called base, or --base, is what
    the others are compared with; without one the models are compared with each
    other. Of lm-eval's samples the first file is the base.
    """
    margins = {"delta": delta, "epsilon": epsilon, "worst_task": worst_task}
    only_files: dict[str, Any] = {
        "item": item, "score": score, "model": model, "task": task, "base": base, "name": name,
        "in_domain": in_domain, "retention": retention, "out_of_domain": out_of_domain,
        "lower_is_better": lower_is_better or None, "slice": by_slice, "metric": metric,
        "filter": filter_name, "confidence": confidence, "anytime": anytime or None,
    }  # fmt: skip
    given = {field: value for field, value in only_files.items() if value is not None}
    if os.path.isdir(paths[0]) and not _is_of_helm(paths[0]):
        if len(paths) > 1:
            command = f"rankwise compare {shlex.join(map(str, paths))}"
            problem = f"a verdict is of one study; to put several side by side: {command}"
            raise ConfigError("verdict", [problem])
        if given or output is not None:
            why = f"{paths[0]} is a study, and it is for files; leave it out"
            names = [*given, *(["output"] if output is not None else [])]
            raise ConfigError("verdict", [f"{_flag(name)}: {why}" for name in names])
        return _of_study(paths[0], _margins(margins), cluster or (), as_json=as_json)
    if len(cluster or ()) > 1:
        raise ConfigError("verdict", ["--cluster is given twice; files have one field"])
    from rankwise.scores.asked import Asked

    for relation in {"in_domain", "retention", "out_of_domain"} & given.keys():
        given[relation] = listed_names(given[relation])
    asked = Asked(
        **given,
        cluster=cluster[0] if cluster else None,
        delta=delta,
        epsilon=epsilon,
        worst_task=worst_task,
    )
    return _of_files(paths, asked, output, overwrite=overwrite, as_json=as_json)


def _flag(field: str) -> str:
    """The option of a field of ``Asked``."""
    return f"--{field.replace('_', '-')}"


def _is_of_helm(folder: Path) -> bool:
    from rankwise.scores.logs import HELM_FILES

    return any((folder / name).is_file() for name in HELM_FILES)


def _of_files(
    paths: Sequence[Path], asked: Asked, output: Path | None, *, overwrite: bool, as_json: bool
) -> int:
    from rankwise.api import written_report
    from rankwise.cli.terminal import models_verdict
    from rankwise.findings.against_base import against_base
    from rankwise.findings.recommendation import has_margin
    from rankwise.records.folder import StudyFolder
    from rankwise.records.study_file import study_name
    from rankwise.scores.reading import read_scores
    from rankwise.scores.study import scored_study
    from rankwise.study.conclusion import conclude, concluded

    with usage_errors():
        scored = scored_study(read_scores(paths, asked), asked, study_name(paths[0].stem))
        results = scored.results()
        (part,) = results.by_train_task
        beside = against_base(part, anytime=asked.anytime)
        is_judged = beside is None or output is not None or has_margin(part)
        outcome = concluded(results) if is_judged else None
    warn(scored.record.warnings if beside is None else beside.warnings)
    answer: dict[str, Any] = {} if beside is None else dict(beside)
    if outcome is not None and output is not None:
        folder = StudyFolder(output)
        scored.write(folder)
        outcome = conclude(folder)
        keep(folder, outcome)
        answer["report"] = written_report(folder, outcome, overwrite=overwrite)
    if as_json:
        return emit(answer if outcome is None else {**answer, **verdict_content(outcome)})
    if beside is not None:
        stdout.print(*models_verdict(beside), sep="\n")
    if outcome is None:
        note("which models are alike is not judged: say with --delta which difference matters")
        return OK
    _say_verdict(outcome, output)
    if output is None:
        say("\nTo keep it, with a report of every item: --output FOLDER")
    else:
        say(f"report: {answer['report']}", folded=False)
    return OK


def _of_study(
    directory: Path, margins: OtherMargins | None, cluster: Sequence[str], *, as_json: bool
) -> int:
    from rankwise.records.folder import StudyFolder
    from rankwise.study.conclusion import conclude

    if margins is not None and cluster:
        problem = "--cluster is kept in the study, and other margins are not; give one at a time"
        raise ConfigError("verdict", [problem])
    folder = StudyFolder(directory)
    outcome = conclude(folder, _clusters(cluster), margins)
    note_damage(folder)
    if margins is None:
        keep(folder, outcome, settings=bool(cluster))
    else:
        note("judged under other margins than the study's; nothing was written")
    note_left_out(outcome)
    if as_json:
        return emit(verdict_content(outcome))
    _say_verdict(outcome, folder.root)
    return OK


def _say_verdict(outcome: StudyOutcome, root: Path | None) -> None:
    """The card and the reasons of each trained task; ``root`` is the study's folder, if any."""
    from rankwise.cli.terminal import verdict_cards
    from rankwise.findings.statements import with_folder

    results, recommendation, findings = outcome
    stdout.print(*verdict_cards(results, recommendation, findings, root), sep="\n")
    for part in recommendation.by_train_task:
        of = f", trained on {part.train_task}" if len(recommendation.by_train_task) > 1 else ""
        say(f"\nWhy{of}:")
        say(with_folder(part.statement, root or "DIR"))
        for reason in part.reasons:
            say(f"- {reason}")
        for line in findings.lines(part.train_task):
            say(f"- {line}")


def _margins(margins: Mapping[str, float | None]) -> OtherMargins | None:
    """None where none is given."""
    from rankwise.study.conclusion import OtherMargins

    for name, value in margins.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            problem = f"{_flag(name)} {value:g} is not a margin; give a number above 0"
            raise ConfigError("verdict", [problem])
    given = any(value is not None for value in margins.values())
    return OtherMargins(**margins) if given else None


def _clusters(settings: Sequence[str]) -> dict[str, str]:
    """Task or group -> field, from TASK=FIELD."""
    found: dict[str, str] = {}
    for setting in settings:
        task, equals, field = setting.partition("=")
        if not task or not equals:
            problem = (
                f"--cluster: {setting!r} is not a setting of a study; write TASK=FIELD, such as "
                "drop=passage"
            )
            raise ConfigError("verdict", [problem])
        found[task] = field
    return found
