"""The study folder: its names, atomic writes, the lock, and reading it back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout

from rankwise.errors import RecordError, StudyLockedError
from rankwise.records.clusters import candidate_fields, cluster_fields, cluster_numbers
from rankwise.records.files import (
    read_if_there,
    read_record,
    storage_error,
    write_atomically,
    writing,
)
from rankwise.records.fingerprints import (
    divergence_fingerprint,
    head_changes_fingerprint,
    scoring_fingerprint,
    spectra_fingerprint,
)
from rankwise.records.heads import HEAD_MODES, HeadChanges, HeadMode, HeadRepair, TaskHeadEffects
from rankwise.records.judgement import StudyLooks
from rankwise.records.results import LOSS_METRIC as LOSS_METRIC
from rankwise.records.results import (
    Divergence,
    JudgedItems,
    ModelResults,
    StudyResults,
    judged_items,
)
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import (
    PlannedRun,
    Record,
    RunRecord,
    StageFailure,
    StageRecord,
    StudyRecommendation,
    StudyRecord,
    TaskEvaluation,
)

F = TypeVar("F", bound=StageRecord)

BASE = "base"
_WEIGHTS = ("adapter", "checkpoint")
_DIVERGENCE, _SPECTRA = "divergence.json", "spectra.json"
_HEAD_CHANGES, _HEADS = "heads.json", "heads"
_FAILURES = "failures"


class StudyFolder:
    """Paths and records of one study; the only place that knows how the folder is laid out.

    What is written or removed raises ``StorageError`` where that is impossible, and what is read
    ``RecordError`` where it is missing or damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.study_file = root / "study.json"
        self.recommendation_file = root / "recommendation.json"
        self.findings_file = root / "findings.json"
        self.looks_file = root / "looks.json"
        self.report_file = root / "report.html"

    def model_folder(self, name: str) -> Path:
        """The folder of a run, or of the base model."""
        return self.root / BASE if name == BASE else self.root / "runs" / name

    def run_file(self, name: str) -> Path:
        return self.model_folder(name) / "run.json"

    def metrics_file(self, name: str) -> Path:
        return self.model_folder(name) / "metrics.jsonl"

    def weights_folder(self, run: PlannedRun) -> Path:
        """Where a run's weights are: a PEFT adapter, or a whole checkpoint.

        An imported checkpoint stays where it was; an imported adapter is copied here.
        """
        if run.imported_from is not None and run.method == "full":
            return run.imported_from
        return self.model_folder(run.name) / _WEIGHTS[run.method == "full"]

    def training_state_file(self, run: PlannedRun) -> Path:
        """What an interrupted training goes on from; gone when the run is finished."""
        return self.model_folder(run.name) / "training.pt"

    def evaluation_file(self, model: str, task: str) -> Path:
        return self.model_folder(model) / "eval" / f"{quote(task, safe=' @')}.json"

    def samples_file(self, model: str, task: str) -> Path:
        return self.evaluation_file(model, task).with_suffix(".samples.jsonl")

    def divergence_file(self, model: str, reference: str) -> Path:
        """How far a model is from a full fine-tuning; the base is compared with several."""
        folder = self.model_folder(model)
        several = model == BASE
        return folder / "divergence" / f"{reference}.json" if several else folder / _DIVERGENCE

    def spectra_file(self, run: str) -> Path:
        """What a run did to the base's weight matrices."""
        return self.model_folder(run) / _SPECTRA

    def head_changes_file(self, run: str) -> Path:
        """What changed in a run's attention heads."""
        return self.model_folder(run) / _HEAD_CHANGES

    def head_effects_file(
        self, run: str, mode: HeadMode, task: str, num_items: int, *, keys_and_values: bool = False
    ) -> Path:
        """What a run's heads do on items of a task, found by intervening on them."""
        what = f"{mode}-keys-and-values" if keys_and_values else mode
        file = f"{quote(task, safe=' @')}-{num_items}.json"
        return self.model_folder(run) / _HEADS / "effects" / what / file

    def head_repair_file(self, run: str) -> Path:
        """Which heads were reverted to restore other domains."""
        return self.model_folder(run) / _HEADS / "repair.json"

    def repaired_folder(self, run: str) -> Path:
        """The run's adapter without the delta of these heads, in PEFT's layout."""
        return self.model_folder(run) / _HEADS / "repaired"

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the folder; the system lets go of it when the process ends, however it ends.

        Raises:
            StudyLockedError: another process holds it.
            StorageError: the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.root / ".lock"), timeout=0)
            lock.acquire()
        except Timeout as error:
            raise StudyLockedError(
                f"another process is working on {self.root}. Wait for it, or choose another "
                "--study-dir."
            ) from error
        except OSError as error:
            raise storage_error(self.root, error) from error
        try:
            for leftover in self.root.rglob(".*.tmp"):  # of a process that was killed while writing
                leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def write(self, path: Path, record: Record) -> None:
        write_atomically(path, record.model_dump_json(indent=2) + "\n")

    def read_study(self) -> StudyRecord:
        return read_record(self.study_file, StudyRecord)

    def read_looks(self) -> StudyLooks | None:
        """How the study was judged before; None where it was not."""
        return read_if_there(self.looks_file, StudyLooks)

    def read_recommendation(self) -> StudyRecommendation:
        return read_record(self.recommendation_file, StudyRecommendation)

    def finished_run(self, planned: PlannedRun) -> RunRecord | None:
        """The record of a finished training, or None; a record of another run is an error."""
        path = self.run_file(planned.name)
        record = read_if_there(path, RunRecord)
        if record is not None and record.planned.fingerprint != planned.fingerprint:
            raise RecordError(
                f"{path} belongs to the run {record.planned.fingerprint[:16]}, not to "
                f"{planned.fingerprint[:16]}. Move the folder away and run the study again."
            )
        return record

    def finished(self, path: Path, kind: type[F], *fingerprints: str) -> F | None:
        """A record that has one of the fingerprints; None if it is missing or has another."""
        record = read_if_there(path, kind)
        return record if record is not None and record.fingerprint in fingerprints else None

    def earlier_evaluation(self, model: str, task: str) -> TaskEvaluation | None:
        """The record of a scoring whatever its settings, or None."""
        return read_if_there(self.evaluation_file(model, task), TaskEvaluation)

    def failures(self) -> tuple[StageFailure, ...]:
        """The stages that failed when they were last tried, in the order of their names."""
        paths = sorted((self.root / _FAILURES).glob("*.json"))
        return tuple(read_record(path, StageFailure) for path in paths)

    def write_failure(self, failure: StageFailure) -> None:
        self.write(self._failure_file(failure.stage), failure)

    def remove_failure(self, stage: str) -> None:
        """Forget that a stage failed, if it did."""
        path = self._failure_file(stage)
        with writing(path):
            path.unlink(missing_ok=True)

    def keep_failures(self, stages: Collection[str]) -> None:
        """Forget the failures of all but these stages: the others are done, or planned no more."""
        for failure in self.failures():
            if failure.stage not in stages:
                self.remove_failure(failure.stage)

    def _failure_file(self, stage: str) -> Path:
        return self.root / _FAILURES / f"{stage}.json"

    def head_effects(self, study: StudyRecord, run: str) -> tuple[TaskHeadEffects, ...]:
        """All that was found by intervening on a run's heads with the study's tasks as they are."""
        paths = sorted((self.model_folder(run) / _HEADS / "effects").rglob("*.json"))
        found = [read_record(path, TaskHeadEffects) for path in paths]
        confidence = study.config.recommendation.confidence
        current = [
            each
            for each in found
            if each.task_fingerprint == study.task_fingerprints.get(each.task)
            and each.confidence == confidence
        ]
        return tuple(sorted(current, key=lambda each: HEAD_MODES.index(each.mode)))

    def head_repair(self, run: str) -> HeadRepair | None:
        """Which heads were reverted to restore other domains; None if that was not tried."""
        return read_if_there(self.head_repair_file(run), HeadRepair)

    def clear_repaired(self, run: str) -> None:
        """Take away an earlier repaired adapter."""
        folder = self.repaired_folder(run)
        with writing(folder):
            self.head_repair_file(run).unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)

    def start_run(self, planned: PlannedRun) -> None:
        """Clear what an interrupted training of this run left behind."""
        folder = self.model_folder(planned.name)
        with writing(folder):
            for leftover in (*_WEIGHTS, "eval", _HEADS):
                shutil.rmtree(folder / leftover, ignore_errors=True)
            for name in (_DIVERGENCE, _SPECTRA, _HEAD_CHANGES):
                (folder / name).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            self.metrics_file(planned.name).write_text("", encoding="utf-8")

    def finish_run(self, record: RunRecord) -> None:
        """Make the weights durable, then say that they are there."""
        for path in self.weights_folder(record.planned).rglob("*"):
            if path.is_file():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
        self.write(self.run_file(record.planned.name), record)
        self.training_state_file(record.planned).unlink(missing_ok=True)

    def append_metrics(self, run: str, line: Mapping[str, Any]) -> None:
        path = self.metrics_file(run)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_evaluation(
        self, record: TaskEvaluation, samples: Iterable[Mapping[str, Any]]
    ) -> None:
        """Samples first, record last: without their record, samples count for nothing."""
        path = self.evaluation_file(record.model, record.task)
        with writing(path):
            path.unlink(missing_ok=True)
        lines = [json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples]
        write_atomically(self.samples_file(record.model, record.task), "".join(lines))
        self.write(path, record)

    def read_samples(self, model: str, task: str) -> list[dict[str, Any]]:
        """The lines of a samples file."""
        path = self.samples_file(model, task)
        try:
            # not splitlines(): JSON leaves U+0085, U+2028 and the like as they are inside a text
            lines = path.read_text(encoding="utf-8").split("\n")
            return [json.loads(line) for line in lines if line]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RecordError(
                f"{path} cannot be read: {error}. Delete the record beside it and run again: only "
                "this task is scored again."
            ) from error

    def read_results(self, study: StudyRecord | None = None) -> StudyResults:
        """Everything that is finished, as the recommendation and the report need it.

        A run with a stage that failed is left out where its records are incomplete.

        Args:
            study: None: as it is in the folder.

        Raises:
            RecordError: a record is missing or cannot be read: the study has not finished.
            TaskError: ``evaluation.clusters`` names what is not scored, or no field.
        """
        study = self.read_study() if study is None else study
        base = self._model_results(study, BASE, None, study.scored_tasks())
        failures = self.failures()
        failed = {run for failure in failures for run in failure.runs}
        runs: list[ModelResults] = []
        for planned in study.runs:
            if planned.name not in failed or self._is_scored(study, planned):
                runs.append(self._run_results(study, planned))
        return StudyResults(study=study, base=base, runs=tuple(runs), failures=failures)

    def _is_scored(self, study: StudyRecord, planned: PlannedRun) -> bool:
        """Whether a run has all its scores; it needs none where it diverged."""
        run = self.finished_run(planned)
        if run is None or run.status == "diverged":
            return run is not None
        return all(
            self.finished(
                self.evaluation_file(planned.name, task),
                TaskEvaluation,
                scoring_fingerprint(study, planned.fingerprint, task),
            )
            for task in study.scored_tasks(planned.train_task)
        )

    def _run_results(self, study: StudyRecord, planned: PlannedRun) -> ModelResults:
        run = self.finished_run(planned)
        if run is None:
            raise RecordError(f"{self.run_file(planned.name)} is not there; run the study first.")
        scored = study.scored_tasks(planned.train_task) if run.status == "trained" else ()
        return self._model_results(study, planned.name, run, scored)

    def _model_results(
        self, study: StudyRecord, name: str, run: RunRecord | None, tasks: Iterable[str]
    ) -> ModelResults:
        evaluations = {
            task: read_record(self.evaluation_file(name, task), TaskEvaluation) for task in tasks
        }
        model = study.base_model_fingerprint if run is None else run.planned.fingerprint
        for task, record in evaluations.items():
            if record.fingerprint != scoring_fingerprint(study, model, task):
                raise RecordError(
                    f"{self.evaluation_file(name, task)} was scored under other settings than "
                    "study.json has now. Run the study again to finish it."
                )
        fields = cluster_fields(study.config.evaluation.clusters, study)
        judged = {
            task: self._judged(record, study.config.evaluation.metric_of(task), fields.get(task))
            for task, record in evaluations.items()
        }
        full_runs = study.full_runs_compared if run is None else (study.full_run_of(run.planned),)
        found = [
            self.finished(
                self.divergence_file(name, full.name),
                Divergence,
                divergence_fingerprint(study, model, full),
            )
            for full in full_runs
            if full is not None
        ]
        effects = () if run is None else self.head_effects(study, name)
        repair = None if run is None else self.head_repair(name)
        if repair is not None and not {each.fingerprint for each in effects} >= {*repair.effects}:
            repair = None  # made from what is no longer so
        return ModelResults(
            name=name,
            run=run,
            evaluations={task: each.record for task, each in judged.items()},
            items={task: each.items for task, each in judged.items()},
            divergences=tuple(each for each in found if each is not None),
            spectra=run
            and self.finished(
                self.spectra_file(name), SpectraRecord, spectra_fingerprint(study, run.planned)
            ),
            head_changes=run
            and self.finished(
                self.head_changes_file(name),
                HeadChanges,
                head_changes_fingerprint(study, run.planned),
            ),
            head_effects=_of_most_items(effects),
            head_repair=repair,
        )

    def _judged(
        self, record: TaskEvaluation, metric: str | None, cluster_field: str | None
    ) -> JudgedItems:
        samples = self.read_samples(record.model, record.task)
        samples = [line for line in samples if line["filter"] == record.decision_filter]
        if len(samples) != record.num_examples:
            path = self.samples_file(record.model, record.task)
            raise RecordError(
                f"{path} has {len(samples)} items and its record {record.num_examples}. Delete the "
                "record beside it and run again: only this task is scored again."
            )
        judged = judged_items(record, samples, metric)
        documents = {int(line["doc_id"]): line.get("doc") for line in samples}
        if cluster_field is not None:
            setting = f"evaluation.clusters.{record.task.partition('@')[0]}"
            numbers = cluster_numbers(documents, cluster_field, setting, record.task)
            return judged.with_items(clusters=numbers)
        if record.model == BASE:  # the other models have the same documents
            return judged.with_items(candidates=candidate_fields(documents))
        return judged


def _of_most_items(effects: Iterable[TaskHeadEffects]) -> tuple[TaskHeadEffects, ...]:
    """One record for each intervention and task: a trial on few items stands behind the whole."""
    found: dict[tuple[str, bool, str], TaskHeadEffects] = {}
    for each in effects:
        key = each.mode, each.keys_and_values, each.task
        if key not in found or found[key].num_items < each.num_items:
            found[key] = each
    return tuple(found.values())
