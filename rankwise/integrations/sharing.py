"""What a study says once it is given away: the same, without the folders of this machine."""

from __future__ import annotations

from pathlib import Path

from rankwise.findings.statements import in_commands
from rankwise.records.files import cache_folder
from rankwise.records.folder import StudyFolder
from rankwise.records.places import LocalFolders, paths_in
from rankwise.records.study import StudyRecord
from rankwise.study.conclusion import StudyOutcome, conclude


def local_folders(folder: StudyFolder, study: StudyRecord) -> LocalFolders:
    """The folders that records of a study may name."""
    files = () if study.scores is None else study.scores.files
    places = (
        *(folder.root, folder.root.absolute(), Path.cwd(), cache_folder()),
        *paths_in([study.config, study.base_elsewhere, [model.imported for model in study.models]]),
        *(file for file in files if "/" in file),
    )
    return LocalFolders(map(str, places), [*study.scored_tasks(), *(m.name for m in study.models)])


def shared(folder: StudyFolder, outcome: StudyOutcome, *, with_texts: bool) -> StudyOutcome:
    """What was concluded, without names of folders; without texts also no values of documents.

    Commands name the study, as if its folder lay beside the reader under that name.
    """
    if not with_texts:
        findings = outcome.findings.model_copy(update={"slices": ()})
        outcome = outcome._replace(findings=findings)
    name = outcome.results.study.config.name
    outcome = outcome._replace(
        recommendation=in_commands(outcome.recommendation, name),
        findings=in_commands(outcome.findings, name),
    )
    return local_folders(folder, outcome.results.study).out_of(outcome)


def shared_outcome(folder: StudyFolder) -> StudyOutcome:
    """What a finished study's records say, as it is given away; raises as ``conclude`` does."""
    return shared(folder, conclude(folder), with_texts=True)
