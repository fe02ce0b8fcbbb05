"""A unit of a study as the task of a cluster: it works in a folder of its own, and hands over."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rankwise.errors import RankwiseError
from rankwise.records.files import replacing
from rankwise.records.folder import StudyFolder
from rankwise.records.locking import leader_in
from rankwise.study.executors.desk import (
    PIECE_BYTES,
    Attempt,
    Letter,
    State,
    files_in,
    link_or_copy,
)
from rankwise.study.observer import Event, Planned, StageFailed, StageFinished, StageLeftOut

if TYPE_CHECKING:
    from rankwise.engine.models.devices import Machine
    from rankwise.records.study import StudyRecord

_LOOK_SECONDS = 0.1
_LETTER_SECONDS = 0.2
"""Events of small models come by the thousand a second: they are sent together."""


class Job(NamedTuple):
    """What every task of a study is given.

    Attributes:
        study: as the process that leads has planned it.
        root: its folder, on the machine of that process.
        leader: what that process has written there: who sees it there sees the folder.
        place: the folder from which relative paths count.
        machine: that the study is planned for.
        num_workers: that the study is planned for.
        accept_new_stack: see ``run_study``.
    """

    study: StudyRecord
    root: Path
    leader: str
    place: Path
    machine: Machine
    num_workers: int
    accept_new_stack: bool


def do_task(
    job: Job, unit: str, models: Sequence[str], failed: Sequence[str], call: Callable[..., Any]
) -> None:
    """Do what can be done of a unit by now.

    Args:
        job: of the study.
        unit: its id.
        models: the names of those that it reads or makes.
        failed: the ids of stages that have failed so far.
        call: calls a method of the study's ``Desk`` by its name, and waits for the answer.
    """
    if job.place.is_dir():
        os.chdir(job.place)
    from rankwise.engine.models.libraries import quiet_libraries
    from rankwise.study.agenda import Agenda
    from rankwise.study.canary import check_stack
    from rankwise.study.context import StudyContext
    from rankwise.study.executors.local import do_unit
    from rankwise.study.planning.plan import plan_study

    quiet_libraries()
    process = os.getpid()
    where, own = f"{process} on {socket.gethostname()}", f"{process}-{secrets.token_hex(4)}"
    attempt = Attempt(unit, where, own)
    call("begin", attempt)
    while not call("is_ready", unit):
        time.sleep(_LOOK_SECONDS)
    with _place(job, attempt) as (root, is_shared), heard_of(attempt, call):
        copy = StudyCopy(root, job.root if is_shared else None, attempt, models, call)
        copy.bring()
        folder = StudyFolder(root)
        plan = plan_study(
            job.study.config, folder=folder, machine=job.machine, num_workers=job.num_workers
        )
        relay = Relay(copy)
        context = StudyContext.of(
            changed(plan.in_part(job.study.share), record=job.study),
            folder,
            relay,
            state_saved=None if is_shared else copy.send_state,
        )
        agenda = Agenda(context, failed)
        with context.signals.listening():
            try:
                check_stack(context, agenda.graph, is_accepted=job.accept_new_stack)
                (own,) = (each for each in agenda.units if each.id == unit)
                do_unit(context, agenda, own)
            finally:
                context.models.release()
                relay.send()


@contextlib.contextmanager
def heard_of(attempt: Attempt, call: Callable[..., Any]) -> Generator[None]:
    """Within the block, errors count only while the attempt does.

    Once another has begun, the folder of this one is removed, and whatever it writes fails.

    Raises:
        SupersededError: there was an error, and another attempt has begun.
    """
    try:
        yield
    except RankwiseError:
        call("require_current", attempt)
        raise


@contextlib.contextmanager
def _place(job: Job, attempt: Attempt) -> Generator[tuple[Path, bool]]:
    """Yields a folder for an attempt, and whether it is on the study's own disk."""
    is_shared = leader_in(job.root) == job.leader
    if is_shared:
        yield StudyFolder(job.root).task_folder(attempt.unit, attempt.id), True
        return
    with tempfile.TemporaryDirectory(prefix="rankwise-", ignore_cleanup_errors=True) as root:
        yield Path(root), False


class _ChangedError(Exception):
    """A file of the study was removed or replaced since it was listed."""


class StudyCopy:
    """What a task has of a study: what it needs to read, and what it makes.

    Args:
        root: its own folder.
        study: the study's folder, where the task can see it; None: files come from the desk.
        attempt: at the unit that is done.
        models: those whose files are needed.
        call: see ``do_task``.
    """

    def __init__(
        self,
        root: Path,
        study: Path | None,
        attempt: Attempt,
        models: Sequence[str],
        call: Callable[..., Any],
    ) -> None:
        self._root, self._study, self._models, self._call = root, study, models, call
        self._attempt, self._known, self._removed = attempt, dict[str, State](), set[str]()

    def bring(self) -> None:
        """Bring the files that are needed and not here yet."""
        settled = self._known.keys() | self._removed
        # listed again until nothing is missing: while one file is brought, whoever leads may
        # remove or replace another, such as the state of a training that has ended
        while missing := [
            (name, state)
            for name, state in self._call("files", self._models).items()
            if name not in settled and not (self._root / name).exists()
        ]:
            for name, state in missing:
                try:
                    with replacing(self._root / name) as temporary:
                        self._bring_to(temporary, name, state)
                except _ChangedError:  # or a network disk does not show it yet
                    time.sleep(_LOOK_SECONDS)
        self._known = files_in(self._root)

    def _bring_to(self, path: Path, name: str, state: State) -> None:
        """Bring a file that was listed with a state.

        Raises:
            _ChangedError: it is gone, or another by now.
        """
        if self._study is not None:
            try:
                link_or_copy(self._study / name, path)
            except FileNotFoundError as error:
                raise _ChangedError from error
            return
        with path.open("wb") as file:
            while (piece := self._call("read", name, state, file.tell())) != b"":
                if piece is None:
                    raise _ChangedError
                file.write(piece)

    def tell(self, events: Sequence[Event], *, hands_over: bool = False) -> None:
        """Tell what happened; with ``hands_over``, hand over what was made by then.

        Raises:
            SupersededError: another attempt has begun.
        """
        made: list[str] = []
        removed: list[str] = []
        if hands_over:
            now = files_in(self._root)
            made = [name for name, state in now.items() if self._known.get(name) != state]
            removed = [name for name in self._known if name not in now]
            if self._study is None:
                for name in made:
                    self._send(name)
            self._known = now
            self._removed.update(removed)  # they stay in the study until the letter is taken in
        letter = Letter(self._attempt, tuple(events), tuple(made), tuple(removed))
        self._call("put", letter)
        if hands_over:
            self.bring()  # what others have made meanwhile

    def send_state(self, path: Path) -> None:
        """Send the state of a training, so that another attempt can go on with it."""
        if path.exists():
            self._send(path.relative_to(self._root).as_posix())

    def _send(self, name: str) -> None:
        path = self._root / name
        size = path.stat().st_size
        with path.open("rb") as file:
            is_last = False
            while not is_last:
                offset, content = file.tell(), file.read(PIECE_BYTES)
                is_last = file.tell() >= size
                self._call("write", self._attempt, name, offset, content, is_last)


class Relay:
    """An ``Observer`` that tells the process that leads."""

    def __init__(self, copy: StudyCopy) -> None:
        self._copy = copy
        self._events: list[Event] = []
        self._sent_at = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Send an event soon, and at once where a stage has ended."""
        if isinstance(event, Planned | StageLeftOut):
            return  # whoever leads says so itself
        self._events.append(event)
        has_ended = isinstance(event, StageFinished | StageFailed)
        if has_ended or time.monotonic() - self._sent_at >= _LETTER_SECONDS:
            self.send(hands_over=has_ended)

    def send(self, *, hands_over: bool = False) -> None:
        """Send what has not been sent."""
        if self._events:
            events, self._events = self._events, []
            self._copy.tell(events, hands_over=hands_over)
        self._sent_at = time.monotonic()
