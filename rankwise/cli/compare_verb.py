"""The verb that puts finished studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rankwise.cli.application import (
    OK,
    Json,
    Overwrite,
    argument,
    emit,
    given_path,
    note,
    note_damage,
    option,
    say,
    stdout,
    usage_errors,
    verb,
)
from rankwise.cli.run_verbs import STUDIES
from rankwise.errors import ConfigError, RecordError, TaskError


@verb(STUDIES)
def compare(
    directories: Annotated[
        list[Path], argument("DIR DIR...", "The folders of two studies or more.", parser=given_path)
    ],
    output: Annotated[
        Path | None,
        option("--output FILE", "The page to write (default: comparison.html).", parser=given_path),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Compare studies: models, tasks, methods, recommendations and dates.

    Shows what each study recommends, which settings differ, and which studies
    differ in a single axis. Recommended runs are compared item by item only if
    both studies used the same software stack, base model and items: a different
    stack alone moves scores by 1 to 3 points. Of an unfinished study, the
    finished part is compared. The studies are not changed.
    """
    page = output or Path("comparison.html")
    from rankwise.cli.terminal import comparison_lines
    from rankwise.findings.comparison import compare_studies
    from rankwise.records.folder import StudyFolder
    from rankwise.report.comparison_page import write_comparison
    from rankwise.study.comparing import folder_problems, study_sources

    if problems := folder_problems(directories):
        raise ConfigError("compare", problems)
    with usage_errors((RecordError, TaskError)):
        studies = study_sources(directories)
        for directory in directories:
            note_damage(StudyFolder(directory))
        comparison = compare_studies(studies)
    write_comparison(page, comparison, studies, overwrite=overwrite)
    for study in studies:
        for name, reason in study.results.left_out.items():
            note(f"left out of {study.name}: {name} {reason}")
    if as_json:
        return emit(comparison)
    stdout.print(*comparison_lines(comparison, studies), sep="\n")
    say(f"page: {page}", folded=False)
    return OK
