"""A study at a URL that fsspec reads, such as s3://bucket/study: a folder here mirrors it.

What counts is at the URL. The mirror lies in the user's cache, one for each URL; processes of this
machine share it. Records are brought down when the study is opened, weights and states of training
when they are asked for. What is written here is whole here first, then sent: what was taken away
goes first, then weights and items, then states, and records last. So at the URL no record names
what is not there, and what is cut off in between counts for nothing, or has another digest.

``.mirror.json`` remembers of each file what the store said of it, and in which state it was here.
Where either has changed, the file moves.

Stores have no locks. Whoever runs the study keeps a count in ``.owner.json`` at the URL. Who comes
later refuses where it goes on, and takes over where it stands still for ``OWNER_SECONDS`` by its
own clock. Of two that come at the same moment, the later has it, and the other stops when it sees
that.

No other module names fsspec.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from filelock import FileLock, Timeout

from rankwise.errors import (
    ConfigError,
    RankwiseError,
    StorageError,
    StudyLockedError,
    StudyMovedError,
)
from rankwise.records.checked_files import state_of
from rankwise.records.file_names import MANIFEST
from rankwise.records.files import (
    cache_folder,
    host_name,
    read_regular,
    storage_error,
    temporary_beside,
    write_atomically,
)
from rankwise.records.leases import LEASE_SECONDS, Watch, present

OWNER_SECONDS = 60.0
"""How long a process that runs a study is believed to be there without being heard of."""

_COUNTS, _BELIEVES = 1 / 6, 2 / 3  # of OWNER_SECONDS
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"(?<=://)([^/@\s]*)@")
_KNOWN, _OWNER = ".mirror.json", ".owner.json"
_BATCH = 64
_TRIES = 3
"""So often is tried anew where a file went away between the listing and the reading."""

_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "checksum", "version_aware_etag")
_TIMES = ("mtime", "ino", "created", "LastModified", "last_modified", "modified", "updated")
_RENAMES = {"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"}
"""Where a file that is being written is seen half, and a rename is whole. In object stores, what is
put is seen when it is whole, and a rename is a copy."""


def is_url(text: str) -> bool:
    """Whether a text is the URL of a store rather than a path."""
    return _URL.match(text) is not None


def shown_url(url: str) -> str:
    """A URL without the name, the password and the parameters that may be in it."""
    return _USER.sub("", url).partition("?")[0]


class _Entry(NamedTuple):
    """A file as it was when mirror and store were equal.

    ``mark`` is what the store said of it. ``state`` is that of the file here; None: it was not
    brought down; empty: it was taken away, which the store is still to be told.
    """

    mark: str
    state: list[int] | None


_Known = dict[str, _Entry]


class Mirror:
    """A study at a URL, as this process sees it.

    Attributes:
        url: with what may be secret in it.
        shown: without.
        root: the folder that mirrors it.
        name: of this process, as the store is told it.
        is_new: nothing was brought down yet.

    Args:
        url: of the study.
        leader: the name of the process that runs the study, where this one is led.
    """

    def __init__(self, url: str, leader: str | None = None) -> None:
        self.url, self.shown = url, shown_url(url)
        self.root = _root(url)
        self.name = f"{host_name()}.{os.getpid()}.{secrets.token_hex(4)}"
        self.is_new = True
        self._leader = leader
        self._lock = FileLock(str(self.root / ".mirror.lock"))
        self._owner_lock = FileLock(str(self.root / ".owner.lock"), timeout=0)
        self._last: tuple[list[int], str, _Known] | None = None  # what was read, and of which file
        self._depth = 0
        self._sure_at: float | None = None
        """When this process last saw that the study is its own, or its leader's; None: it runs no
        study, and others may."""

    def pull(self, waits: Callable[[str], bool]) -> None:
        """Bring down what has changed at the URL, and take away what is gone there.

        Args:
            waits: whether a file, by its name in the study, is brought down only by ``fetch``.

        Raises:
            ConfigError: fsspec does not know the protocol, or lacks a package for it.
            StorageError: the URL cannot be read, or the mirror not be written.
        """
        self.is_new = False
        self._patiently("read", lambda: self._pull(waits))

    def _pull(self, waits: Callable[[str], bool]) -> None:
        with self._syncing() as known:
            there = self._listing()
            # where nobody works here, what is gone was not taken away by a study
            heals = not present(self.root, Watch(LEASE_SECONDS))
            for name in known.keys() - there.keys():
                (self.root / name).unlink(missing_ok=True)
                del known[name]
            wanted: list[str] = []
            for name, mark in there.items():
                entry, path = known.get(name), self.root / name
                if entry is not None and _is_here(entry, mark, path, heals=heals):
                    continue
                if not waits(name):
                    wanted.append(name)
                    continue
                path.unlink(missing_ok=True)
                known[name] = _Entry(mark, None)
            self._bring(known, wanted, there)

    def fetch(self, paths: Iterable[Path]) -> None:
        """Bring down files that wait to be asked for, and all that is below such folders.

        Raises:
            StorageError: the URL cannot be read, or the mirror not be written.
        """
        with self._syncing() as known:
            below = {name: known[name] for name in self._below(known, paths)}
            marks = {n: entry.mark for n, entry in below.items() if self._does_wait(n, entry)}
            try:
                self._bring(known, [*marks], marks)
            except FileNotFoundError as error:
                raise self._error("read", error) from None

    def waits(self, path: Path, num_bytes: int) -> bool:
        """Whether a file of this size is at the URL, and was not brought down."""
        name = self._name_of(path) or ""
        entry = self._read()[1].get(name)
        is_same = entry is not None and entry.mark.partition(" ")[0] == str(num_bytes)
        return entry is not None and is_same and self._does_wait(name, entry)

    def _does_wait(self, name: str, entry: _Entry) -> bool:
        """Whether a file was not brought down; one that is here all the same is newer."""
        return entry.state is None and not (self.root / name).exists()

    def forget(self, paths: Iterable[Path]) -> None:
        """Let files and folders that are taken away be so at the URL, too: also what waits there.

        The next ``push`` says so.
        """
        with self._syncing() as known:
            for name in self._below(known, paths):
                if known[name].state is None:
                    known[name] = _Entry(known[name].mark, [])

    def push(self, order: Callable[[str], int]) -> None:
        """Send what has changed here.

        Args:
            order: by the name of a file in the study: files of a lower number are sent first, and
                taken away last.

        Raises:
            StorageError: the URL cannot be written, or another process runs the study by now.
        """
        self._patiently("written", lambda: self._push(order))

    def _push(self, order: Callable[[str], int]) -> None:
        with self._syncing() as known:
            self._require()
            here = self._here()
            gone = [n for n, entry in known.items() if entry.state is not None and n not in here]
            for name in sorted(gone, key=order, reverse=True):
                self._remove(name)
                del known[name]
            changed = [n for n, state in here.items() if n not in known or known[n].state != state]
            for number in sorted({order(name) for name in changed}):
                self._send(known, [name for name in changed if order(name) == number], here)

    @contextlib.contextmanager
    def held(self) -> Generator[bool]:
        """Within the block, this process or its leader runs the study, as far as can be told.

        Yields whether it was not so before.

        Raises:
            StudyLockedError: another process runs it.
            StudyMovedError: this process is led, and its leader has gone.
            StorageError: the URL cannot be read or written.
        """
        self._depth += 1
        try:
            if self._depth > 1:
                yield False
            elif self._leader is not None:
                self._check()
                yield True
            else:
                with self._owned():
                    yield True
        finally:
            self._depth -= 1
            if not self._depth:
                self._sure_at = None

    @contextlib.contextmanager
    def _owned(self) -> Generator[None]:
        with _our_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                self._owner_lock.acquire()
            except Timeout as error:
                raise self._refused() from error
        leaves = threading.Event()
        counting = threading.Thread(
            target=self._keep_counting, args=(leaves,), name="owner", daemon=True
        )
        try:
            self._wait_for_others()
            self._count(0)
            counting.start()
            yield
        finally:
            leaves.set()
            if counting.is_alive():
                counting.join()
            with contextlib.suppress(StorageError):
                if self._owner().get("owner") == self.name:
                    self._remove(_OWNER)
            self._owner_lock.release()

    def _wait_for_others(self) -> None:
        """Until whoever says that it runs the study has not counted for long enough."""
        with self._syncing():
            pass  # which gives the mirror its name
        ours = self._read()[0]
        seen, since = self._owner(), _now()
        while seen and seen.get("mirror") != ours:  # of this mirror only the lock's holder can be
            if _now() - since > OWNER_SECONDS:
                return
            time.sleep(OWNER_SECONDS / 20)
            if (now := self._owner()) not in ({}, seen):
                raise self._refused()
            if not now:
                return

    def _refused(self) -> StudyLockedError:
        return StudyLockedError(
            f"another process runs the study at {self.shown}. Wait for it, or choose another "
            "--study-dir."
        )

    def _count(self, number: int) -> None:
        about = {"owner": self.name, "mirror": self._read()[0], "count": number}
        started = _now()
        with self._reaching("written"):
            self._make_folder(_OWNER)
            place = self._there(_OWNER, is_whole=not self._renames)
            self._store.pipe_file(place, json.dumps(about).encode())
            if self._renames:
                self._store.mv(place, self._there(_OWNER))
        self._sure_at = started

    def _keep_counting(self, leaves: threading.Event) -> None:
        number = 0
        while not leaves.wait(_COUNTS * OWNER_SECONDS):
            number += 1
            with contextlib.suppress(StorageError):  # who is not heard of looks before it sends
                if self._owner().get("owner") != self.name:
                    self._sure_at = -math.inf
                    return
                self._count(number)

    def _require(self) -> None:
        """Refuse to send what another process may have done otherwise by now."""
        if self._sure_at is None or _now() - self._sure_at < _BELIEVES * OWNER_SECONDS:
            return
        try:
            self._check()
        except StudyMovedError as error:
            raise StorageError(f"nothing more is sent to {self.shown}: {error}") from error

    def _check(self) -> None:
        started = _now()
        if self._owner().get("owner") != (self._leader or self.name):
            raise StudyMovedError(
                f"another process runs the study at {self.shown} by now, or who ran it has gone. "
                "Run the study again: finished work is kept."
            )
        self._sure_at = started

    def _owner(self) -> dict[str, Any]:
        """What the process that runs the study says; empty where none does."""
        try:
            with self._reaching("read", tells_missing=True):
                content = self._store.cat_file(self._there(_OWNER))
            return dict(json.loads(content))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):  # whatever it is, somebody has written it
            return {"owner": ""}

    def _listing(self) -> dict[str, str]:
        """Name -> mark of every file of the study at the URL."""
        with self._reaching("read", tells_missing=True):
            self._store.invalidate_cache()
            found: Mapping[str, Any] = self._store.find(self._path, detail=True)
        begin, names = f"{self._path}/", dict[str, str]()
        for path, about in found.items():
            name = path.removeprefix(begin)
            if path.startswith(begin) and about["type"] == "file" and not _is_own(name):
                names[name] = _mark(about)
        return names

    def _here(self) -> dict[str, list[int]]:
        """Name -> state of every file of the study in the mirror."""
        found = dict[str, list[int]]()
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not _is_own(name))
            for file in sorted(name for name in files if not _is_own(name)):
                path = Path(folder, file)
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(self.root).as_posix()] = state_of(path)
        return found

    def _bring(self, known: _Known, names: Sequence[str], marks: Mapping[str, str]) -> None:
        for begin in range(0, len(names), _BATCH):
            batch = names[begin : begin + _BATCH]
            temporary = {name: temporary_beside(self.root / name) for name in batch}
            try:
                for path in temporary.values():
                    path.parent.mkdir(parents=True, exist_ok=True)
                with self._reaching("read", tells_missing=True):
                    here = [str(path) for path in temporary.values()]
                    self._store.get([self._there(name) for name in batch], here)
                for name, path in temporary.items():
                    path.replace(self.root / name)
                    known[name] = _Entry(marks[name], state_of(self.root / name))
            finally:
                for path in temporary.values():
                    path.unlink(missing_ok=True)

    def _send(self, known: _Known, names: Sequence[str], here: Mapping[str, list[int]]) -> None:
        with self._reaching("written", tells_missing=True):
            for begin in range(0, len(names), _BATCH):
                batch = names[begin : begin + _BATCH]
                files = [str(self.root / name) for name in batch]
                for name in batch:
                    self._make_folder(name)
                there = [self._there(name, is_whole=not self._renames) for name in batch]
                self._store.put(files, there)
                for name, place in zip(batch, there, strict=True):
                    if self._renames:
                        self._store.mv(place, self._there(name))
                marks = self._marks(batch)
                known.update({name: _Entry(marks[name], here[name]) for name in batch})

    def _marks(self, names: Iterable[str]) -> dict[str, str]:
        """Of files at the URL, as a listing gives them; asked by name, some stores say more."""
        self._store.invalidate_cache()
        places = {self._there(name): name for name in names}
        folders = {place.rpartition("/")[0] for place in places}
        listed = [about for folder in folders for about in self._store.ls(folder, detail=True)]
        return {places[about["name"]]: _mark(about) for about in listed if about["name"] in places}

    def _there(self, name: str, *, is_whole: bool = True) -> str:
        """The path of a file at the URL; of one that is still being written, another."""
        folder, _, file = name.rpartition("/")
        parts = [self._path, folder, file if is_whole else f".{file}.part"]
        return "/".join(part for part in parts if part)

    def _remove(self, name: str) -> None:
        with (
            contextlib.suppress(FileNotFoundError),
            self._reaching("written", tells_missing=True),
        ):
            self._store.rm_file(self._there(name))

    def _make_folder(self, name: str) -> None:
        if self._renames:  # stores of objects have no folders
            self._store.makedirs(self._there(name).rpartition("/")[0], exist_ok=True)

    def _below(self, known: _Known, paths: Iterable[Path]) -> list[str]:
        wanted = [name for path in paths if (name := self._name_of(path)) is not None]
        return [n for n in known if any(n == name or n.startswith(f"{name}/") for name in wanted)]

    def _name_of(self, path: Path) -> str | None:
        is_ours = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if is_ours else None

    @contextlib.contextmanager
    def _syncing(self) -> Generator[_Known]:
        """Within the block, no other process of this machine brings or sends; yields what is known.

        What came of the block is remembered, also where it failed in the middle.
        """
        assert self._store is not None  # a URL that cannot be opened leaves nothing here
        with _our_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with self._lock:
                own, known = self._read()
                before = dict(known)
                try:
                    yield known
                finally:
                    if known != before or not (self.root / _KNOWN).exists():
                        content = {"mirror": own or secrets.token_hex(8), "files": known}
                        write_atomically(self.root / _KNOWN, json.dumps(content))

    def _read(self) -> tuple[str, _Known]:
        """The name of the mirror, and what is known; nothing where that cannot be read."""
        file = self.root / _KNOWN
        try:
            state = state_of(file)
            if self._last is None or self._last[0] != state:
                content = json.loads(read_regular(file))
                files = {name: _Entry(*entry) for name, entry in content["files"].items()}
                self._last = state, str(content["mirror"]), files
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return "", {}
        return self._last[1], dict(self._last[2])

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        core: Any = importlib.import_module("fsspec.core")
        with self._reaching("opened"):
            try:
                store, path = core.url_to_fs(self.url)
            except (ImportError, ValueError) as error:
                problem = f"fsspec cannot open it: {self._scrubbed(error)}; or give another place"
                raise ConfigError(self.shown, [problem]) from None
        return store, path.rstrip("/")

    @property
    def _store(self) -> Any:
        """The file system of fsspec."""
        return self._opened[0]

    @property
    def _path(self) -> str:
        return self._opened[1]

    @property
    def _renames(self) -> bool:
        protocol = self._store.protocol
        return not _RENAMES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    @contextlib.contextmanager
    def _reaching(self, what: str, *, tells_missing: bool = False) -> Generator[None]:
        """Turn whatever a store's library raises into our error; or all but a missing file."""
        try:
            yield
        except (RankwiseError, TypeError, AttributeError):
            raise
        except Exception as error:  # botocore, google-auth and aiohttp raise their own
            if tells_missing and isinstance(error, FileNotFoundError):
                raise
            raise self._error(what, error) from None

    def _patiently(self, what: str, do: Callable[[], None]) -> None:
        """Do something anew where a file went away in the middle of it, as others work, too."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return do()
            except FileNotFoundError as error:
                if not tries_left:
                    raise self._error(what, error) from None
        return None

    def _error(self, what: str, error: Exception) -> StorageError:
        return StorageError(
            f"{self.shown} cannot be {what}: {self._scrubbed(error)}. Check the address, your "
            "access and the network, then run again: finished work is kept."
        )

    def _scrubbed(self, error: Exception) -> str:
        """What an error says, in a line and without a secret of the URL."""
        text = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
        given = _USER.search(self.url)
        if given is not None:
            _, _, password = given[1].partition(":")
            for secret in filter(None, (given[1], password, unquote(password))):
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
        _, _, parameters = self.url.partition("?")
        return text.replace(f"?{parameters}", "") if parameters else text


_mirrors: dict[Path, Mirror] = {}


def local_folder(place: str | os.PathLike[str], leader: str | None = None) -> Path:
    """The folder of a study: the path itself, or the mirror of a URL. Nothing is read yet.

    Args:
        place: a path or a URL.
        leader: see ``Mirror``.

    Raises:
        ConfigError: the URL names no folder.
    """
    text = os.fspath(place)
    if not is_url(text):
        return Path(text)
    if not text.partition("://")[2].partition("?")[0].strip("/"):
        raise ConfigError(shown_url(text), ["it names no folder; write PROTOCOL://PLACE/FOLDER"])
    mirror = Mirror(text, leader)
    _mirrors[mirror.root] = mirror
    return mirror.root


def mirror_at(root: Path) -> Mirror | None:
    """What this process mirrors in a folder; None for a folder of its own."""
    return _mirrors.get(root)


def address_of(root: Path) -> str:
    """What a command is given for a study: its folder, or its URL without secrets."""
    mirror = mirror_at(root)
    return str(root) if mirror is None else mirror.shown


def _is_here(entry: _Entry, mark: str, path: Path, *, heals: bool) -> bool:
    """Whether a file is here as it is at the URL, or is not to be, or was taken away by a study."""
    return entry.mark == mark and (entry.state is None or path.exists() or not heals)


def _root(url: str) -> Path:
    shown = shown_url(url).rstrip("/")
    words = re.sub(r"[^A-Za-z0-9.-]+", "-", shown).strip("-.")[-60:]
    return cache_folder() / "studies" / f"{words}-{sha256(shown.encode()).hexdigest()[:12]}"


def _is_own(name: str) -> bool:
    """Whether a name is none of the study's: of a process or a machine, or leading elsewhere."""
    name = name.removesuffix(MANIFEST)  # it goes where the files go that it lists
    return name.startswith((".", "/")) or any(part in name for part in ("/.", "//", "\\"))


def _mark(about: Mapping[str, Any]) -> str:
    """Size, and what changes with the content: a checksum if the store has one, else times."""
    tags = [str(about[key]).strip('"') for key in _TAGS if about.get(key)][:1]
    return " ".join([str(about["size"]), *(tags or [str(about.get(key)) for key in _TIMES])])


def _now() -> float:
    return time.monotonic()


@contextlib.contextmanager
def _our_errors(root: Path) -> Generator[None]:
    """Say of the system's errors that the mirror cannot be written."""
    try:
        yield
    except (RankwiseError, FileNotFoundError):
        raise
    except OSError as error:
        raise storage_error(root, error) from error
