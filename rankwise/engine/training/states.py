"""States of an interrupted training on disk: whole, and checked before any training goes on."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import RecordError
from rankwise.records.files import replacing

# In messages of torch's writer in C++, which does not say why the system wrote less than it should.
# (Writing through a file of Python's would say so, and takes up to twice as long.)
_WRITER = ("inline_container", "PytorchStreamWriter")


UNUSABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError),
)
"""What zipfile, torch and its optimizers raise for bytes and entries that make no sense."""


class UnusableStateError(RecordError):
    """A file that no training can go on from; says why, in a few words."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all; torch adds a checksum of each tensor.

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


def read_state(path: Path) -> dict[str, Any]:
    """Read what ``write_state`` wrote, on the CPU; nothing in it can run code.

    torch does not compare the checksums when it reads. This does, and notices every flipped byte of
    a tensor, at 2.7 GB/s measured, a part of the file at a time.

    Raises:
        UnusableStateError: the file is damaged, or is none that torch has written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("another checksum")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UNUSABLE as error:
        raise UnusableStateError("it is cut or damaged") from error
    if not isinstance(content, dict):
        raise UnusableStateError("it holds no state of a training")
    return content  # pyright: ignore[reportUnknownVariableType]
