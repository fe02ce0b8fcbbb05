"""Verbs of the best rank before training: a collection of finished studies, and what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.application import (
    OK,
    AllowTaskCode,
    Json,
    emit,
    given_path,
    note_damage,
    say,
    stderr,
    stdout,
    usage_errors,
    verb,
)
from rankwise.cli.run_verbs import STUDIES, StudyFile, named
from rankwise.errors import RecordError
from rankwise.records import quantities

if TYPE_CHECKING:
    from rich.table import Table

    from rankwise.prediction.advice import Advice


@verb(STUDIES)
def collect(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="The folders of finished studies.", parser=given_path
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FOLDER",
            help="The collection (default: RANKWISE_COLLECTION, else in your data folder).",
            parser=given_path,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure the features that rankwise predict uses; loads the base model.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Add finished studies to your collection, from which rankwise predict learns.

    Kept are settings, scores with their errors, and the score of every item
    (p(right), right or wrong, or its loss): no weights and no texts. The same
    study is kept once, also after rankwise extend. Studies of one seed are
    kept, and predict does not learn from them. --measure adds what rankwise
    predict measures of a study: gradients, inputs and a few steps of training,
    about a minute for a small base.
    """
    from rankwise.prediction.collecting import collected_studies
    from rankwise.prediction.collection import add_study, own_collection
    from rankwise.records.folder import StudyFolder

    with usage_errors((RecordError,)):
        found = [collected_studies(StudyFolder(directory)) for directory in directories]
        for directory, studies in zip(directories, found, strict=True):
            if measure and len(studies) > 1:
                raise RecordError(
                    f"{directory} trains {quantities.counted(len(studies), 'task')}, and --measure "
                    "takes one. Collect it without --measure."
                )
    written: list[Path] = []
    for directory, studies in zip(directories, found, strict=True):
        note_damage(StudyFolder(directory))
        if measure:
            from rankwise.study.predicting import measure_features

            features = measure_features(StudyFolder(directory).read_study().config)
            studies = [study.with_features(features) for study in studies]
        written += [add_study(to or own_collection(), study) for study in studies]
    if as_json:
        return emit([{"path": path, "num_bytes": path.stat().st_size} for path in written])
    for path in written:
        say(f"{path} ({round(path.stat().st_size / 1000)} KB)", folded=False)
    return OK


@verb(STUDIES)
def predict(
    study: StudyFile = None,
    collections: Annotated[
        list[Path] | None,
        typer.Option(
            "--collection",
            metavar="FOLDER",
            help="A further collection; can be repeated.",
            parser=given_path,
        ),
    ] = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not train the largest rank for a few steps.")
    ] = False,
    allow_task_code: AllowTaskCode = False,
    as_json: Json = False,
) -> int:
    """Say which rank is expected to gain most, before a study is trained.

    Measures the base and the rows, and trains the largest rank for ten steps.
    It learns from studies of the same base, adapted modules and ranks, whose
    rates and alphas are in the same proportions. It also says how many points
    below the best rank this way of choosing came out, on tasks it had not
    seen. It says "cannot say" where such studies are too few, or the study is
    unlike them, or where nothing is shown to choose better than a constant.
    A study itself recommends the smallest rank that is good enough, which may
    be smaller.
    """
    config, _ = named(study, None, allow_task_code)
    from rankwise.api import predict as predicted
    from rankwise.study.progress import QuietObserver, peak_memory

    with QuietObserver(stderr, peak_memory()) as observer:
        advice = predicted(
            config, collections=collections or (), with_probe=not no_probe, observer=observer
        )
    if as_json:
        return emit(advice)
    for line in advice_lines(advice):
        say(line)
    if advice.by_rank:
        stdout.print(_table(advice))
    return OK


def advice_lines(advice: Advice) -> Iterator[str]:
    """The answer, and what it rests on."""
    from rankwise.prediction.advice import NEW_TASK_CONFIDENCE

    if advice.rank is not None:
        yield f"rank {advice.rank} is expected to gain most"
        yield (
            "a ladder that begins there tries larger ranks, and smaller ones only where it fails: "
            f"rankwise run STUDY search.policy=ladder search.first_rank={advice.rank}"
        )
    for reason in advice.reasons:
        yield f"cannot say: {reason}"
    if advice.rank is None and advice.chosen is not None:
        yield f"the ridge alone would take rank {advice.chosen}"
    if advice.dropped:
        yield (
            f"not used: {quantities.listed(advice.dropped)}, which studies of the collection lack "
            "or measured at another rank; `rankwise collect --measure` adds it"
        )
    if advice.regret is None:
        return
    yield (
        f"learned from {advice.num_studies} studies of {advice.num_tasks} tasks; regret on tasks "
        "that were left out, in points below the best rank (all are too low alike: compare them):"
    )
    for each in (advice.regret, *advice.constants):
        yield f"  {each.predictor}: {quantities.with_interval(each, 'points', signed=False)}"
    if advice.new_task_regret is not None:
        most = quantities.amount(advice.new_task_regret, "points")
        sure = quantities.percent(NEW_TASK_CONFIDENCE)
        yield f"  the ridge on one more task: about {most} or less, in {sure} of such tasks"


def _table(advice: Advice) -> Table:
    """What the ridge expects of each rank."""
    from rich.table import Table

    table = Table("rank", f"less gain than rank {advice.rank}", title="expected by the ridge")
    for each in advice.by_rank:
        table.add_row(str(each.rank), quantities.amount(each.below_chosen, "points"))
    return table
