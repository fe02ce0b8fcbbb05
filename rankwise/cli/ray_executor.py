"""``rankwise run --executor ray``: each unit of a study is a task of a Ray cluster.

This process leads: it plans, has units begun in the order of what waits for them, and concludes.
It is a worker of the study's folder, and so is each task while it does its unit: leases keep them
apart, also from ``rankwise run --worker``. Of a study at a URL each node has a mirror, and this
process says which stages have failed. No other module names Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rankwise.cli.application import extend_cuda_memory, note, patient_threads, stderr
from rankwise.cli.events import EventObserver, Events, print_line
from rankwise.cli.workers import MOST_RESTARTS, Heard, TeamDisplay, pass_on
from rankwise.errors import ConfigError, RankwiseError, WorkerLostError
from rankwise.records.folder import StudyFolder
from rankwise.records.mirror import local_folder, mirror_at
from rankwise.study.stopping import Stopped, StopSignals
from rankwise.study.units import Unit, work_from

if TYPE_CHECKING:
    from rankwise.engine.models.devices import Machine
    from rankwise.records.config.study import StudyConfig
    from rankwise.study.conclusion import StudyOutcome
    from rankwise.study.planning.plan import StudyPlan
    from rankwise.study.shift import Shift

_LOOK_SECONDS = 0.2
"""So often the tasks are asked what they have done."""

_LOOK_AGAIN_SECONDS = 5.0
"""So often the folder and the cluster are read anew: others may have done a unit or joined."""

_PATIENCE_SECONDS = 60.0
"""Tasks that are told to stop save at the end of a step; who has not by then is left behind."""

_WAITING_SHARE = 2
"""Units that Ray has at a time, for each place: one at work, and one for when a place is free or a
node joins."""

_CONNECT_SECONDS = 10.0

_CARD_SECONDS = 30.0
"""After which it is said that a card is waited for; a task of Ray begins in a few."""

_OBJECT_BYTES = 128 * 2**20
"""Of a local cluster's object store: only names and settings go through it."""


class Places(NamedTuple):
    """Where the units of a study are done, each on a share of a node.

    Attributes:
        has_cards: whether on a card; otherwise on processors.
        num_cpus: that a unit has.
        num_cards: the most that one node has.
        memory_bytes: the most that one node has for its tasks.
    """

    has_cards: bool
    num_cpus: float
    num_cards: int
    memory_bytes: int

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, float]], num_workers: int | None) -> Places:
        """Those of a cluster.

        Args:
            nodes: what each node has, as Ray names it, such as ``{"CPU": 8.0, "GPU": 1.0}``.
            num_workers: units at a time on a CPU; None: one on each node.

        Raises:
            ConfigError: it has neither cards nor processors.
        """
        memory = round(max((node.get("memory", 0.0) for node in nodes), default=0.0))
        cards = [node for node in nodes if node.get("GPU", 0.0) >= 1]
        if cards:
            cpus = min(node.get("CPU", 0.0) / int(node["GPU"]) for node in cards)
            most = max(int(node["GPU"]) for node in cards)
            return cls(True, _whole(cpus), most, memory)
        cores = [node["CPU"] for node in nodes if node.get("CPU", 0.0) > 0]
        if not cores:
            problem = "--executor ray: the cluster has no card and no CPU; add a node to it"
            raise ConfigError("run", [problem])
        cpus = min(sum(cores) / (num_workers or len(cores)), *cores)
        return cls(False, _whole(cpus), 0, memory)

    def count(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many units can be done at a time on some nodes, at least one."""
        if self.has_cards:
            return max(sum(int(node.get("GPU", 0.0)) for node in nodes), 1)
        return max(sum(int(node.get("CPU", 0.0) / self.num_cpus) for node in nodes), 1)

    def options(self, unit: Unit) -> dict[str, Any]:
        """What the task of a unit asks for. The memory of a card is asked for with the card."""
        if self.has_cards:
            return {"num_cpus": self.num_cpus, "num_gpus": 1}
        return {"num_cpus": self.num_cpus, "memory": min(unit.memory_bytes, self.memory_bytes)}


def _whole(cpus: float) -> float:
    """Whole processors, or the part of one."""
    return float(int(cpus)) if cpus >= 1 else cpus


class Cluster:
    """A Ray cluster: one of this machine for the time of the block, or one that is there.

    Within the block nothing is printed to stdout: Ray does so, from a thread of its own.

    Args:
        address: HOST:PORT or ``auto``; None: one is started.
    """

    def __init__(self, address: str | None) -> None:
        self._address, self._end = address, contextlib.ExitStack()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self.ray: Any = importlib.import_module("ray")
        except ImportError as error:
            problem = f'--executor ray: {error}; run pip install "rankwise[ray]"'
            raise ConfigError("run", [problem]) from error

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.callback(self.ray.shutdown)  # also of what has begun to start
            self._start()
            self._end = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _start(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            # a task for which memory never suffices is not tried for ever
            os.environ.setdefault("RAY_task_oom_retries", str(MOST_RESTARTS))
            self.ray.init(
                "local", include_dashboard=False, object_store_memory=_OBJECT_BYTES, **quiet
            )
            return
        try:
            if self._address != "auto":  # Ray would wait for minutes
                host, _, port = self._address.rpartition(":")
                socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
            self.ray.init(self._address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            first = next(iter(str(error).splitlines()), "")
            problem = f"--address {self._address}: {first}; give HOST:PORT of a cluster, or auto"
            raise ConfigError("run", [problem]) from error

    def nodes(self) -> list[Mapping[str, float]]:
        """What each node has that is there now."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def machine(self, places: Places) -> Machine:
        """The machine to plan for: a card, as one of them is, or a CPU.

        Its memory is given, so that tasks plan the same however much others leave them.
        """
        import torch

        from rankwise.engine.models.devices import Machine

        if not places.has_cards:
            return Machine(torch.device("cpu"), places.memory_bytes)
        ref = self.ray.remote(_card_bytes).options(num_cpus=0, num_gpus=1).remote()
        if not self.ray.wait([ref], timeout=_CARD_SECONDS)[0]:
            note("waiting for a card of the cluster: all of them are taken")
        return Machine(torch.device("cuda"), self.ray.get(ref))

    def mailbox(self) -> Any:
        """One that ends with this process, on its node."""
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        node = self.ray.get_runtime_context().get_node_id()
        here = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        return self.ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


def _card_bytes() -> int:
    """Of the card of the task, what is free."""
    from rankwise.engine.models.devices import Machine

    return Machine.here().available_bytes()


class Letter(NamedTuple):
    """An event that a task tells.

    Attributes:
        unit: the id of its unit.
        process: that does it: host and number.
        line: the event as JSON.
    """

    unit: str
    process: str
    line: str


class Mailbox:
    """Keeps what the tasks tell until it is taken."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def put(self, letter: Letter) -> None:
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        """All that has come since it was asked for last."""
        letters, self._letters = self._letters, []
        return letters


class Job(NamedTuple):
    """What every task of a study is given.

    Attributes:
        config: of the study, as it was written.
        study: the study's folder, which all nodes see, or its URL.
        leader: the name of the process that runs it, where it is at a URL.
        place: the folder from which relative paths count.
        machine: that the study is planned for.
        num_workers: that the study is planned for.
        accept_new_stack: see ``run_study``.
    """

    config: StudyConfig
    study: str
    leader: str | None
    place: Path
    machine: Machine
    num_workers: int
    accept_new_stack: bool

    def plan(self, grown: StudyConfig, folder: StudyFolder) -> StudyPlan:
        """The plan of the config as it has grown."""
        from rankwise.study.planning.plan import plan_study

        return plan_study(
            grown,
            folder=folder,
            machine=self.machine,
            num_workers=self.num_workers,
        )


def do_task(
    job: Job, unit: str, mailbox: Any, failed: Sequence[str], *needed: Sequence[str]
) -> list[str]:
    """Do what can be done of a unit by now: the task, in a process of Ray.

    If the study is at a URL, this node has its own mirror. It fetches what the unit needs, and
    sends the results.

    Args:
        job: of the study.
        unit: its id.
        mailbox: to which it is told what happens.
        failed: the ids of stages that have failed so far.
        needed: what the tasks return for which Ray lets this one wait.

    Returns:
        The ids of the stages that it failed at.
    """
    patient_threads()
    extend_cuda_memory()
    if job.place.is_dir():
        os.chdir(job.place)
    from rankwise.engine.models.libraries import quiet_libraries
    from rankwise.integrations.tracking import TrackedObserver
    from rankwise.study.growing import do_unit_of
    from rankwise.study.progress import peak_memory

    quiet_libraries()
    ray: Any = importlib.import_module("ray")
    process, last = f"{socket.gethostname()}.{os.getpid()}", list[Any]()

    def send(line: str) -> None:
        last[:] = [mailbox.put.remote(Letter(unit, process, line))]

    folder = StudyFolder(local_folder(job.study, job.leader))
    observer = EventObserver(Events(send), peak_memory(), folder)
    with observer, TrackedObserver(observer, folder, job.config) as tracked:
        failures = do_unit_of(
            job.config,
            partial(job.plan, folder=folder),
            folder,
            tracked,
            unit,
            accept_new_stack=job.accept_new_stack,
            is_led=True,
            failed=[*failed, *itertools.chain(*needed)],
        )
    ray.get(last)  # letters come in order: none is lost where the process ends now
    return [failure.stage for failure in failures]


class _Task(NamedTuple):
    """A unit that Ray has, and the reference to what its task returns."""

    unit: Unit
    ref: Any


class RayExecutor:
    """Has the units of a study done as tasks; see ``rankwise.study.run.Executor``.

    Args:
        cluster: that does them.
        places: where.
        job: of the study.
        hear: is told what the tasks tell.
    """

    def __init__(
        self, cluster: Cluster, places: Places, job: Job, hear: Callable[[Heard], None]
    ) -> None:
        self._cluster, self._ray, self._places = cluster, cluster.ray, places
        self._job, self._mailbox = self._ray.put(job), cluster.mailbox()
        self._hear = hear
        self._tasks: dict[str, _Task] = {}
        self._numbers: dict[str, int] = {}  # unit -> number of the worker that does it
        self._processes: dict[str, str] = {}
        self._early: list[Letter] = []  # of units that have no number yet

    def __call__(self, shift: Shift, signals: StopSignals) -> None:
        """Return when nothing is left that could be done.

        Raises:
            RankwiseError: a task met what ends the study, such as a full disk.
            Stopped: a signal came; what was trained is saved.
        """
        with signals.deferred():
            try:
                while True:
                    self._submit(shift)
                    if not self._tasks or signals.is_pending:
                        return
                    self._wait(shift, signals)
            finally:
                self._stop()

    def _submit(self, shift: Shift) -> None:
        """Give Ray the units with the longest chains of work, as many as it should have."""
        waiting = shift.waiting()
        failed = [failure.stage for failure in shift.failures()]
        chains = work_from([each.unit for each in waiting])
        room = _WAITING_SHARE * self._places.count(self._cluster.nodes()) - len(self._tasks)
        for unit, until in sorted(waiting, key=lambda each: -chains[each.unit.id]):
            if unit.id in self._tasks or not self._tasks.keys() >= set(until):
                continue
            if room <= 0:
                return
            task = self._ray.remote(do_task).options(
                name=unit.id, max_retries=MOST_RESTARTS, **self._places.options(unit)
            )
            needed = [self._tasks[need].ref for need in until]
            ref = task.remote(self._job, unit.id, self._mailbox, failed, *needed)
            self._tasks[unit.id] = _Task(unit, ref)
            room -= 1

    def _wait(self, shift: Shift, signals: StopSignals) -> None:
        """Until a task has ended, a signal has come, or it is time to look again."""
        refs, until = [task.ref for task in self._tasks.values()], time.monotonic()
        until += _LOOK_AGAIN_SECONDS
        ended: list[Any] = []
        while not (ended or signals.is_pending or time.monotonic() > until):
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=_LOOK_SECONDS)
            self._look([task for task in self._tasks.values() if task.ref in ended], shift)

    def _look(self, ended: Sequence[_Task], shift: Shift) -> None:
        """Pass on what the tasks have told, and end those that have ended.

        A unit is heard of one look after its first letter: by then the unit whose place it took has
        ended here, too, and its number is free.
        """
        early, self._early = self._early, []
        letters = [*early, *self._take()]
        for task in sorted(ended, key=lambda task: task.unit.id not in self._numbers):
            self._read([letter for letter in letters if letter.unit == task.unit.id])
            self._end(task, shift)
        letters = [letter for letter in letters if letter.unit in self._tasks]
        known = {*self._numbers, *(letter.unit for letter in early)}
        self._early = [letter for letter in letters if letter.unit not in known]
        self._read([letter for letter in letters if letter.unit in known])

    def _end(self, task: _Task, shift: Shift) -> None:
        errors, unit = self._ray.exceptions, task.unit.id
        del self._tasks[unit]
        self._processes.pop(unit, None)
        if unit in self._numbers:
            self._hear(Heard(self._numbers.pop(unit), code=0))
        try:
            shift.hear_of(self._ray.get(task.ref))
        except errors.TaskCancelledError:
            pass  # its process was told to end, and has saved what it trained
        except errors.RayTaskError as error:
            if isinstance(error.cause, RankwiseError):
                raise error.cause from None
            if not isinstance(error.cause, errors.RayError):
                raise
            # otherwise it was not begun: a task for which it waited was lost
        except errors.RayError as error:
            shift.give_up(task.unit, _lost(error))

    def _take(self) -> list[Letter]:
        """What has come of units that Ray still has."""
        try:
            letters: list[Letter] = self._ray.get(self._mailbox.take.remote())
        except self._ray.exceptions.RayActorError as error:
            raise WorkerLostError(
                "the process that keeps what the tasks tell has ended. Run again: finished work "
                "is kept."
            ) from error
        return [letter for letter in letters if letter.unit in self._tasks]

    def _read(self, letters: Sequence[Letter]) -> None:
        """Pass on what the tasks have told; a unit at work has the lowest free number."""
        for unit, process, line in letters:
            if unit not in self._numbers:
                used = set(self._numbers.values())
                self._numbers[unit] = next(n for n in range(1, len(used) + 2) if n not in used)
            number, before = self._numbers[unit], self._processes.get(unit, process)
            self._processes[unit] = process
            if process != before:
                text = f"the process {before} was lost; its unit is begun again"
                self._hear(Heard(number, event={"event": "noted", "text": text}))
            event = json.loads(line)
            if event["event"] != "planned":  # each task says so; this process says it once
                self._hear(Heard(number, event=event))

    def _stop(self) -> None:
        """Let those that still run save what they train."""
        refs = [task.ref for task in self._tasks.values()]
        for ref in refs:
            self._ray.cancel(ref)
        if refs:
            self._ray.wait(refs, num_returns=len(refs), timeout=_PATIENCE_SECONDS)
            self._read([*self._early, *self._take()])
        self._tasks.clear()


def _lost(error: Exception) -> WorkerLostError:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return WorkerLostError(
        f"the process that did it was lost {MOST_RESTARTS + 1} times ({first}). "
        "Run again: finished work is kept."
    )


def run_on_ray(
    config: StudyConfig,
    folder: StudyFolder,
    *,
    address: str | None,
    num_workers: int | None,
    quiet: bool,
    as_json: bool,
    replace: bool,
    accept_new_stack: bool,
) -> int:
    """Run a study on a cluster to its end, and report.

    Args:
        config: of the study.
        folder: of the study, which all nodes see, or which mirrors a URL on this one.
        address: see ``Cluster``.
        num_workers: that the study is planned for; None: as many as the cluster has places.
        quiet: show warnings alone.
        as_json: print events, each with its worker, and ``ended`` at the end.
        replace: see ``run_study``.
        accept_new_stack: see ``run_study``.
    """
    from rankwise.cli.running import (
        check_output,
        check_page,
        report_events,
        report_on,
        told_of_stop,
    )

    check_output(quiet=quiet, as_json=as_json)
    events = Events(partial(print_line, output=sys.stdout)) if as_json else None
    display = TeamDisplay(stderr, 0, quiet=quiet or as_json)

    def hear(heard: Heard) -> None:
        pass_on(heard, display, events)

    try:
        with events or contextlib.nullcontext():
            check_page(folder)
            with display, Cluster(address) as cluster, StopSignals().listening():
                places = Places.of(nodes := cluster.nodes(), num_workers)
                job = Job(
                    config,
                    *_place_of(folder),
                    Path.cwd(),
                    cluster.machine(places),
                    num_workers or places.count(nodes),
                    accept_new_stack,
                )
                executor = RayExecutor(cluster, places, job, hear)
                outcome = _led(job, folder, executor, hear, replace=replace)
            if events is not None:
                return report_events(folder, outcome, events)
            return report_on(folder, outcome)
    except Stopped as stopped:
        return told_of_stop(stopped, folder.address)


def _place_of(folder: StudyFolder) -> tuple[str, str | None]:
    """A study as every node finds it, and who leads where no folder tells."""
    mirror = mirror_at(folder.root)
    return (str(folder.root.resolve()), None) if mirror is None else (mirror.url, mirror.name)


def _led(
    job: Job,
    folder: StudyFolder,
    executor: RayExecutor,
    hear: Callable[[Heard], None],
    *,
    replace: bool,
) -> StudyOutcome:
    """What comes of a study of which this process does nothing but to lead."""
    from rankwise.cli.running import planned_study
    from rankwise.integrations.tracking import TrackedObserver
    from rankwise.study.growing import run_to_verdict
    from rankwise.study.progress import peak_memory

    def plan(grown: StudyConfig) -> StudyPlan:
        return planned_study(grown, folder, job.machine, num_workers=job.num_workers)

    events = Events(lambda line: hear(Heard(0, event=json.loads(line))))
    observer = EventObserver(events, peak_memory())
    with observer, TrackedObserver(observer, folder, job.config) as tracked:
        outcome = run_to_verdict(
            job.config,
            plan,
            folder,
            tracked,
            replace=replace,
            accept_new_stack=job.accept_new_stack,
            shares=True,
            executor=executor,
        )
        tracked.concluded(outcome)
    return outcome
