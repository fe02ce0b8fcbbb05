"""States of an interrupted training on disk: whole, and checked before any training goes on."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from rankwise.engine.models.devices import free_bytes, is_out_of_memory
from rankwise.errors import RecordError
from rankwise.records.files import replacing, require_regular

# In messages of torch's writer in C++, which does not say why the system wrote less than it should.
# (Writing through a file of Python's would say so, and takes up to twice as long.)
_WRITER = ("inline_container", "PytorchStreamWriter")


UNUSABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError),
)
"""What zipfile, torch and its optimizers raise for bytes and entries that make no sense."""


# Bytes of states that are copied at once: a container may have less memory than its host says. The
# adapters of an 8B model at ranks 8 to 128 take 13 GB, and a full fine-tuning takes more.
_MOST_COPIED = 16 << 30


class UnusableStateError(RecordError):
    """A file that no training can go on from; says why, in a few words."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all; torch adds a checksum of each tensor.

    A new state is whole before the old one goes, so for a while the disk holds both. This cannot be
    spared: a state is the weights and moments of one step, and where parts of it were written over
    the old ones, a process that is killed would leave no whole state. In a pass it is one trainee's
    state that is there twice, as each has a file of its own.

    Raises:
        StorageError: the file cannot be written.
    """
    with replacing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:
            if not any(words in str(error) for words in _WRITER):
                raise
            raise OSError("not everything could be written") from error


class StateWriter:
    """Writes states while the training goes on, where it runs on another device than the CPU.

    What is written is then a copy in the memory of the CPU, one state after the other. Where there
    is no room for a copy, and on a CPU, whose memory holds the state itself, the training waits.

    The copy is not in pinned memory, which would be filled faster: by an estimate that spares
    seconds in a quarter of an hour. torch rounds a pinned block up to a power of 2 and keeps it
    until the process ends.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._begun: list[tuple[Future[None], int]] = []  # with the bytes of the copy

    def write(self, path: Path, state: dict[str, Any]) -> None:
        """Write a state as :func:`write_state`, now or soon; a later call keeps the order.

        Raises:
            StorageError: this file or an earlier one cannot be written.
        """
        size = _bytes_elsewhere(state)
        while self._begun and self._begun[0][0].done():
            self._begun.pop(0)[0].result()
        # half of what is free: the system's own cache needs room for what is being written
        room = min(_MOST_COPIED, free_bytes(torch.device("cpu")) // 2)
        if sum((size for _, size in self._begun), start=size) > room:
            self.finish()
        if not 0 < size <= room:
            write_state(path, state)
            return
        copied = tree_map_only(Tensor, lambda each: each.detach().to("cpu", copy=True), state)
        self._begun.append((self._thread.submit(write_state, path, copied), size))

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            StorageError: a file cannot be written; the others are.
        """
        begun, self._begun = [future for future, _ in self._begun], []
        wait(begun)
        for future in begun:
            future.result()


def _bytes_elsewhere(state: dict[str, Any]) -> int:
    """The bytes of the tensors that are not in the memory of the CPU."""
    tensors = [each for each in tree_leaves(state) if isinstance(each, Tensor)]
    return sum(each.nbytes for each in tensors if each.device.type != "cpu")


def read_state(path: Path) -> dict[str, Any]:
    """Read what ``write_state`` wrote, on the CPU; nothing in it can run code.

    torch does not compare the checksums when it reads. This does, and notices every flipped byte of
    a tensor, at 2.7 GB/s measured, a part of the file at a time.

    Raises:
        UnusableStateError: the file is damaged, or is none that torch has written.
    """
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("another checksum")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UNUSABLE as error:
        if is_out_of_memory(error):
            raise
        raise UnusableStateError("it is cut or damaged") from error
    if not isinstance(content, dict):
        raise UnusableStateError("it holds no state of a training")
    return content  # pyright: ignore[reportUnknownVariableType]
