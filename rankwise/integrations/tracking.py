"""Experiment trackers, through accelerate's classes: trackio, wandb, mlflow, tensorboard.

A tracker is told what the records say, and no record says anything of a tracker. One that fails is
told of once and left alone from then on: no study fails by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Generator, Mapping
from importlib import import_module
from typing import Any, Self

from rankwise.errors import RankwiseError
from rankwise.findings.models import task_score
from rankwise.findings.statements import with_folder
from rankwise.records.config.study import StudyConfig, Tracker
from rankwise.records.folder import StudyFolder
from rankwise.records.study import exact_rank
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.observer import (
    Event,
    Noted,
    Observer,
    Planned,
    StageFinished,
    StageOutline,
    Stepped,
)
from rankwise.study.progress import Follower
from rankwise.study.reading import read_model
from rankwise.study.stages.scoring import Score

AccelerateTracker = Any
"""One of accelerate's ``GeneralTracker``, whose class does not say what all of them have."""

PROJECT = "rankwise"
"""The project of all studies; a tracker may call it an experiment."""

_STUDY_TAG = "rankwise.study"


class Tracking:
    """Tells a study's trackers what happens: an ``Observer``.

    Each tracker has one run, of the study's name, with ``loss_nats/RUN`` and ``learning_rate/RUN``
    by step, and the gauges of texts that it learned from (``reward/RUN``, ``rewards/NAME/RUN``,
    ``completion_length/RUN``), ``score/TASK/MODEL`` with its bounds (``score_lower``,
    ``score_upper``; points or nats) when it is measured, and the verdict. A study that goes on goes
    on in its run.

    Args:
        folder: of the study.
        config: of the study; without ``tracking``, nothing is done.
        note: is told of a tracker that failed.
    """

    def __init__(
        self, folder: StudyFolder, config: StudyConfig, note: Callable[[str], None]
    ) -> None:
        self._folder, self._name, self._note = folder, config.name, note
        self._wanted: tuple[Tracker, ...] = config.tracking
        self._trackers: dict[Tracker, AccelerateTracker] = {}
        self._stages: Mapping[str, StageOutline] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda own=tracker: _finish(own))
        self._trackers.clear()

    def concluded(self, outcome: StudyOutcome) -> None:
        """Tell the verdict: the statement and, where one is recommended, the rank."""
        for part in outcome.recommendation.by_train_task:
            if part.rank is not None:
                self._log({f"recommended_rank/{part.train_task}": exact_rank(part)})
            for name, tracker in list(self._trackers.items()):
                said = with_folder(part.statement, self._name)
                text = {f"verdict/{part.train_task}": said}
                self._try(name, lambda own=tracker, said=text: _tell(own, said))

    def __call__(self, event: Event) -> None:
        """Tell the trackers of an event."""
        match event:
            case Planned(stages):
                wanted, self._wanted = self._wanted, ()
                for name in wanted:
                    self._try(name, lambda its=name: self._start(its))
                self._stages = {stage.id: stage for stage in stages}
            case Stepped(_, step):
                values = {
                    f"loss_nats/{step.run}": step.loss_nats,
                    f"learning_rate/{step.run}": step.learning_rate,
                    **{f"{name}/{step.run}": value for name, value in step.gauges.items()},
                }
                self._log(values, step.step)
            case StageFinished(stage):
                if self._trackers and self._stages[stage].kind == Score.kind:
                    self._log(self._scores(self._stages[stage]))
            case _:
                pass

    def _start(self, name: Tracker) -> None:
        tracker = _tracker(name, self._name, self._folder)
        tracker.start()
        self._trackers[name] = tracker

    def _scores(self, stage: StageOutline) -> dict[str, float]:
        """The scores of a stage's models, without those that cannot be read."""
        study, task = self._folder.read_study(), stage.name
        planned = {model.name: model for model in study.models}
        values: dict[str, float] = {}
        for name in stage.records:
            if not self._folder.has(self._folder.evaluation_file(name, task)):
                continue  # its training failed
            with contextlib.suppress(RankwiseError):
                model = read_model(self._folder, study, planned.get(name), [task])
                confidence = study.config.recommendation.confidence
                score = task_score(model.evaluations[task], model.items[task], confidence)
                values[f"score/{task}/{name}"] = score.estimate
                values[f"score_lower/{task}/{name}"] = score.lower
                values[f"score_upper/{task}/{name}"] = score.upper
        return values

    def _log(self, values: Mapping[str, float], step: int | None = None) -> None:
        # mlflow takes no other characters, and tasks are called kinship@chat too
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda own=tracker: _log(own, named, step))

    def _try(self, name: Tracker, do: Callable[[], None]) -> None:
        """Do something with a tracker; one that fails is not asked again."""
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout has the results, or events
                do()
        except Exception as error:  # noqa: BLE001
            tracker = self._trackers.pop(name, None)
            with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                if tracker is not None:
                    _finish(tracker)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._note(f"warning: tracking by {name} is off from here on: {reason}")


@contextlib.contextmanager
def followed(
    shown: Follower, folder: StudyFolder, config: StudyConfig
) -> Generator[tuple[Observer, Callable[[StudyOutcome], None]]]:
    """Yields who is told of a study, and then of its outcome: what shows it, and its trackers."""
    with shown, Tracking(folder, config, lambda text: shown(Noted(text))) as tracking:

        def observer(event: Event) -> None:
            shown(event)
            tracking(event)

        yield observer, tracking.concluded


def _tracker(name: Tracker, study: str, folder: StudyFolder) -> AccelerateTracker:
    """A tracker of accelerate's that has not begun."""
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import patch_environment

    # its logger needs a state; one of this process alone, which joins no others and takes no device
    with patch_environment(local_rank=-1, pmi_size=1):
        PartialState()
    place = hashlib.sha256(str(folder.root.resolve()).encode()).hexdigest()[:8]
    identity = f"{study}-{place}"
    arguments: dict[Tracker, Callable[[], dict[str, Any]]] = {
        "trackio": lambda: {"run_name": PROJECT, "name": study, "resume": "allow", "embed": False},
        "wandb": lambda: {
            "run_name": PROJECT,
            "name": study,
            "id": identity,
            "resume": "allow",
            "settings": {"console": "off"},
        },
        "mlflow": lambda: {
            "experiment_name": PROJECT,
            "run_name": study,
            "run_id": _earlier_run(identity),
            "tags": {_STUDY_TAG: identity},
        },
        "tensorboard": lambda: {"run_name": study, "logging_dir": folder.root / "tensorboard"},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name]())
    tracker.main_process_only = False  # there is one process
    return tracker


def _earlier_run(identity: str) -> str | None:
    """The id of mlflow's run of a study; None where it has none."""
    found = import_module("mlflow").search_runs(
        experiment_names=[PROJECT],
        filter_string=f"tags.`{_STUDY_TAG}` = '{identity}'",
        output_format="list",
    )
    return found[0].info.run_id if found else None


def _log(tracker: AccelerateTracker, values: Mapping[str, float], step: int | None) -> None:
    if tracker.name == "wandb" and step is not None:
        # its own step only rises, and every run has a first one
        values = {**values, **{f"step/{name}": step for name in values}}
        for name in [name for name in values if not name.startswith("step/")]:
            tracker.tracker.define_metric(name, step_metric=f"step/{name}")
        step = None
    tracker.log(dict(values), step=step)


def _tell(tracker: AccelerateTracker, texts: Mapping[str, str]) -> None:
    if tracker.name == "mlflow":  # it logs numbers only
        import_module("mlflow").set_tags(dict(texts))
    else:
        tracker.log(dict(texts))


def _finish(tracker: AccelerateTracker) -> None:
    if tracker.name == "trackio":  # else it ends the run again, on stdout, when the process ends
        import_module("trackio").finish()
    else:
        tracker.finish()
