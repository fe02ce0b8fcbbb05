"""Workers that share a study's folder: which are there, and which unit of work each has taken.

All of it is files below ``.workers/``, so that it works between machines as well as on one::

    .workers/<crew>/<worker>.worker      a worker: a number that it counts up, and its machine
    .workers/<crew>/<worker>.alive       locked as long as its process lives
    .workers/<crew>/<worker>.progress    how far it is with its unit; none while it has none
    .workers/<crew>/<unit>.<n>.lease     who took a unit the n-th time; only one can create it
    .workers/<crew>/<unit>.<n>.released  it was given back
    .workers/<crew>/<what>.mark          what all workers are to know

**Time.** No two clocks are compared. A worker counts every ``LEASE_SECONDS / 6``. Who has seen its
number stand still for ``LEASE_SECONDS`` by its own clock may take its units. The worker itself
stops believing in them when two thirds of that have passed since it last counted, and then writes
nothing more. So a process that was frozen, or cut off from the file system, notices when it comes
back. That a worker of the same machine has ended is known at once: the system lets go of its lock.

**Taking over.** A lease is never changed or removed while its crew is there: whoever takes a unit
over creates the next one, and of several that try, one can. A crew is of the workers that were
there together. The first to come after all of them have gone begins another one, under the study's
lock, and what is left of the old one is moved away: a worker that wakes up has no place any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from filelock import FileLock

from rankwise.errors import LeaseLostError
from rankwise.records.files import host_name, read_regular, storage_error

LEASE_SECONDS = 60.0
"""How long a worker that is not heard of keeps its units. Threads of Python count through every
long call that was measured, and a network file system may stand still for tens of seconds; a unit
takes minutes to hours."""

_PLACE = ".workers"
_COUNTS, _BELIEVES = 1 / 6, 2 / 3  # of LEASE_SECONDS
_DIGITS = 20


class _Lease(NamedTuple):
    """The last that was taken on a unit."""

    path: Path
    generation: int
    is_released: bool


class Crew:
    """The process as one of the workers that share a folder.

    Only the thread that joins may call it, and it has one unit at a time. Whatever cannot be
    written raises ``StorageError``.

    Attributes:
        name: of this worker: host, process and a random number.
        num_devices: on which it can train.
        is_first: whether no other worker was there when this one joined.
    """

    def __init__(
        self, root: Path, lease_seconds: float | None = None, *, num_devices: int = 1
    ) -> None:
        """Of the folder ``root``; nothing is written yet."""
        self.num_devices = num_devices
        self.name = f"{host_name()}.{os.getpid()}.{secrets.token_hex(4)}"
        self.is_first = False
        self._root = root
        self._seconds = LEASE_SECONDS if lease_seconds is None else lease_seconds
        self._watch = Watch(self._seconds)
        self._crew = root / _PLACE
        self._alive: FileLock | None = None
        self._thread: threading.Thread | None = None
        self._leaves = threading.Event()
        self._counted_at = 0.0
        self._taken: _Lease | None = None
        self._is_lost = False

    def join(self) -> Self:
        """Become a worker of the folder, whose lock must be held."""
        try:
            crews = _crews(self._root)
            there = [crew for crew in crews if any(map(self._watch.is_live, _workers(crew)))]
            if there:
                (self._crew, *_) = there
            else:
                clear(self._root)
                self._crew = self._root / _PLACE / secrets.token_hex(4)
                self._crew.mkdir(parents=True)
            self.is_first = not there
            self._alive = FileLock(str(self._alive_file(self._file)), timeout=0)
            self._alive.acquire()
            self._counted_at = _now()
            about = {"machine": _machine(), "num_devices": self.num_devices}
            self._file.write_bytes(_count(0) + json.dumps(about).encode())
        except OSError as error:
            self.leave()
            raise storage_error(self._crew, error) from error
        self._thread = threading.Thread(target=self._keep_counting, name="lease", daemon=True)
        self._thread.start()
        return self

    def leave(self) -> None:
        """Be a worker no longer; what was taken is given back."""
        self.give_back()
        self._leaves.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        if self._alive is not None:
            with contextlib.suppress(OSError):
                self._alive.release()
                self._alive_file(self._file).unlink(missing_ok=True)

    def others(self) -> list[str]:
        """The names of the other workers that are there."""
        return sorted(file.stem for file in self._others())

    def most_devices(self) -> int:
        """On how many devices one of the workers that are there can train."""
        most = self.num_devices
        for file in self._others():
            with contextlib.suppress(OSError):  # it has just left
                most = max(most, _about(read_regular(file), "num_devices") or 1)
        return most

    def _others(self) -> list[Path]:
        files = [file for file in _workers(self._crew) if file != self._file]
        return [file for file in files if self._watch.is_live(file)]

    def take(self, unit: str) -> bool:
        """Take a unit, if nobody has it.

        Raises:
            LeaseLostError: this worker was not heard of for too long.
        """
        self.require()
        last = self._last(unit)
        if last is not None and not last.is_released and self._has_owner(last):
            return False
        number = 1 if last is None else last.generation + 1
        path = self._crew / f"{unit}.{number}.lease"
        try:
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "wb") as file:
                file.write(self.name.encode())
        except FileExistsError:
            return False  # another worker was faster
        except FileNotFoundError as error:
            raise self._lost() from error
        except OSError as error:
            raise storage_error(path, error) from error
        self._taken = _Lease(path, number, is_released=False)
        return True

    def give_back(self) -> None:
        """Let another worker take the unit, if one is taken."""
        taken, self._taken = self._taken, None
        with contextlib.suppress(OSError):
            self.progress_file.unlink(missing_ok=True)
        if taken is not None:  # where it cannot be written, the worker's leaving says the same
            with contextlib.suppress(OSError):
                taken.path.with_suffix(".released").touch()

    def require(self) -> None:
        """Do nothing as long as what was taken is this worker's; call it before each write.

        Raises:
            LeaseLostError: it was not heard of for so long that another may have taken it.
        """
        if self._is_lost or _now() - self._counted_at > _BELIEVES * self._seconds:
            raise self._lost()

    def mark(self, what: str) -> None:
        """Let all workers of the crew know something."""
        path = self._crew / f"{what}.mark"
        try:
            path.touch()
        except FileNotFoundError as error:
            raise self._lost() from error
        except OSError as error:
            raise storage_error(path, error) from error

    def is_marked(self, what: str) -> bool:
        """Whether a worker of the crew has said so."""
        return (self._crew / f"{what}.mark").exists()

    @property
    def progress_file(self) -> Path:
        """Where it may say how far it is with its unit."""
        return _progress_of(self._file)

    @property
    def _file(self) -> Path:
        return self._crew / f"{self.name}.worker"

    @staticmethod
    def _alive_file(worker: Path) -> Path:
        return worker.with_suffix(".alive")

    def _last(self, unit: str) -> _Lease | None:
        # units' names have no characters that glob understands
        numbers = [int(path.name.split(".")[-2]) for path in self._crew.glob(f"{unit}.*.lease")]
        if not numbers:
            return None
        path = self._crew / f"{unit}.{max(numbers)}.lease"
        return _Lease(path, max(numbers), path.with_suffix(".released").exists())

    def _has_owner(self, lease: _Lease) -> bool:
        """Whether the worker that took it is there; one is about to write its name for a while."""
        try:
            owner = read_regular(lease.path).decode()
        except OSError:  # it cannot be told
            return True
        file = self._crew / f"{owner}.worker" if owner else lease.path
        return self._watch.is_live(file)

    def _lost(self) -> LeaseLostError:
        self._is_lost = True
        return LeaseLostError(
            f"the worker {self.name} of {self._root} was not heard of for "
            f"{_BELIEVES * self._seconds:g} seconds or more, so another may have taken over its "
            "work. Finished work is kept."
        )

    def _keep_counting(self) -> None:
        """Count until the worker leaves, or is too late."""
        number = 0
        while not self._leaves.wait(_COUNTS * self._seconds) and not self._is_lost:
            started, number = _now(), number + 1
            if started - self._counted_at > _BELIEVES * self._seconds or self._is_taken_over():
                self._is_lost = True
                return
            with contextlib.suppress(OSError), self._file.open("r+b") as file:
                file.write(_count(number))
                file.flush()
                os.fsync(file.fileno())
                self._counted_at = started

    def _is_taken_over(self) -> bool:
        """Whether clocks or network have let another worker take this one's unit all the same."""
        taken = self._taken
        if taken is None:
            return False
        unit = taken.path.name.removesuffix(f".{taken.generation}.lease")
        return (self._crew / f"{unit}.{taken.generation + 1}.lease").exists()


class Watch:
    """Which workers are there, as one process sees them."""

    def __init__(self, lease_seconds: float) -> None:
        """A worker that stands still for ``lease_seconds`` is not."""
        self._seconds = lease_seconds
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._sure: set[Path] = set()

    def is_live(self, file: Path) -> bool:
        """Whether a worker is there, by its file; one of another machine is until it is watched."""
        try:
            content = read_regular(file)
        except FileNotFoundError:
            return False
        except OSError:  # a network file system that is not reached says nothing
            return True
        is_here = _is_here(content)
        if is_here and _has_ended(file):
            return False
        seen, since = self._seen.get(file, (None, 0.0))
        if seen != content:
            self._seen[file] = content, _now()
            if is_here or seen is not None:
                self._sure.add(file)
            return True
        return _now() - since < self._seconds

    def is_sure(self, file: Path) -> bool:
        """Whether a live worker is known to be there: it is of this machine, or was seen to count.

        Call it after ``is_live``.
        """
        return file in self._sure


class Present(NamedTuple):
    """A worker that is there, as others see it.

    Attributes:
        name: host, process and a random number.
        progress_file: how far it is with its unit; missing while it has none.
    """

    name: str
    progress_file: Path


def present(root: Path, watch: Watch) -> list[Present]:
    """The workers of a folder that are there."""
    return sorted(Present(file.stem, _progress_of(file)) for file in _live(root, watch))


def are_at_work(root: Path, *, patient: bool = True, lease_seconds: float | None = None) -> bool:
    """Whether a folder, whose lock is held, has workers.

    Args:
        root: the folder.
        patient: watch one of another machine, which may have gone without leaving, for up to
            ``lease_seconds``; otherwise it counts as there.
        lease_seconds: None: ``LEASE_SECONDS``.
    """
    seconds = LEASE_SECONDS if lease_seconds is None else lease_seconds
    watch = Watch(seconds)
    while True:
        live = _live(root, watch)
        if not live or not patient or any(map(watch.is_sure, live)):
            return bool(live)
        time.sleep(seconds / 20)


def clear(root: Path) -> None:
    """Remove what is left of workers that are gone, from a folder whose lock is held.

    A crew's place is moved away first: whoever wakes up finds none of it.
    """
    place = root / _PLACE
    for crew in _crews(root):
        crew.rename(crew.with_name(f".{crew.name}"))
    shutil.rmtree(place, ignore_errors=True)


def _crews(root: Path) -> list[Path]:
    place = root / _PLACE
    if not place.is_dir():
        return []
    return sorted(crew for crew in place.iterdir() if not crew.name.startswith("."))


def _live(root: Path, watch: Watch) -> list[Path]:
    """The files of the workers that are there."""
    return [file for crew in _crews(root) for file in _workers(crew) if watch.is_live(file)]


def _workers(crew: Path) -> Iterator[Path]:
    return crew.glob("*.worker")


def _progress_of(worker: Path) -> Path:
    return worker.with_suffix(".progress")


def _is_here(content: bytes) -> bool:
    """Whether a worker is of this machine."""
    return _about(content, "machine") == _machine()


def _about(content: bytes, what: str) -> Any:
    """What a worker's file says of it; None where it says nothing."""
    try:
        return json.loads(content[_DIGITS:])[what]
    except (ValueError, KeyError, TypeError):
        return None


def _has_ended(worker: Path) -> bool:
    """Whether the process of a worker of this machine has ended: nobody holds its lock."""
    alive = worker.with_suffix(".alive")
    lock = FileLock(str(alive), timeout=0)
    try:
        lock.acquire()
    except OSError:  # it is held, or cannot be asked
        return False
    with contextlib.suppress(OSError):
        lock.release()
    return True


def _machine() -> str:
    """The same in all processes of one running system, and in its containers."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return host_name()


def _now() -> float:
    """Seconds that go on while a process or the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _count(number: int) -> bytes:
    return b"%0*d" % (_DIGITS, number)
