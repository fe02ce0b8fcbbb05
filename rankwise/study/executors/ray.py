"""Has the units of a study done by workers, tasks of a Ray cluster. No other module names Ray.

Ray places workers and waits for nodes. This process says which units may be begun, those with the
longest chain of work behind them first, offers those again whose worker was lost, elsewhere if it
can, and moves into the study what they make.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rankwise.engine.models.libraries import before_torch
from rankwise.errors import ConfigError, RankwiseError, WorkerLostError, to_install
from rankwise.records.locking import leader_in
from rankwise.study.agenda import Agenda, Unit, longest_chains
from rankwise.study.executors.desk import (
    Attempt,
    Desk,
    Exchanged,
    SupersededError,
    UnitOffer,
    Worker,
    state_of,
    take_in,
)
from rankwise.study.executors.task import Job, packed, work
from rankwise.study.observer import Noted, StageFailed, StageFinished

if TYPE_CHECKING:
    from rankwise.engine.models.devices import Machine
    from rankwise.study.context import StudyContext
    from rankwise.study.stages.stage import Stage

MOST_RESTARTS = 3
"""A unit whose process was lost more often than this, and nothing was saved or finished in between,
has failed: it would be lost again."""

_LOOK_SECONDS = 0.2
"""So often the tasks are asked what they have done."""

_COUNT_SECONDS = 5.0
"""So often nodes are counted that have come or gone."""

_PATIENCE_SECONDS = 60.0
"""Tasks that are told to stop save at the end of a step; who has not by then is left behind."""

_WAITING_SHARE = 2
"""Workers that Ray has at a time, for each card: one at work, and one for when a node joins, which
an autoscaler adds for what waits. Not of CPUs: a worker that waits for the desk lends its own."""

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

    def fits(self, node: Mapping[str, float]) -> bool:
        """Whether a node has a place."""
        kind, each = ("GPU", self.num_cards) if self.has_cards else ("CPU", self.num_cpus)
        return node.get(kind, 0.0) >= each

    def held_by(self, unit: Unit) -> int:
        """The memory that a unit needs, of no more than a node has."""
        return min(unit.memory_bytes, self.memory_bytes)

    def options(self, memory_bytes: int) -> dict[str, Any]:
        """What a worker asks for. The memory of a card is asked for with the card."""
        if self.has_cards:
            return {"num_cpus": self.num_cpus, "num_gpus": self.num_cards}
        return {"num_cpus": self.num_cpus, "memory": memory_bytes}


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
            # whoever leads begins again what was lost, also for want of memory
            os.environ.setdefault("RAY_task_oom_retries", "0")
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
        return list(self.nodes_by_id().values())

    def nodes_by_id(self) -> dict[str, Mapping[str, float]]:
        """The same, by the name that Ray has given the node."""
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def on_node(self, node: str, *, soft: bool) -> Any:
        """Places a task on a node; ``soft``: on another if that one is gone."""
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        return strategies.NodeAffinitySchedulingStrategy(node, soft=soft)

    def machine(self, places: Places) -> Machine:
        """The machine to plan for: a card, as one of them is, or a CPU.

        Its memory is given, so that a study is planned the same however much others leave of it.
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
        here = self.on_node(self.ray.get_runtime_context().get_node_id(), soft=False)
        actor = self.ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here)
        return actor.remote(root, leader)


def _card_bytes() -> int:
    """The free bytes of the task's card."""
    from rankwise.engine.models.devices import Machine

    return Machine.here().available_bytes()


def _work_for_ray(job: Job, name: str, memory_bytes: int | None, desk: Any) -> None:
    """See ``work``: the worker, in a process of Ray."""
    before_torch()
    ray: Any = importlib.import_module("ray")
    node = ray.get_runtime_context().get_node_id()
    worker = Worker(name, os.getpid(), socket.gethostname(), node, memory_bytes)
    work(job, worker, lambda name, *given: ray.get(getattr(desk, name).remote(*given)))


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
        self._workers: dict[str, Any] = {}  # name -> what Ray gives back once it has ended
        self._num_hired = 0
        self._offers: list[UnitOffer] = []
        self._due: dict[str, frozenset[str]] = {}  # unit -> stages that could be done when offered
        self._doing: dict[str, Attempt] = {}
        self._lost: list[str] = []  # workers, until the desk is told
        self._losses = Counter[str]()
        self._not_on = defaultdict[str, set[str]](set)
        self._is_settled = False  # whether the offers are made of all that is known
        self._settled_at = 0.0
        self._desk: Any = None
        self._job: Any = None

    def __call__(self, context: StudyContext, agenda: Agenda) -> None:
        """Return when nothing is left that could be done.

        Raises:
            RankwiseError: a worker met what ends the study, such as a full disk.
            Stopped: a signal came; what was trained is saved.
        """
        root = context.folder.root.resolve()
        leader = leader_in(root) or ""
        self._desk = self._cluster.desk(root, leader)
        job = Job(
            plan=packed(context.plan, importlib.import_module("ray.cloudpickle")),
            root=self.seen_at or root,
            leader=leader,
            place=Path.cwd(),
            accept_new_stack=self._accepts_new_stack,
            cache=os.environ.get("RANKWISE_CACHE"),
        )
        self._job, self._is_settled, self._doing = self._ray.put(job), False, {}
        with context.signals.deferred():
            try:
                while not context.signals.is_pending:
                    if not self._is_settled:
                        self._offer(agenda)
                    self._exchange(context, agenda)
                    if self._is_settled:
                        self._hire()
                        if not self._workers:
                            return
                    self._wait(context, agenda)
            finally:
                self._stop(context, agenda)

    def _offer(self, agenda: Agenda) -> None:
        """Find what can be begun, units with the longest chains of work first."""
        busy = {attempt.unit for attempt in self._doing.values()}
        due = {unit.id: agenda.due(unit) for unit in agenda.units if unit.id not in busy}
        chains = longest_chains([unit for unit in agenda.units if agenda.is_left(unit)])
        failed = tuple(failure.stage for failure in agenda.failures)
        waiting = [unit for unit in agenda.units if due.get(unit.id)]
        self._offers = [
            UnitOffer(
                unit.id,
                tuple(agenda.models_of(unit)),
                failed,
                self._places.held_by(unit),
                self._avoided(unit.id),
            )
            for unit in sorted(waiting, key=lambda unit: -chains[unit.id])
        ]
        self._due |= {unit.id: frozenset(each.id for each in due[unit.id]) for unit in waiting}
        self._is_settled, self._settled_at = True, time.monotonic()

    def _avoided(self, unit: str) -> frozenset[str]:
        """The nodes that have lost a unit, where another one could do it."""
        avoided = frozenset(self._not_on[unit])
        others = [node for node in self._cluster.nodes_by_id() if node not in avoided]
        return avoided if avoided and any(self._has_place(node) for node in others) else frozenset()

    def _has_place(self, node: str) -> bool:
        return self._places.fits(self._cluster.nodes_by_id().get(node, {}))

    def _hire(self) -> None:
        """Give Ray a worker for each unit that waits for one, as far as there are places."""
        share = _WAITING_SHARE if self._places.has_cards else 1
        most = share * self._places.count(self._cluster.nodes())
        number = min(most, len(self._doing) + len(self._offers)) - len(self._workers)
        memory = max((offer.memory_bytes for offer in self._offers), default=0)
        for offer in self._offers[: max(number, 0)]:
            self._num_hired += 1
            name = f"{offer.unit}:{self._num_hired}"
            options = self._places.options(memory) | self._place_for(offer)
            # a process would keep its card, and Ray gives the next one another
            remote = self._ray.remote(max_calls=int(self._places.has_cards))(_work_for_ray)
            held = None if self._places.has_cards else memory
            self._workers[name] = remote.options(name=offer.unit, max_retries=0, **options).remote(
                self._job, name, held, self._desk
            )

    def _place_for(self, offer: UnitOffer) -> dict[str, Any]:
        """Where a worker is placed that is needed because a node has lost a unit."""
        if not offer.not_on:
            return {}
        names = [name for name in self._cluster.nodes_by_id() if self._has_place(name)]
        node = random.choice([name for name in names if name not in offer.not_on])
        return {"scheduling_strategy": self._cluster.on_node(node, soft=True)}

    def _wait(self, context: StudyContext, agenda: Agenda) -> None:
        """For a moment, or until all workers have ended; say what became of those that have."""
        refs = list(self._workers.values())
        ended: list[Any] = []
        if refs:
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=_LOOK_SECONDS)
        names = [name for name, ref in self._workers.items() if ref in ended]
        if names:
            self._exchange(context, agenda)  # what they told before they ended
        for name in names:
            self._end(name, context, agenda)
        if time.monotonic() - self._settled_at > _COUNT_SECONDS:
            self._is_settled = False  # a node may have come or gone

    def _exchange(self, context: StudyContext, agenda: Agenda) -> None:
        """Tell the desk what can be begun, and take in what the workers have told and made."""
        lost, self._lost = self._lost, []
        try:
            told: Exchanged = self._ray.get(self._desk.exchange.remote(self._offers, lost))
        except self._ray.exceptions.RayActorError as error:
            raise WorkerLostError(
                "the process at which tasks leave what they make has ended. Run again: finished "
                "work is kept."
            ) from error
        self._doing = told.doing
        taken = {attempt.unit for attempt in told.doing.values()}
        self._offers = [offer for offer in self._offers if offer.unit not in taken]
        for letter in told.letters:
            take_in(context.folder.root, letter)
            for event in letter.events:
                match event:
                    case StageFinished(stage):
                        agenda.finished(stage)
                        context.tell.event(event)
                        self._is_settled = False
                    case StageFailed(failure):
                        agenda.failed_elsewhere(failure)
                        self._is_settled = False
                    case _:
                        context.tell.event(event)
        for unit in told.ended:
            self._is_settled = False
            context.folder.keep_states_of_tasks(unit)
            due = self._due_now(unit, agenda)
            if due and self._due[unit] == frozenset(stage.id for stage in due):
                self._fail(due, "it ended and had done nothing", agenda)

    def _due_now(self, unit: str, agenda: Agenda) -> list[Stage]:
        (found,) = (each for each in agenda.units if each.id == unit)
        return agenda.due(found)

    def _fail(self, due: Sequence[Stage], problem: str, agenda: Agenda) -> None:
        for stage in due:
            text = f"the process that did it: {problem}. Run again: finished work is kept."
            agenda.failed(stage, WorkerLostError(text))

    def _end(self, name: str, context: StudyContext, agenda: Agenda) -> None:
        """A worker has ended; what it did is offered again where it was lost.

        A unit has failed once it was lost too often without anything saved or finished in between.
        """
        errors, problem = self._ray.exceptions, "it ended"
        try:
            self._ray.get(self._workers.pop(name))
        except errors.TaskCancelledError:
            return  # it was told to end, and has saved what it trained
        except errors.RayTaskError as error:
            if isinstance(error.cause, RankwiseError):
                raise error.cause from None
            if not isinstance(error.cause, SupersededError):
                raise
        except errors.RayError as error:
            problem = next(iter(str(error).splitlines()), type(error).__name__)
        else:
            if name not in self._doing:
                return
        self._is_settled = False
        self._lost.append(name)
        attempt = self._doing.pop(name, None)
        unit = attempt.unit if attempt is not None else name.rpartition(":")[0]
        (runs,) = (each.runs for each in agenda.units if each.id == unit)
        states = [context.folder.training_state_file(run.whole) for run in runs]
        before = [state_of(path) for path in states]
        context.folder.keep_states_of_tasks(unit)
        due = self._due_now(unit, agenda)
        has_advanced = before != [state_of(path) for path in states]
        if has_advanced or self._due[unit] != frozenset(stage.id for stage in due):
            self._losses[unit] = 0
        else:
            self._losses[unit] += 1
        if self._losses[unit] > MOST_RESTARTS:
            problem = f"it was lost {self._losses[unit]} times without progress ({problem})"
            self._fail(due, problem, agenda)
        elif attempt is not None:
            self._not_on[unit].add(attempt.node)
            text = f"the process {attempt.process} was lost; its unit is restarted"
            context.tell.event(Noted(text))

    def _stop(self, context: StudyContext, agenda: Agenda) -> None:
        """Let those that still run save what they train, and keep it."""
        refs = list(self._workers.values())
        for ref in refs:
            self._ray.cancel(ref)
        if refs:
            self._ray.wait(refs, num_returns=len(refs), timeout=_PATIENCE_SECONDS)
            self._offers = []
            self._exchange(context, agenda)
        self._workers.clear()
        self._ray.kill(self._desk)
        context.folder.keep_states_of_tasks()
