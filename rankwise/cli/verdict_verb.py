"""The verb that says which model to take: of a study, or of files with scores of items."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.application import (
    OK,
    Json,
    emit,
    given_path,
    note,
    note_damage,
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
    from rankwise.study.conclusion import OtherMargins


@verb(STUDIES)
def verdict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR|BASE.jsonl A.jsonl...",
            help="A study's folder; or samples files of lm-eval for one task, the base's first.",
            parser=given_path,
        ),
    ],
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta",
            metavar="POINTS",
            help="Of a study: ranks closer than this in-domain are equal.",
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            "--epsilon",
            metavar="POINTS",
            help="Of a study: the retention loss that is accepted, on average.",
        ),
    ] = None,
    worst_task: Annotated[
        float | None,
        typer.Option(
            "--worst-task",
            metavar="POINTS",
            help="Of a study: the loss that is accepted of any single retention task.",
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            "--cluster",
            metavar="[TASK=]FIELD",
            help="Items with equal FIELD, such as passage, belong together. Of a study with the "
            "TASK or group; can be repeated.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Of files: what is compared (default: p_right with options, else the first).",
        ),
    ] = None,
    filter_name: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="NAME",
            help="Of files: the lm-eval filter (default: the first of BASE.jsonl).",
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            metavar="SHARE",
            help="Of files: of each interval, and of all verdicts together (default: 0.95).",
        ),
    ] = None,
    anytime: Annotated[
        bool,
        typer.Option(
            "--anytime",
            help="Of files: keep the verdicts right however often growing files are compared.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Say which rank to use, or which model is better, and why.

    Of a study: the recommendation, made again from its records. --delta,
    --epsilon and --worst-task judge it under other margins (in points; nats for
    the --delta of a loss) and write nothing: to keep them, set
    recommendation.delta_points and so on in the study file and run it again,
    which judges at once. --cluster drop=passage sets evaluation.clusters.drop
    of the study before that; drop= takes it away. Nothing is scored again.

    Of files: samples_<task>_<date>.jsonl of lm_eval --log_samples, of any
    version. Needs no study and no model. Items are paired, and only those on
    which two models differ count, so this finds differences that two scores
    with their standard errors do not show. Each file is better or worse than
    the first, or it cannot be told (with the probability that more items would
    decide), corrected for the number of files (Holm).
    """
    study_only = {"--delta": delta, "--epsilon": epsilon, "--worst-task": worst_task}
    file_only = {
        "--metric": metric, "--filter": filter_name, "--confidence": confidence,
        "--anytime": anytime or None,
    }  # fmt: skip
    if paths[0].is_dir():
        if len(paths) > 1:
            command = f"rankwise compare {shlex.join(map(str, paths))}"
            problem = f"a verdict is of one study; to put several side by side: {command}"
            raise ConfigError("verdict", [problem])
        _refuse_given(file_only, f"{paths[0]} is a study, and it is for files")
        return _of_study(paths[0], _margins(study_only), cluster or (), as_json=as_json)
    _refuse_given(study_only, "files are given, and it is for a study")
    if len(paths) == 1:
        problem = f"{paths[0]} is no study's folder; give one, or two samples files or more"
        raise ConfigError("verdict", [problem])
    if len(cluster or ()) > 1:
        raise ConfigError("verdict", ["--cluster is given twice; files have one field"])
    from rankwise.cli.terminal import samples_verdict
    from rankwise.findings.samples import compare_samples

    with usage_errors():
        verdicts = compare_samples(
            paths[0],
            paths[1:],
            metric=metric,
            filter_name=filter_name,
            cluster=cluster[0] if cluster else None,
            confidence=0.95 if confidence is None else confidence,
            anytime=anytime,
        )
    warn(verdicts.warnings)
    if as_json:
        return emit(verdicts)
    stdout.print(*samples_verdict(verdicts), sep="\n")
    return OK


def _of_study(
    directory: Path, margins: OtherMargins | None, cluster: Sequence[str], *, as_json: bool
) -> int:
    from rankwise.cli.terminal import verdict_cards
    from rankwise.findings.statements import with_folder
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
    results, recommendation, findings = outcome
    stdout.print(*verdict_cards(results, recommendation, findings, folder.root), sep="\n")
    for part in recommendation.by_train_task:
        of = f", trained on {part.train_task}" if len(recommendation.by_train_task) > 1 else ""
        say(f"\nWhy{of}:")
        say(with_folder(part.statement, folder.root))
        for reason in part.reasons:
            say(f"- {reason}")
        for line in findings.lines(part.train_task):
            say(f"- {line}")
    return OK


def _refuse_given(options: Mapping[str, object], why: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError("verdict", [f"{name}: {why}; leave it out" for name in given])


def _margins(options: Mapping[str, float | None]) -> OtherMargins | None:
    """None where none is given."""
    from rankwise.study.conclusion import OtherMargins

    for option, value in options.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            problem = f"{option} {value:g} is no margin; give a number above 0"
            raise ConfigError("verdict", [problem])
    given = [value for value in options.values() if value is not None]
    return OtherMargins(*options.values()) if given else None


def _clusters(settings: Sequence[str]) -> dict[str, str]:
    """Task or group -> field, from TASK=FIELD."""
    found: dict[str, str] = {}
    for setting in settings:
        task, equals, field = setting.partition("=")
        if not task or not equals:
            problem = (
                f"--cluster: {setting!r} is no setting of a study; write TASK=FIELD, such as "
                "drop=passage"
            )
            raise ConfigError("verdict", [problem])
        found[task] = field
    return found
