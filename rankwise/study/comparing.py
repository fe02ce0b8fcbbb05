"""Studies in folders, as they are compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rankwise.findings.comparison import StudySource
from rankwise.findings.recommendation import recommend
from rankwise.records.folder import StudyFolder
from rankwise.study.reading import read_results


def folder_problems(directories: Sequence[Path]) -> list[str]:
    """Why these folders cannot be compared: there are too few, or one is there twice."""
    problems: list[str] = []
    if len(directories) < 2:
        given = f"only {directories[0]} is given" if directories else "no folder is given"
        problems.append(f"{given}; name two studies' folders or more")
    places = [os.path.realpath(directory) for directory in directories]
    for place, directory in enumerate(directories):
        if places[place] in places[:place]:
            first = directories[places.index(places[place])]
            same = f"{directory} is given twice" if first == directory else (
                f"{first} and {directory} are one folder"
            )  # fmt: skip
            problems.append(f"{same}; name each study once")
    return problems


def study_sources(directories: Sequence[Path]) -> list[StudySource]:
    """Every study as it is in its folder, judged as it was last; nothing is written.

    Raises:
        RecordError: a folder holds no study, or its base is not scored, or no run is finished.
        TaskError: a study sets clusters for items that are not scored.
    """
    folders = [StudyFolder(directory) for directory in directories]
    found = [read_results(folder) for folder in folders]
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
