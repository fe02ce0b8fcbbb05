"""Has the units of a study done as tasks of a Ray cluster. No other module names Ray.

Ray places tasks, begins those again whose process was lost, and waits for nodes. This process says
which units may be begun, those with the longest chain of work behind them first, and moves into the
study what they make.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rankwise.engine.models.libraries import before_torch
from rankwise.errors import ConfigError, RankwiseError, WorkerLostError, to_install
from rankwise.records.locking import leader_in
from rankwise.study.agenda import Agenda, Unit, longest_chains
from rankwise.study.executors.desk import Attempt, Desk, Letter, SupersededError, take_in
from rankwise.study.executors.task import Job, do_task
from rankwise.study.observer import Noted, StageFailed, StageFinished

if TYPE_CHECKING:
    from rankwise.engine.models.devices import Machine
    from rankwise.study.context import StudyContext

MOST_RESTARTS = 3
"""A unit whose process was lost more often than this has failed: it would be lost again."""

_LOOK_SECONDS = 0.2
"""So often the tasks are asked what they have done."""

_PATIENCE_SECONDS = 60.0
"""Tasks that are told to stop save at the end of a step; who has not by then is left behind."""

_WAITING_SHARE = 2
"""Units that Ray has at a time, for each place: one at work, and one for when a place is free or a
node joins."""

_CONNECT_SECONDS = 10.0

_CARD_SECONDS = 30.0
"""After which it is said that a card is waited for; a task of Ray begins in a few."""

_OBJECT_BYTES = 256 * 2**20
"""The bytes of a local cluster's object store: names, settings and pieces of files go through it.
"""


class Places(NamedTuple):
    """Where the units of a study are done, each on a share of a node.

    Attributes:
        has_cards: whether on a card; otherwise on processors.
        num_cpus: that a unit has.
        num_cards: that a unit has: one, or all of a node where one unit is done at a time.
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
            each = most if num_workers == 1 else 1
            return cls(True, _whole(cpus) * each, each, memory)
        cores = [node["CPU"] for node in nodes if node.get("CPU", 0.0) > 0]
        if not cores:
            problem = "--address: the cluster has no card and no CPU; add a node to it"
            raise ConfigError("run", [problem])
        cpus = min(sum(cores) / (num_workers or len(cores)), *cores)
        return cls(False, _whole(cpus), 0, memory)

    def count(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many units can be done at a time on some nodes, at least one."""
        kind, each = ("GPU", self.num_cards) if self.has_cards else ("CPU", self.num_cpus)
        return max(sum(int(node.get(kind, 0.0) / each) for node in nodes), 1)

    def options(self, unit: Unit) -> dict[str, Any]:
        """What the task of a unit asks for. The memory of a card is asked for with the card."""
        if self.has_cards:
            return {"num_cpus": self.num_cpus, "num_gpus": self.num_cards}
        return {"num_cpus": self.num_cpus, "memory": min(unit.memory_bytes, self.memory_bytes)}


def _whole(cpus: float) -> float:
    """Whole processors, or the part of one."""
    return float(int(cpus)) if cpus >= 1 else cpus


class Cluster:
    """A Ray cluster: one of this machine for the time of the block, or one that is there.

    Within the block nothing is printed to stdout: Ray does so, from a thread of its own.

    Args:
        address: HOST:PORT or ``auto``; None: one is started.
        note: is told that a card is waited for.
        has_cards: whether one that is started has the cards of this machine.
    """

    def __init__(
        self,
        address: str | None,
        note: Callable[[str], None] = lambda _: None,
        *,
        has_cards: bool = True,
    ) -> None:
        self._address, self._note, self._has_cards = address, note, has_cards
        self._end = contextlib.ExitStack()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self.ray: Any = importlib.import_module("ray")
        except ImportError as error:
            problem = f"--workers, --gpus and --address: {error}; {to_install('ray')}"
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
            try:
                self.ray.init(
                    "local",
                    num_gpus=None if self._has_cards else 0,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_BYTES,
                    **quiet,
                )
            except Exception as error:  # Ray raises this class itself where a start takes 30 s
                raise WorkerLostError(
                    f"Ray did not start on this machine: {error}. Wait until it is less busy, or "
                    "run without --workers and --gpus."
                ) from error
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
            self._note("waiting for a card of the cluster: all of them are taken")
        return Machine(torch.device("cuda"), self.ray.get(ref), places.num_cards)

    def desk(self, root: Path, leader: str) -> Any:
        """The desk of a study; it ends with this process, on its node."""
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        node = self.ray.get_runtime_context().get_node_id()
        here = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self.ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here)
        return actor.remote(root, leader)


def _card_bytes() -> int:
    """The free bytes of the task's card."""
    from rankwise.engine.models.devices import Machine

    return Machine.here().available_bytes()


def _done_by_ray(
    job: Job, unit: str, models: Sequence[str], failed: Sequence[str], desk: Any
) -> None:
    """See ``do_task``: the task, in a process of Ray."""
    before_torch()
    ray: Any = importlib.import_module("ray")
    do_task(
        job, unit, models, failed, lambda name, *given: ray.get(getattr(desk, name).remote(*given))
    )


@contextlib.contextmanager
def cluster_of(
    address: str | None,
    num_workers: int | None,
    gpus: str | None,
    note: Callable[[str], None],
    *,
    accept_new_stack: bool,
) -> Generator[RayExecutor]:
    """Yields what does the units of a study on a cluster, for the time of the block.

    Args:
        address: see ``Cluster``.
        num_workers: units at a time on a CPU; None: as many as the cluster has places.
        gpus: cards of this machine, as ``0,1``, or ``all``.
        note: see ``Cluster``.
        accept_new_stack: see ``run_study``.

    Raises:
        ConfigError: there is no such cluster or card, or the options do not go together.
    """
    if gpus is not None:
        if num_workers is not None or address is not None:
            problem = "--gpus does a unit on each card here; leave --workers and --address out"
            raise ConfigError("run", [problem])
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_cards(gpus))
    with Cluster(address, note, has_cards=num_workers is None) as cluster:
        yield RayExecutor(cluster, num_workers, accept_new_stack=accept_new_stack)


def _cards(text: str) -> list[str]:
    """The cards of a list, or all, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    here = [str(index) for index in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        here = [name.strip() for name in visible.split(",")][: len(here)]
    wanted = here if text == "all" else [name.strip() for name in text.split(",")]
    if not here:
        problem = f"--gpus {text}: there is no card here; give --workers N to share a CPU"
        raise ConfigError("run", [problem])
    missing = [name for name in wanted if name not in here]
    if missing:
        problem = f"--gpus {text}: there is no card {missing[0]}; there are {', '.join(here)}"
        raise ConfigError("run", [problem])
    return list(dict.fromkeys(wanted))


class _Task(NamedTuple):
    """A unit that Ray has.

    Attributes:
        unit: the unit.
        ref: to what its task returns.
        due: the ids of the stages that could be done when it was begun.
    """

    unit: Unit
    ref: Any
    due: frozenset[str]


class RayExecutor:
    """Has the units of a study done as tasks; an ``Executor`` of ``rankwise.study.run``.

    Attributes:
        machine: that the study is to be planned for.
        num_workers: that it is to be planned for.
        seen_at: where tasks look for the study's folder; None: where it is. Those that do not see
            it there get its files from the desk.

    Args:
        cluster: that does them.
        num_workers: see ``cluster_of``.
        accept_new_stack: see ``run_study``.
    """

    def __init__(
        self, cluster: Cluster, num_workers: int | None, *, accept_new_stack: bool = False
    ) -> None:
        self._accepts_new_stack = accept_new_stack
        self._cluster, self._ray = cluster, cluster.ray
        self._places = Places.of(nodes := cluster.nodes(), num_workers)
        self.machine = cluster.machine(self._places)
        self.num_workers = num_workers or self._places.count(nodes)
        self.seen_at: Path | None = None
        self._tasks: dict[str, _Task] = {}
        self._attempts: dict[str, Attempt] = {}
        self._desk: Any = None
        self._job: Any = None

    def __call__(self, context: StudyContext, agenda: Agenda) -> None:
        """Return when nothing is left that could be done.

        Raises:
            RankwiseError: a task met what ends the study, such as a full disk.
            Stopped: a signal came; what was trained is saved.
        """
        root = context.folder.root.resolve()
        leader = leader_in(root) or ""
        self._desk = self._cluster.desk(root, leader)
        job = Job(
            study=context.study,
            root=self.seen_at or root,
            leader=leader,
            place=Path.cwd(),
            machine=self.machine,
            num_workers=self.num_workers,
            accept_new_stack=self._accepts_new_stack,
        )
        self._job = self._ray.put(job)
        with context.signals.deferred():
            try:
                while not context.signals.is_pending and self._submit(agenda):
                    self._wait(context, agenda)
            finally:
                self._stop(context, agenda)

    def _submit(self, agenda: Agenda) -> bool:
        """Give Ray the units with the longest chains of work; False: it has none."""
        idle = [unit for unit in agenda.units if unit.id not in self._tasks]
        due = {unit.id: agenda.due(unit) for unit in idle}
        left = [unit for unit in agenda.units if agenda.is_left(unit)]
        chains = longest_chains(left)
        room = _WAITING_SHARE * self._places.count(self._cluster.nodes()) - len(self._tasks)
        waiting = [unit for unit in idle if due[unit.id]]
        failed = [failure.stage for failure in agenda.failures]
        for unit in sorted(waiting, key=lambda unit: -chains[unit.id])[: max(room, 0)]:
            task = self._ray.remote(_done_by_ray).options(
                name=unit.id, max_retries=MOST_RESTARTS, **self._places.options(unit)
            )
            ref = task.remote(self._job, unit.id, agenda.models_of(unit), failed, self._desk)
            self._tasks[unit.id] = _Task(unit, ref, frozenset(each.id for each in due[unit.id]))
        return bool(self._tasks)

    def _wait(self, context: StudyContext, agenda: Agenda) -> None:
        """Until a task has ended or a stage is done, a signal has come, or a node may have."""
        refs, until = [task.ref for task in self._tasks.values()], time.monotonic() + 5.0
        while not context.signals.is_pending and time.monotonic() < until:
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=_LOOK_SECONDS)
            has_more = self._read(context, agenda)
            for task in [task for task in self._tasks.values() if task.ref in ended]:
                self._end(task, context, agenda)
            if ended or has_more:
                return

    def _read(self, context: StudyContext, agenda: Agenda) -> bool:
        """Take in what the tasks have told; whether a stage has ended."""
        try:
            letters: list[Letter] = self._ray.get(self._desk.take.remote())
        except self._ray.exceptions.RayActorError as error:
            raise WorkerLostError(
                "the process at which tasks leave what they make has ended. Run again: finished "
                "work is kept."
            ) from error
        has_ended = False
        for letter in letters:
            take_in(context.folder.root, letter)
            before = self._attempts.get(letter.attempt.unit, letter.attempt)
            self._attempts[letter.attempt.unit] = letter.attempt
            if before != letter.attempt:
                text = f"the process {before.process} was lost; its unit is restarted"
                context.tell.event(Noted(text))
            for event in letter.events:
                match event:
                    case StageFinished(stage):
                        agenda.finished(stage)
                        context.tell.event(event)
                        has_ended = True
                    case StageFailed(failure):
                        agenda.failed_elsewhere(failure)
                        has_ended = True
                    case _:
                        context.tell.event(event)
        return has_ended

    def _end(self, task: _Task, context: StudyContext, agenda: Agenda) -> None:
        errors = self._ray.exceptions
        context.folder.keep_states_of_tasks(task.unit.id)
        del self._tasks[task.unit.id]
        self._attempts.pop(task.unit.id, None)
        problem = "it ended and had done nothing"
        try:
            self._ray.get(task.ref)
        except errors.TaskCancelledError:
            return  # its process was told to end, and has saved what it trained
        except errors.RayTaskError as error:
            if isinstance(error.cause, SupersededError):
                return  # Ray had begun it twice; what is left of it is begun again
            if isinstance(error.cause, RankwiseError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            problem = f"it was lost {MOST_RESTARTS + 1} times ({first})"
        due = agenda.due(task.unit)
        if problem.startswith("it was lost") or task.due == frozenset(stage.id for stage in due):
            for stage in due:
                agenda.failed(
                    stage,
                    WorkerLostError(
                        f"the process that did it: {problem}. Run again: finished work is kept."
                    ),
                )

    def _stop(self, context: StudyContext, agenda: Agenda) -> None:
        """Let those that still run save what they train, and keep it."""
        refs = [task.ref for task in self._tasks.values()]
        for ref in refs:
            self._ray.cancel(ref)
        if refs:
            self._ray.wait(refs, num_returns=len(refs), timeout=_PATIENCE_SECONDS)
            self._read(context, agenda)
        self._tasks.clear()
        self._attempts.clear()
        self._ray.kill(self._desk)
        context.folder.keep_states_of_tasks()
