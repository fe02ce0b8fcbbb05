"""What of a study is done, read from its folder alone."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.records.fingerprints import divergence_fingerprint, spectra_fingerprint
from rankwise.records.folder import BASE, StudyFolder, read_record
from rankwise.records.study import PlannedRun, StudyRecord, TaskEvaluation


class ModelStatus(NamedTuple):
    """One model of a study: the base, or a run.

    ``training`` is "trained", "diverged", "started", "not started", or "none needed" for the base.
    ``divergence_left`` is whether it is still to be compared with full fine-tuning,
    ``spectra_left`` whether its weights are still to be looked into.
    """

    model: str
    training: str
    num_steps_done: int
    num_steps: int
    tasks_scored: tuple[str, ...]
    tasks_left: tuple[str, ...]
    divergence_left: bool
    spectra_left: bool = False


def study_status(folder: StudyFolder) -> list[ModelStatus]:
    """One line per model.

    Raises:
        RecordError: the folder has no study, or a record cannot be read.
    """
    study = folder.read_study()
    tasks = study.scored_tasks()
    base = _scored(folder, study, BASE, study.base_model_fingerprint, tasks)
    base_left = _divergence_left(folder, study, None)
    lines = [_line(BASE, "none needed", 0, 0, base, tasks)._replace(divergence_left=base_left)]
    for planned in study.runs:
        record = folder.finished_run(planned)
        metrics = folder.metrics_file(planned.name)
        if record is not None:
            done, training = record.num_steps, record.status
        elif metrics.exists():
            done, training = metrics.read_bytes().count(b"\n"), "started"
        else:
            done, training = 0, "not started"
        diverged = training == "diverged"
        wanted = () if diverged else study.scored_tasks(planned.train_task)
        scored = _scored(folder, study, planned.name, planned.fingerprint, wanted)
        line = _line(planned.name, training, done, planned.num_steps, scored, wanted)
        wanted_spectra = spectra_fingerprint(study, planned)
        lines.append(
            line._replace(
                divergence_left=_divergence_left(folder, study, planned),
                spectra_left=study.config.analysis.spectra
                and not diverged
                and folder.finished_spectra(planned.name, wanted_spectra) is None,
            )
        )
    return lines


def _scored(
    folder: StudyFolder, study: StudyRecord, model: str, fingerprint: str, tasks: tuple[str, ...]
) -> list[str]:
    """The tasks that the model was scored on under the settings that the study has now."""
    scored: list[str] = []
    for task in tasks:
        path = folder.evaluation_file(model, task)
        if path.exists():
            record = read_record(path, TaskEvaluation)
            if folder.is_current(study, record, fingerprint):
                scored.append(task)
    return scored


def _line(
    model: str, training: str, done: int, steps: int, scored: list[str], tasks: tuple[str, ...]
) -> ModelStatus:
    left = tuple(task for task in tasks if task not in scored)
    return ModelStatus(model, training, done, steps, tuple(scored), left, divergence_left=False)


def _divergence_left(folder: StudyFolder, study: StudyRecord, run: PlannedRun | None) -> bool:
    """Whether a comparison of a run, or of the base, with full fine-tuning is not there yet.

    What diverged is compared with nothing.
    """
    model, name = study.base_model_fingerprint, BASE
    full_runs = study.full_runs_compared
    if run is not None:
        full = study.full_run_of(run)
        model, name, full_runs = run.fingerprint, run.name, () if full is None else (full,)
    for full in full_runs:
        records = [folder.finished_run(each) for each in (run, full) if each is not None]
        diverged = any(record is not None and record.status == "diverged" for record in records)
        if diverged or full.train_task not in study.answers_fingerprints:
            continue
        wanted = divergence_fingerprint(study, model, full)
        if None in records or folder.finished_divergence(name, full.name, wanted) is None:
            return True
    return False
