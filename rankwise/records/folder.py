"""The study folder: its names, atomic writes, the lock, and its records one by one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankwise.errors import ConfigError, NewerRecordError, RecordError
from rankwise.records.base import Record
from rankwise.records.fields import path_problem
from rankwise.records.files import (
    CheckedFiles,
    FileDigest,
    is_sealed,
    read_items,
    read_record,
    read_regular,
    require_regular,
    share_as_usual,
    state_of,
    unless_damaged,
    without_remedy,
    write_atomically,
    write_record,
    writing,
)
from rankwise.records.forms import model_in_form
from rankwise.records.heads import HEAD_MODES, HeadMode, TaskHeadEffects
from rankwise.records.judgement import StudyLooks
from rankwise.records.locking import (
    StudyProgress,
    leader_of,
    locked,
    refuse_working_files_of_others,
)
from rankwise.records.names import WEIGHTS, samples_beside, task_file_name
from rankwise.records.outputs import written_into
from rankwise.records.provenance import AcceptedStacks
from rankwise.records.repairs import AdapterRepair
from rankwise.records.results import LOSS_METRIC as LOSS_METRIC
from rankwise.records.study import (
    PlannedRun,
    RunRecord,
    StageFailure,
    StageRecord,
    StudyRecord,
    TaskEvaluation,
)
from rankwise.records.study_file import found_again
from rankwise.records.yaml_reading import shown

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=StageRecord)

BASE = "base"

_HEADS, _REPAIR, _FORMS, _TRAINING_STATE = "heads", "repair", "forms", "training.pt"
_TASKS, _RUNS = ".tasks", "runs"
_RECORDS_OF_A_RUN = frozenset({"eval", _HEADS, _REPAIR, _FORMS})
"""Folders of records in a run's folder."""

_UNIT = re.compile(r"[a-z_]+-[0-9a-f]{12}")
"""The folder of a unit below ``.tasks``, see ``study.agenda``."""


class StudyFolder:
    """Paths and records of one study; the only place that knows how the folder is laid out.

    What is written or removed raises ``StorageError`` where that is impossible, and what is read
    ``RecordError`` where it is missing or damaged.
    """

    def __init__(self, root: Path, missing: Collection[Path] = ()) -> None:
        """A study's folder; what is below ``missing`` counts as not there.

        Raises:
            ConfigError: its name cannot be recorded.
        """
        if problem := path_problem(root):
            raise ConfigError(str(root), [problem])
        self.root = root
        self._missing = frozenset(missing)
        self.study_file = root / "study.json"
        self.settings_file = root / "study.yaml"
        self.recommendation_file = root / "recommendation.json"
        self.findings_file = root / "findings.json"
        self.looks_file = root / "looks.json"
        self.stacks_file = root / "stacks.json"
        self.search_file = root / "search.json"
        self.own_texts_file = root / "own_texts.json"
        self.report_file = root / "report.html"
        self.failures_folder = root / "failures"
        self.progress_file = root / ".progress.json"
        self.finished_file = root / ".finished"
        self.checked = CheckedFiles(root)
        # What was read, with the state in which the file was: a study asks again and again.
        # Whole records of the two small kinds; of others, which may be large, their fingerprints.
        self._records: dict[Path, tuple[list[int], RunRecord | TaskEvaluation]] = {}
        self._fingerprints: dict[Path, tuple[list[int], str]] = {}
        self._folders: dict[str, Path] = {}  # of models: making a path takes longer than a look

    @property
    def records(self) -> tuple[Path, ...]:
        """The files and folders of which the verdict is made; they need not be there."""
        files = self.study_file, self.stacks_file, self.search_file, self.own_texts_file
        folders = self.failures_folder, self.model_folder(BASE), self.model_folder("_").parent
        return *files, *folders

    def without(self, missing: Collection[Path]) -> StudyFolder:
        """The same folder, read as if some files and folders were not there."""
        folder = StudyFolder(self.root, missing)
        folder._records, folder._fingerprints = self._records, self._fingerprints
        return folder

    def _state(self, path: Path) -> list[int] | None:
        """See ``state_of``; None where the file is not there, or counts as missing."""
        if self._missing and not self._missing.isdisjoint((path, *path.parents)):
            return None
        try:
            return state_of(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself holds nothing
                return None
            raise

    def has(self, path: Path) -> bool:
        """Whether a file is there, and does not count as missing."""
        return self._state(path) is not None

    def read(self, path: Path, kind: type[R], state: list[int] | None = None) -> R:
        """Read a record, and remember what is asked for often.

        Args:
            path: the record.
            kind: what it is.
            state: of the file, where it was just asked for.

        Raises:
            RecordError: it is not there, or not as it was written.
        """
        state = state or self._state(path)
        known, record = self._records.get(path, (None, None))
        if known is not None and known == state and isinstance(record, kind):
            return record
        read = read_record(path, kind)
        if state is not None and isinstance(read, RunRecord | TaskEvaluation):
            self._records[path] = state, read
        if state is not None and isinstance(read, StageRecord):
            self._fingerprints[path] = state, read.fingerprint
        return read

    def read_if_there(self, path: Path, kind: type[R]) -> R | None:
        """A record; None where there is no such file."""
        state = self._state(path)
        return None if state is None else self.read(path, kind, state)

    def model_folder(self, name: str) -> Path:
        """The folder of a run, or of the base model."""
        if name not in self._folders:
            self._folders[name] = self.root / (BASE if name == BASE else f"{_RUNS}/{name}")
        return self._folders[name]

    def run_file(self, name: str) -> Path:
        return self.model_folder(name) / "run.json"

    def metrics_file(self, name: str) -> Path:
        return self.model_folder(name) / "metrics.jsonl"

    def weights_folder(self, run: PlannedRun) -> Path:
        """Where a run's weights are or will be: a PEFT adapter, or a whole checkpoint.

        An imported checkpoint stays where it was; an imported adapter is copied here. To read
        them, use ``weights``.
        """
        if run.imported is not None and run.method == "full":
            return run.imported.folder
        return self.model_folder(run.name) / WEIGHTS[run.method == "full"]

    def weights(self, run: PlannedRun) -> Path:
        """Where a run's weights are, after they were compared with its record.

        While the run is made it has no record, and its weights are taken as they are.

        Raises:
            RecordError: a file is not what was written.
        """
        record = self.finished_run(run)
        files = self.files_of(run.name, {} if record is None else record.files)
        for path, digest in files.items():
            misfit = self.checked.misfit(path, digest)
            if misfit is not None:
                raise RecordError(f"{path} {misfit}. Run the study again: the run is made again.")
        return self.weights_folder(run)

    def files_of(self, model: str, files: Mapping[str, FileDigest]) -> dict[Path, FileDigest]:
        """The files that a record of a model stands on, with what they must be."""
        return {self.model_folder(model) / name: digest for name, digest in files.items()}

    def _digests(self, model: str, weights: Path) -> dict[str, FileDigest]:
        """Name in the model's folder, or whole path -> digest, of all files of a folder."""
        folder = self.model_folder(model)
        return {
            (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix(): (
                self.checked.digest(path)
            )
            for path in sorted(weights.rglob("*"))
            if path.is_file()
        }

    def training_state_file(self, run: PlannedRun) -> Path:
        """What an interrupted training goes on from; gone when the run is finished."""
        return self.model_folder(run.name) / _TRAINING_STATE

    def evaluation_file(self, model: str, task: str) -> Path:
        return self.model_folder(model) / "eval" / f"{task_file_name(task)}.json"

    def samples_file(self, model: str, task: str) -> Path:
        return samples_beside(self.evaluation_file(model, task))

    def labels_file(self, task: str) -> Path:
        """What a person thinks of models' answers to some items of a task."""
        return self.root / "labels" / f"{task_file_name(task)}.csv"

    def models_in_forms(self, model: str) -> list[str]:
        """The names under which a run was scored in forms."""
        places = sorted((self.model_folder(model) / _FORMS).glob("*"))
        return [model_in_form(model, place.name) for place in places]

    def head_effects_file(self, run: str, mode: HeadMode, task: str, num_items: int) -> Path:
        """What a run's heads do on items of a task, found by ablating them."""
        file = f"{task_file_name(task)}-{num_items}.json"
        return self.model_folder(run) / _HEADS / "effects" / mode / file

    def head_parts_folder(self, run: str, mode: HeadMode, task: str, num_items: int) -> Path:
        """What is scored of these effects so far; it goes when they are written."""
        name = f"{task_file_name(task)}-{num_items}"
        return self.model_folder(run) / _HEADS / "parts" / mode / name

    def repair_scores_file(self, run: str, task: str) -> Path:
        """What a run's adapter scores after each repair without training."""
        return self.model_folder(run) / _REPAIR / "scores" / f"{task_file_name(task)}.json"

    def adapter_repair_file(self, run: str) -> Path:
        """Which of these repairs keeps the gain within a limit of retention loss."""
        return self.model_folder(run) / _REPAIR / "repair.json"

    def repaired_adapter_folder(self, run: str) -> Path:
        """The run's adapter after this repair, in PEFT's layout."""
        return self.model_folder(run) / _REPAIR / "adapter"

    def export_folder(self, kind: str) -> Path:
        """Where an export goes, unless another folder is given."""
        return self.root / "export" / kind

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Lead the study; the system lets go of the folder when the process ends, however it ends.

        Raises:
            ConfigError: there is no study, and files of the user's have names that it works with.
            NewerRecordError: a newer version of rankwise made the folder.
            StudyLockedError: another process leads it.
            StorageError: the folder cannot be written.
        """
        study = None
        with unless_damaged():
            study = self.read_if_there(self.study_file, StudyRecord)
        if study is None:
            refuse_working_files_of_others(self.root)
        with locked(self.root):
            if study is not None:  # elsewhere, what has these names is somebody else's
                self.keep_states_of_tasks()
                self._remove_used_states()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    self.progress_file.unlink(missing_ok=True)

    def _remove_used_states(self) -> None:
        """Remove the states of training beside records of finished runs, which need none."""
        for state in list(self.root.glob(f"{_RUNS}/*/{_TRAINING_STATE}")):
            run = state.parent.name
            with contextlib.suppress(OSError, RecordError):
                if self.read(self.run_file(run), RunRecord).planned.name == run:
                    state.unlink(missing_ok=True)

    def task_folder(self, unit: str, attempt: str) -> Path:
        """Where the task of a cluster leaves what it makes, until it is moved into the study."""
        return self.root / _TASKS / unit / attempt

    def keep_states_of_tasks(self, unit: str = "*") -> None:
        """Keep the states of training that tasks have saved for a unit; remove all else of it.

        What has another name than units have is not theirs, nor what a link leads to.
        """
        tasks = self.root / _TASKS
        units = () if tasks.is_symlink() else list(tasks.glob(unit))
        for place in units:
            if not _UNIT.fullmatch(place.name) or place.is_symlink():
                continue
            for state in place.glob(f"*/{_RUNS}/*/{_TRAINING_STATE}"):
                if state.resolve().is_relative_to(place.resolve()):
                    self._keep_state(state)
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            tasks.rmdir()

    def _keep_state(self, state: Path) -> None:
        run = state.parent.name
        target = self.model_folder(run) / _TRAINING_STATE
        is_later = not target.exists() or target.stat().st_mtime_ns < state.stat().st_mtime_ns
        if is_later and not self.run_file(run).exists():
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                state.replace(target)

    def give_up(self, models: Collection[PlannedRun]) -> None:
        """Remove states and weights of models that were dropped; records and scores stay."""
        for model in models:
            state = self.training_state_file(model.whole)
            weights = self.weights_folder(model)
            record = self.finished_run(model)
            if record is not None and record.files:
                without = {"files": {}, "weights_bytes": 0}
                self.write(self.run_file(model.name), record.model_copy(update=without))
            with writing(state):
                if not self.run_file(state.parent.name).exists():
                    state.unlink(missing_ok=True)
                if weights.exists() and model.role != "imported":  # that is somebody else's
                    shutil.rmtree(weights)

    def write(self, path: Path, record: Record) -> None:
        write_record(path, record)

    def leader(self) -> tuple[str, StudyProgress | None] | None:
        """The process that leads the study, and how far it is, as far as it has said; or None."""
        leader, progress = leader_of(self.root), None
        if leader is None:
            return None
        with contextlib.suppress(RecordError):
            progress = self.read_if_there(self.progress_file, StudyProgress)
        return leader, progress

    def read_study(self) -> StudyRecord:
        """``study.json``, with the paths that it names where they are from here now."""
        try:
            study = read_record(self.study_file, StudyRecord)
        except NewerRecordError:
            raise
        except RecordError as error:
            if not os.path.lexists(self.study_file):
                raise
            raise RecordError(
                f"{without_remedy(error)}. Give what it was made from: {self.made_again_by}"
            ) from error
        config = found_again(study.config, self.root.absolute(), self.settings_file)
        return study.model_copy(update={"config": config})

    @property
    def made_again_by(self) -> str:
        """The command by which a study makes again what is damaged, as a shell takes it."""
        study, place = None, shlex.quote(str(self.root))
        with contextlib.suppress(RecordError):
            study = read_record(self.study_file, StudyRecord)
        if study is not None and study.scores is None:
            return f"rankwise run {place}"
        if study is not None or self.study_file.name in written_into(self.root):
            return f"rankwise verdict FILES --output {place} --overwrite"
        file = self.settings_file
        made_from = shlex.quote(str(file)) if file.exists() else "STUDY.yaml"
        return f"rankwise run {made_from} --study-dir {place}"

    def read_looks(self) -> StudyLooks | None:
        """How the study was judged before; None where it was not."""
        return self.read_if_there(self.looks_file, StudyLooks)

    def accepted_stacks(self) -> AcceptedStacks:
        """The stacks under which the study went on."""
        return self.read_if_there(self.stacks_file, AcceptedStacks) or AcceptedStacks()

    def finished_run(self, planned: PlannedRun) -> RunRecord | None:
        """The record of a finished training, or None.

        Raises:
            RecordError: it is another run's, or not as it was written.
        """
        path = self.run_file(planned.name)
        record = self.read_if_there(path, RunRecord)
        if record is None:
            return None
        if record.planned.fingerprint != planned.fingerprint:
            raise RecordError(
                f"{path} belongs to the run {record.planned.fingerprint[:16]}, not to "
                f"{planned.fingerprint[:16]}. Move the folder away and run the study again."
            )
        if record.planned.train_task != planned.train_task:
            raise RecordError(
                f"{path} says that the run was trained on {shown(record.planned.train_task)}, and "
                f"the study on {shown(planned.train_task)}. Move the folder away and run the study "
                "again."
            )
        return record

    def finished(self, path: Path, kind: type[F], *fingerprints: str) -> F | None:
        """A record that has one of the fingerprints; None if it is missing or has another."""
        record = self.read_if_there(path, kind)
        return record if record is not None and record.fingerprint in fingerprints else None

    def is_finished(self, path: Path, kind: type[StageRecord], fingerprint: str) -> bool:
        """Whether a record is there and has a fingerprint; see ``finished``."""
        state = self._state(path)
        if state is None:
            return False
        read, known = self._fingerprints.get(path, (None, ""))
        if read != state:
            known = self.read(path, kind, state).fingerprint
        return known == fingerprint

    def earlier_evaluation(self, model: str, task: str) -> TaskEvaluation | None:
        """The record of a scoring whatever its settings, or None."""
        return self.read_if_there(self.evaluation_file(model, task), TaskEvaluation)

    def failures(self) -> tuple[StageFailure, ...]:
        """The stages that failed when they were last tried, in the order of their names."""
        paths = sorted(self.failures_folder.glob("*.json"))
        return tuple(self.read(path, StageFailure) for path in paths if self.has(path))

    def write_failure(self, failure: StageFailure) -> None:
        self.write(self.failures_folder / f"{failure.stage}.json", failure)

    def remove_failure(self, stage: str) -> None:
        """Forget that a stage failed, if it did."""
        path = self.failures_folder / f"{stage}.json"
        with writing(path):
            path.unlink(missing_ok=True)

    def keep_failures(self, stages: Collection[str]) -> None:
        """Forget the failures of all but these stages: the others are done, or planned no more."""
        for failure in self.failures():
            if failure.stage not in stages:
                self.remove_failure(failure.stage)

    def head_effects_files(self, run: str) -> list[Path]:
        """The records of all ablations of a run's heads."""
        return sorted((self.model_folder(run) / _HEADS / "effects").glob("*/*.json"))

    def head_effects(self, study: StudyRecord, run: str) -> tuple[TaskHeadEffects, ...]:
        """All that was found by intervening on a run's heads with the study's tasks as they are."""
        found = [read_record(path, TaskHeadEffects) for path in self.head_effects_files(run)]
        confidence = study.config.recommendation.confidence
        current = [
            each
            for each in found
            if each.task_fingerprint == study.task_fingerprints.get(each.task)
            and each.confidence == confidence
        ]
        return tuple(sorted(current, key=lambda each: HEAD_MODES.index(each.mode)))

    def adapter_repair(self, study: StudyRecord, run: PlannedRun) -> AdapterRepair | None:
        """How a run's adapter was repaired as a whole; None if run or tasks are others since."""
        record = self.read_if_there(self.adapter_repair_file(run.name), AdapterRepair)
        if record is None or record.model_fingerprint != run.fingerprint:
            return None
        tasks = record.task_fingerprints.items()
        is_current = all(study.task_fingerprints.get(task) == known for task, known in tasks)
        same = record.choice.confidence == study.config.recommendation.confidence
        return record if is_current and same else None

    def clear_adapter_repair(self, run: str) -> None:
        """Take away an earlier adapter that was repaired, its record first; the scores stay."""
        folder = self.repaired_adapter_folder(run)
        with writing(folder):
            self.adapter_repair_file(run).unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)

    def is_trained(self, planned: PlannedRun) -> bool:
        """Whether a run's training is done; one that diverged is done too.

        A search removes the weights of a model that it drops. That model is done as a candidate of
        the search, and is trained again where it is wanted later.
        """
        run = self.finished_run(planned)
        return run is not None and (planned.role == "searched" or not run.is_given_up)

    def start_of(self, planned: PlannedRun) -> RunRecord | None:
        """The finished run that a run goes on from; None: it is not finished, or there is none.

        Raises:
            RecordError: it is another run's, or not as it was written.
        """
        if planned.after is None:
            return None
        path = self.run_file(planned.after.name)
        record = self.read_if_there(path, RunRecord)
        if record is not None and record.planned.fingerprint != planned.after.fingerprint:
            raise RecordError(f"{path} is not the run that {planned.name} goes on from.")
        return record

    def readable_runs(self) -> Iterator[RunRecord]:
        """The finished runs whose records are whole, whichever study planned them."""
        for path in sorted(self.root.glob("runs/*/run.json")):
            with contextlib.suppress(RecordError):
                yield read_record(path, RunRecord)

    def start_run(self, planned: PlannedRun) -> None:
        """Clear what an interrupted training of this run left behind; the user's files stay.

        Nothing is written through a link: one that stands in the place of losses or weights goes.
        """
        folder = self.model_folder(planned.name)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.iterdir():
                if leftover.name in WEIGHTS:
                    _remove(leftover)
                elif leftover.name in _RECORDS_OF_A_RUN and not leftover.is_symlink():
                    _remove_records(leftover)
                elif leftover != self.run_file(planned.name) and _is_record(leftover):
                    leftover.unlink(missing_ok=True)
        write_atomically(self.metrics_file(planned.name), "")

    def finish_run(self, record: RunRecord) -> None:
        """Make weights and losses durable, then say that they are there, and what they are."""
        run, weights = record.planned, self.weights_folder(record.planned)
        metrics = self.metrics_file(run.name)
        with writing(weights):
            for path in (*weights.rglob("*"), metrics):
                if not path.is_file():
                    continue
                if path.is_relative_to(self.root):  # an imported checkpoint is somebody else's
                    share_as_usual(path)
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            files, losses = self._digests(run.name, weights), self.checked.digest(metrics)
        digests = {"files": files, "metrics": losses}
        self.write(self.run_file(run.name), record.model_copy(update=digests))
        state = self.training_state_file(run)
        with writing(state):
            state.unlink(missing_ok=True)

    def read_losses(self, run: str) -> list[tuple[int, float]]:
        """Step and loss in nats per token, as far as they were written; a cut line ends them.

        Those of a finished run are read only where they are what it wrote.
        """
        losses: list[tuple[int, float]] = []
        with contextlib.suppress(OSError, RecordError, ValueError, KeyError, TypeError):
            content = read_regular(self.metrics_file(run))
            record = self.read_if_there(self.run_file(run), RunRecord)
            if record is not None and record.metrics != FileDigest.of(content):
                return losses
            for line in content.decode().splitlines():
                metrics = json.loads(line)
                losses.append((int(metrics["step"]), float(metrics["loss_nats"])))
        return losses

    def append_metrics(self, run: str, line: Mapping[str, Any]) -> None:
        path = self.metrics_file(run)
        with writing(path):
            if path.exists():
                require_regular(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def write_evaluation(
        self, record: TaskEvaluation, samples: Iterable[Mapping[str, Any]]
    ) -> None:
        """Samples first, record last: without their record, samples count for nothing."""
        path = self.evaluation_file(record.model, record.task)
        with writing(path):
            path.unlink(missing_ok=True)
        lines = [json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples]
        content = "".join(lines).encode()
        write_atomically(self.samples_file(record.model, record.task), content)
        self.write(path, record.model_copy(update={"samples": FileDigest.of(content)}))

    def write_adapter_repair(self, record: AdapterRepair) -> AdapterRepair:
        """Write which repair was chosen; the adapter is there already. Returns what was written."""
        files = self._digests(record.model, self.repaired_adapter_folder(record.model))
        written = record.model_copy(update={"files": files})
        self.write(self.adapter_repair_file(record.model), written)
        return written

    def read_samples(
        self, model: str, task: str, record: TaskEvaluation | None = None
    ) -> list[dict[str, Any]]:
        """The lines of a samples file, after it was compared with the record beside it.

        Args:
            model: its name.
            task: its name.
            record: the one beside it, where it was just read.

        Raises:
            RecordError: it cannot be read, or is not what was scored.
        """
        record = record or self.read(self.evaluation_file(model, task), TaskEvaluation)
        path = self.samples_file(model, task)
        try:
            return read_items(path, record.samples)
        except (OSError, ValueError, RecursionError) as error:
            self.checked.forget(path)
            raise RecordError(
                f"{path} cannot be read: {error}. Run the study again: {model} is scored on "
                f"{task} again."
            ) from error


def _remove(path: Path) -> None:
    """A folder with all that is in it; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_record(path: Path) -> bool:
    """Whether a file is one that rankwise wrote: a record, or the items of one."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.name.endswith(".samples.jsonl") or (path.suffix == ".json" and is_sealed(path))


def _remove_records(folder: Path) -> None:
    """Remove the records and weights below a folder, and the folders that are empty then."""
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        if path.name in WEIGHTS:
            _remove(path)
        elif path.is_dir() and not path.is_symlink():
            _remove_records(path)
        elif _is_record(path):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's is in it, or it is a file
        folder.rmdir()
