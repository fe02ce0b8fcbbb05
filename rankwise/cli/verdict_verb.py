"""The verb that says which model to take: of a study, or of files with scores of items."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rankwise.cli import application as cli
from rankwise.cli.run_verbs import STUDIES
from rankwise.cli.running import keep, note_left_out, verdict_content
from rankwise.errors import ConfigError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import study_name

if TYPE_CHECKING:
    from rankwise.scores.asked import Asked
    from rankwise.study.conclusion import StudyOutcome


@cli.verb(STUDIES)
def verdict(
    paths: Annotated[
        list[Path],
        cli.argument(
            "DIR|FILES...",
            "A study's folder; or files with scores of items: tables (CSV, JSON Lines, "
            "Parquet), output folders or samples files of lm-eval (the base's first), logs of "
            "Inspect or HELM.",
            parser=cli.given_path,
        ),
    ],
    item: Annotated[
        str | None, cli.option("--item COLUMN", "Table column with the item ids.")
    ] = None,
    score: Annotated[
        str | None,
        cli.option("--score COLUMN", "Table column with the scores; score.f1 if nested."),
    ] = None,
    model: Annotated[
        str | None, cli.option("--model COLUMN", "Table column with the model names.")
    ] = None,
    task: Annotated[
        str | None, cli.option("--task COLUMN", "Table column with the task names.")
    ] = None,
    base: Annotated[
        str | None, cli.option("--base MODEL", "The model before fine-tuning (files only).")
    ] = None,
    name: Annotated[
        str | None,
        cli.option(
            "--name PATTERN",
            "What model names mean (files only): r{rank}_s{seed}; also {alpha}, {learning_rate}, "
            "{modules}, {epochs}.",
        ),
    ] = None,
    in_domain: Annotated[
        str | None,
        cli.option(
            "--in-domain NAME,NAME",
            "Tasks to gain on (files only; default: tasks that no other option names).",
        ),
    ] = None,
    retention: Annotated[
        str | None,
        cli.option("--retention NAME,NAME", "Tasks that should not be forgotten (files only)."),
    ] = None,
    out_of_domain: Annotated[
        str | None, cli.option("--out-of-domain NAME,NAME", "Tasks shown in addition (files only).")
    ] = None,
    lower_is_better: Annotated[
        bool, cli.option("--lower-is-better", "Lower scores are better (files only).")
    ] = False,
    missing: Annotated[
        str | None,
        cli.option(
            "--missing wrong",
            "Count an item that a model has no score on as wrong; default: leave it out of all "
            "models (files only).",
        ),
    ] = None,
    by_slice: Annotated[
        str | None,
        cli.option(
            "--slice COLUMN",
            "Report for each value of COLUMN which models got better or worse (files only).",
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        cli.option(
            "--cluster [TASK=]FIELD",
            "Items with equal FIELD, such as passage, belong together. For a study, name the TASK "
            "or group too; can be repeated.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        cli.option(
            "--metric NAME",
            "Metric to compare, of lm-eval, Inspect or HELM (lm-eval's default: p_right with "
            "options, else the first).",
        ),
    ] = None,
    filter_name: Annotated[
        str | None,
        cli.option("--filter NAME", "The lm-eval filter (default: the first of the first file)."),
    ] = None,
    delta: Annotated[
        float | None,
        cli.option(
            "--delta POINTS",
            "Models closer than this in-domain count as equal; in the scores' own unit if they "
            "are not shares.",
        ),
    ] = None,
    epsilon: Annotated[
        float | None, cli.option("--epsilon POINTS", "Acceptable retention loss, on average.")
    ] = None,
    worst_task: Annotated[
        float | None,
        cli.option("--worst-task POINTS", "Acceptable loss on any single retention task."),
    ] = None,
    confidence: Annotated[
        float | None,
        cli.option(
            "--confidence SHARE",
            "Probability that no verdict is wrong, all together (files only; default: 0.95).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        cli.path_option(
            "--output FOLDER", "Keep the scores as a study, with its report (files only)."
        ),
    ] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> int:
    """Say which rank to use, or which model is better, and why.

    With a study: recomputes the recommendation from its records. --delta,
    --epsilon and --worst-task apply other margins (in points; nats for the
    --delta of a loss) and write nothing: to keep them, set
    recommendation.delta_points and so on in the study file and run it again,
    which judges at once. --cluster drop=passage first sets
    evaluation.clusters.drop of the study; drop= removes it. Nothing is scored
    again.

    With files: applies the same rule to models that you trained and scored
    yourself. It needs no study and no model. A table has one row per item and
    model. Columns are recognised by their names (id, acc, model, task, seed,
    rank...) or named by options. Scores from 0 to 1, and true and false, are
    shares and count in points. A column called loss is in nats, and lower is
    better. For other numbers, such as rewards, --delta says which difference
    matters: by default a tenth of the standard deviation of the base's items,
    as 5 points of accuracy at 50 %. Items are paired: only items on which models differ count. The
    models are compared with the one called base, or with --base; without one,
    with each other. For samples of lm-eval, the first file is the base.
    """
    margins: dict[str, Any] = {"delta": delta, "epsilon": epsilon, "worst_task": worst_task}
    only_files: dict[str, Any] = {
        "item": item, "score": score, "model": model, "task": task, "base": base, "name": name,
        "in_domain": in_domain, "retention": retention, "out_of_domain": out_of_domain,
        "lower_is_better": lower_is_better or None, "slice": by_slice, "metric": metric,
        "filter": filter_name, "confidence": confidence, "missing": missing,
    }  # fmt: skip
    given = {field: value for field, value in only_files.items() if value is not None}
    from rankwise.scores.asked import Asked
    from rankwise.scores.lm_eval_folders import holds_samples
    from rankwise.scores.logs import HELM_FILES

    is_log = any((paths[0] / file).is_file() for file in HELM_FILES)
    is_output = not (paths[0] / "study.json").exists() and holds_samples(paths[0])
    if os.path.isdir(paths[0]) and not is_log and not is_output:
        if len(paths) > 1:
            problem = f"{paths[0]} is a study, and a verdict is of one; give it alone"
            raise ConfigError("verdict", [problem])
        if given or output is not None:
            why = f"{paths[0]} is a study, and it is for files; leave it out"
            names = [*given, *(["output"] if output is not None else [])]
            raise ConfigError("verdict", [f"{_flag(name)}: {why}" for name in names])
        Asked(**margins).check()
        return _of_study(paths[0], margins, cluster or (), as_json=as_json)
    if len(cluster or ()) > 1:
        raise ConfigError("verdict", ["--cluster is given twice; files have one field"])
    for relation in {"in_domain", "retention", "out_of_domain"} & given.keys():
        given[relation] = cli.listed_names(given[relation])
    asked = Asked(**given, **margins, cluster=cluster[0] if cluster else None)
    return _of_files(paths, asked, output, overwrite=overwrite, as_json=as_json)


def _flag(field: str) -> str:
    """The option of a field of ``Asked``."""
    return f"--{field.replace('_', '-')}"


def _of_files(
    paths: Sequence[Path], asked: Asked, output: Path | None, *, overwrite: bool, as_json: bool
) -> int:
    from rankwise.api import written_report
    from rankwise.report.page import refuse_report
    from rankwise.scores.keeping import kept
    from rankwise.scores.reading import read_scores
    from rankwise.scores.study import scored_study
    from rankwise.study import conclusion

    with cli.usage_errors():
        scored = scored_study(read_scores(paths, asked), asked, study_name(paths[0].stem))
        outcome = conclusion.concluded(scored.results())
    cli.warn(scored.record.warnings)
    report: dict[str, Path] = {}
    if output is not None:
        folder = StudyFolder(output)
        refuse_report(folder.root, *outcome, overwrite=overwrite)
        with kept(scored, folder, overwrite=overwrite) as place:
            outcome = conclusion.conclude(place)
            conclusion.keep(place, outcome)
        report["report"] = written_report(folder, outcome, overwrite=overwrite)
    if as_json:
        return cli.emit({**report, **verdict_content(outcome, output)})
    _say_verdict(outcome, output)
    if output is None:
        cli.say(
            "\nThis call counts as one look. --output FOLDER keeps count of looks, and writes a "
            "report of every item."
        )
    else:
        cli.say(f"report: {report['report']}", folded=False)
    return cli.OK


def _of_study(
    directory: Path, margins: Mapping[str, float | None], cluster: Sequence[str], *, as_json: bool
) -> int:
    from rankwise.study.conclusion import OtherMargins, conclude

    others = None if set(margins.values()) == {None} else OtherMargins(**margins)
    if others is not None and cluster:
        problem = "--cluster is kept in the study, and other margins are not; give one at a time"
        raise ConfigError("verdict", [problem])
    fields: dict[str, str] = {}  # of a task or group
    for setting in cluster:
        task, equals, field = setting.partition("=")
        if not task or not equals:
            problem = (
                f"--cluster: {setting!r} is not a setting of a study; write TASK=FIELD, such as "
                "drop=passage"
            )
            raise ConfigError("verdict", [problem])
        fields[task] = field
    folder = StudyFolder(directory)
    outcome = conclude(folder, fields, others)
    cli.note_damage(folder)
    if others is None:
        keep(folder, outcome, settings=bool(cluster))
    else:
        cli.note("Judged with your margins, not the study's. Nothing was saved.")
    note_left_out(outcome)
    if as_json:
        return cli.emit(verdict_content(outcome, folder.root))
    _say_verdict(outcome, folder.root)
    return cli.OK


def _say_verdict(outcome: StudyOutcome, root: Path | None) -> None:
    """The card and the reasons of each trained task; ``root`` is the study's folder, if any."""
    from rankwise.cli.terminal import verdict_cards
    from rankwise.findings.statements import with_folder

    cli.stdout.print(*verdict_cards(*outcome, root), sep="\n")
    parts = outcome.recommendation.by_train_task
    for part in parts:
        of = f", trained on {part.train_task}" if len(parts) > 1 else ""
        cli.say(f"\nWhy{of}:")
        points = (*part.reasons, *outcome.findings.lines(part.train_task))
        for said in (part.statement, *(f"- {point}" for point in points)):
            cli.say(with_folder(said, root))
