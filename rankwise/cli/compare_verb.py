"""The verb that puts finished studies side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
)
from rankwise.cli.study_verbs import STUDIES
from rankwise.errors import ConfigError, RecordError, TaskError

if TYPE_CHECKING:
    from rankwise.findings.comparison import StudySource


@verb(STUDIES)
def compare(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR DIR...", help="The folders of two studies or more.", parser=given_path
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="The page to write (default: comparison.html).",
            parser=given_path,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no such page.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Put studies side by side: models, tasks, methods, choices, dates.

    Says what each study chooses, in which settings they differ, and which of
    them differ in one axis alone. Choices are compared item by item only where
    both studies were made on one software stack, with the same base model, on
    the same items: a stack alone moves scores by 1 to 3 points. Of a study that
    is not finished, what is there is compared. The studies stay as they are.
    """
    page = output or Path("comparison.html")
    _refuse(directories, page, replace=force)
    from rankwise.cli.terminal import comparison_lines
    from rankwise.findings.comparison import compare_studies
    from rankwise.report.comparison_page import write_comparison

    with usage_errors((RecordError, TaskError)):
        studies = _read(directories)
        comparison = compare_studies(studies)
    write_comparison(page, comparison, studies)
    for study in studies:
        for name, reason in study.results.left_out.items():
            note(f"left out of {study.name}: {name} {reason}")
    if as_json:
        return emit(comparison)
    stdout.print(*comparison_lines(comparison, studies), sep="\n")
    say(f"page: {page}", folded=False)
    return OK


def _refuse(directories: Sequence[Path], page: Path, *, replace: bool) -> None:
    """Refuse what cannot be compared, and a page in the place of something else.

    Raises:
        ConfigError: fewer than two folders, one of them twice, or the page's file is another's.
    """
    from rankwise.report.comparison_page import is_comparison

    problems: list[str] = []
    if len(directories) < 2:
        problems.append(f"only {directories[0]} is given; name two studies' folders or more")
    places = [os.path.realpath(directory) for directory in directories]
    for place, directory in enumerate(directories):
        if places[place] in places[:place]:
            first = directories[places.index(places[place])]
            same = f"{directory} is given twice" if first == directory else (
                f"{first} and {directory} are one folder"
            )  # fmt: skip
            problems.append(f"{same}; name each study once")
    if page.is_dir():
        problems.append(f"--output {page} is a folder; name a file")
    elif page.exists() and not replace and not is_comparison(page):
        problems.append(
            f"--output {page} exists and is no page of rankwise compare; choose another file or "
            "give --force"
        )
    if problems:
        raise ConfigError("compare", problems)


def _read(directories: Sequence[Path]) -> list[StudySource]:
    """Every study as it is in its folder, judged as it was last."""
    from rankwise.findings.comparison import StudySource
    from rankwise.findings.recommendation import recommend
    from rankwise.records.folder import StudyFolder
    from rankwise.records.reading import read_results

    folders = [StudyFolder(directory) for directory in directories]
    found = [read_results(folder) for folder in folders]
    for folder in folders:
        note_damage(folder)
    names = study_names([results.study.config.name for results in found], directories)
    return [
        StudySource(name, results, recommend(results, folder.read_looks()))
        for name, results, folder in zip(names, found, folders, strict=True)
    ]


def study_names(names: Sequence[str], directories: Sequence[Path]) -> list[str]:
    """A name of its own for each study: its own where no other has it, else with its folder.

    The folder is as short as tells it from the others.
    """
    whole = [Path(os.path.abspath(directory)).parts for directory in directories]
    size = next(
        length
        for length in range(1, max(map(len, whole)) + 1)
        if len({parts[-length:] for parts in whole}) == len(whole)
    )
    return [
        name if names.count(name) == 1 else f"{name} ({'/'.join(parts[-size:])})"
        for name, parts in zip(names, whole, strict=True)
    ]
