"""The charts of a study's report as files."""

from __future__ import annotations

from pathlib import Path

from rankwise.integrations.exported import Exported
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.report.page import study_page
from rankwise.report.rendering import figure_files
from rankwise.study.conclusion import conclude


def export_figures(folder: StudyFolder, place: Path) -> list[Exported]:
    """Write every chart as ``<name>.svg`` and ``<name>.png``.

    Args:
        folder: a finished study's.
        place: the folder to write into.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    outcome = conclude(folder)
    losses = {run.name: folder.read_losses(run.name) for run in outcome.results.runs}
    exported: list[Exported] = []
    for name, contents in figure_files(study_page(*outcome, losses)).items():
        for suffix, content in contents.items():
            exported.append(Exported(name, place / f"{name}.{suffix}"))
            write_atomically(exported[-1].file, content)
    return exported
