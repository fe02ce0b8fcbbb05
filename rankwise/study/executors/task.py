"""A worker of a cluster: it does each unit in a folder of its own, and hands over what it made."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import sys
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
    UnitOffer,
    Worker,
    files_in,
    link_or_copy,
)
from rankwise.study.observer import Event, Noted, Planned, StageFailed, StageFinished, StageLeftOut

if TYPE_CHECKING:
    from rankwise.study.context import ResidentModels
    from rankwise.study.planning.plan import StudyPlan

_LOOK_SECONDS = 0.1
_LETTER_SECONDS = 0.2
"""Events of small models come by the thousand a second: they are sent together."""


_LOST_CARD = re.compile(r"cuda (driver )?error|cudnn error|triton error \[cuda\]", re.IGNORECASE)
"""Begin messages of a card or driver that fails: of CUDA and cuBLAS, cuDNN, and Triton."""


class Job(NamedTuple):
    """What every worker of a study is given.

    Attributes:
        plan: as the process that leads has made it; see ``packed``.
        root: the study's folder, on the machine of that process.
        leader: what that process has written there: who sees it there sees the folder.
        place: the folder from which relative paths count.
        accept_new_stack: see ``run_study``.
        cache: RANKWISE_CACHE of that process, for those that have none.
    """

    plan: bytes
    root: Path
    leader: str
    place: Path
    accept_new_stack: bool
    cache: str | None


def packed(plan: StudyPlan, pickle: Any) -> bytes:
    """A plan for other processes, without the documents of its tasks: they are requests by now.

    Functions of a task's own files are sent as code: no module of that name can be imported.

    Args:
        plan: of a study.
        pickle: Ray's cloudpickle.
    """
    import datasets

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, datasets.Dataset | datasets.DatasetDict):
                return type(None), ()
            return super().reducer_override(obj)

    for name, module in list(sys.modules.items()):
        if os.sep in name:  # as lm-eval names what it loads from a file
            pickle.register_pickle_by_value(module)
    content = io.BytesIO()
    Pickler(content).dump(changed(plan, planner=None))
    return content.getvalue()


def _unpacked(content: bytes) -> StudyPlan:
    """The plan, with the base where this machine has it."""
    from rankwise.study.planning.model import found_base

    plan: StudyPlan = pickle.loads(content)  # noqa: S301  of whoever leads
    if plan.base.folder.is_dir():
        return plan
    return changed(plan, base=found_base(plan.record.config, lambda _: None)[0])


def work(job: Job, worker: Worker, call: Callable[..., Any]) -> None:
    """Do what the desk has for this process, until there is nothing; the base stays in memory.

    Args:
        job: of the study.
        worker: this process.
        call: calls a method of the study's ``Desk`` by its name, and waits for the answer.
    """
    if job.place.is_dir():
        os.chdir(job.place)
    if job.cache is not None:
        os.environ.setdefault("RANKWISE_CACHE", job.cache)
    from rankwise.engine.models.libraries import quiet_libraries

    quiet_libraries()
    plan: StudyPlan | None = None
    models: ResidentModels | None = None
    while (given := call("next", worker)) is not False:
        if given is True:
            time.sleep(_LOOK_SECONDS)
            continue
        plan = plan or _unpacked(job.plan)
        attempt, offer = given
        models = _do(job, plan, models, attempt, offer, call)


def _do(
    job: Job,
    plan: StudyPlan,
    models: ResidentModels | None,
    attempt: Attempt,
    offer: UnitOffer,
    call: Callable[..., Any],
) -> ResidentModels:
    """Do what can be done of a unit by now; returns what stays in memory.

    A card that fails ends the process, without which nothing else would run on it: the unit is
    begun again, on another node where there is one.
    """
    from rankwise.engine.models.devices import is_out_of_memory
    from rankwise.study.agenda import Agenda
    from rankwise.study.canary import check_stack
    from rankwise.study.context import StudyContext
    from rankwise.study.executors.local import do_unit

    while not call("is_ready", attempt.unit):
        time.sleep(_LOOK_SECONDS)
    with _place(job, attempt) as (root, is_shared), heard_of(attempt, call):
        copy = StudyCopy(root, job.root if is_shared else None, attempt, offer.models, call)
        copy.bring()
        relay = Relay(copy)
        saved = None if is_shared else copy.send_state
        context = StudyContext.of(plan, StudyFolder(root), relay, saved, models)
        agenda = Agenda(context, offer.failed)
        with context.signals.listening():
            try:
                check_stack(context, agenda.graph, is_accepted=job.accept_new_stack)
                (own,) = (each for each in agenda.units if each.id == attempt.unit)
                do_unit(context, agenda, own)
            except RuntimeError as error:
                if _LOST_CARD.search(str(error)) is None or is_out_of_memory(error):
                    raise
                first = str(error).splitlines()[0]
                relay(Noted(f"the process {attempt.process} ends, because its card fails: {first}"))
                relay.send()
                os._exit(1)
            finally:
                context.models.release()
                relay.send()
        return context.models


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
        call: see ``work``.
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
