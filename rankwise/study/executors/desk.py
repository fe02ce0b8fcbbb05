"""A study's folder as the tasks of a cluster reach it: they read what they need, and hand over.

Each attempt at a unit works in a folder of its own, below ``.tasks/`` of the study's or on another
machine. What a stage has made is moved into the study by the process that leads it, and by no
other. So an attempt that was believed lost and comes back writes over nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.records.files import replacing, writing
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.locking import leader_in
from rankwise.records.names import order
from rankwise.study.observer import Event

PIECE_BYTES = 64 * 2**20
"""Files travel in pieces of this size: some of them are larger than memory."""

MOST_NODES = 20
"""Nodes without a common disk whose files, such as 13 GB of states of five adapters of 8B every 15
minutes, one process can write; by arithmetic, not measured."""

_OF_STUDY = ("study.json", "study.yaml", "own_texts.json", "stacks.json")

State = tuple[int, int]
"""The state of a file: bytes, and when it was written, in nanoseconds."""


class Attempt(NamedTuple):
    """One process's attempt at a unit, by the unit's id, the process, its own id, and its node."""

    unit: str
    process: str
    id: str
    node: str = ""


class Worker(NamedTuple):
    """A process of the cluster that does units, one after the other.

    Attributes:
        name: by which whoever leads knows it.
        number: the process's.
        host: on which it runs.
        node: the same, as Ray names it.
        memory_bytes: that it may hold; None: all of a card.
    """

    name: str
    number: int
    host: str
    node: str
    memory_bytes: int | None


class UnitOffer(NamedTuple):
    """A unit that can be begun.

    Attributes:
        unit: its id.
        models: the names of those that it reads or makes.
        failed: the ids of stages that have failed so far.
        memory_bytes: that it holds at once.
        not_on: the nodes that have lost it, where there are others.
    """

    unit: str
    models: tuple[str, ...]
    failed: tuple[str, ...]
    memory_bytes: int
    not_on: frozenset[str] = frozenset()


class Exchanged(NamedTuple):
    """What whoever leads hears at a time.

    Attributes:
        letters: see ``Desk.take``.
        ended: the ids of units that are done as far as they could be.
        doing: a worker's name -> its attempt.
    """

    letters: list[Letter]
    ended: list[str]
    doing: dict[str, Attempt]


class Letter(NamedTuple):
    """What a task tells of its unit.

    Attributes:
        attempt: at it, and who makes it: host and process.
        events: that happened, in their order.
        made: the names of files that it has made or replaced by then, below the study's folder.
        removed: of those that it has removed.
    """

    attempt: Attempt
    events: tuple[Event, ...]
    made: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class SupersededError(Exception):
    """What was believed lost: another attempt, or another process that leads, has begun."""


class Desk:
    """Runs on the machine of the process that leads, as an actor of the cluster.

    It may outlive that process for a moment: once another leads, it answers nothing.

    Args:
        root: the study's folder.
        leader: what the process that leads has written there.
    """

    def __init__(self, root: Path, leader: str) -> None:
        self._root, self._leader = root, leader
        self._current: dict[str, Attempt] = {}
        self._letters: list[Letter] = []
        self._given: list[Letter] = []
        self._offers: list[UnitOffer] = []
        self._doing: dict[str, Attempt] = {}
        self._ended: list[str] = []
        self._num_exchanges = 0
        self._waits_for: dict[str, int] = {}

    def next(self, worker: Worker) -> tuple[Attempt, UnitOffer] | bool:
        """What a worker does next, once it has done what it was given before.

        True: that is not settled yet. False: nothing; its process may end.

        Raises:
            SupersededError: another process leads by now.
        """
        self._require()
        if (done := self._doing.get(worker.name)) is not None:
            if not done.id.startswith(f"{worker.number}-"):
                return False  # Ray has begun it again, and its unit was lost
            self._ended.append(self._doing.pop(worker.name).unit)
            # one exchange tells of it, and offers that are made after that come by the next
            self._waits_for[worker.name] = self._num_exchanges + 2
        if self._num_exchanges < self._waits_for.get(worker.name, 0):
            return True
        most = worker.memory_bytes
        for offer in self._offers:
            fits = most is None or offer.memory_bytes <= most
            if fits and worker.node not in offer.not_on:
                self._offers.remove(offer)
                process, own = f"{worker.number} on {worker.host}", secrets.token_hex(4)
                attempt = Attempt(offer.unit, process, f"{worker.number}-{own}", worker.node)
                self._doing[worker.name] = attempt
                self.begin(attempt)
                return attempt, offer
        return False

    def exchange(self, offers: Sequence[UnitOffer], lost: Sequence[str] = ()) -> Exchanged:
        """Whoever leads offers units, and hears what has happened since the last time.

        Args:
            offers: in the order in which they are to be begun; they replace those before.
            lost: the names of workers that do nothing any more.
        """
        self._num_exchanges += 1
        for name in lost:
            self._doing.pop(name, None)
        ended, self._ended = self._ended, []
        taken = {*ended, *(attempt.unit for attempt in self._doing.values())}
        self._offers = [offer for offer in offers if offer.unit not in taken]
        return Exchanged(self.take(), ended, dict(self._doing))

    def begin(self, attempt: Attempt) -> None:
        """Hear this attempt at a unit from now on, and no earlier one.

        Raises:
            SupersededError: another process leads by now, as for the others.
        """
        self._require()
        self._current[attempt.unit] = attempt

    def is_ready(self, unit: str) -> bool:
        """Whether all that was told of a unit has been taken in; then it may be gone on with."""
        self._require()
        if any(letter.attempt.unit == unit for letter in (*self._given, *self._letters)):
            return False
        folder = StudyFolder(self._root)
        folder.keep_states_of_tasks(unit)
        folder.task_folder(unit, self._current[unit].id).mkdir(parents=True, exist_ok=True)
        return True

    def put(self, letter: Letter) -> None:
        """Take a letter.

        Raises:
            SupersededError: another attempt was begun since, as for ``write``.
        """
        self.require_current(letter.attempt)
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        """All letters since the last call, whose letters have been taken in by now."""
        self._given, self._letters = self._letters, []
        return self._given

    def files(self, models: Sequence[str]) -> dict[str, State]:
        """The files of some models, of the base and of the study: name -> state."""
        folder = StudyFolder(self._root)
        found = [self._root / name for name in _OF_STUDY]
        for model in dict.fromkeys((BASE, *models)):
            found += _files_below(folder.model_folder(model))
        return _states(self._root, found)

    def read(self, name: str, state: State, offset: int) -> bytes | None:
        """A piece of a file; None where it has been removed or replaced since it had that state."""
        try:
            with (self._root / name).open("rb") as file:
                if state_of(file.fileno()) != state:
                    return None
                file.seek(offset)
                return file.read(PIECE_BYTES)
        except FileNotFoundError:
            return None

    def write(
        self, attempt: Attempt, name: str, offset: int, content: bytes, is_last: bool
    ) -> None:
        """Write a piece of a file that an attempt has made; ``is_last``: the file ends with it."""
        self.require_current(attempt)
        path = StudyFolder(self._root).task_folder(attempt.unit, attempt.id) / name
        growing = path.with_name(f".{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with growing.open("ab" if offset else "wb") as file:
            file.write(content)
        if is_last:
            growing.replace(path)

    def require_current(self, attempt: Attempt) -> None:
        """Refuse an attempt that is heard no more.

        Raises:
            SupersededError: it is not.
        """
        self._require()
        if self._current.get(attempt.unit) != attempt:
            raise SupersededError

    def _require(self) -> None:
        if leader_in(self._root) != self._leader:
            raise SupersededError


def take_in(root: Path, letter: Letter) -> None:
    """Move what a task has made into the study: what a record stands on first, the record last.

    Raises:
        StorageError: it cannot be written.
    """
    place = StudyFolder(root).task_folder(letter.attempt.unit, letter.attempt.id)
    for name in letter.removed:
        with writing(root / name):
            (root / name).unlink(missing_ok=True)
    for name in sorted(letter.made, key=order):
        with replacing(root / name) as temporary:
            link_or_copy(place / name, temporary)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name of a file; a copy where the disk has no such thing.

    Files of a study are replaced as a whole, never changed in place.
    """
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        shutil.copy2(source, target)


def state_of(file: Path | int) -> State | None:
    """What changes when a file is replaced, by its path or an open one; None where it is gone."""
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def files_in(root: Path) -> dict[str, State]:
    """Name -> state of all files below a folder, without those that are being written."""
    return _states(root, _files_below(root))


def _states(root: Path, files: Iterable[Path]) -> dict[str, State]:
    states = {path.relative_to(root).as_posix(): state_of(path) for path in files}
    return {name: state for name, state in states.items() if state is not None}


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):  # which passes over folders that are being removed
        for name in names:
            path = Path(place, name)
            if path.is_file() and not name.startswith("."):
                yield path
