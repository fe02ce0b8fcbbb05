"""What a block of code does to the files below a folder, one event after another.

Calls of ``open`` for writing, ``write``, ``fsync``, ``replace``, ``rename``, ``mkdir``, ``unlink``
and ``rmdir`` are seen as Python makes them. What C++ and Rust write is seen as one event, "save",
where Python calls it, and fails as the library fails.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import transformers
from safetensors import SafetensorError

import rankwise
from rankwise.engine.models import adapter_folder
from rankwise.records import files, folder

_PACKAGE = str(Path(rankwise.__file__).parent)
_WRITERS = {files.__file__, contextlib.__file__}


class Site(NamedTuple):
    """Who does what to which kind of file: a function of rankwise, an event, a file's name."""

    function: str
    kind: str
    file: str


class FileEvent(NamedTuple):
    """One event; ``path`` is relative to the folder that is watched."""

    number: int
    site: Site
    path: str


Hook = Callable[[FileEvent], None]


def _nothing(_: FileEvent) -> None: ...


@contextlib.contextmanager
def file_events(
    root: Path, before: Hook = _nothing, after: Hook = _nothing
) -> Generator[list[FileEvent]]:
    """Within the block, the events below ``root`` are collected.

    Args:
        root: a folder, which need not exist.
        before: is called before an event, and in the middle of a write; it may raise OSError.
        after: is called after an event.
    """
    watch = _Watch(root.absolute(), before, after)
    with contextlib.ExitStack() as patches:
        for owner, name, patch in (
            (builtins, "open", watch.opening(builtins.open)),
            (io, "open", watch.opening(io.open)),
            (os, "open", watch.opening_descriptor(os.open)),
            (os, "fsync", watch.syncing(os.fsync)),
            (os, "replace", watch.moving("replace", os.replace)),
            (os, "rename", watch.moving("rename", os.rename)),
            (os, "mkdir", watch.on_path("mkdir", os.mkdir)),
            (os, "unlink", watch.on_path("unlink", os.unlink)),
            (os, "rmdir", watch.on_path("rmdir", os.rmdir)),
            (shutil, "copyfile", watch.copying(shutil.copyfile)),
            (torch, "save", watch.saving(torch.save, _as_torch)),
            (
                adapter_folder,
                "save_file",
                watch.saving(adapter_folder.save_file, _as_safetensors),
            ),
            (
                transformers.modeling_utils,
                "safe_save_file",
                watch.saving(transformers.modeling_utils.safe_save_file, _as_safetensors),
            ),
            (
                transformers.PreTrainedTokenizerFast,
                "_save_pretrained",
                watch.saving(
                    transformers.PreTrainedTokenizerFast._save_pretrained,
                    _as_tokenizers,
                    lambda _, save_directory, **__: Path(save_directory, "tokenizer.json"),
                ),
            ),
        ):
            patches.enter_context(mock.patch.object(owner, name, patch))
        yield watch.events


class _Watch:
    """Wraps functions so that their calls are events."""

    def __init__(self, root: Path, before: Hook, after: Hook) -> None:
        self._root, self._before, self._after = root, before, after
        self.events: list[FileEvent] = []

    def event(self, kind: str, path: Any) -> FileEvent | None:
        """A new event; None outside the folder, and for what a worker counts as time goes by."""
        if threading.current_thread().name == "lease":
            return None
        place = Path(os.fsdecode(path)).absolute()
        if not place.is_relative_to(self._root):
            return None
        name = place.relative_to(self._root).as_posix()
        event = FileEvent(len(self.events) + 1, Site(_function(), kind, _kind_of(place)), name)
        self.events.append(event)
        return event

    @contextlib.contextmanager
    def happening(self, kind: str, path: Any) -> Generator[None]:
        event = self.event(kind, path)
        if event is not None:
            self._before(event)
        try:
            yield
        finally:  # what failed of itself has happened too
            if event is not None:
                self._after(event)

    def opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return original(file, mode, *args, **settings)
            with self.happening("open", file):
                opened = original(file, mode, *args, **settings)
            is_below = Path(os.fsdecode(file)).absolute().is_relative_to(self._root)
            return _Written(opened, self, file) if is_below else opened

        return wrapped

    def opening_descriptor(self, original: Callable[..., int]) -> Callable[..., int]:
        def wrapped(path: Any, flags: int, *args: Any, **settings: Any) -> int:
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return original(path, flags, *args, **settings)
            with self.happening("open", path):
                return original(path, flags, *args, **settings)

        return wrapped

    def syncing(self, original: Callable[[int], None]) -> Callable[[int], None]:
        def wrapped(descriptor: int) -> None:
            path = _path_of(descriptor)
            with self.happening("fsync folder" if path.is_dir() else "fsync", path):
                original(descriptor)

        return wrapped

    def moving(self, kind: str, original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(source: Any, target: Any, **settings: Any) -> None:
            with self.happening(kind, target):
                original(source, target, **settings)

        return wrapped

    def on_path(self, kind: str, original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Any, *args: Any, dir_fd: int | None = None, **settings: Any) -> None:
            place = path if dir_fd is None else _path_of(dir_fd) / os.fsdecode(path)
            with self.happening(kind, place):
                original(path, *args, dir_fd=dir_fd, **settings)

        return wrapped

    def copying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(source: Any, target: Any, **settings: Any) -> Any:
            with self.happening("copy", target):
                return original(source, target, **settings)

        return wrapped

    def saving(
        self,
        original: Callable[..., Any],
        failing: Callable[[OSError], Exception],
        path_of: Callable[..., Any] = lambda _, path, **__: path,
    ) -> Callable[..., Any]:
        def wrapped(*args: Any, **settings: Any) -> Any:
            event = self.event("save", path_of(*args, **settings))
            if event is not None:
                try:
                    self._before(event)
                except OSError as error:
                    raise failing(error) from error
            saved = original(*args, **settings)
            if event is not None:
                self._after(event)
            return saved

        return wrapped


class _Written:
    """An open file whose writes are events; each is interrupted in its middle."""

    def __init__(self, file: Any, watch: _Watch, path: Any) -> None:
        self._file, self._watch, self._path = file, watch, path

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        with self._watch.happening("write", self._path):
            self._file.write(content[half:])
            self._file.flush()
        return len(content)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def _kind_of(path: Path) -> str:
    """A file's name without what makes it temporary, and without the digits of a fingerprint."""
    name = re.sub(r"^\.(.+)\.[^.]+\.\d+\.rankwise-tmp$", r"\1", path.name)
    return re.sub(r"[0-9a-f]{8,}", "*", name)


def _function() -> str:
    """The innermost function of rankwise on the stack, below what writes for all of them."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if (
            code.co_filename.startswith(_PACKAGE)
            and code.co_filename not in _WRITERS
            and code.co_qualname != folder.StudyFolder.write.__qualname__
        ):
            module = Path(code.co_filename).relative_to(_PACKAGE).with_suffix("")
            return f"{'.'.join(module.parts)}.{code.co_qualname}"
        frame = frame.f_back
    return "?"


def _as_torch(_: OSError) -> Exception:
    return RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def _as_safetensors(error: OSError) -> Exception:
    return SafetensorError(
        f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
    )


def _as_tokenizers(error: OSError) -> Exception:
    return Exception(f"{error.strerror} (os error {error.errno})")


def system_error(number: int, event: FileEvent) -> OSError:
    """What the system raises for a number of ``errno``."""
    assert number in errno.errorcode
    return OSError(number, os.strerror(number), event.path)
