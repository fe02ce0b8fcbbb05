"""How the process that leads goes on where workers are lost, by a Ray that is a stub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rankwise.errors import WorkerLostError
from rankwise.records.folder import StudyFolder
from rankwise.study.agenda import Unit
from rankwise.study.executors import ray as of_ray
from rankwise.study.executors.desk import Attempt, Desk, Letter, Worker
from rankwise.study.executors.ray import MOST_RESTARTS, RayExecutor
from rankwise.study.observer import Noted, StageFinished
from rankwise.study.stopping import StopSignals

Does = Callable[[Attempt], bool]
"""What comes of an attempt: False, its process is lost."""


class RayError(Exception):
    """As Ray's."""


class RayTaskError(RayError):
    cause: Exception | None = None


@dataclass(frozen=True)
class OneStage:
    """A stage that needs nothing."""

    id: str
    runs: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    work: float = 1.0
    memory_bytes: int = 1

    @property
    def name(self) -> str:
        return self.id

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return ()


@dataclass
class StubRay:
    """Workers that do what is offered when they are waited for, each on its node."""

    desk: Desk
    does: Does
    names: list[str]
    placed: list[str] = field(default_factory=list[str])
    lost: list[str] = field(default_factory=list[str])
    exceptions: ClassVar[Any] = SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        RayActorError=type("RayActorError", (RayError,), {}),
        TaskCancelledError=type("TaskCancelledError", (RayError,), {}),
    )

    def put(self, job: Any) -> Any:
        return job

    def remote(self, **_: Any) -> Any:
        return lambda _: SimpleNamespace(options=self._options)

    def _options(self, **options: Any) -> Any:
        node = options.get("scheduling_strategy", self.names[0])
        self.placed.append(node)
        return SimpleNamespace(remote=lambda _, name, *__: (name, node))

    def wait(self, refs: Sequence[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        """Each worker does a unit, or asks what is next; those that have ended, and none."""
        return [ref for ref in refs if self._has_ended(*ref)], []

    def _has_ended(self, name: str, node: str) -> bool:
        given = self.desk.next(Worker(name, 7, "host", node, None))
        if isinstance(given, bool):
            return not given
        attempt, _ = given
        if self.does(attempt):
            self.desk.put(Letter(attempt, (StageFinished(attempt.unit),)))
            return False
        self.lost.append(name)
        return True

    def get(self, ref: Any) -> Any:
        if callable(ref):  # of the desk
            return ref()
        if ref[0] in self.lost:
            raise RayError("The worker died unexpectedly")
        return None

    def cancel(self, _: Any) -> None: ...

    kill = cancel


class Plans:
    """What is due, as an agenda says it."""

    def __init__(self, *units: Unit) -> None:
        self.units, self.failures, self.errors = units, list[Any](), list[Exception]()
        self.left = {unit.id: list(unit.stages) for unit in units}

    def due(self, unit: Unit) -> list[Any]:
        return list(self.left[unit.id])

    def is_left(self, unit: Unit) -> bool:
        return bool(self.left[unit.id])

    def models_of(self, _: Unit) -> list[str]:
        return []

    def finished(self, unit: str) -> None:
        self.left[unit] = []

    def failed(self, stage: Any, error: Exception) -> None:
        self.errors.append(error)
        for stages in self.left.values():
            stages[:] = [each for each in stages if each is not stage]


@dataclass
class Led:
    """A study that was led."""

    plans: Plans
    ray: StubRay
    notes: list[str]


def led(
    root: Path, monkeypatch: pytest.MonkeyPatch, does: Does, *units: Unit, nodes: Sequence[str]
) -> Led:
    """Lead the units on a cluster of nodes with a card each, the first of which Ray prefers."""
    monkeypatch.setattr(of_ray, "packed", lambda *_: b"")
    monkeypatch.setattr(of_ray.importlib, "import_module", lambda _: None)
    (root / ".leader").write_text("the leader")
    desk = Desk(root, "the leader")
    ray, plans, notes = StubRay(desk, does, list(nodes)), Plans(*units), list[str]()

    def exchanged(*given: Any) -> Callable[[], Any]:
        return lambda: desk.exchange(*given)

    resources = {name: {"CPU": 1.0, "GPU": 1.0} for name in nodes}
    cluster: Any = SimpleNamespace(
        ray=ray,
        nodes=lambda: list(resources.values()),
        nodes_by_id=lambda: resources,
        machine=lambda _: None,
        desk=lambda *_: SimpleNamespace(exchange=SimpleNamespace(remote=exchanged)),
        on_node=lambda node, soft: node,
    )

    def told(event: Any) -> None:
        notes.extend([event.text] if isinstance(event, Noted) else [])

    context: Any = SimpleNamespace(
        folder=StudyFolder(root),
        plan=None,
        signals=StopSignals(),
        tell=SimpleNamespace(event=told),
    )
    agenda: Any = plans
    RayExecutor(cluster, None)(context, agenda)
    return Led(plans, ray, notes)


def unit(name: str, run: str | None = None) -> Unit:
    """A unit whose only stage has its id."""
    runs = () if run is None else (SimpleNamespace(name=run, whole=SimpleNamespace(name=run)),)
    stages: Any = (OneStage(name, runs),)
    made = Unit("pass", stages)
    made.__dict__["id"] = name  # in the place of the hash
    return made


def test_what_one_node_has_lost_is_done_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def does(attempt: Attempt) -> bool:
        done.append(attempt.node)
        return attempt.node != "bad"

    found = led(tmp_path, monkeypatch, does, unit("pass-a"), nodes=["bad", "good"])
    assert done == ["bad", "good"]
    assert found.plans.errors == []
    assert found.plans.left == {"pass-a": []}
    assert "good" in found.ray.placed
    (note,) = found.notes
    assert "7 on host" in note


def test_a_unit_that_is_lost_everywhere_has_failed_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def does(attempt: Attempt) -> bool:
        tried.append(attempt.unit)
        return attempt.unit != "pass-a"

    units = (unit("pass-a"), unit("pass-b"))
    found = led(tmp_path, monkeypatch, does, *units, nodes=["only"])
    assert tried.count("pass-a") == MOST_RESTARTS + 1
    (error,) = found.plans.errors
    assert isinstance(error, WorkerLostError)
    assert f"{MOST_RESTARTS + 1} times" in str(error)
    assert found.plans.left == {"pass-a": [], "pass-b": []}


def test_what_was_saved_in_between_is_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines that are taken away again and again: the training ends all the same."""
    attempts: list[Attempt] = []
    name = "pass-0123456789ab"

    def does(attempt: Attempt) -> bool:
        attempts.append(attempt)
        place = StudyFolder(tmp_path).task_folder(attempt.unit, attempt.id)
        state = place / "runs" / "run-a" / "training.pt"
        state.parent.mkdir(parents=True)
        state.write_text(f"step {len(attempts)}")
        return len(attempts) == 3 * MOST_RESTARTS

    found = led(tmp_path, monkeypatch, does, unit(name, "run-a"), nodes=["spot"])
    assert len(attempts) == 3 * MOST_RESTARTS
    assert found.plans.errors == []
    assert len(found.notes) == len(attempts) - 1
